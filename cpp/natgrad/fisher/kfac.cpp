#include "natgrad/fisher/kfac.hpp"

#include <algorithm>
#include <atomic>
#include <limits>

#include "natgrad/base/parallel.hpp"

namespace natgrad {
namespace {

// Of the damping, in the factors: multiplied out, they have the damping and mixed terms besides.
constexpr double kShare = 0.3;

constexpr Index kSweep = 16;  // rows of a matrix that are swept at once

// b := b^-1 for a symmetric positive definite matrix, by the same operator one row at a time.
bool invert_small(double (*b)[kSweep]) {
  double row[kSweep];
  for (Index k = 0; k < kSweep; ++k) {
    const double inverse = 1 / b[k][k];
    if (!(inverse > 0) || !std::isfinite(inverse)) return false;
    for (Index j = 0; j < kSweep; ++j) row[j] = inverse * b[k][j];
    for (Index i = 0; i < kSweep; ++i) {
      const double factor = b[i][k];
      for (Index j = 0; j < kSweep; ++j) b[i][j] -= factor * row[j];
      b[i][k] = inverse * factor;
    }
    for (Index j = 0; j < kSweep; ++j) b[k][j] = row[j];
    b[k][k] = -inverse;
  }
  for (Index i = 0; i < kSweep * kSweep; ++i) b[0][i] = -b[0][i];
  return true;
}

template <class T>
Index inversion_scratch(Index n) {
  return 2 * kSweep * leading_dimension<T>(n);
}

// a := a^-1 for a symmetric positive definite matrix (n, n), by the sweep operator (Goodnight, "A
// tutorial on the SWEEP operator", 1979) on blocks of rows K, with J the others:
//
//   [ A_KK A_KJ ]     [ -B     B A_KJ              ]
//   [ A_JK A_JJ ] ->  [ A_JK B A_JJ - A_JK B A_KJ  ]     B = A_KK^-1; all rows swept, it is -A^-1
//
// All of its n^3 multiply-adds are the kernel's. False where a pivot is lost in rounding.
template <class T>
bool invert(T* a, Index n, Index stride, T* scratch) {
  const kernels::Kernels<T>& kernel = kernels::active<T>();
  T* panel = scratch;                  // A_KJ, with A_KK
  T* swept = panel + kSweep * stride;  // B A_KJ
  double b[kSweep][kSweep];
  T small[kSweep * kSweep];
  for (Index first = 0; first < n; first += kSweep) {
    const Index rows = std::min(kSweep, n - first);
    T* block = a + first * stride;
    for (Index i = 0; i < kSweep; ++i) {  // continued by the identity
      for (Index j = 0; j < kSweep; ++j) {
        const bool inside = i < rows && j < rows;
        b[i][j] =
            inside ? static_cast<double>(block[i * stride + first + j]) : (i == j ? 1.0 : 0.0);
      }
    }
    if (!invert_small(b)) return false;
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < rows; ++j) small[i * kSweep + j] = static_cast<T>(b[i][j]);
    }
    for (Index i = 0; i < rows * stride; ++i) panel[i] = block[i];
    kernel.accumulate({rows, small, kSweep, rows, panel, stride, n, swept, stride, true});
    for (Index i = 0; i < rows * stride; ++i) panel[i] = -panel[i];
    kernel.accumulate({rows, panel, stride, n, swept, stride, n, a, stride, false});
    for (Index i = 0; i < rows; ++i) {
      std::copy_n(swept + i * stride, stride, block + i * stride);
      for (Index j = 0; j < n; ++j) a[j * stride + first + i] = swept[i * stride + j];
    }
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < rows; ++j) block[i * stride + first + j] = -small[i * kSweep + j];
    }
  }
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j <= i; ++j) {
      const T mean = (a[i * stride + j] + a[j * stride + i]) / -2;
      a[i * stride + j] = a[j * stride + i] = mean;
    }
    if (!(a[i * stride + i] > 0) || !std::isfinite(a[i * stride + i])) return false;
  }
  return true;
}

double mean_diagonal(const Buffer<double>& a, Index n) {
  double trace = 0;
  for (Index i = 0; i < n; ++i) trace += a[i * n + i];
  return trace / static_cast<double>(n);
}

// to = from + shift I, in rows of a kernel's length.
template <class T>
void shifted(const Buffer<double>& from, Index n, double shift, Buffer<T>* to) {
  const Index stride = leading_dimension<T>(n);
  to->resize(n * stride);
  for (Index i = 0; i < n; ++i) {
    T* row = to->data() + i * stride;
    for (Index j = 0; j < n; ++j) row[j] = static_cast<T>(from[i * n + j]);
    std::fill(row + n, row + stride, T(0));
    row[i] = static_cast<T>(from[i * n + i] + shift);
  }
}

}  // namespace

template <class T>
void KroneckerFactors<T>::average(Fisher<T>* fisher, const KFac& options) {
  const std::vector<Layer>& layers = fisher->network().layers();
  const auto scaled = [](const Buffer<double>& sum, double scale, Buffer<double>* average) {
    average->resize(sum.size());
    for (Index i = 0; i < sum.size(); ++i) (*average)[i] = scale * sum[i];
  };
  fisher->kronecker_sums(options.every, options.all_columns, &sums_);
  const double rows = static_cast<double>(sums_.rows);
  blocks_.resize(layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    Block& block = blocks_[l];
    block.in = layers[l].in;
    block.out = layers[l].out;
    block.weight = layers[l].weight;
    block.bias = layers[l].bias;
    scaled(sums_.inputs[l], 1 / rows, &block.inputs);
    scaled(sums_.adjoints[l], static_cast<double>(fisher->rows()) / rows, &block.adjoints);
  }
  free_ = fisher->free_diagonal();
  free_offset_ = fisher->network().free_offset();
}

