// The feed-forward network: sizes, parameter layout, initial weights, the normaliser of its input, and the
// packed form of its weights that the kernels read. linearization.hpp has the passes over batches.
//
//   h_0 = input(obs)      normalisation, then optionally random Fourier features; both fixed
//   z_l = W_l h_{l-1} + b_l,  h_l = act(z_l)        l = 1 .. L-1
//   y   = (W_L h_{L-1} + b_L, free)                 outputs, then the free outputs
//
// A free output is a parameter of its own, the same for every observation: the state-independent
// log standard deviation of a Gaussian policy. Every pass treats it as one more column of y whose bias is
// the parameter and whose weights are zero.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "natgrad/base/types.hpp"
#include "natgrad/kernels/kernels.hpp"

namespace natgrad {

using kernels::Activation;
using kernels::Epilogue;

enum class Initialization { orthogonal, scaled };

struct NetworkSpec {
  Index inputs = 0;           // observation size
  std::vector<Index> hidden;  // widths; empty for a linear policy
  Index outputs = 0;          // outputs computed from the observation
  Index free_outputs = 0;     // outputs that are parameters
  Activation activation = Activation::tanh;
  Index fourier_features = 0;    // 0: none
  double fourier_bandwidth = 1;  // nu of Rajeswaran et al. (2017): sin(P x / nu + phi)
  std::uint64_t seed = 0;        // of the Fourier features and of the initial weights
};

struct Layer {
  Index in, out;
  Index weight;  // offset in theta of W (out, in), row-major
  Index bias;    // offset in theta of b (out)
};

// The last columns of a layer's outputs, if they are computed as dot products instead of in a padded lane
// of their own: it pays where they are few and `in` is long enough to outweigh the sums across lanes.
template <class T>
Index narrow_columns(const Layer& layer) {
  const Index rest = layer.out % kLanes<T>;
  return rest <= kernels::kNarrow<T> && 8 * rest <= layer.in ? rest : 0;
}

// The (W, b) of each layer as the kernels read them; see kernels.hpp for the panels. The free outputs
// follow the bias of the last layer.
template <class T>
struct PackedLayers {
  // W' (in, out padded) in panels, then the rows of W that belong to the narrow columns
  std::vector<Buffer<T>> forward;
  std::vector<Buffer<T>> backward;  // W (out, in padded) in panels; empty for a direction
  std::vector<Buffer<T>> bias;      // (out padded)
};

template <class T>
class Network {
 public:
  explicit Network(NetworkSpec spec);

  const NetworkSpec& spec() const { return spec_; }
  const std::vector<Layer>& layers() const { return layers_; }
  Index parameter_count() const { return free_offset_ + spec_.free_outputs; }
  Index free_offset() const { return free_offset_; }
  Index output_columns() const { return spec_.outputs + spec_.free_outputs; }

  // Orthogonal (Saxe et al. 2014): gain sqrt(2) for hidden layers. Scaled (LeCun et al. 1998):
  // normal with variance 1 / fan-in. The last layer is multiplied by output_scale; biases are 0.
  void initialize(T* theta, Initialization kind, double output_scale, double free_value) const;

  // The network sees (obs - mean) / std, clipped to [-clip, clip]; mean and std have spec().inputs values.
  // At first that is the identity, without clipping.
  void set_normalizer(std::span<const double> mean, std::span<const double> std, double clip);
  const std::vector<double>& normalizer_mean() const { return mean_; }
  const std::vector<double>& normalizer_std() const { return std_; }
  double normalizer_clip() const { return clip_; }

  // The network's input for `observations` (n, inputs) -> h (n, layers()[0].in), padded with zeros.
  // `scratch` holds n * leading_dimension(inputs) values.
  void input(Matrix<const T> observations, Matrix<T> h, T* scratch) const;
  // Whether that input is the observations, unchanged.
  bool input_is_observation() const { return spec_.fourier_features == 0 && !normalizes_; }

  // Rearranges the weights in theta, or a direction of the solver, for the kernels.
  template <class Source>
  void pack(const Source* theta, bool with_backward, PackedLayers<T>* packed) const;

 private:
  NetworkSpec spec_;
  std::vector<Layer> layers_;
  Index free_offset_ = 0;
  std::vector<double> mean_, std_, inverse_std_;
  double clip_;
  bool normalizes_ = false;
  PackedLayers<T> fourier_;  // one layer: P / nu and phi
};

}  // namespace natgrad
