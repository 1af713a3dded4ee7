#include "natgrad/surrogate.hpp"

#include <limits>

#include "natgrad/parallel.hpp"

namespace natgrad {
namespace {

// Rows of a task, where rows are worked on without the network.
constexpr Index kTaskRows = 512;

// Copies `in`, standardised if asked; constant advantages become exactly 0. True if all are 0.
bool prepare_advantages(const double* in, Index count, bool normalize, double* out) {
  const double n = static_cast<double>(count);
  double mean = 0, deviation = 1;
  if (normalize) {
    double largest = 0, variance = 0;  // of the values divided by the largest: no overflow
    for (Index i = 0; i < count; ++i) largest = std::max(largest, std::abs(in[i]));
    for (Index i = 0; i < count; ++i) mean += in[i] / n;
    for (Index i = 0; i < count; ++i) {
      const double apart = in[i] / largest - mean / largest;
      variance += apart * apart / n;
    }
    // Below this, differences are rounding of the values themselves, not a signal.
    if (!(std::sqrt(variance) > 1e-13)) {
      std::fill_n(out, count, 0.0);
      return true;
    }
    deviation = largest * std::sqrt(variance);
  }
  for (Index i = 0; i < count; ++i) out[i] = (in[i] - mean) / deviation;
  return std::all_of(out, out + count, [](double value) { return value == 0; });
}

}  // namespace

template <class T>
void Surrogate<T>::attach(const Policy<T>& policy, const Batch<T>& batch,
                          bool normalize_advantages) {
  batch_ = batch;
  const Index rows = batch.rows();
  const double n = static_cast<double>(rows);
  advantages_.resize(rows);
  log_probs_.resize(rows);
  ratios_.resize(rows);
  value_ = entropy_ = 0;
  zero_ = prepare_advantages(batch.advantages, rows, normalize_advantages, advantages_.data());

  policy_.evaluate(policy, batch.observations);
  const Matrix<const T> y = policy_.network.outputs();
  const T* free = policy.parameters() + policy.network().free_offset();
  distribution_.attach(policy.distribution(), free, free);
  const int tasks = static_cast<int>((rows + kTaskRows - 1) / kTaskRows);
  sums_.resize(2 * tasks);
  sums_.fill_zero();
  parallel_for(tasks, [&](int task, int) {
    const Index first = task * kTaskRows, count = std::min(kTaskRows, rows - first);
    double log_probs[kTaskRows];
    distribution_.log_probs(y.middle_rows(first, count), batch.actions.middle_rows(first, count),
                            log_probs, &sums_[2 * task + 1]);
    std::copy_n(batch.log_probs != nullptr ? batch.log_probs + first : log_probs, count,
                log_probs_.data() + first);
    sums_[2 * task] =
        kernels::row_table<T>().ratios(log_probs, log_probs_.data() + first, nullptr,
                                       advantages_.data() + first, count, ratios_.data() + first);
  });
  for (int task = 0; task < tasks; ++task) {
    value_ += sums_[2 * task] / n;
    entropy_ += sums_[2 * task + 1] / n;
  }
}

// grad L = (1/N) sum_n ratio_n A_n grad log pi(a_n | s_n)                                  (eq. 11)
template <class T>
double Surrogate<T>::gradient(double* g) {
  const Matrix<const T> y = policy_.network.outputs();
  const int shards = policy_.network.shards();
  const double scale = 1 / static_cast<double>(y.rows);
  scratch_.resize(y.rows);
  sums_.resize(2 * shards);
  sums_.fill_zero();
  policy_.network.sweep(
      nullptr,
      [&](Index first, Matrix<const T>, Matrix<T> d, int shard) {
        for (Index i = first; i < first + d.rows; ++i) {
          scratch_[i] = ratios_[i] * advantages_[i] * scale;
        }
        const Matrix<const T> rows = y.middle_rows(first, d.rows);
        const double* weights = scratch_.data() + first;
        sums_[2 * shard] +=
            distribution_.scores(rows, batch_.actions.middle_rows(first, d.rows), weights, d);
        sums_[2 * shard + 1] += distribution_.magnified_rounding(rows, weights);
      },
      g);
  double total = 0, magnified = 0;  // sizes of the terms, at the outputs; squared rounding
  for (int shard = 0; shard < shards; ++shard) {
    total += sums_[2 * shard];
    magnified += sums_[2 * shard + 1];
  }
  const double parameters = static_cast<double>(policy_.policy->parameter_count());
  return std::numeric_limits<T>::epsilon() * std::sqrt(parameters) *
         (total + std::sqrt(magnified));
}

template <class T>
Candidate Surrogate<T>::evaluate(const T* theta, KlDirection direction) {
  const Network<T>& network = policy_.policy->network();
  network.pack(theta, false, &candidate_);
  const Matrix<const T> old_y = policy_.network.outputs();
  const T* old_free = policy_.policy->parameters() + network.free_offset();
  const T* free = theta + network.free_offset();
  const bool reverse = direction == KlDirection::new_old;
  distribution_.attach(policy_.policy->distribution(), old_free, free);
  if (reverse) reversed_.attach(policy_.policy->distribution(), free, old_free);
  const int shards = policy_.network.shards();
  sums_.resize(2 * shards);
  sums_.fill_zero();
  scratch_.resize(old_y.rows);
  policy_.network.evaluate_at(candidate_, [&](Index first, Matrix<const T> y, int shard) {
    double* log_probs = scratch_.data() + first;
    distribution_.log_probs(y, batch_.actions.middle_rows(first, y.rows), log_probs, nullptr);
    sums_[2 * shard] +=
        kernels::row_table<T>().ratios(log_probs, log_probs_.data() + first, ratios_.data() + first,
                                       advantages_.data() + first, y.rows, nullptr);
    const Matrix<const T> old_rows = old_y.middle_rows(first, y.rows);
    sums_[2 * shard + 1] +=
        reverse ? reversed_.divergence(y, old_rows) : distribution_.divergence(old_rows, y);
  });
  Candidate candidate;
  for (int shard = 0; shard < shards; ++shard) {
    candidate.improvement += sums_[2 * shard] / static_cast<double>(old_y.rows);
    candidate.kl += sums_[2 * shard + 1] / static_cast<double>(old_y.rows);
  }
  return candidate;
}

template class Surrogate<float>;
template class Surrogate<double>;

}  // namespace natgrad
