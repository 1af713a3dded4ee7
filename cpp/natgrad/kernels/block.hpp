// The register block that multiply and accumulate share.
//
// Both are sums of outer products of a broadcast scalar and a vector (Goto and van de Geijn 2008; the
// block of BLIS, without its packing of A):
//
//                 b[k][0..V)   V vectors                multiply:    a(m, k) = A[m][k]   (row of tile)
//               +-----------+                           accumulate:  a(m, k) = D[k][m]   (column of D)
//   a(m, k) ->  |  M x V    |   += a(m, k) * b[k][v]
//               | registers |
//               +-----------+
//
// M x V accumulators fill the register file: 24 of 32 registers (AVX-512), 12 of 16 (AVX2, SSE). Blocks
// of fewer vectors are taller, so that enough independent accumulators hide the latency of a multiply-add.
// Loops over the accumulators must be unrolled completely, or GCC keeps them in memory.
#pragma once

#include "natgrad/kernels/lanes.hpp"

namespace NATGRAD_NAMESPACE {

// The widest block in vectors, and the tallest block for each width.
constexpr int kMaxVectors = NATGRAD_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int block_height(int vectors) {
  return NATGRAD_VECTOR_BYTES == 64 ? (vectors == 4   ? 6
                                       : vectors == 3 ? 8
                                                      : 12)
                                    : (vectors == 2 ? 6 : 12);
}

// Columns of a panel: what a step of the widest block reads of B, or a line of it if that is more.
template <class T>
constexpr Index kPanel = (NATGRAD_VECTOR_BYTES == 64 ? 256 : 64) / (Index)sizeof(T);

// A step needs 15 of 16 registers. Once a factor has had its last use, GCC accumulates into its register,
// and then moves or even spills the accumulators; an empty asm after that use keeps the factor alive.
template <class T>
NATGRAD_INLINE void keep([[maybe_unused]] Vec<T> factor) {
#if NATGRAD_VECTOR_BYTES == 32
  asm("" : : "x"(factor));
#endif
}

// One step of the block's loop over k: acc[m][v] += a(m) * b[v], with one pointer for every R rows of a.
template <class T, int M, int V, int R>
NATGRAD_INLINE void outer_product(Vec<T> (&acc)[M][V], const T* const (&a)[(M + R - 1) / R],
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

// The whole loop, unrolled four times: short loops then have fewer branches to predict. One pointer for
// three rows is enough, because those at 0, 1 and 2 strides need no register of their own; the empty asm
// keeps GCC from expressing one pointer by another. fetch() is called every four steps.
template <class T, int M, int V, int R, class Fetch>
NATGRAD_INLINE void outer_products(Vec<T> (&acc)[M][V], Index count, const T* a, Index stride_k,
                                   Index stride_m, const T* b, Index stride_b, Fetch fetch) {
  const T* rows[(M + R - 1) / R];
#pragma GCC unroll 4
  for (int m = 0; m < M; m += R) {
    rows[m / R] = a + m * stride_m;
    if (m > 0) asm("" : "+r"(rows[m / R]));
  }
  const auto step = [&]() NATGRAD_LAMBDA {
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

}  // namespace NATGRAD_NAMESPACE
