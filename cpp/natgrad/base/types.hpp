// The few types that every layer shares: matrix views, aligned buffers, references to callables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "natgrad/base/index.hpp"

namespace natgrad {

// Every buffer that a kernel touches starts on a multiple of this many bytes, a line, and is padded to whole
// lines. A line is one AVX-512 register. It does not depend on the instruction set, so layouts do not.
inline constexpr Index kAlignment = 64;

// Values of T in a line.
template <class T>
inline constexpr Index kLanes = kAlignment / static_cast<Index>(sizeof(T));

inline constexpr Index round_up(Index n, Index multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// The stride of rows with `columns` values of T: a whole number of lines, but no multiple of 1 KiB, where
// consecutive rows would compete for the same sets of the cache.
template <class T>
constexpr Index leading_dimension(Index columns) {
  const Index padded = round_up(columns, kLanes<T>);
  return padded * static_cast<Index>(sizeof(T)) % 1024 == 0 ? padded + kLanes<T> : padded;
}

// A row-major matrix that is owned elsewhere. `stride` counts elements from row to row.
template <class T>
struct Matrix {
  T* data = nullptr;
  Index rows = 0;
  Index columns = 0;
  Index stride = 0;

  T* row(Index r) const { return data + r * stride; }
  Matrix middle_rows(Index first, Index count) const {
    return {row(first), count, columns, stride};
  }
  operator Matrix<const T>() const { return {data, rows, columns, stride}; }
};

// Says how much memory there was not.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::size_t bytes) {
    std::snprintf(text_, sizeof(text_), "cannot allocate %.3g MB",
                  static_cast<double>(bytes) * 1e-6);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[48];
};

// Aligned storage that only grows: `resize` allocates only beyond the largest size seen so far, so that an
// update allocates nothing after its first call. Growth sets all contents to zero.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(Index size) { resize(size); }
  Buffer(const Buffer& other) { *this = other; }
  Buffer(Buffer&&) noexcept = default;
  Buffer& operator=(Buffer&&) noexcept = default;
  Buffer& operator=(const Buffer& other) {
    resize(other.size_);
    if (size_ > 0) std::memcpy(data(), other.data(), sizeof(T) * static_cast<std::size_t>(size_));
    return *this;
  }

  void resize(Index size) {
    if (size > capacity_) {
      const auto bytes =
          static_cast<std::size_t>(round_up(size * static_cast<Index>(sizeof(T)), kAlignment));
      void* const grown = ::operator new(bytes, std::align_val_t{kAlignment}, std::nothrow);
      if (grown == nullptr) throw OutOfMemory(bytes);
      storage_.reset(static_cast<T*>(grown));
      std::memset(static_cast<void*>(storage_.get()), 0, bytes);
      capacity_ = size;
    }
    size_ = size;
  }
  // Memory for `size` values, with the contents as they are.
  void reserve(Index size) {
    if (size <= capacity_) return;
    Buffer grown(size);
    grown = *this;
    *this = std::move(grown);
  }
  void fill_zero() {
    if (size_ > 0) {
      std::memset(static_cast<void*>(data()), 0, sizeof(T) * static_cast<std::size_t>(size_));
    }
  }

  T* data() { return storage_.get(); }
  const T* data() const { return storage_.get(); }
  Index size() const { return size_; }
  T& operator[](Index i) { return storage_.get()[i]; }
  const T& operator[](Index i) const { return storage_.get()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }

 private:
  struct Deleter {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<T, Deleter> storage_;
  Index size_ = 0;
  Index capacity_ = 0;
};

// A reference to a callable: no ownership, no allocation. The callable must outlive it.
template <class Signature>
class FunctionRef;

template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>>>
  FunctionRef(F&& f)  // NOLINT: implicit on purpose, like std::function
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

// y = A x, for vectors whose length both sides know. Vectors of solvers are always double.
using LinearOperator = FunctionRef<void(const double* x, double* y)>;

// Whether all are finite: one pass without branches, in strands that the compiler makes vectors of.
template <class T>
bool all_finite(const T* data, Index n) {
  constexpr Index kStrands = 32;
  T sums[kStrands] = {};
  Index i = 0;
  for (; i + kStrands <= n; i += kStrands) {
#pragma GCC unroll 32
    for (Index j = 0; j < kStrands; ++j) sums[j] += data[i + j] * T(0);
  }
  for (Index j = 0; i < n; ++i, ++j) sums[j] += data[i] * T(0);
  for (Index j = 1; j < kStrands; ++j) sums[0] += sums[j];
  return sums[0] == T(0);
}

}  // namespace natgrad
