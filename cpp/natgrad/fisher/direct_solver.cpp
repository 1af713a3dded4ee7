#include "natgrad/fisher/direct_solver.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "natgrad/base/parallel.hpp"
#include "natgrad/kernels/kernels.hpp"

namespace natgrad {
namespace {

constexpr Index kTile = 128;          // rows whose Khatri-Rao products are formed at once
constexpr Index kGroupRows = 256;     // rows of a group, whose sum is one task's: at least,
constexpr Index kMaxGroups = 32;      // and of groups at most,
constexpr Index kMaxSums = 64 << 20;  // and bytes of all their sums, unless one has more
constexpr Index kBand = 48;           // rows of a Gram matrix that are one task

template <class T>
Index part_count(const Network<T>& network, bool with_free) {
  return static_cast<Index>(network.layers().size()) +
         (with_free && network.spec().free_outputs > 0 ? 1 : 0);
}

template <class Visit>
void for_each_pair(Index n, Index m, bool same, Visit visit) {
  Index index = 0;
  for (Index i = 0; i < n; ++i) {
    for (Index j = same ? i : 0; j < m; ++j) visit(i, j, index++);
  }
}

// to (columns, stride) = from (rows, columns)', a few rows at a time.
template <class T>
void transpose(Matrix<const T> from, T* to, Index stride) {
  constexpr Index group = 8;
  for (Index r = 0; r < from.rows; r += group) {
    const Index height = std::min(group, from.rows - r);
    const T* source = from.row(r);
    for (Index c = 0; c < from.columns; ++c) {
      for (Index j = 0; j < height; ++j) to[c * stride + r + j] = source[j * from.stride + c];
    }
  }
}

template <class T>
double rounding(double trace) {
  return std::numeric_limits<T>::epsilon() * trace;
}

}  // namespace

template <class T>
auto DirectSolver<T>::part_of(const Network<T>& network, Index p) -> Part {
  const auto& layers = network.layers();
  if (p == static_cast<Index>(layers.size())) {
    return {1, network.spec().free_outputs, 0, network.free_offset()};
  }
  const Layer& layer = layers[static_cast<std::size_t>(p)];
  return {layer.in + 1, layer.out, layer.weight, layer.bias};
}

// --- the dense form ------------------------------------------------------------------------------

// For all workers at once: one that joins in a later call allocates nothing then.
template <class T>
void DirectSolver<T>::provide_workers(const Network<T>& model, Index columns) {
  const std::vector<Layer>& layers = model.layers();
  Index widths = 0, inputs = 0, widest = 0, features = 0;
  for (const Layer& layer : layers) {
    widths += leading_dimension<T>(layer.out);
    inputs += layer.in + 1;
  }
  for (const Block& block : blocks_) widest = std::max({widest, block.outers, block.inners});
  const Index parts = blocks_.back().part_m + 1;
  for (Index p = 0; p < parts; ++p) features += part_of(model, p).out;
  workers_.resize(std::max(workers_.size(), static_cast<std::size_t>(num_threads())));
  for (Worker& worker : workers_) {
    worker.layers.resize(layers.size());
    worker.adjoints.resize(kTile * widths);
    worker.cotangent.resize(kTile * leading_dimension<T>(model.output_columns()));
    worker.inputs.resize((inputs + 1) * kTile);
    worker.columns.resize(columns * features * kTile);
    worker.outer_d.resize(widest * kTile);
    worker.outer_h.resize(widest * kTile);
  }
}

// Adds the rows of one tile to all blocks:
//
//   F[(o, i), (o', i')] += sum_n (sum_k d^k_l[n, o] d^k_m[n, o']) (h_l[n, i] h_m[n, i'])     (eq. 4.3)
//
// Everything is turned first, so that a product of two features over the rows is one of vectors.
template <class T>
void DirectSolver<T>::add_tile(const Linearization<T>& network, Index columns, Fill fill,
                               Index first, Index rows, bool overwrite, T* sums,
                               Worker* worker) const {
  const Network<T>& model = network.network();
  const std::vector<Layer>& layers = model.layers();
  const Index outputs = model.output_columns(), depth = round_up(rows, kLanes<T>);
  const Index parts = blocks_.back().part_m + 1;

  T* storage = worker->adjoints.data();
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const Index stride = leading_dimension<T>(layers[l].out);
    worker->layers[l] = {storage, rows, layers[l].out, stride};
    storage += kTile * stride;
  }
  Index features = 0;  // of one column k
  for (Index p = 0; p < parts; ++p) features += part_of(model, p).out;

