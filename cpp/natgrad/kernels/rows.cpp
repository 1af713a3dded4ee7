// What is done row by row, at both ends of the network: normalisation of its input, and distributions
// of actions at its output. Compiled once per level, like dense_layer.cpp.
//
// Everything is computed in double. Rows come in strips of as many as a vector has lanes. Where the
// columns of a row are independent until they are added up (a Gaussian), a vector holds columns of one
// row and the sums of a strip are made at once, by folding; where all columns of a row share a
// normaliser (a categorical variable), it holds one column of the strip.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/wide.hpp"

namespace NATGRAD_NAMESPACE {
namespace {

using natgrad::kernels::Rows;

// One column of rows ld apart, of which `count` are there. What is loaded for other lanes repeats the first.
template <bool whole, class T>
NATGRAD_INLINE Wide load_column(const T* p, Index ld, Index count) {
  typename Narrow<T>::vec x;
#pragma GCC unroll 8
  for (Index i = 0; i < kWideLanes; ++i) x[i] = p[whole || i < count ? i * ld : 0];
  return widen<T>(x);
}
template <bool whole, class T>
NATGRAD_INLINE void store_column(T* p, Index ld, Wide x, Index count) {
  const typename Narrow<T>::vec values = narrow<T>(x);
#pragma GCC unroll 8
  for (Index i = 0; i < kWideLanes; ++i) {
    if (whole || i < count) p[i * ld] = values[i];
  }
}

// x[i] + x[i ^ bit] in the lanes i without that bit, the same of y in those with it.
template <int bit>
NATGRAD_INLINE Wide fold(Wide x, Wide y) {
#ifdef __clang__
  Wide result;
  for (int i = 0; i < kWideLanes; ++i) result[i] = i & bit ? y[i] + y[i ^ bit] : x[i] + x[i ^ bit];
  return result;
#else
  IVec<double> own, partner;
#pragma GCC unroll 8
  for (int i = 0; i < kWideLanes; ++i) {
    own[i] = i & bit ? kWideLanes + i : i;
    partner[i] = own[i] ^ bit;
  }
  return __builtin_shuffle(x, y, own) + __builtin_shuffle(x, y, partner);
#endif
}

// The sum of the lanes of v[m] in lane m: neighbours are folded by the lowest bit, and so on.
template <int M>
NATGRAD_INLINE Wide lane_sums(const Wide* v) {
  if constexpr (M == 1) {
    return v[0];
  } else {
    Wide half[M / 2];
#pragma GCC unroll 4
    for (int m = 0; m < M / 2; ++m) half[m] = fold<kWideLanes / M>(v[2 * m], v[2 * m + 1]);
    return lane_sums<M / 2>(half);
  }
}

// --- inputs --------------------------------------------------------------------------------------

template <class T>
void normalize(const T* x, Index ldx, Index rows, Index columns, const double* mean,
               const double* inverse_std, double clip, T* h, Index ldh) {
  for (Index c = 0; c < ldh; c += kWideLanes) {
    if (c >= columns) {
      for (Index r = 0; r < rows; ++r) store_wide(h + r * ldh + c, Wide{});
      continue;
    }
    const Wide from = load_wide<false>(mean + c, columns - c);
    const Wide scale = load_wide<false>(inverse_std + c, columns - c);
    const IVec<double> inside = first_lanes(columns - c);
    const Index whole = whole_rows(rows, columns, ldx);
    for (Index r = 0; r < rows; ++r) {
      const T* at = x + r * ldx + c;
      const Wide value = r < whole ? load_wide(at) : load_wide<false>(at, columns - c);
      store_wide(h + r * ldh + c, only(clamp<double>((value - from) * scale, -clip, clip), inside));
    }
  }
}

// --- objectives ----------------------------------------------------------------------------------

double ratios(const double* log_probs, const double* behaviour, const double* baseline,
              const double* weights, Index rows, double* kept) {
  Wide total = {};
  for_each_strip(rows, rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    const Wide ratio = exp<double>(load_wide<is_whole>(log_probs + r, count) -
                                   load_wide<is_whole>(behaviour + r, count));
    if (kept != nullptr) store_wide<is_whole>(kept + r, ratio, count);
    const Wide above =
        baseline != nullptr ? ratio - load_wide<is_whole>(baseline + r, count) : ratio;
    total += above * load_wide<is_whole>(weights + r, count);
  });
  return sum(total);
}

double sum_of_roots(const double* squares, Index rows) {
  Wide total = {};
  for_each_strip(rows, rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    total += root(load_wide<decltype(whole)::is>(squares + r, count));
  });
  return sum(total);
}

