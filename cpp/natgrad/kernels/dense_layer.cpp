// The dense-layer kernels of one instruction set level. CMake compiles this file once per level with
// that level's flags, NATGRAD_NAMESPACE and NATGRAD_VECTOR_BYTES; see kernels.hpp for the contract.
//
// Both products are sums of outer products of a broadcast scalar and a vector, so one register
// block serves both (Goto and van de Geijn 2008; the block of BLIS, without its packing of A):
//
//                 b[k][0..V)   V vectors                multiply:    a(m, k) = A[m][k]   (row of tile)
//               +-----------+                           accumulate:  a(m, k) = D[k][m]   (column of D)
//   a(m, k) ->  |  M x V    |   += a(m, k) * b[k][v]
//               | registers |
//               +-----------+
//
// M x V fills the register file: 24 accumulators of 32 registers (AVX-512), 12 of 16 (AVX2, SSE).
// Narrow outputs take taller blocks, so that enough independent accumulators hide the FMA latency.
// Loops over the accumulators must be unrolled completely or GCC keeps them in memory.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/vector_math.hpp"

namespace NATGRAD_NAMESPACE {

using natgrad::kernels::Accumulate;
using natgrad::kernels::Activation;
using natgrad::kernels::Epilogue;
using natgrad::kernels::kPanelBytes;
using natgrad::kernels::Multiply;

typedef ptrdiff_t Index;

// Widest block in vectors, and the tallest block for each width.
constexpr int kMaxVectors = NATGRAD_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kLaneVectors = 64 / NATGRAD_VECTOR_BYTES;  // vectors in a 64-byte lane group
constexpr int block_height(int vectors) {
  return NATGRAD_VECTOR_BYTES == 64 ? (vectors == 4   ? 6
                                       : vectors == 3 ? 8
                                                      : 12)
                                    : (vectors == 2 ? 6 : 12);
}

template <class T>
inline Vec<T> load(const T* p) {
  return *(const typename Simd<T>::loose*)p;
}
template <class T>
inline void store(T* p, Vec<T> x) {
  *(typename Simd<T>::loose*)p = x;
}

// One step of the block's k-loop: acc[m][v] += a(m) * b[v].
template <class T, int M, int V>
inline __attribute__((always_inline)) void outer_product(Vec<T> (&acc)[M][V], const T* a,
                                                         Index stride_m, const T* b) {
  Vec<T> row[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) row[v] = load<T>(b + v * Simd<T>::lanes);
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    const T scalar = a[m * stride_m];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[m][v] += scalar * row[v];
  }
}

// --- activations ---------------------------------------------------------------------------------

// z <- act(z) in place, for (rows, columns) with columns a whole number of vectors; slope <- act'(z)
// where the value does not determine it. One loop per activation: its constants stay in registers.
template <class T>
struct Activate {
  T* z;
  Index ldz;
  T* slope;
  Index ldslope, rows, columns;

  template <class F>
  void values(F f) const {
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < columns; c += Simd<T>::lanes) {
        T* at = z + r * ldz + c;
        store<T>(at, f(load<T>(at)));
      }
    }
  }

  template <class F>
  void values_and_slopes(F f) const {
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < columns; c += Simd<T>::lanes) {
        T* at = z + r * ldz + c;
        Vec<T> derivative;
        store<T>(at, f(load<T>(at), &derivative));
        store<T>(slope + r * ldslope + c, derivative);
      }
    }
  }

  void operator()(Activation activation) const {
    switch (activation) {
      case Activation::tanh:
        return values([](Vec<T> x) { return tanh<T>(x); });
      case Activation::relu:
        return values([](Vec<T> x) { return relu<T>(x); });
      case Activation::elu:
        return values([](Vec<T> x) { return elu<T>(x); });
      case Activation::silu:
        return values_and_slopes([](Vec<T> x, Vec<T>* d) { return silu<T>(x, d); });
      case Activation::gelu:
        return values_and_slopes([](Vec<T> x, Vec<T>* d) { return gelu<T>(x, d); });
      case Activation::identity:
        return;
    }
  }
};

// --- multiply ------------------------------------------------------------------------------------

// Depth of one pass over a panel: kDepth * kPanelBytes = 32 KiB of B stay in the first-level cache
// while all rows of the tile go by. Deeper products take several passes and keep their partial sums
// in C.
constexpr Index kDepth = 128;

// The part of a product that one pass covers: a (M, k) with stride lda, b (k, width) of the panel.
template <class T>
struct Piece {
  const T* a;
  Index lda, k;
  const T* b;
};

