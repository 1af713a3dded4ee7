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
  bool zero = true;
  for (Index i = 0; i < count; ++i) {
    out[i] = (in[i] - mean) / deviation;
    zero = zero && out[i] == 0;
  }
  return zero;
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
  const double* shared = share(policy.parameters());
  const int tasks = static_cast<int>((rows + kTaskRows - 1) / kTaskRows);
  sums_.resize(2 * tasks);
  std::visit(
      [&](const auto& distribution) {
        parallel_for(tasks, [&](int task, int) {
          double value = 0, entropy = 0;
          const Index begin = task * kTaskRows, end = std::min(begin + kTaskRows, rows);
          for (Index i = begin; i < end; ++i) {
            const double log_prob = distribution.log_prob(y.row(i), batch.actions.row(i), shared);
            log_probs_[i] = batch.log_probs != nullptr ? batch.log_probs[i] : log_prob;
            ratios_[i] = std::exp(log_prob - log_probs_[i]);
            value += ratios_[i] * advantages_[i];
            entropy += distribution.entropy(y.row(i));
          }
          sums_[2 * task] = value;
          sums_[2 * task + 1] = entropy;
        });
      },
      policy.distribution());
  for (int task = 0; task < tasks; ++task) {
    value_ += sums_[2 * task] / n;
    entropy_ += sums_[2 * task + 1] / n;
  }
}

// What the rows of the policy at theta share, with the policy before the update as the old one.
template <class T>
const double* Surrogate<T>::share(const T* theta) {
  const Index free = policy_.policy->network().free_offset();
  return std::visit(
      [&](const auto& distribution) -> const double* {
        shared_.resize(distribution.shared_size());
        distribution.share(policy_.policy->parameters() + free, theta + free, shared_.data());
        return distribution.shared_size() > 0 ? shared_.data() : nullptr;
      },
      policy_.policy->distribution());
}

// grad L = (1/N) sum_n ratio_n A_n grad log pi(a_n | s_n)                                  (eq. 11)
template <class T>
double Surrogate<T>::gradient(double* g) {
  const Matrix<const T> y = policy_.network.outputs();
  magnitudes_.resize(y.rows);
  const double* shared = share(policy_.policy->parameters());
  std::visit(
      [&](const auto& distribution) {
        policy_.network.sweep(
            nullptr,
            [&](Index first, Matrix<const T>, Matrix<T> d) {
              for (Index r = 0; r < d.rows; ++r) {
                const Index i = first + r;
                distribution.score(y.row(i), batch_.actions.row(i),
                                   ratios_[i] * advantages_[i] / static_cast<double>(y.rows),
                                   d.row(r), shared);
                double squared = 0;
                for (Index k = 0; k < d.columns; ++k) {
                  squared += static_cast<double>(d.row(r)[k]) * static_cast<double>(d.row(r)[k]);
                }
                magnitudes_[i] = std::sqrt(squared);
              }
            },
            g);
      },
      policy_.policy->distribution());
  double total = 0;
  for (const double magnitude : magnitudes_) total += magnitude;
  const double parameters = static_cast<double>(policy_.policy->parameter_count());
  return std::numeric_limits<T>::epsilon() * std::sqrt(parameters) * total;
}

template <class T>
Candidate Surrogate<T>::evaluate(const T* theta) {
  const Network<T>& network = policy_.policy->network();
  network.pack(theta, false, &candidate_);
  const Matrix<const T> old_y = policy_.network.outputs();
  const int shards = policy_.network.shards();
  sums_.resize(2 * shards);
  sums_.fill_zero();
  const double* shared = share(theta);
  std::visit(
      [&](const auto& distribution) {
        policy_.network.evaluate_at(candidate_, [&](Index first, Matrix<const T> y, int shard) {
          double gain = 0, kl = 0;
          for (Index r = 0; r < y.rows; ++r) {
            const Index i = first + r;
            const double log_prob = distribution.log_prob(y.row(r), batch_.actions.row(i), shared);
            gain += (std::exp(log_prob - log_probs_[i]) - ratios_[i]) * advantages_[i];
            kl += distribution.kl(old_y.row(i), y.row(r), shared);
          }
          sums_[2 * shard] += gain;
          sums_[2 * shard + 1] += kl;
        });
      },
      policy_.policy->distribution());
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