// --- Gaussian ------------------------------------------------------------------------------------

template <class T>
double gaussian_distances(const Rows<T>& p, const T* x, Index ldx, double* distances) {
  const Index readable = whole_rows(p.rows, p.n, ldx);
  Wide total = {};
  const auto strip = [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    Wide squares[kWideLanes] = {};
    const auto add_columns = [&](Index c) NATGRAD_LAMBDA {
      const IVec<double> inside = first_lanes(p.n - c);
      const Wide inverse_std = load_wide(p.inverse_std + c);
#pragma GCC unroll 8
      for (Index m = 0; m < kWideLanes; ++m) {
        if (!is_whole && m == count) break;
        const T* at = x + (r + m) * ldx + c;
        const bool vectors = is_whole || r + m < readable;
        const Wide apart = (vectors ? load_wide(at) : load_wide<false>(at, p.n - c)) -
                           load_wide(p.y + (r + m) * p.ldy + c);
        const Wide z = only(apart * inverse_std, inside);
        squares[m] += z * z;
      }
    };
    add_columns(0);  // most have no more than these
    for (Index c = kWideLanes; c < p.n; c += kWideLanes) add_columns(c);
    const Wide sums = lane_sums<kWideLanes>(squares);
    if (distances != nullptr) store_wide<is_whole>(distances + r, sums, count);
    total += sums;
  };
  for_each_strip(p.rows, readable, strip);
  return sum(total);
}

// Whole vectors may pass the end of their row, into rows that are written later.
template <class T>
void gaussian_scores(const Rows<T>& p, const double* scale, T* out, Index ldout, double* squares) {
  const Index writable = p.rows - (p.n + padded(p.n) - 1) / ldout;
  const Index readable = whole_rows(p.rows, p.n, p.ldaction);
  const Index safe = readable < writable ? readable : writable;
  const auto strip = [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    Wide sums[kWideLanes] = {};
#pragma GCC unroll 8
    for (Index m = 0; m < kWideLanes; ++m) {
      if (!is_whole && m == count) break;
      const T* y = p.y + (r + m) * p.ldy;
      const T* action = p.action + (r + m) * p.ldaction;
      T* to = out + (r + m) * ldout;
      const bool vectors = is_whole || r + m < safe;
      const auto columns = [&](Index c, bool of_log_std) NATGRAD_LAMBDA {
        const Wide inverse_std = load_wide(p.inverse_std + c);
        const Wide x = vectors ? load_wide(action + c) : load_wide<false>(action + c, p.n - c);
        const Wide z = (x - load_wide(y + c)) * inverse_std;
        const Wide score = of_log_std ? z * z - 1.0 : z * inverse_std;
        const Wide value = only(scale[r + m] * score, first_lanes(p.n - c));
        T* at = to + (of_log_std ? p.n : 0) + c;
        if (vectors) {
          store_wide(at, value);
        } else {
          store_wide<false>(at, value, p.n - c);
        }
        sums[m] += value * value;
      };
      columns(0, false);
      for (Index c = kWideLanes; c < p.n; c += kWideLanes) columns(c, false);
      columns(0, true);
      for (Index c = kWideLanes; c < p.n; c += kWideLanes) columns(c, true);
    }
    store_wide<is_whole>(
        squares + r, load_wide<is_whole>(squares + r, count) + lane_sums<kWideLanes>(sums), count);
  };
  for_each_strip(p.rows, safe, strip);
}

template <class T>
void log_slopes(const T* u, Index ldu, Index rows, Index n, double* out) {
  for_each_strip(
      rows, whole_rows(rows, n, ldu), [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
        constexpr bool is_whole = decltype(whole)::is;
        constexpr double log_two = 0.69314718055994530942;
        Wide sums[kWideLanes] = {};
        for (Index c = 0; c < n; c += kWideLanes) {
          const IVec<double> inside = first_lanes(n - c);
#pragma GCC unroll 8
          for (Index m = 0; m < kWideLanes; ++m) {
            if (!is_whole && m == count) break;
            const Wide z =
                2.0 * magnitude<double>(load_wide<is_whole>(u + (r + m) * ldu + c, n - c));
            sums[m] += only(log_two - z - 2.0 * log1p<double>(exp<double>(-z)), inside);
          }
        }
        store_wide<is_whole>(out + r, lane_sums<kWideLanes>(sums), count);
      });
}