// What happens to finished accumulators; the activation is chosen once per block.
template <class T, int M, int V, class F>
inline __attribute__((always_inline)) void store_scaled(const Multiply<T>& p, Vec<T> (&acc)[M][V],
                                                        Index r, Index c, F derivative) {
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    const T* cached = p.cached + (r + m) * p.ldcached + c;
    T* to = p.c + (r + m) * p.ldc + c;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec<T> slope = derivative(load<T>(cached + v * Simd<T>::lanes));
      store<T>(to + v * Simd<T>::lanes, acc[m][v] * slope);
    }
  }
}

template <class T, int M, int V>
inline __attribute__((always_inline)) void store_block(const Multiply<T>& p, Vec<T> (&acc)[M][V],
                                                       Index r, Index c) {
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      store<T>(p.c + (r + m) * p.ldc + c + v * Simd<T>::lanes, acc[m][v]);
    }
  }
}

template <class T, int M, int V>
inline __attribute__((always_inline)) void derive_block(const Multiply<T>& p, Vec<T> (&acc)[M][V],
                                                        Index r, Index c) {
  switch (p.activation) {
    case Activation::tanh:
      return store_scaled<T, M, V>(p, acc, r, c, [](Vec<T> h) { return tanh_slope<T>(h); });
    case Activation::relu:
      return store_scaled<T, M, V>(p, acc, r, c, [](Vec<T> h) { return relu_slope<T>(h); });
    case Activation::elu:
      return store_scaled<T, M, V>(p, acc, r, c, [](Vec<T> h) { return elu_slope<T>(h); });
    case Activation::silu:
    case Activation::gelu:
      return store_scaled<T, M, V>(p, acc, r, c, [](Vec<T> slope) { return slope; });
    case Activation::identity:
      return store_block<T, M, V>(p, acc, r, c);
  }
}

// Activations are long: a loop over what the block has just stored, hot in cache.
template <class T>
void activate_block(const Multiply<T>& p, Index r, Index c, Index rows, Index columns) {
  T* slope = p.slope == nullptr ? nullptr : p.slope + r * p.ldcached + c;
  const Activate<T> activate = {p.c + r * p.ldc + c, p.ldc, slope, p.ldcached, rows, columns};
  activate(p.activation);
}

template <class T, int M, int V>
__attribute__((noinline)) void multiply_block(const Multiply<T>& p, const Piece<T> (&pieces)[2],
                                              Index width, Index r, Index c, bool first,
                                              bool last) {
  Vec<T> acc[M][V];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    const T* from = first ? p.bias + c : p.c + (r + m) * p.ldc + c;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      acc[m][v] = first && p.bias == nullptr ? Vec<T>{} : load<T>(from + v * Simd<T>::lanes);
    }
  }
  for (const Piece<T>& piece : pieces) {
    const T* a = piece.a + r * piece.lda;
    const T* b = piece.b;
    for (Index k = 0; k < piece.k; ++k, ++a, b += width) {
      outer_product<T, M, V>(acc, a, piece.lda, b);
    }
  }
  if (last && p.epilogue == Epilogue::derive) {
    derive_block<T, M, V>(p, acc, r, c);
  } else {
    store_block<T, M, V>(p, acc, r, c);
    if (last && p.epilogue == Epilogue::activate) {
      activate_block<T>(p, r, c, M, V * Simd<T>::lanes);
    }
  }
}

// All rows of V vectors of columns: full blocks, then ever lower ones.
template <class T, int V>
void multiply_columns(const Multiply<T>& p, const Piece<T> (&pieces)[2], Index width, Index c,
                      bool first, bool last) {
  constexpr int M = block_height(V);
  Index r = 0;
  for (; r + M <= p.rows; r += M) multiply_block<T, M, V>(p, pieces, width, r, c, first, last);
  for (; r + 4 <= p.rows; r += 4) multiply_block<T, 4, V>(p, pieces, width, r, c, first, last);
  for (; r + 2 <= p.rows; r += 2) multiply_block<T, 2, V>(p, pieces, width, r, c, first, last);
  for (; r < p.rows; ++r) multiply_block<T, 1, V>(p, pieces, width, r, c, first, last);
}

