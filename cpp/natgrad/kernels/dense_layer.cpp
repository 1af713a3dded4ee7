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
// Fewer vectors take taller blocks, so that enough independent accumulators hide the FMA latency.
// Loops over the accumulators must be unrolled completely or GCC keeps them in memory.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/lanes.hpp"

namespace NATGRAD_NAMESPACE {

using natgrad::kernels::Accumulate;
using natgrad::kernels::Activation;
using natgrad::kernels::Adjoints;
using natgrad::kernels::Epilogue;
using natgrad::kernels::kNarrowPanel;
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

// Columns of a panel: what a step of the widest block reads of B, or a cache line of it if that is more.
template <class T>
constexpr Index kPanel = (NATGRAD_VECTOR_BYTES == 64 ? 256 : 64) / (Index)sizeof(T);

// Memory that comes next, fetched into the first-level cache a line at a time between the steps of a
// block: weights or gradients from beyond the second level would otherwise cost as much as their
// products, and many fetches at once would hold up the loads that are needed now. The end is fetched
// again and again, which is cheap as long as it is memory.
struct Ahead {
  const char* next;
  const char* end;

  inline __attribute__((always_inline)) void fetch() {
    __builtin_prefetch(next);
    next += next < end ? 64 : 0;
  }
};

// Of 16 registers a step needs 15. A factor that is needed no more is a register which GCC adds into, and
// moves or even stores the accumulators for; so each is needed to the end.
template <class T>
inline __attribute__((always_inline)) void keep([[maybe_unused]] Vec<T> factor) {
#if NATGRAD_VECTOR_BYTES == 32
  asm("" : : "x"(factor));
#endif
}

// One step of the block's k-loop: acc[m][v] += a(m) * b[v], with a pointer for every R rows of a.
template <class T, int M, int V, int R>
inline __attribute__((always_inline)) void outer_product(Vec<T> (&acc)[M][V],
                                                         const T* const (&a)[(M + R - 1) / R],
                                                         Index stride_m, const T* b) {
  Vec<T> row[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) row[v] = load<T>(b + v * Simd<T>::lanes);
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    const Vec<T> scalar = a[m / R][m % R * stride_m] - Vec<T>{};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[m][v] += scalar * row[v];
    keep<T>(scalar);
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) keep<T>(row[v]);
}

// The whole loop, unrolled: fewer branches to predict where it is short. With a pointer for three
// rows, those at 0, 1 and 2 strides need no register of their own; the empty asm keeps GCC from
// expressing one pointer by another. fetch() is called every four steps.
template <class T, int M, int V, int R, class Fetch>
inline __attribute__((always_inline)) void outer_products(Vec<T> (&acc)[M][V], Index count,
                                                          const T* a, Index stride_k,
                                                          Index stride_m, const T* b,
                                                          Index stride_b, Fetch fetch) {
  const T* rows[(M + R - 1) / R];
#pragma GCC unroll 4
  for (int m = 0; m < M; m += R) {
    rows[m / R] = a + m * stride_m;
    if (m > 0) asm("" : "+r"(rows[m / R]));
  }
  const auto step = [&]() __attribute__((always_inline)) {
    outer_product<T, M, V, R>(acc, rows, stride_m, b);
#pragma GCC unroll 4
    for (int m = 0; m < M; m += R) rows[m / R] += stride_k;
    b += stride_b;
  };
  for (; count >= 4; count -= 4) {
    fetch();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) step();
  }
  for (; count > 0; --count) step();
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

// Greatest depth of one pass over a panel, which stays in the second-level cache (AVX-512: 64 KiB) or the
// first (16 KiB) while all rows of the tile go by. Deeper products take several equal passes and keep
// their partial sums in C.
constexpr Index kDepth = 256;

// The rows of the next tile, where A is read tile after tile: a share of them at each block.
struct NextTile {
  const char* next;
  const char* end;
  Index step;  // bytes at a block

  template <class T>
  static NextTile of(const Multiply<T>& p, Index blocks) {
    if (!p.a_streams) return {};
    const Index bytes = (Index)sizeof(T) * p.rows * p.lda;
    const char* next = (const char*)p.a + bytes;
    return {next, next + bytes, (bytes / (64 * blocks) + 1) * 64};
  }
  inline __attribute__((always_inline)) void fetch() {
    const char* line = next;
    next = end - line > step ? line + step : end;
    for (const char* stop = next; line < stop; line += 64) __builtin_prefetch(line);
  }
};

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