  const auto clear_rest = [&](T* turned, Index count) {
    for (Index i = 0; i < count; ++i) std::fill_n(turned + i * kTile + rows, depth - rows, T(0));
  };
  const auto input_of = [&](Index part) {
    T* at = worker->inputs.data();
    for (Index p = 0; p < part; ++p) at += part_of(model, p).in * kTile;
    return at;
  };
  for (Index p = 0; p < parts; ++p) {
    const Index in = part_of(model, p).in;
    T* turned = input_of(p);
    if (in > 1) {
      const Matrix<const T> h = network.layer_input(static_cast<std::size_t>(p));
      transpose<T>(h.middle_rows(first, rows), turned, kTile);
    }
    std::fill_n(turned + (in - 1) * kTile, rows, T(1));
    clear_rest(turned, in);
  }
  const auto column_of = [&](Index part, Index column) {
    T* at = worker->columns.data() + column * features * kTile;
    for (Index p = 0; p < part; ++p) at += part_of(model, p).out * kTile;
    return at;
  };
  for (Index column = 0; column < columns; ++column) {
    const Matrix<T> top{worker->cotangent.data(), rows, outputs, leading_dimension<T>(outputs)};
    fill(first, column, top);
    network.adjoints(first, top, &worker->layers);
    for (Index p = 0; p < parts; ++p) {
      const auto l = static_cast<std::size_t>(p);
      const Index out = part_of(model, p).out;
      Matrix<const T> d{top.data + model.spec().outputs, rows, out, top.stride};
      if (l < layers.size()) d = worker->layers[l];
      transpose<T>(d, column_of(p, column), kTile);
      clear_rest(column_of(p, column), out);
    }
  }

  for (const Block& block : blocks_) {
    T* d = worker->outer_d.data();
    for (Index column = 0; column < columns; ++column) {
      const T *d_l = column_of(block.part_l, column), *d_m = column_of(block.part_m, column);
      for_each_pair(block.l.out, block.m.out, block.same, [&](Index o, Index p, Index pair) {
        const T *x = d_l + o * kTile, *y = d_m + p * kTile;
        T* to = d + pair * kTile;
        if (column == 0) {
          for (Index r = 0; r < depth; ++r) to[r] = x[r] * y[r];
        } else {
          for (Index r = 0; r < depth; ++r) to[r] += x[r] * y[r];
        }
      });
    }
    T* h = worker->outer_h.data();
    const T *h_l = input_of(block.part_l), *h_m = input_of(block.part_m);
    for_each_pair(block.l.in, block.m.in, block.same, [&](Index i, Index j, Index pair) {
      const T *x = h_l + i * kTile, *y = h_m + j * kTile;
      T* to = h + pair * kTile;
      for (Index r = 0; r < depth; ++r) to[r] = x[r] * y[r];
    });
    kernels::active<T>().inner_products({d, block.outers, kTile, h, block.inners, kTile, depth,
                                         sums + block.offset, block.inners, overwrite});
  }
}

template <class T>
void DirectSolver<T>::assemble(const Linearization<T>& network, Index columns, Fill fill,
                               const double* free, Matrix<double> out) {
  const Network<T>& model = network.network();
  const Index parts = part_count(model, free == nullptr), rows = network.rows();
  blocks_.clear();
  sums_size_ = 0;
  for (Index l = 0; l < parts; ++l) {
    for (Index m = l; m < parts; ++m) {
      const Part a = part_of(model, l), b = part_of(model, m);
      const Index outers = pair_count(a.out, b.out, l == m);
      const Index inners = pair_count(a.in, b.in, l == m);
      blocks_.push_back({a, b, l, m, outers, inners, sums_size_, l == m});
      sums_size_ += outers * inners;
    }
  }
  // Groups by the size of the problem alone.
  const Index bytes = sums_size_ * static_cast<Index>(sizeof(T));
  const Index groups =
      std::clamp<Index>(std::min(rows / kGroupRows, kMaxSums / bytes), 1, kMaxGroups);
  sums_.resize(groups * sums_size_);
  provide_workers(network.network(), columns);
  parallel_for(static_cast<int>(groups), [&](int group, int worker) {
    const Index begin = rows * group / groups, end = rows * (group + 1) / groups;
    for (Index first = begin; first < end; first += kTile) {
      add_tile(network, columns, fill, first, std::min(kTile, end - first), first == begin,
               sums_.data() + group * sums_size_, &workers_[static_cast<std::size_t>(worker)]);
    }
  });

  for (Index i = 0; i < out.rows; ++i) std::fill_n(out.row(i), out.columns, 0.0);
  for (const Block& block : blocks_) {
    for_each_pair(block.l.out, block.m.out, block.same, [&](Index o, Index p, Index outer) {
      const T* sums = sums_.data() + block.offset + outer * block.inners;
      for_each_pair(block.l.in, block.m.in, block.same, [&](Index i, Index j, Index inner) {
        double sum = 0;
        for (Index g = 0; g < groups; ++g) {
          sum += static_cast<double>(sums[g * sums_size_ + inner]);
        }
        const auto set = [&](Index a, Index b) { out.row(a)[b] = out.row(b)[a] = sum; };
        set(block.l.position(o, i), block.m.position(p, j));
        if (block.same) set(block.l.position(o, j), block.l.position(p, i));
      });
    });
  }
  for (Index i = 0; free != nullptr && i < model.spec().free_outputs; ++i) {
    out.row(model.free_offset() + i)[model.free_offset() + i] = free[i];
  }
}