template <class T>
void diagonal_products(const T* s, const double* scale, const T* u, Index ldu, Index rows,
                       Index columns, T* out, Index ldout) {
  typedef typename Simd<T>::loose Loose;
  for (Index c = 0; c < columns; c += Simd<T>::lanes) {
    const Vec<T> curvature = *(const Loose*)(s + c);
    for (Index r = 0; r < rows; ++r) {
      *(Loose*)(out + r * ldout + c) = (T)scale[r] * curvature * *(const Loose*)(u + r * ldu + c);
    }
  }
}

// --- categorical ---------------------------------------------------------------------------------

// The columns of a strip of rows; a few are kept, so that most are fetched once.
template <bool whole, class T>
struct Columns {
  static constexpr Index kKept = 16;
  const T* p;
  Index ld, n, count;
  Wide kept[kKept];

  NATGRAD_INLINE Columns(const T* first, Index ld_, Index n_, Index count_)
      : p(first), ld(ld_), n(n_), count(count_) {
    kept[0] = load_column<whole>(p, ld, count);  // there is one at least
    for (Index c = 1; c < n && c < kKept; ++c) kept[c] = load_column<whole>(p + c, ld, count);
  }
  NATGRAD_INLINE Wide operator[](Index c) const {
    return c < kKept ? kept[c] : load_column<whole>(p + c, ld, count);
  }
  NATGRAD_INLINE Wide largest() const {
    Wide x = (*this)[0];
    for (Index c = 1; c < n; ++c) x = larger(x, (*this)[c]);
    return x;
  }
  // What a softmax takes of each column, exp(y - shift), and their sum.
  NATGRAD_INLINE Wide exponentiate(Wide shift) {
    Wide mass = {};
    for (Index c = 0; c < n; ++c) {
      const Wide weight = exp<double>((*this)[c] - shift);
      if (c < kKept) kept[c] = weight;
      mass += weight;
    }
    return mass;
  }
  NATGRAD_INLINE Wide exponential(Index c, Wide shift) const {
    return c < kKept ? kept[c] : exp<double>((*this)[c] - shift);
  }
};

template <class T>
double categorical_log_probs(const Rows<T>& p, double* log_probs) {
  Wide entropy = {};
  for_each_strip(p.rows, p.rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    const Columns<is_whole, T> y(p.y + r * p.ldy, p.ldy, p.n, count);
    const Wide largest = y.largest();
    Wide mass = {}, weighted = {}, chosen = {};
    for (Index c = 0; c < p.n; ++c) {
      const Wide z = y[c] - largest, weight = exp<double>(z);
      mass += weight;
      weighted += weight > 0.0 ? weight * z : Wide{};
    }
    const Wide normalizer = log<double>(mass);
    for (Index i = 0; i < count; ++i) {
      chosen[i] = (double)p.y[(r + i) * p.ldy + (Index)p.action[(r + i) * p.ldaction]];
    }
    store_wide<is_whole>(
        log_probs + r,
        load_wide<is_whole>(log_probs + r, count) + ((chosen - largest) - normalizer), count);
    entropy += only(normalizer - weighted / mass, first_lanes(count));
  });
  return sum(entropy);
}

NATGRAD_INLINE bool any(IVec<double> lanes) {
  int64_t bits = 0;
#pragma GCC unroll 8
  for (int i = 0; i < kWideLanes; ++i) bits |= lanes[i];
  return bits != 0;
}