// Sums of the lanes of v[0 .. M), as many at once as fit into a vector, for use(m, sum).
template <class T, int M, class Use>
inline __attribute__((always_inline)) void for_each_lane_sum(const Vec<T>* v, Use use) {
  constexpr int most = Simd<T>::lanes < 8 ? Simd<T>::lanes : 8, O = M < most ? M : most;
  Vec<T> group[O];
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) group[o] = v[o];
  const Vec<T> sums = lane_sums<T, O>(group);
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) use(o, sums[o]);
  if constexpr (M > O) {
    for_each_lane_sum<T, M - O>(
        v + O, [&](int m, T sum) __attribute__((always_inline)) { use(O + m, sum); });
  }
}

// Dot products of the block's rows with their adjoints, straight from the accumulators.
template <class T, int M, int V>
inline __attribute__((always_inline)) void dot_block(const Multiply<T>& p, Vec<T> (&acc)[M][V],
                                                     Index r, Index c) {
  const Adjoints<T>& to = *p.dots;
  const bool overwrite = to.overwrite && c == 0;
  for (Index k = 0; k < to.columns; ++k) {
    const T* d = to.d + (r * to.columns + k) * to.ldd + c;
    T* s = to.s + r * to.columns + k;
    Vec<T> products[M];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m, d += to.columns * to.ldd) {
      products[m] = acc[m][0] * load<T>(d);
#pragma GCC unroll 4
      for (int v = 1; v < V; ++v) products[m] += acc[m][v] * load<T>(d + v * Simd<T>::lanes);
    }
    for_each_lane_sum<T, M>(products, [&](int m, T sum) __attribute__((always_inline)) {
      T* at = s + m * to.columns;
      *at = overwrite ? sum : *at + sum;
    });
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
inline __attribute__((always_inline)) void finish_block(const Multiply<T>& p, Vec<T> (&acc)[M][V],
                                                        Index r, Index c) {
  if (p.epilogue == Epilogue::derive) return derive_block<T, M, V>(p, acc, r, c);
  if (p.epilogue == Epilogue::dot) return dot_block<T, M, V>(p, acc, r, c);
  store_block<T, M, V>(p, acc, r, c);
  if (p.epilogue == Epilogue::activate) activate_block<T>(p, r, c, M, V * Simd<T>::lanes);
}

// A block of C, and what one pass adds to it.
template <class T>
struct Block {
  const Multiply<T>& p;
  Piece<T> pieces[2];
  Index width;  // of the panel
  bool first, last;
  Index c, r;
  Ahead panel;
  NextTile tile;
};

// C, from an earlier pass, is added at the end: nothing waits for it then.
template <class T, int M, int V>
__attribute__((noinline)) void multiply_block(Block<T>& at) {
  const Multiply<T>& p = at.p;
  Vec<T> acc[M][V];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      acc[m][v] =
          at.first && p.bias != nullptr ? load<T>(p.bias + at.c + v * Simd<T>::lanes) : Vec<T>{};
    }
  }
  at.tile.fetch();
  // A block as wide as a panel: then this is a constant.
  const Index width = V * Simd<T>::lanes == kPanel<T> ? kPanel<T> : at.width;
  Ahead panel = at.panel;
  for (const Piece<T>& piece : at.pieces) {
    outer_products<T, M, V, 3>(acc, piece.k, piece.a + at.r * piece.lda, 1, piece.lda, piece.b,
                               width, [&] { panel.fetch(); });
  }
  at.panel = panel;
  if (!at.first) {
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        acc[m][v] += load<T>(p.c + (at.r + m) * p.ldc + at.c + v * Simd<T>::lanes);
      }
    }
  }
  if (at.last) {
    finish_block<T, M, V>(p, acc, at.r, at.c);
  } else {
    store_block<T, M, V>(p, acc, at.r, at.c);
  }
}

// All rows of V vectors of columns: full blocks, then ever lower ones.
template <class T, int V>
void multiply_columns(Block<T>& at) {
  constexpr int M = block_height(V);
  const Index rows = at.p.rows;
  at.r = 0;
  for (; at.r + M <= rows; at.r += M) multiply_block<T, M, V>(at);
  for (; at.r + 4 <= rows; at.r += 4) multiply_block<T, 4, V>(at);
  for (; at.r + 2 <= rows; at.r += 2) multiply_block<T, 2, V>(at);
  for (; at.r < rows; ++at.r) multiply_block<T, 1, V>(at);
}