template <class T>
bool DirectSolver<T>::solve_dense(const Linearization<T>& network, Index columns, Fill fill,
                                  const double* free, const double* b, double damping, double* x,
                                  double* fx) {
  const Index n = network.network().parameter_count(), stride = leading_dimension<double>(n);
  matrix_.resize(n * stride);
  factor_.resize(n * stride);
  const Matrix<double> f{matrix_.data(), n, n, stride}, u{factor_.data(), n, n, stride};
  assemble(network, columns, fill, free, f);
  double trace = 0;
  for (Index i = 0; i < n; ++i) trace += f.row(i)[i];

  bool solved = false;
  if (damping > rounding<T>(trace)) {
    for (Index i = 0; i < n; ++i) {
      std::copy(f.row(i) + i, f.row(i) + n, u.row(i) + i);
      u.row(i)[i] += damping;
    }
    std::copy_n(b, n, x);
    solved = cholesky(u, damping / 2, &cholesky_);
    if (solved) cholesky_solve(u, x);
  } else if (n <= kMostEigenvalues && std::isfinite(trace)) {
    using Strided = Eigen::Map<const Eigen::MatrixXd, 0, Eigen::OuterStride<>>;
    solved = eigen_.compute(Strided(matrix_.data(), n, n, Eigen::OuterStride<>(stride)));
    if (solved) eigen_.solve(1, damping, rounding<T>(trace), b, x);
  }
  if (!solved || !all_finite(x, n)) return false;
  const Eigen::Map<const Eigen::VectorXd> solution(x, n);
  for (Index i = 0; i < n; ++i) {
    fx[i] = Eigen::Map<const Eigen::VectorXd>(f.row(i), n).dot(solution);
  }
  return true;
}

// --- the sample form -----------------------------------------------------------------------------

