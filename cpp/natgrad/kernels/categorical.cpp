// Categorical actions: softmax over the logits of each row. Computed in double.
//
// All columns of a row share a normaliser. So a vector holds one column of a strip of rows, as many rows
// as it has lanes.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/wide.hpp"

namespace NATGRAD_NAMESPACE {
namespace {

// One column of the rows of a strip, `ld` apart; `count` rows exist, and other lanes repeat the first.
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

// The columns of a strip of rows. The first few are kept, so that most are fetched only once.
template <bool whole, class T>
struct Columns {
  static constexpr Index kKept = 16;
  const T* p;
  Index ld, n, count;
  Wide kept[kKept];

  NATGRAD_INLINE Columns(const T* first, Index ld_, Index n_, Index count_)
      : p(first), ld(ld_), n(n_), count(count_) {
    kept[0] = load_column<whole>(p, ld, count);  // there is at least one
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
  // Replaces the columns by the weights of a softmax, exp(y - shift), and returns their sum.
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
double categorical_log_probs(const VariableRows<T>& p, double* log_probs) {
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

// KL = sum p (log p - log p_new). Close to p the two logarithms nearly cancel. With the differences e_i of
// the logits, KL = log(sum p exp(e)) - sum p e, whose second order log1p and expm1 keep. A common shift
// of the logits changes nothing, so the first difference is subtracted from all.
template <class T>
double categorical_divergence(const VariableRows<T>& p, const T* old_y, Index ldold) {
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
void categorical_scores(const VariableRows<T>& p, const double* scale, T* out, Index ldout,
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
void categorical_probabilities(const VariableRows<T>& p, T* out, Index ldout) {
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

template <class T>
void add_categorical(Kernels<T>* kernels) {
  kernels->categorical_log_probs = categorical_log_probs<T>;
  kernels->categorical_divergence = categorical_divergence<T>;
  kernels->categorical_scores = categorical_scores<T>;
  kernels->categorical_probabilities = categorical_probabilities<T>;
  kernels->categorical_products = categorical_products<T>;
}
template void add_categorical(Kernels<float>*);
template void add_categorical(Kernels<double>*);

}  // namespace NATGRAD_NAMESPACE