// The first block of one panel in one pass.
template <class T>
Block<T> block_at(const Multiply<T>& p, Index pass, Index passes, Index panel) {
  const Index width = p.n - panel < kPanel<T> ? p.n - panel : kPanel<T>;
  const Index depth = p.k + p.k2, begin = depth * pass / passes, end = depth * (pass + 1) / passes;
  const auto piece = [&](const T* a, Index lda, const T* b, Index k, Index offset) -> Piece<T> {
    const Index from = begin > offset ? begin - offset : 0;
    const Index to = end - offset < k ? end - offset : k;
    if (to <= from) return {p.a, 0, 0, p.b};
    return {a + from, lda, to - from, b + k * panel + from * width};
  };
  return {p,
          {piece(p.a, p.lda, p.b, p.k, 0), piece(p.a2, p.lda2, p.b2, p.k2, p.k)},
          width,
          begin == 0,
          end == depth,
          panel,
          0,
          {(const char*)p.b, (const char*)p.b},
          {}};
}

// Depth by depth, panel by panel, block by block. The two products follow each other as one of depth
// k + k2. A's slice of one depth stays in the second-level cache while the panels go by.
template <class T>
void multiply(const Multiply<T>& p) {
  const Index passes = (p.k + p.k2 + kDepth - 1) / kDepth;
  const Index panels = (p.n + kPanel<T> - 1) / kPanel<T>;
  NextTile tile = NextTile::of(p, passes * panels * (p.rows / block_height(kMaxVectors) + 1));
  for (Index pass = 0; pass < passes; ++pass) {
    for (Index panel = 0; panel < p.n; panel += kPanel<T>) {
      Block<T> at = block_at(p, pass, passes, panel);
      const bool wraps = panel + kPanel<T> >= p.n;
      if (!wraps || !at.last) {  // of the two pieces that come next the longer counts
        const Block<T> next = block_at(p, pass + wraps, passes, wraps ? 0 : panel + kPanel<T>);
        const Piece<T>& piece = next.pieces[next.pieces[1].k > next.pieces[0].k];
        at.panel = {(const char*)piece.b, (const char*)(piece.b + piece.k * next.width)};
      }
      at.tile = tile;
      for (Index left = at.width / Simd<T>::lanes; left > 0;) {
        const Index vectors = left < kMaxVectors ? left : kMaxVectors;
        switch (vectors) {
          case 1:
            multiply_columns<T, 1>(at);
            break;
          case 2:
            multiply_columns<T, 2>(at);
            break;
#if NATGRAD_VECTOR_BYTES == 64
          case 3:
            multiply_columns<T, 3>(at);
            break;
          case 4:
            multiply_columns<T, 4>(at);
            break;
#endif
        }
        const Index columns = vectors * Simd<T>::lanes;
        at.c += columns;
        left -= vectors;
        for (Piece<T>& piece : at.pieces) piece.b += columns;
      }
      tile = at.tile;
    }
  }
}

// --- multiply_narrow -----------------------------------------------------------------------------

// With few columns most lanes of a block would be padding. Here the lanes run along k: a block of
// M x O vectors of partial dot products, each added up across its lanes at the end.
//
//                   b[0..O)[k, k + lanes)
//                 +-------------+
//   a(m)[k, ..) ->|    M x O    |
//                 +-------------+
constexpr int narrow_height(int columns) {
  constexpr int by_columns_32[] = {8, 8, 8, 6, 4, 4, 3, 3},
                by_columns_16[] = {8, 6, 4, 3, 2, 2, 1, 1};
  return NATGRAD_VECTOR_BYTES == 64 ? by_columns_32[columns - 1] : by_columns_16[columns - 1];
}

template <class T, int M, int O>
inline __attribute__((always_inline)) void dot_products(Vec<T> (&acc)[M][O], const T* a, Index lda,
                                                        Index k, const T* b, Index n, Index first) {
  constexpr Index panel_width = kNarrowPanel<T>, group = kLaneVectors * Simd<T>::lanes;
  const Index padded = (k + group - 1) / group * group;
  for (Index panel = 0; panel < padded; panel += panel_width) {
    const Index width = padded - panel < panel_width ? padded - panel : panel_width;
    for (Index i = 0; i < width; i += Simd<T>::lanes) {
      Vec<T> column[O];
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) column[o] = load<T>(b + n * panel + (first + o) * width + i);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Vec<T> row = load<T>(a + m * lda + panel + i);
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) acc[m][o] += row * column[o];
      }
    }
  }
}

