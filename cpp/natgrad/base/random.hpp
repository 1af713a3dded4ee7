// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011).
//
// A draw is a function of (seed, stream, counter, index) and nothing else. A policy samples row i of
// a batch from stream `stream + i` and advances the counter by one per call, so an environment's
// actions do not depend on how many other environments are stepped beside it.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace natgrad {

inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                               std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9u;  // golden ratio
    key[1] += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

// The draws of one (seed, stream, counter): uniforms in (0, 1) and standard normals, in order.
class RandomStream {
 public:
  RandomStream(std::uint64_t seed, std::uint32_t stream, std::uint64_t counter)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
        counter_{0, stream, static_cast<std::uint32_t>(counter),
                 static_cast<std::uint32_t>(counter >> 32)} {}

  // 52 random bits and a half: never 0 or 1.
  double uniform() {
    const std::uint64_t high = next(), low = next();
    return (static_cast<double>((high << 20) ^ (low >> 12)) + 0.5) * 0x1p-52;
  }

  // Box and Muller (1958), both halves used.
  double normal() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    const double angle = 6.283185307179586476925 * uniform();
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  std::uint32_t next() {
    if (position_ == 4) {
      block_ = philox4x32(counter_, key_);
      ++counter_[0];
      position_ = 0;
    }
    return block_[static_cast<std::size_t>(position_++)];
  }

  std::array<std::uint32_t, 2> key_;
  std::array<std::uint32_t, 4> counter_;
  std::array<std::uint32_t, 4> block_{};
  int position_ = 4;
  double spare_ = 0;
  bool has_spare_ = false;
};

// The state that a user holds: a seed, a first stream and the number of calls made so far.
struct Rng {
  std::uint64_t seed = 0;
  std::uint32_t stream = 0;
  std::uint64_t counter = 0;

  RandomStream row(std::int64_t index) const {
    return {seed, stream + static_cast<std::uint32_t>(index), counter};
  }
};

}  // namespace natgrad
