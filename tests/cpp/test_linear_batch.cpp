// A linear Gaussian policy on a batch, in bundles, gives what loops over rows give, for every width
// and number of rows; arrays of observations and actions end where their last row does, for
// AddressSanitizer to watch.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "natgrad/base/parallel.hpp"
#include "natgrad/base/random.hpp"
#include "natgrad/model/linear_batch.hpp"

namespace {

using namespace natgrad;

int failures = 0;

void check(double got, double want, double scale, double tolerance, const std::string& what) {
  if (std::abs(got - want) <= tolerance * scale) return;
  if (std::isnan(got) && std::isnan(want)) return;
  if (++failures <= 20) std::printf("%s: got %.17g, want %.17g\n", what.c_str(), got, want);
}

// Any smooth positive function of a distance does for a weight.
double weight(double distance) {
  return 1 / (1 + distance);
}

template <class T>
struct Case {
  Index in, out, rows;
  Network<T> network;
  std::vector<T> theta, other, observations, actions;  // nothing after their last rows
  std::vector<double> inverse_std, other_inverse_std, mean, std;
  double clip = std::numeric_limits<double>::infinity();

  Case(NetworkSpec spec, Index rows_, bool normalized)
      : in(spec.inputs), out(spec.outputs), rows(rows_), network(spec) {
    RandomStream random(1, 2, static_cast<std::uint32_t>(rows));
    const auto fill = [&](auto& x, Index size, double scale) {
      for (Index i = 0; i < size; ++i) {
        x.push_back(
            static_cast<typename std::decay_t<decltype(x)>::value_type>(scale * random.normal()));
      }
    };
    fill(theta, network.parameter_count(), 0.5);
    fill(other, network.parameter_count(), 0.5);
    fill(observations, rows * in, 1);
    fill(actions, rows * out, 1);
    mean.assign(static_cast<std::size_t>(in), normalized ? 0.25 : 0.0);
    std.assign(static_cast<std::size_t>(in), normalized ? 0.5 : 1.0);
    if (normalized) clip = 2;
    network.set_normalizer(mean, std, clip);
    for (Index o = 0; o < out; ++o) {
      inverse_std.push_back(0.5 + 0.1 * static_cast<double>(o % 7));
      other_inverse_std.push_back(0.7 + 0.2 * static_cast<double>(o % 5));
    }
  }

