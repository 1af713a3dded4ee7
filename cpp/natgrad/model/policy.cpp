#include "natgrad/model/policy.hpp"

namespace natgrad {
namespace {

// Observations that `outputs` sends through the network at once.
constexpr Index kChunkRows = 4096;

}  // namespace

template <class T>
ParameterizedNetwork<T>::ParameterizedNetwork(NetworkSpec spec, Initialization kind,
                                              double output_scale, double free_value)
    : network_(std::move(spec)), parameters_(network_.parameter_count()) {
  network_.initialize(parameters_.data(), kind, output_scale, free_value);
}

template <class T>
void ParameterizedNetwork<T>::outputs(Matrix<const T> observations,
                                      FunctionRef<void(Index, Matrix<const T>)> visit) {
  const std::lock_guard lock(mutex_);
  const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(parameters_.size());
  if (packed_from_.size() == 0 ||
      std::memcmp(packed_from_.data(), parameters_.data(), bytes) != 0) {
    packed_from_.resize(0);  // should there be no memory for the next two lines
    network_.pack(parameters_.data(), false, &packed_);
    packed_from_ = parameters_;
  }
  for (Index first = 0; first < observations.rows; first += kChunkRows) {
    const Index rows = std::min(kChunkRows, observations.rows - first);
    workspace_.evaluate(network_, packed_,
                        {observations.row(first), rows, observations.columns, observations.stride});
    visit(first, workspace_.outputs());
  }
}

template <class T>
Policy<T>::Policy(NetworkSpec spec, Distribution distribution, Initialization kind,
                  double output_scale, double log_std_init)
    : ParameterizedNetwork<T>(
          [&] {
            spec.free_outputs = free_parameter_size(distribution);
            spec.outputs = parameter_size(distribution) - spec.free_outputs;
            return std::move(spec);
          }(),
          kind, output_scale, log_std_init),
      distribution_(std::move(distribution)) {
  // A log standard deviation that the network computes starts at log_std_init too, by its bias.
  const DiagonalGaussian* gaussian = normal_of(distribution_);
  if (gaussian != nullptr && gaussian->state_dependent_std) {
    const Layer& last = this->network().layers().back();
    std::fill_n(this->parameters() + last.bias + gaussian->n, gaussian->n,
                static_cast<T>(log_std_init));
  }
}

template <class T>
void Policy<T>::sample(Matrix<const T> observations, Rng* rng, Matrix<T> actions, T* log_probs) {
  std::visit(
      [&](const auto& distribution) {
        this->outputs(observations, [&](Index first, Matrix<const T> y) {
          for (Index r = 0; r < y.rows; ++r) {
            T* action = actions.row(first + r);
            distribution.sample(y.row(r), rng->row(first + r), action);
            log_probs[first + r] = static_cast<T>(distribution.log_prob(y.row(r), action));
          }
        });
      },
      distribution_);
  ++rng->counter;
}

template <class T>
void Policy<T>::mode(Matrix<const T> observations, Matrix<T> actions) {
  std::visit(
      [&](const auto& distribution) {
        this->outputs(observations, [&](Index first, Matrix<const T> y) {
          for (Index r = 0; r < y.rows; ++r) distribution.mode(y.row(r), actions.row(first + r));
        });
      },
      distribution_);
}

// By the same code as in an update, so that an update finds a ratio of exactly 1.
template <class T>
void Policy<T>::log_prob(Matrix<const T> observations, Matrix<const T> actions, T* out) {
  DistributionRows<T> distribution;
  Buffer<double> log_probs;
  this->outputs(observations, [&](Index first, Matrix<const T> y) {
    const T* free = y.row(0) + this->network().spec().outputs;
    distribution.attach(distribution_, free, free);
    log_probs.resize(y.rows);
    distribution.log_probs(y, actions.middle_rows(first, y.rows), log_probs.data(), nullptr);
    for (Index r = 0; r < y.rows; ++r) out[first + r] = static_cast<T>(log_probs[r]);
  });
}

template <class T>
void Policy<T>::entropy(Matrix<const T> observations, T* out) {
  std::visit(
      [&](const auto& distribution) {
        this->outputs(observations, [&](Index first, Matrix<const T> y) {
          for (Index r = 0; r < y.rows; ++r) {
            out[first + r] = static_cast<T>(distribution.entropy(y.row(r)));
          }
        });
      },
      distribution_);
}

template <class T>
void Policy<T>::kl(Matrix<const T> observations, const T* old_parameters, T* out) {
  LinearizedPolicy<T> current;
  current.evaluate(*this, observations);
  PackedLayers<T> old;
  this->network().pack(old_parameters, false, &old);
  const Matrix<const T> y = current.network.outputs();
  std::visit(
      [&](const auto& distribution) {
        current.network.evaluate_at(old, [&](Index first, Matrix<const T> old_y, int) {
          for (Index r = 0; r < old_y.rows; ++r) {
            out[first + r] = static_cast<T>(distribution.kl(old_y.row(r), y.row(first + r)));
          }
        });
      },
      distribution_);
}

template <class T>
void Policy<T>::score(Matrix<const T> observations, Matrix<const T> actions, const double* weights,
                      double* out) {
  const T* free = this->parameters() + this->network().free_offset();
  DistributionRows<T> distribution;
  distribution.attach(distribution_, free, free);
  Buffer<double> scale(observations.rows);
  for (Index n = 0; n < observations.rows; ++n) {
    scale[n] = (weights != nullptr ? weights[n] : 1.0) / static_cast<double>(observations.rows);
  }
  LinearizedPolicy<T> current;
  current.attach(*this, observations);
  current.network.evaluate_with_gradient(
      observations,
      [&](Index first, Matrix<const T> y, Matrix<T> d, int) {
        distribution.scores(y, actions.middle_rows(first, d.rows), scale.data() + first, d);
      },
      out);
}

template <class T>
void LinearizedPolicy<T>::attach(const Policy<T>& policy_, Matrix<const T> observations_) {
  policy = &policy_;
  policy->network().pack(policy->parameters(), true, &packed);
  network.attach(policy->network(), packed, observations_.rows);
  adjoints.drop();
  linear.detach();
  observations = observations_;
}

template <class T>
void LinearizedPolicy<T>::evaluate(const Policy<T>& policy_, Matrix<const T> observations_) {
  attach(policy_, observations_);
  provide_activations();
}

template <class T>
void LinearizedPolicy<T>::select(LinearizedPolicy* all, Index part) {
  all->provide_activations();
  policy = all->policy;
  packed = all->packed;
  network.select(all->network, packed, part);
  adjoints.drop();
  linear.detach();
  observations = {};
}

template <class T>
void LinearizedPolicy<T>::provide_activations() {
  if (!network.has_activations()) network.evaluate(policy->network(), packed, observations);
}

template class ParameterizedNetwork<float>;
template class ParameterizedNetwork<double>;
template class Policy<float>;
template class Policy<double>;
template struct LinearizedPolicy<float>;
template struct LinearizedPolicy<double>;

}  // namespace natgrad
