// The table of one instruction set level, collected from the files that implement it.
//
// CMake compiles this file and those named in Kernels once for each level, with that level's flags,
// NATGRAD_NAMESPACE (inside natgrad::kernels) and NATGRAD_VECTOR_BYTES.
#include "natgrad/kernels/kernels.hpp"

namespace NATGRAD_NAMESPACE {

// Each file writes its own kernels into the table.
template <class T>
void add_multiply(Kernels<T>*);
template <class T>
void add_narrow(Kernels<T>*);
template <class T>
void add_accumulate(Kernels<T>*);
template <class T>
void add_adjoint(Kernels<T>*);
template <class T>
void add_rows(Kernels<T>*);
template <class T>
void add_gaussian(Kernels<T>*);
template <class T>
void add_categorical(Kernels<T>*);
template <class T>
void add_bundles(Kernels<T>*);
template <class T>
void add_fma_peak(Kernels<T>*);

template <class T>
Kernels<T> collect() {
  Kernels<T> kernels{};
  add_multiply(&kernels);
  add_narrow(&kernels);
  add_accumulate(&kernels);
  add_adjoint(&kernels);
  add_rows(&kernels);
  add_gaussian(&kernels);
  add_categorical(&kernels);
  add_bundles(&kernels);
  add_fma_peak(&kernels);
  return kernels;
}
template Kernels<float> collect();
template Kernels<double> collect();

}  // namespace NATGRAD_NAMESPACE