template <class T>
bool KroneckerFactors<T>::factorize(double damping) {
  damping_ = damping;
  // What rounding may take from an eigenvalue, where the damping does not cover it.
  const double rounding = std::sqrt(static_cast<double>(std::numeric_limits<T>::epsilon()));
  scratch_.resize(2 * blocks_.size());
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    Block& block = blocks_[l];
    const Index in = block.in + 1, out = block.out;
    block.v.resize(out * leading_dimension<T>(in));
    block.u.resize(in * leading_dimension<T>(out));
    scratch_[2 * l].resize(inversion_scratch<T>(in));
    scratch_[2 * l + 1].resize(inversion_scratch<T>(out));
    const double a = mean_diagonal(block.inputs, in), s = mean_diagonal(block.adjoints, out);
    if (!std::isfinite(a) || !std::isfinite(s)) {
      blocks_.clear();
      return false;
    }
    block.zero = !(s > 0);
    if (block.zero) continue;
    const double gamma = std::sqrt(kShare * damping), pi = std::sqrt(a / s);
    shifted(block.inputs, in, gamma * pi + rounding * a, &block.inputs_inverse);
    shifted(block.adjoints, out, gamma / pi + rounding * s, &block.adjoints_inverse);
  }
  std::atomic<bool> definite{true};
  parallel_for(static_cast<int>(2 * blocks_.size()), [&](int task, int) {
    Block& block = blocks_[static_cast<std::size_t>(task / 2)];
    if (block.zero) return;
    const Index n = task % 2 == 0 ? block.in + 1 : block.out;
    Buffer<T>& a = task % 2 == 0 ? block.inputs_inverse : block.adjoints_inverse;
    T* scratch = scratch_[static_cast<std::size_t>(task)].data();
    if (!invert(a.data(), n, leading_dimension<T>(n), scratch)) definite = false;
  });
  if (!definite) blocks_.clear();
  return definite;
}

namespace {
constexpr int kBands = 8;              // of a matrix's rows, for the threads
constexpr double kWorthThreads = 2e6;  // multiply-adds
}  // namespace

// Both products are the kernel's G = D'H, band by band of the rows of G:
//   U = V' S^-1  (in + 1, out),   V = U' A^-1  (out, in + 1)
template <class T>
void KroneckerFactors<T>::apply(const double* r, double* z) {
  double work = 0;
  for (const Block& block : blocks_) {
    work += static_cast<double>((block.in + 1) * block.out * (block.in + 1 + block.out));
  }
  const int bands = work > kWorthThreads ? kBands : 1;
  const auto multiply = [&](bool by_adjoints) {
    parallel_for(bands, [&](int band, int) {
      for (Block& block : blocks_) {
        if (block.zero) continue;
        const Index in = block.in + 1, out = block.out;
        const Index v_stride = leading_dimension<T>(in), u_stride = leading_dimension<T>(out);
        const Index rows = by_adjoints ? in : out;  // of G
        const Index begin = rows * band / bands, count = rows * (band + 1) / bands - begin;
        if (by_adjoints) {
          kernels::active<T>().accumulate({out, block.v.data() + begin, v_stride, count,
                                           block.adjoints_inverse.data(), u_stride, out,
                                           block.u.data() + begin * u_stride, u_stride, true});
        } else {
          kernels::active<T>().accumulate({in, block.u.data() + begin, u_stride, count,
                                           block.inputs_inverse.data(), v_stride, in,
                                           block.v.data() + begin * v_stride, v_stride, true});
        }
      }
    });
  };
  for (Block& block : blocks_) {
    const Index stride = leading_dimension<T>(block.in + 1);
    for (Index o = 0; o < block.out; ++o) {
      T* row = block.v.data() + o * stride;
      const double* from = r + block.weight + o * block.in;
      for (Index i = 0; i < block.in; ++i) row[i] = static_cast<T>(from[i]);
      row[block.in] = static_cast<T>(r[block.bias + o]);
    }
  }
  multiply(true);
  multiply(false);
  for (const Block& block : blocks_) {
    const Index stride = leading_dimension<T>(block.in + 1);
    const double scale = damping_ > 0 ? 1 / damping_ : 1;
    for (Index o = 0; o < block.out; ++o) {
      const T* row = block.v.data() + o * stride;
      double* to = z + block.weight + o * block.in;
      for (Index i = 0; i < block.in; ++i) to[i] = static_cast<double>(row[i]);
      z[block.bias + o] = static_cast<double>(row[block.in]);
    }
    if (!block.zero) continue;
    const Index begin = block.weight, count = (block.in + 1) * block.out;
    for (Index i = begin; i < begin + count; ++i) z[i] = scale * r[i];
  }
  for (Index i = 0; i < free_.size(); ++i) {
    const double curvature = free_[i] + damping_;
    z[free_offset_ + i] = r[free_offset_ + i] / (curvature > 0 ? curvature : 1);
  }
}

template class KroneckerFactors<float>;
template class KroneckerFactors<double>;

}  // namespace natgrad
