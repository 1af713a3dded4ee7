#include "natgrad/surrogate.hpp"

#include <limits>

namespace natgrad {
namespace {

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

// grad L = (1/N) sum_n ratio_n A_n grad log pi(a_n | s_n)                                  (eq. 11)
template <class T>
void Surrogate<T>::attach(const Policy<T>& policy, const Batch<T>& batch, bool normalize_advantages,
                          double* g) {
  batch_ = batch;
  const Index rows = batch.rows();
  const double n = static_cast<double>(rows), scale = 1 / n;
  for (Buffer<double>* buffer : {&advantages_, &log_probs_, &ratios_, &scratch_}) {
    buffer->resize(rows);
  }
  zero_ = prepare_advantages(batch.advantages, rows, normalize_advantages, advantages_.data());
  const T* free = policy.parameters() + policy.network().free_offset();
  distribution_.attach(policy.distribution(), free, free);
  policy_.attach(policy, rows);

  const int shards = policy_.network.shards();
  sums_.resize(4 * shards);
  sums_.fill_zero();
  policy_.network.evaluate_with_gradient(
      batch.observations,
      [&](Index first, Matrix<const T> y, Matrix<T> d, int shard) {
        double* sums = sums_.data() + 4 * shard;
        double *log_probs = log_probs_.data() + first, *weights = scratch_.data() + first;
        const double* advantages = advantages_.data() + first;
        const Matrix<const T> actions = batch.actions.middle_rows(first, y.rows);
        distribution_.log_probs(y, actions, weights, &sums[1]);
        std::copy_n(batch.log_probs != nullptr ? batch.log_probs + first : weights, y.rows,
                    log_probs);
        sums[0] += kernels::row_table<T>().ratios(weights, log_probs, nullptr, advantages, y.rows,
                                                  ratios_.data() + first);
        for (Index i = 0; i < y.rows; ++i) weights[i] = ratios_[first + i] * advantages[i] * scale;
        sums[2] += distribution_.scores(y, actions, weights, d);
        sums[3] += distribution_.magnified_rounding(y, weights);
      },
      g);
  double norms = 0, magnified = 0;  // of the terms, at the outputs
  value_ = entropy_ = 0;
  for (int shard = 0; shard < shards; ++shard) {
    value_ += sums_[4 * shard] / n;
    entropy_ += sums_[4 * shard + 1] / n;
    norms += sums_[4 * shard + 2];
    magnified += sums_[4 * shard + 3];
  }
  rounding_ = std::numeric_limits<T>::epsilon() *
              std::sqrt(static_cast<double>(policy.parameter_count())) *
              (norms + std::sqrt(magnified));
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
