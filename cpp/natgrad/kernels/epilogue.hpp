// What happens to the finished sums of a block of C, in multiply and multiply_narrow.
#pragma once

#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/lanes.hpp"

namespace NATGRAD_NAMESPACE {

template <class T, int M, int V>
NATGRAD_INLINE void store_block(const Multiply<T>& p, Vec<T> (&acc)[M][V], Index r, Index c) {
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      store<T>(p.c + (r + m) * p.ldc + c + v * Simd<T>::lanes, acc[m][v]);
    }
  }
}

// C = acc * derivative(cached)
template <class T, int M, int V, class F>
NATGRAD_INLINE void store_scaled(const Multiply<T>& p, Vec<T> (&acc)[M][V], Index r, Index c,
                                 F derivative) {
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
NATGRAD_INLINE void derive_block(const Multiply<T>& p, Vec<T> (&acc)[M][V], Index r, Index c) {
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

// Calls use(m, sum) with the sum of the lanes of v[m] for m < M, computing as many sums at once as fit
// into a vector.
template <class T, int M, class Use>
NATGRAD_INLINE void for_each_lane_sum(const Vec<T>* v, Use use) {
  constexpr int most = Simd<T>::lanes < 8 ? Simd<T>::lanes : 8, O = M < most ? M : most;
  Vec<T> group[O];
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) group[o] = v[o];
  const Vec<T> sums = lane_sums<T, O>(group);
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) use(o, sums[o]);
  if constexpr (M > O) {
    for_each_lane_sum<T, M - O>(v + O, [&](int m, T sum) NATGRAD_LAMBDA { use(O + m, sum); });
  }
}

// Dot products of the rows of the block with their adjoints, straight from the accumulators.
template <class T, int M, int V>
NATGRAD_INLINE void dot_block(const Multiply<T>& p, Vec<T> (&acc)[M][V], Index r, Index c) {
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
    for_each_lane_sum<T, M>(products, [&](int m, T sum) NATGRAD_LAMBDA {
      T* at = s + m * to.columns;
      *at = overwrite ? sum : *at + sum;
    });
  }
}

// c <- act(c) for `rows` rows of `columns` columns from (r, c) on, and slope <- act'(c) where the value
// does not determine it; columns are whole vectors. In activations.cpp: it takes long enough to be called.
template <class T>
void activate_block(const Multiply<T>& p, Index r, Index c, Index rows, Index columns);

template <class T, int M, int V>
NATGRAD_INLINE void finish_block(const Multiply<T>& p, Vec<T> (&acc)[M][V], Index r, Index c) {
  if (p.epilogue == Epilogue::derive) return derive_block<T, M, V>(p, acc, r, c);
  if (p.epilogue == Epilogue::dot) return dot_block<T, M, V>(p, acc, r, c);
  store_block<T, M, V>(p, acc, r, c);
  if (p.epilogue == Epilogue::activate) activate_block<T>(p, r, c, M, V * Simd<T>::lanes);
}

}  // namespace NATGRAD_NAMESPACE