// The upper triangle of J J' into the factor's memory. With d^k_l the adjoints and h_l the inputs,
//
//   (J J')[(k, n), (k', n')] = sum_l (d^k_l[n] . d^k'_l[n']) (h_l[n] . h_l[n'] + 1)          (eq. 6.4)
//
// Rows are ordered by k, then n, so that a row of h . h' multiplies rows of d . d' as vectors.
template <class T>
void DirectSolver<T>::make_gram(CachedAdjoints<T>* adjoints, bool with_free) {
  const Linearization<T>& network = adjoints->network();
  const Network<T>& model = network.network();
  const Index parts = part_count(model, with_free), rows = network.rows();
  const Index columns = adjoints->columns(), size = columns * rows;
  const Index padded = round_up(rows, kLanes<T>), stride = leading_dimension<T>(columns * padded);
  const Index input_stride = leading_dimension<T>(rows);
  adjoints_.resize(static_cast<std::size_t>(parts));
  inputs_.resize(static_cast<std::size_t>(parts));
  for (Index p = 0; p < parts; ++p) {
    const auto l = static_cast<std::size_t>(p);
    const Part part = part_of(model, p);
    adjoints_[l].resize(part.out * stride);
    inputs_[l].resize((part.in - 1) * input_stride);
    for (Index k = 0; k < columns; ++k) {
      Matrix<const T> d;
      if (l < model.layers().size()) {
        d = adjoints->rows(l, 0, rows, k);
      } else {
        d = adjoints->rows(l - 1, 0, rows, k);
        d.data += model.spec().outputs;
      }
      d.columns = part.out;
      transpose<T>(d, adjoints_[l].data() + k * padded, stride);
    }
    if (part.in > 1) transpose<T>(network.layer_input(l), inputs_[l].data(), input_stride);
  }

  factor_.resize(size * leading_dimension<double>(size));
  const Index bands = (rows + kBand - 1) / kBand;
  workers_.resize(std::max(workers_.size(), static_cast<std::size_t>(num_threads())));
  for (Worker& worker : workers_) {
    for (Buffer<T>* buffer : {&worker.columns, &worker.outer_d, &worker.outer_h}) {
      buffer->resize(kBand * stride);
    }
  }
  const auto& accumulate = kernels::active<T>().accumulate;
  parallel_for(static_cast<int>(columns * bands), [&](int task, int index) {
    Worker& worker = workers_[static_cast<std::size_t>(index)];
    const Index k = task / bands, n = task % bands * kBand, height = std::min(kBand, rows - n);
    // From the diagonal on; other columns k' need all rows n' of h . h'.
    const Index from = k * padded + n, width = columns * padded - from;
    const Index h_from = k + 1 < columns ? 0 : n, h_width = rows - h_from;
    for (Index p = 0; p < parts; ++p) {
      const auto l = static_cast<std::size_t>(p);
      const Part part = part_of(model, p);
      T *sum = worker.columns.data(), *dd = worker.outer_d.data(), *hh = worker.outer_h.data();
      const T* d = adjoints_[l].data() + from;
      accumulate({part.out, d, stride, height, d, stride, width, dd, stride, true});
      if (part.in > 1) {
        const T* h = inputs_[l].data();
        accumulate({part.in - 1, h + n, input_stride, height, h + h_from, input_stride, h_width, hh,
                    input_stride, true});
      }
      for (Index r = 0; r < height; ++r) {
        for (Index other = k; other < columns; ++other) {
          const Index begin = other == k ? n : 0;
          const Index at = r * stride + other * padded + begin - from, count = rows - begin;
          const T *x = dd + at, *y = hh + r * input_stride + begin - h_from;
          T* to = sum + at;
          if (part.in == 1) {
            for (Index c = 0; c < count; ++c) to[c] += x[c];
          } else if (p == 0) {
            for (Index c = 0; c < count; ++c) to[c] = x[c] * (y[c] + T(1));
          } else {
            for (Index c = 0; c < count; ++c) to[c] += x[c] * (y[c] + T(1));
          }
        }
      }
    }
    for (Index r = 0; r < height; ++r) {
      double* row = factor_.data() + (k * rows + n + r) * leading_dimension<double>(size);
      for (Index other = k; other < columns; ++other) {
        const Index begin = other == k ? n : 0;
        const T* sum = worker.columns.data() + r * stride + other * padded + begin - from;
        for (Index c = begin; c < rows; ++c) row[other * rows + c] = static_cast<double>(*sum++);
      }
    }
  });
}

template <class T>
bool DirectSolver<T>::solve_sample(CachedAdjoints<T>* adjoints, const double* free, const double* b,
                                   double damping, double* x) {
  make_gram(adjoints, free == nullptr);
  const Index rows = adjoints->network().rows(), columns = adjoints->columns(),
              size = columns * rows;
  const Matrix<double> u{factor_.data(), size, size, leading_dimension<double>(size)};
  double trace = 0;
  for (Index i = 0; i < size; ++i) {
    trace += u.row(i)[i];
    u.row(i)[i] += damping;
  }
  if (!(damping > rounding<T>(trace)) || !cholesky(u, damping / 2, &cholesky_)) return false;

  coefficients_.resize(size);
  adjoints->sweep(
      b,
      [&](Index first, Matrix<T> s) {
        for (Index r = 0; r < s.rows; ++r) {
          for (Index k = 0; k < columns; ++k) {
            coefficients_[k * rows + first + r] = static_cast<double>(s.row(r)[k]);
          }
        }
      },
      nullptr);
  cholesky_solve(u, coefficients_.data());
  adjoints->sweep(
      nullptr,
      [&](Index first, Matrix<T> s) {
        for (Index r = 0; r < s.rows; ++r) {
          for (Index k = 0; k < columns; ++k) {
            s.row(r)[k] = static_cast<T>(coefficients_[k * rows + first + r]);
          }
        }
      },
      x);
  const Network<T>& model = adjoints->network().network();
  const Index count = model.parameter_count(), offset = model.free_offset();
  for (Index i = 0; i < count; ++i) x[i] = (b[i] - x[i]) / damping;
  for (Index i = 0; free != nullptr && i < model.spec().free_outputs; ++i) {
    x[offset + i] = b[offset + i] / (free[i] + damping);
  }
  return all_finite(x, count);
}

template class DirectSolver<float>;
template class DirectSolver<double>;

}  // namespace natgrad
