// What a block of a product fetches into the first-level cache while it computes.
//
// Weights and gradients from beyond the second-level cache would otherwise take as long to arrive as
// their products take to compute, and many fetches at once would hold up the loads that are needed now.
#pragma once

#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/lanes.hpp"

namespace NATGRAD_NAMESPACE {

// Memory that is needed next, one line between any four steps of a block. The last line is fetched again
// and again, which is cheap as long as the address is valid.
struct Ahead {
  const char* next;
  const char* end;

  NATGRAD_INLINE void fetch() {
    __builtin_prefetch(next);
    next += next < end ? 64 : 0;
  }
};

// The rows of the next tile, where A is read tile after tile: a share of them at each block.
struct NextTile {
  const char* next;
  const char* end;
  Index step;  // bytes at a block

  template <class T>
  static NextTile of(const Multiply<T>& p, Index blocks) {
    if (!p.a_streams) return {};
    const Index bytes = (Index)sizeof(T) * p.rows * p.lda;
    const char* next = (const char*)p.a + bytes;
    return {next, next + bytes, (bytes / (64 * blocks) + 1) * 64};
  }
  NATGRAD_INLINE void fetch() {
    const char* line = next;
    next = end - line > step ? line + step : end;
    for (const char* stop = next; line < stop; line += 64) __builtin_prefetch(line);
  }
};

}  // namespace NATGRAD_NAMESPACE