  // phi of a row, in double.
  std::vector<double> features(Index r) const {
    std::vector<double> phi;
    for (Index i = 0; i < in; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const auto x = static_cast<double>(observations[static_cast<std::size_t>(r * in + i)]);
      const double h = std::min(std::max((x - mean[at]) / std[at], -clip), clip);
      phi.push_back(static_cast<double>(static_cast<T>(h)));
    }
    phi.push_back(1);
    return phi;
  }
  double mean_at(const std::vector<T>& parameters, const std::vector<double>& phi, Index o) const {
    double sum = static_cast<double>(parameters[static_cast<std::size_t>(in * out + o)]);
    for (Index i = 0; i < in; ++i) {
      sum += phi[static_cast<std::size_t>(i)] *
             static_cast<double>(parameters[static_cast<std::size_t>(o * in + i)]);
    }
    return sum;
  }
  double action(Index r, Index o) const {
    return static_cast<double>(actions[static_cast<std::size_t>(r * out + o)]);
  }
};

template <class T>
void compare(Index in, Index out, Index rows, bool normalized) {
  NetworkSpec spec;
  spec.inputs = in;
  spec.outputs = spec.free_outputs = out;
  const Case<T> c(spec, rows, normalized);
  const std::string where = std::to_string(in) + " -> " + std::to_string(out) + ", " +
                            std::to_string(rows) + (sizeof(T) == 4 ? " float: " : " double: ");
  const int shards = rows >= 512 ? 2 : 1;
  LinearBatch<T> batch;
  Buffer<double> values(rows), distances(rows), g(c.network.parameter_count());
  Index seen = 0;
  const auto sizes = batch.evaluate_with_gradient(
      c.network, c.theta.data(), {c.observations.data(), rows, in, in},
      {c.actions.data(), rows, out, out}, shards, c.inverse_std.data(), values.data(),
      [&](Index first, Index count, int) {
        for (Index r = first; r < first + count; ++r) {
          distances[r] = values[r];
          values[r] = weight(values[r]);
        }
        seen += count;
      },
      g.data());
  check(static_cast<double>(seen), static_cast<double>(rows), 1, 0, where + "rows seen");
  Buffer<double> gram((in + 1) * (in + 1)), moved(rows);
  batch.input_gram(gram.data());
  const double moves =
      batch.evaluate_at(c.other.data(), c.other_inverse_std.data(), c.inverse_std.data(),
                        moved.data(), [](Index, Index, int) {});

  const double eps = 10 * std::numeric_limits<T>::epsilon() * std::sqrt(static_cast<double>(in));
  std::vector<double> want(static_cast<std::size_t>(g.size()));
  std::vector<double> want_gram(static_cast<std::size_t>(gram.size()));
  double norms = 0, magnified = 0, want_moves = 0;
  for (Index r = 0; r < rows; ++r) {
    const std::vector<double> phi = c.features(r);
    double distance = 0, moved_distance = 0, squares = 0, magnitude = 0;
    std::vector<double> z;
    for (Index o = 0; o < out; ++o) {
      const auto at = static_cast<std::size_t>(o);
      const double mean = c.mean_at(c.theta, phi, o), moved_mean = c.mean_at(c.other, phi, o);
      z.push_back((c.action(r, o) - mean) * c.inverse_std[at]);
      distance += z.back() * z.back();
      const double moved_z = (c.action(r, o) - moved_mean) * c.other_inverse_std[at];
      moved_distance += moved_z * moved_z;
      want_moves += std::pow((moved_mean - mean) * c.inverse_std[at], 2);
      magnitude += std::abs(mean) * c.inverse_std[at] * c.inverse_std[at];
    }
    check(distances[r], distance, 1 + distance, 10 * eps, where + "distance");
    check(moved[r], moved_distance, 1 + moved_distance, 10 * eps, where + "moved distance");
    const double w = weight(distance);
    for (Index o = 0; o < out; ++o) {
      const auto at = static_cast<std::size_t>(o);
      const double by_mean = w * z[at] * c.inverse_std[at], along = w * (z[at] * z[at] - 1);
      squares += by_mean * by_mean + along * along;
      for (Index i = 0; i < in; ++i) {
        want[static_cast<std::size_t>(o * in + i)] += by_mean * phi[static_cast<std::size_t>(i)];
      }
      want[static_cast<std::size_t>(in * out + o)] += by_mean;
      want[static_cast<std::size_t>((in + 1) * out + o)] += along;
    }
    norms += std::sqrt(squares);
    magnified += w * magnitude * w * magnitude;
    for (Index i = 0; i <= in; ++i) {
      for (Index j = 0; j <= in; ++j) {
        want_gram[static_cast<std::size_t>(i * (in + 1) + j)] +=
            phi[static_cast<std::size_t>(i)] * phi[static_cast<std::size_t>(j)];
      }
    }
  }
  for (Index i = 0; i < g.size(); ++i) {
    check(g[i], want[static_cast<std::size_t>(i)], norms, 10 * eps, where + "gradient");
  }
  for (Index i = 0; i < gram.size(); ++i) {
    check(gram[i], want_gram[static_cast<std::size_t>(i)], static_cast<double>(rows), eps,
          where + "gram");
  }
  check(sizes.norms, norms, norms, 10 * eps, where + "norms");
  check(sizes.magnified, magnified, magnified, 10 * eps, where + "magnified rounding");
  check(moves, want_moves, want_moves, 10 * eps, where + "moves");
}

// One number that is not finite is found in every sum.
template <class T>
void spoil(Index rows, Index row) {
  NetworkSpec spec;
  spec.inputs = 5;
  spec.outputs = spec.free_outputs = 3;
  Case<T> c(spec, rows, false);
  c.observations[static_cast<std::size_t>(row * 5 + 4)] = std::numeric_limits<T>::quiet_NaN();
  LinearBatch<T> batch;
  Buffer<double> values(rows), g(c.network.parameter_count());
  const auto sizes = batch.evaluate_with_gradient(
      c.network, c.theta.data(), {c.observations.data(), rows, 5, 5},
      {c.actions.data(), rows, 3, 3}, 1, c.inverse_std.data(), values.data(),
      [](Index, Index, int) {}, g.data());
  const double moves =
      batch.evaluate_at(c.other.data(), c.other_inverse_std.data(), c.inverse_std.data(),
                        values.data(), [](Index, Index, int) {});
  const bool found = std::isnan(values[row]) && std::isnan(g[0]) && std::isnan(sizes.norms) &&
                     std::isnan(sizes.magnified) && std::isnan(moves);
  check(found, true, 1, 0, "a NaN in row " + std::to_string(row) + " is found");
}

}  // namespace

int main() {
  set_num_threads(2);
  const Index widths[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 18, 23, 33};
  for (const Index in : widths) {
    for (const Index out : {1, 2, 3, 4, 6, 7, 9, 17}) {
      for (const Index rows : {1, 2, 9, 16, 17, 63, 64, 65, 130, 600}) {
        for (const bool normalized : {false, true}) {
          compare<float>(in, out, rows, normalized);
          compare<double>(in, out, rows, normalized);
        }
      }
    }
  }
  compare<float>(17, 6, 1700, false);  // several tiles in a shard
  compare<double>(17, 6, 1700, true);
  for (const Index row : {0, 15, 40, 69}) {
    spoil<float>(70, row);
    spoil<double>(70, row);
  }
  std::printf("%s: %d differences\n", kernels::level().name, failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
