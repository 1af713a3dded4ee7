#include "natgrad/update/surrogate.hpp"

#include <limits>

namespace natgrad {
namespace {

// Copies `in`, standardised if asked; constant advantages become exactly 0. True if all are 0.
bool prepare_advantages(const double* in, Index count, bool normalize, double* out) {
  if (normalize) {
    const double n = static_cast<double>(count);
    double largest = 0, mean = 0, variance = 0;  // of the values by the largest: no overflow
    for (Index i = 0; i < count; ++i) largest = std::max(largest, std::abs(in[i]));
    // Values near the ends of the range of doubles are moved away from them, which is exact.
    const double unit = largest < 0x1p-900 ? 0x1p+1000 : largest > 0x1p+1000 ? 0x1p-100 : 1;
    largest *= unit;
    for (Index i = 0; i < count; ++i) mean += unit * in[i] / n;
    for (Index i = 0; i < count; ++i) {
      const double apart = unit * in[i] / largest - mean / largest;
      variance += apart * apart / n;
    }
    // Below this, differences are rounding of the values themselves, not a signal.
    if (!(std::sqrt(variance) > 1e-13)) {
      std::fill_n(out, count, 0.0);
      return true;
    }
    const double deviation = largest * std::sqrt(variance);
    for (Index i = 0; i < count; ++i) out[i] = (unit * in[i] - mean) / deviation;
  } else {
    std::copy_n(in, count, out);
  }
  return std::all_of(out, out + count, [](double value) { return value == 0; });
}

}  // namespace

// grad L = (1/N) sum_n ratio_n A_n grad log pi(a_n | s_n)                                  (eq. 3.4)
template <class T>
void Surrogate<T>::attach(const Policy<T>& policy, const Batch<T>& batch, bool normalize_advantages,
                          double* g) {
  batch_ = batch;
  const Index rows = batch.rows();
  const double n = static_cast<double>(rows), scale = 1 / n;
  for (Buffer<double>* buffer : {&advantages_, &log_probs_, &ratios_, &scratch_}) {
    buffer->resize(rows);
  }
  zero_ =
      prepare_advantages(batch.advantages.data(), rows, normalize_advantages, advantages_.data());
  const T* free = policy.parameters() + policy.network().free_offset();
  distribution_.attach(policy.distribution(), free, free);
  policy_.attach(policy, batch.observations);

  const int shards = policy_.network.shards();
  sums_.resize(4 * shards);
  sums_.fill_zero();
  // Of the rows of a tile log p, in scratch_, is turned into weights of their scores.
  const auto weigh = [&](Index first, Index count, double* sums) {
    double *log_probs = log_probs_.data() + first, *weights = scratch_.data() + first;
    const double* advantages = advantages_.data() + first;
    std::copy_n(batch.log_probs.empty() ? weights : batch.log_probs.data() + first, count,
                log_probs);
    sums[0] += kernels::active<T>().ratios(weights, log_probs, nullptr, advantages, count,
                                           ratios_.data() + first);
    for (Index i = 0; i < count; ++i) weights[i] = ratios_[first + i] * advantages[i] * scale;
  };
  double norms = 0, magnified = 0;  // of the terms, at the outputs
  if (LinearBatch<T>::applies(policy.network().spec())) {
    const auto sizes = policy_.linear.evaluate_with_gradient(
        policy.network(), policy.parameters(), batch.observations, batch.actions, shards,
        distribution_.inverse_std(), scratch_.data(),
        [&](Index first, Index count, int shard) {
          double* sums = sums_.data() + 4 * shard;
          distribution_.log_probs_by_distances(batch.actions.middle_rows(first, count),
                                               scratch_.data() + first, &sums[1]);
          weigh(first, count, sums);
        },
        g);
    norms = sizes.norms;
    magnified = sizes.magnified;
  } else {
    policy_.network.evaluate_with_gradient(
        batch.observations,
        [&](Index first, Matrix<const T> y, Matrix<T> d, int shard) {
          double *sums = sums_.data() + 4 * shard, *weights = scratch_.data() + first;
          const Matrix<const T> actions = batch.actions.middle_rows(first, y.rows);
          distribution_.log_probs(y, actions, weights, &sums[1]);
          weigh(first, y.rows, sums);
          sums[2] += distribution_.scores(y, actions, weights, d);
          sums[3] += distribution_.magnified_rounding(y, weights);
        },
        g);
  }
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
  const Policy<T>& policy = *policy_.policy;
  const Network<T>& network = policy.network();
  const T *old_free = policy.parameters() + network.free_offset(),
          *free = theta + network.free_offset();
  const bool reverse = direction == KlDirection::new_old;
  distribution_.attach(policy.distribution(), old_free, free);
  if (reverse) reversed_.attach(policy.distribution(), free, old_free);
  const int shards = policy_.network.shards();
  const Index rows = batch_.rows();
  sums_.resize(2 * shards);
  sums_.fill_zero();
  scratch_.resize(rows);
  const auto improve = [&](Index first, Index count, int shard) {
    sums_[2 * shard] += kernels::active<T>().ratios(
        scratch_.data() + first, log_probs_.data() + first, ratios_.data() + first,
        advantages_.data() + first, count, nullptr);
  };
  double divergence = 0;
  if (policy_.linear.is_attached()) {
    const DistributionRows<T>& diverging = reverse ? reversed_ : distribution_;
    const double moved = policy_.linear.evaluate_at(
        theta, distribution_.inverse_std(), diverging.inverse_std(), scratch_.data(),
        [&](Index first, Index count, int shard) {
          distribution_.log_probs_by_distances(batch_.actions.middle_rows(first, count),
                                               scratch_.data() + first, nullptr);
          improve(first, count, shard);
        });
    divergence = 0.5 * moved + static_cast<double>(rows) * diverging.divergence_of_std();
  } else {
    const Matrix<const T> old_y = policy_.network.outputs();
    network.pack(theta, false, &candidate_);
    policy_.network.evaluate_at(candidate_, [&](Index first, Matrix<const T> y, int shard) {
      distribution_.log_probs(y, batch_.actions.middle_rows(first, y.rows), scratch_.data() + first,
                              nullptr);
      improve(first, y.rows, shard);
      const Matrix<const T> old_rows = old_y.middle_rows(first, y.rows);
      sums_[2 * shard + 1] +=
          reverse ? reversed_.divergence(y, old_rows) : distribution_.divergence(old_rows, y);
    });
  }
  Candidate candidate;
  for (int shard = 0; shard < shards; ++shard) {
    candidate.improvement += sums_[2 * shard] / static_cast<double>(rows);
    divergence += sums_[2 * shard + 1];
  }
  candidate.kl = divergence / static_cast<double>(rows);
  return candidate;
}

template class Surrogate<float>;
template class Surrogate<double>;

}  // namespace natgrad