// Dot products of those columns with their adjoints: one sum across lanes for each row, not for each
// column of it.
template <class T, int M, int O>
inline __attribute__((always_inline)) void narrow_dots(const Multiply<T>& p,
                                                       const Vec<T> (&acc)[M][O], Index r,
                                                       Index o) {
  const Adjoints<T>& to = *p.dots;
  const bool overwrite = to.overwrite && o == 0;
  for (Index k = 0; k < to.columns; ++k) {
    Vec<T> products[M];
    T biases[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const T* d = to.d + ((r + m) * to.columns + k) * to.ldd + o;
      products[m] = d[0] * acc[m][0];
      biases[m] = d[0] * p.bias[o];
#pragma GCC unroll 8
      for (int i = 1; i < O; ++i) {
        products[m] += d[i] * acc[m][i];
        biases[m] += d[i] * p.bias[o + i];
      }
    }
    T* s = to.s + r * to.columns + k;
    for_each_lane_sum<T, M>(products, [&](int m, T sum) __attribute__((always_inline)) {
      T* at = s + m * to.columns;
      *at = (overwrite ? biases[m] : *at + biases[m]) + sum;
    });
  }
}

// Columns o to o + O. Lanes that are no column of the product hold their bias.
template <class T, int M, int O>
__attribute__((noinline)) void narrow_block(const Multiply<T>& p, Index r, Index o) {
  constexpr int lanes = Simd<T>::lanes;
  Vec<T> acc[M][O] = {};
  dot_products<T, M, O>(acc, p.a + r * p.lda, p.lda, p.k, p.b, p.n, o);
  dot_products<T, M, O>(acc, p.a2 + r * p.lda2, p.lda2, p.k2, p.b2, p.n, o);
  if (p.epilogue == Epilogue::dot) return narrow_dots<T, M, O>(p, acc, r, o);
  IVec<T> is_column;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) is_column[i] = i < O ? -1 : 0;
  Vec<T> sums[M][1];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    sums[m][0] = load<T>(p.bias + o) + (Vec<T>)((IVec<T>)lane_sums<T, O>(acc[m]) & is_column);
    for (Index i = o + lanes; i < kLaneVectors * lanes; i += lanes) {
      store<T>(p.c + (r + m) * p.ldc + i, load<T>(p.bias + i));
    }
  }
  finish_block<T, M, 1>(p, sums, r, o);
}

template <class T, int O>
void narrow_columns(const Multiply<T>& p, Index o) {
  if constexpr (O > 1) {
    if (p.n - o < O) return narrow_columns<T, O - 1>(p, o);
  }
  constexpr int M = narrow_height(O);
  NextTile tile = o == 0 ? NextTile::of(p, p.rows / M + 1) : NextTile{};
  Index r = 0;
  for (; r + M <= p.rows; r += M) {
    tile.fetch();
    narrow_block<T, M, O>(p, r, o);
  }
  for (; r < p.rows; ++r) narrow_block<T, 1, O>(p, r, o);
}

template <class T>
void multiply_narrow(const Multiply<T>& p) {
  constexpr int group = Simd<T>::lanes < 8 ? Simd<T>::lanes : 8;
  for (Index o = 0; o < p.n; o += group) narrow_columns<T, group>(p, o);
}

// --- accumulate ----------------------------------------------------------------------------------

// The first M rows and V vectors of G. It is fetched line by line while they are summed up, and added
// at the end.
template <class T, int M, int V>
__attribute__((noinline)) void accumulate_block(const Accumulate<T>& p) {
  Vec<T> acc[M][V] = {};
  const char* row = (const char*)p.g;
  const char* line = row;
  const auto fetch = [&] {
    __builtin_prefetch(line, 1);
    line += 64;
    if (line - row >= V * NATGRAD_VECTOR_BYTES) line = row += p.ldg * (Index)sizeof(T);
  };
  outer_products<T, M, V, M>(acc, p.rows, p.d, p.ldd, 1, p.h, p.ldh, fetch);
  // From here p is read again. Short of registers, GCC would otherwise keep addresses in vector
  // registers, from where they come back only behind the block's products.
  asm volatile("" ::: "memory");
  T* g = p.g;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m, g += p.ldg) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* to = g + v * Simd<T>::lanes;
      store<T>(to, p.overwrite ? acc[m][v] : load<T>(to) + acc[m][v]);
    }
  }
}

