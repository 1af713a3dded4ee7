// Activations and their derivatives over a block of C, which has just been stored and is hot in cache.
#include "natgrad/kernels/epilogue.hpp"

namespace NATGRAD_NAMESPACE {
namespace {

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

  // One loop for each activation, so that its constants stay in registers.
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

}  // namespace

template <class T>
void activate_block(const Multiply<T>& p, Index r, Index c, Index rows, Index columns) {
  T* slope = p.slope == nullptr ? nullptr : p.slope + r * p.ldcached + c;
  const Activate<T> activate = {p.c + r * p.ldc + c, p.ldc, slope, p.ldcached, rows, columns};
  activate(p.activation);
}
template void activate_block(const Multiply<float>&, Index, Index, Index, Index);
template void activate_block(const Multiply<double>&, Index, Index, Index, Index);

}  // namespace NATGRAD_NAMESPACE