// Depth by depth, panel by panel, block by block. The two products follow each other as one of depth
// k + k2. A's slice of one depth stays in the second-level cache while the panels go by.
template <class T>
void multiply(const Multiply<T>& p) {
  constexpr Index panel_width = kPanelBytes / sizeof(T);
  const Index depth = p.k + p.k2;
  for (Index begin = 0; begin < depth; begin += kDepth) {
    const Index end = begin + kDepth < depth ? begin + kDepth : depth;
    const bool first = begin == 0, last = end == depth;
    for (Index panel = 0; panel < p.n; panel += panel_width) {
      const Index width = p.n - panel < panel_width ? p.n - panel : panel_width;
      const auto piece = [&](const T* a, Index lda, const T* b, Index k, Index offset) -> Piece<T> {
        const Index from = begin > offset ? begin - offset : 0;
        const Index to = end - offset < k ? end - offset : k;
        if (to <= from) return {p.a, 0, 0, p.b};
        return {a + from, lda, to - from, b + k * panel + from * width};
      };
      Piece<T> pieces[2] = {piece(p.a, p.lda, p.b, p.k, 0), piece(p.a2, p.lda2, p.b2, p.k2, p.k)};
      Index c = panel;
      for (Index left = width / Simd<T>::lanes; left > 0;) {
        const Index vectors = left < kMaxVectors ? left : kMaxVectors;
        switch (vectors) {
          case 1:
            multiply_columns<T, 1>(p, pieces, width, c, first, last);
            break;
          case 2:
            multiply_columns<T, 2>(p, pieces, width, c, first, last);
            break;
#if NATGRAD_VECTOR_BYTES == 64
          case 3:
            multiply_columns<T, 3>(p, pieces, width, c, first, last);
            break;
          case 4:
            multiply_columns<T, 4>(p, pieces, width, c, first, last);
            break;
#endif
        }
        const Index columns = vectors * Simd<T>::lanes;
        c += columns;
        left -= vectors;
        for (Piece<T>& next : pieces) next.b += columns;
      }
    }
  }
}

// --- accumulate ----------------------------------------------------------------------------------

template <class T, int M, int V>
__attribute__((noinline)) void accumulate_block(const Accumulate<T>& p, Index o, Index i) {
  Vec<T> acc[M][V];
  T* g = p.g + o * p.ldg + i;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[m][v] = load<T>(g + m * p.ldg + v * Simd<T>::lanes);
  }
  const T* d = p.d + o;
  const T* h = p.h + i;
  for (Index r = 0; r < p.rows; ++r, d += p.ldd, h += p.ldh) outer_product<T, M, V>(acc, d, 1, h);
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store<T>(g + m * p.ldg + v * Simd<T>::lanes, acc[m][v]);
  }
}

template <class T, int V>
void accumulate_columns(const Accumulate<T>& p, Index i) {
  constexpr int M = block_height(V);
  Index o = 0;
  for (; o + M <= p.out; o += M) accumulate_block<T, M, V>(p, o, i);
  for (; o + 4 <= p.out; o += 4) accumulate_block<T, 4, V>(p, o, i);
  for (; o + 2 <= p.out; o += 2) accumulate_block<T, 2, V>(p, o, i);
  for (; o < p.out; ++o) accumulate_block<T, 1, V>(p, o, i);
}

template <class T>
void accumulate(const Accumulate<T>& p) {
  constexpr int lane_group = kLaneVectors * Simd<T>::lanes;
  const Index width = (p.in + lane_group - 1) / lane_group * kLaneVectors;
  for (Index v = 0; v < width;) {
    const Index i = v * Simd<T>::lanes;
    const Index vectors = width - v < kMaxVectors ? width - v : kMaxVectors;
    switch (vectors) {
      case 1:
        accumulate_columns<T, 1>(p, i);
        break;
      case 2:
        accumulate_columns<T, 2>(p, i);
        break;
#if NATGRAD_VECTOR_BYTES == 64
      case 3:
        accumulate_columns<T, 3>(p, i);
        break;
      case 4:
        accumulate_columns<T, 4>(p, i);
        break;
#endif
    }
    v += vectors;
  }
}

// Four vectors of columns at a time; reads and writes whole lanes.
template <class T>
void column_sums(const T* d, Index rows, Index ldd, Index columns, T* sums) {
  for (Index c = 0; c < columns; c += 4 * Simd<T>::lanes) {
    const Index left = (columns - c + Simd<T>::lanes - 1) / Simd<T>::lanes;
    Vec<T> acc[4] = {};
    for (Index r = 0; r < rows; ++r) {
      for (Index v = 0; v < 4 && v < left; ++v) {
        acc[v] += load<T>(d + r * ldd + c + v * Simd<T>::lanes);
      }
    }
    for (Index v = 0; v < 4 && v < left; ++v) {
      T* to = sums + c + v * Simd<T>::lanes;
      store<T>(to, load<T>(to) + acc[v]);
    }
  }
}

extern const natgrad::kernels::Table<float> table_f32;
extern const natgrad::kernels::Table<double> table_f64;
constexpr natgrad::kernels::Table<float> table_f32 = {multiply<float>, accumulate<float>,
                                                      column_sums<float>};
constexpr natgrad::kernels::Table<double> table_f64 = {multiply<double>, accumulate<double>,
                                                       column_sums<double>};

}  // namespace NATGRAD_NAMESPACE
