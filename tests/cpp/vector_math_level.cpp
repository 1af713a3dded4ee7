#include "vector_math_level.hpp"

#include "natgrad/kernels/vector_math.hpp"

namespace NATGRAD_NAMESPACE {

using natgrad_test::Functions;

template <class T, Vec<T> (*function)(Vec<T>)>
void apply(const T* x, T* y, std::ptrdiff_t count) {
  for (std::ptrdiff_t i = 0; i < count; i += Simd<T>::lanes) {
    *(typename Simd<T>::loose*)(y + i) = function(*(const typename Simd<T>::loose*)(x + i));
  }
}

template <class T, Vec<T> (*function)(Vec<T>, Vec<T>*), bool second>
Vec<T> part(Vec<T> x) {
  Vec<T> other;
  const Vec<T> y = function(x, &other);
  return second ? other : y;
}

template <class T>
constexpr Functions<T> functions() {
  return {{{"tanh", apply<T, tanh<T>>},
           {"exp", apply<T, exp<T>>},
           {"log", apply<T, log<T>>},
           {"expm1", apply<T, expm1<T>>},
           {"log1p", apply<T, log1p<T>>},
           {"elu", apply<T, elu<T>>},
           {"sigmoid", apply<T, part<T, sigmoid<T>, false>>},
           {"normal_cdf", apply<T, normal_cdf<T>>},
           {"silu", apply<T, part<T, silu<T>, false>>},
           {"gelu", apply<T, part<T, gelu<T>, false>>},
           {"tanh_slope", apply<T, tanh_slope<T>>},
           {"elu_slope", apply<T, elu_slope<T>>},
           {"silu_slope", apply<T, part<T, silu<T>, true>>},
           {"gelu_slope", apply<T, part<T, gelu<T>, true>>}}};
}

extern const Functions<float> functions_f32;
extern const Functions<double> functions_f64;
constexpr Functions<float> functions_f32 = functions<float>();
constexpr Functions<double> functions_f64 = functions<double>();

}  // namespace NATGRAD_NAMESPACE