// KL = sum p (log p - log p_new). Near p both logarithms are nearly equal; with the differences of
// logits e_i it is log(sum p exp(e)) - sum p e, and log1p and expm1 keep its second order. A common
// shift of the logits changes nothing; the first difference is taken out.
template <class T>
double categorical_divergence(const Rows<T>& p, const T* old_y, Index ldold) {
  Wide total = {};
  for_each_strip(p.rows, p.rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    const Columns<is_whole, T> y(p.y + r * p.ldy, p.ldy, p.n, count);
    const Columns<is_whole, T> old(old_y + r * ldold, ldold, p.n, count);
    const Wide old_largest = old.largest(), shift = y[0] - old[0];
    Wide spread = {}, mass = {}, mean = {}, mean_expm1 = {};
    for (Index c = 0; c < p.n; ++c) {
      const Wide e = (y[c] - old[c]) - shift, weight = exp<double>(old[c] - old_largest);
      spread = larger(spread, magnitude<double>(e));
      mass += weight;
      mean += weight > 0.0 ? weight * e : Wide{};
      mean_expm1 += weight * expm1<double>(clamp<double>(e, -1.0, 1.0));
    }
    mean /= mass;
    Wide divergence = log1p<double>(mean_expm1 / mass) - mean;
    const IVec<double> near = spread < 1.0;
    if (any(~near)) {
      const Wide largest = y.largest();
      Wide new_mass = {};
      for (Index c = 0; c < p.n; ++c) new_mass += exp<double>(y[c] - largest);
      const Wide far = (largest - old_largest - shift) + (log<double>(new_mass / mass) - mean);
      divergence = near ? divergence : far;
    }
    total += only(divergence, first_lanes(count));
  });
  return sum(total);
}

template <class T>
void categorical_scores(const Rows<T>& p, const double* scale, T* out, Index ldout,
                        double* squares) {
  for_each_strip(p.rows, p.rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    Columns<is_whole, T> y(p.y + r * p.ldy, p.ldy, p.n, count);
    const Wide largest = y.largest(), mass = y.exponentiate(largest);
    const Wide chosen = load_column<is_whole>(p.action + r * p.ldaction, p.ldaction, count);
    const Wide weight = load_wide<is_whole>(scale + r, count);
    Wide sums = load_wide<is_whole>(squares + r, count);
    for (Index c = 0; c < p.n; ++c) {
      const Wide hit = chosen == (double)c ? Wide{} + 1.0 : Wide{};
      const Wide value = weight * (hit - y.exponential(c, largest) / mass);
      store_column<is_whole>(out + r * ldout + c, ldout, value, count);
      sums += value * value;
    }
    store_wide<is_whole>(squares + r, sums, count);
  });
}

template <class T>
void probabilities(const Rows<T>& p, T* out, Index ldout) {
  for_each_strip(p.rows, p.rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    Columns<is_whole, T> y(p.y + r * p.ldy, p.ldy, p.n, count);
    const Wide largest = y.largest(), mass = y.exponentiate(largest);
    for (Index c = 0; c < p.n; ++c) {
      store_column<is_whole>(out + r * ldout + c, ldout, y.exponential(c, largest) / mass, count);
    }
  });
}

template <class T>
void categorical_products(Index rows, Index n, const T* p, Index ldp, const double* scale,
                          const T* u, Index ldu, T* out, Index ldout) {
  for_each_strip(rows, rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    const Columns<is_whole, T> mass(p + r * ldp, ldp, n, count);
    const Columns<is_whole, T> along(u + r * ldu, ldu, n, count);
    const Wide weight = load_wide<is_whole>(scale + r, count);
    Wide mean = {};
    for (Index c = 0; c < n; ++c) mean += mass[c] * along[c];
    for (Index c = 0; c < n; ++c) {
      const Wide value = weight * mass[c] * (along[c] - mean);
      store_column<is_whole>(out + r * ldout + c, ldout, value, count);
    }
  });
}

}  // namespace

extern const natgrad::kernels::RowTable<float> rows_f32;
extern const natgrad::kernels::RowTable<double> rows_f64;

template <class T>
constexpr natgrad::kernels::RowTable<T> table() {
  return {normalize<T>,
          ratios,
          sum_of_roots,
          gaussian_distances<T>,
          gaussian_scores<T>,
          log_slopes<T>,
          diagonal_products<T>,
          categorical_log_probs<T>,
          categorical_divergence<T>,
          categorical_scores<T>,
          probabilities<T>,
          categorical_products<T>};
}
constexpr natgrad::kernels::RowTable<float> rows_f32 = table<float>();
constexpr natgrad::kernels::RowTable<double> rows_f64 = table<double>();

}  // namespace NATGRAD_NAMESPACE