// All rows of V vectors of columns of G.
template <class T, int V>
void accumulate_columns(const Accumulate<T>& p, Index i) {
  constexpr int M = block_height(V);
  Accumulate<T> at = p;  // what is left, from row o on
  at.h += i;
  at.g += i;
  Index o = 0;
  const auto next = [&](int rows) {
    o += rows;
    at.d += rows;
    at.g += rows * p.ldg;
  };
  for (; o + M <= p.out; next(M)) accumulate_block<T, M, V>(at);
  if constexpr (M > 6) {
    for (; o + 6 <= p.out; next(6)) accumulate_block<T, 6, V>(at);
  }
  if constexpr (M >= 6) {
    if (o + 5 == p.out) return accumulate_block<T, 5, V>(at);
  }
  for (; o + 4 <= p.out; next(4)) accumulate_block<T, 4, V>(at);
  for (; o + 2 <= p.out; next(2)) accumulate_block<T, 2, V>(at);
  for (; o < p.out; next(1)) accumulate_block<T, 1, V>(at);
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

// V vectors of columns. Where they are few, several rows at once: an addition that waits for the one
// before takes four cycles.
template <class T, int V>
void sum_columns(const T* d, Index rows, Index ldd, bool overwrite, T* sums) {
  constexpr int R = 8 / V;
  Vec<T> acc[R][V] = {};
  for (; rows >= R; rows -= R, d += R * ldd) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] += load<T>(d + r * ldd + v * Simd<T>::lanes);
    }
  }
  for (; rows > 0; --rows, d += ldd) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[0][v] += load<T>(d + v * Simd<T>::lanes);
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
    for (int r = 1; r < R; ++r) acc[0][v] += acc[r][v];
    T* to = sums + v * Simd<T>::lanes;
    store<T>(to, overwrite ? acc[0][v] : load<T>(to) + acc[0][v]);
  }
}

template <class T>
void column_sums(const T* d, Index rows, Index ldd, Index columns, bool overwrite, T* sums) {
  constexpr Index lanes = Simd<T>::lanes;
  Index c = 0;
  for (; c + 3 * lanes < columns; c += 4 * lanes) {
    sum_columns<T, 4>(d + c, rows, ldd, overwrite, sums + c);
  }
  for (; c + lanes < columns; c += 2 * lanes) {
    sum_columns<T, 2>(d + c, rows, ldd, overwrite, sums + c);
  }
  if (c < columns) sum_columns<T, 1>(d + c, rows, ldd, overwrite, sums + c);
}

// --- sum_shards ----------------------------------------------------------------------------------

// Shard by shard in double, eight vectors of columns at a time. What pads the columns to whole vectors
// is read, but not written.
template <class T>
void sum_shards(const T* shards, Index count, Index stride, Index columns, double* sums) {
  typedef T Narrow __attribute__((vector_size(NATGRAD_VECTOR_BYTES * sizeof(T) / sizeof(double)),
                                  aligned(sizeof(T))));
  constexpr Index lanes = Simd<double>::lanes, width = 8 * lanes;
  Index c = 0;
  for (; c + width <= columns; c += width) {
    Vec<double> acc[8] = {};
    for (Index s = 0; s < count; ++s) {
      const T* from = shards + s * stride + c;
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        acc[v] += __builtin_convertvector(*(const Narrow*)(from + v * lanes), Vec<double>);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) store<double>(sums + c + v * lanes, acc[v]);
  }
  for (; c < columns; c += lanes) {
    Vec<double> acc = {};
    for (Index s = 0; s < count; ++s) {
      acc += __builtin_convertvector(*(const Narrow*)(shards + s * stride + c), Vec<double>);
    }
    for (Index i = 0; i < lanes && c + i < columns; ++i) sums[c + i] = acc[i];
  }
}

extern const natgrad::kernels::Table<float> table_f32;
extern const natgrad::kernels::Table<double> table_f64;
constexpr natgrad::kernels::Table<float> table_f32 = {kPanel<float>,          multiply<float>,
                                                      multiply_narrow<float>, accumulate<float>,
                                                      column_sums<float>,     sum_shards<float>};
constexpr natgrad::kernels::Table<double> table_f64 = {kPanel<double>,          multiply<double>,
                                                       multiply_narrow<double>, accumulate<double>,
                                                       column_sums<double>,     sum_shards<double>};

}  // namespace NATGRAD_NAMESPACE
