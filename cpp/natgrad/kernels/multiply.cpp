// C = epilogue(A B + A2 B2 + bias) with packed B: the layers of forward, forward-mode and reverse-mode
// passes. docs/kernels.md gives the reasons for the shapes of blocks, panels and passes.
#include "natgrad/kernels/block.hpp"
#include "natgrad/kernels/epilogue.hpp"
#include "natgrad/kernels/prefetch.hpp"

namespace NATGRAD_NAMESPACE {

// The greatest depth of one pass over a panel, which stays in the second-level cache (AVX-512: 64 KiB) or
// in the first (16 KiB) while all rows of the tile go by. Deeper products take several equal passes and
// keep their partial sums in C.
constexpr Index kDepth = 256;

// The part of a product that one pass covers: a (M, k) with stride lda, b (k, width) of the panel.
template <class T>
struct Piece {
  const T* a;
  Index lda, k;
  const T* b;
};

// A block of C and what one pass adds to it.
template <class T>
struct Block {
  const Multiply<T>& p;
  Piece<T> pieces[2];
  Index width;  // of the panel
  bool first, last;
  Index c, r;
  Ahead panel;
  NextTile tile;
};

// Partial sums of an earlier pass are added at the end, where nothing waits for them.
template <class T, int M, int V>
__attribute__((noinline)) void multiply_block(Block<T>& at) {
  const Multiply<T>& p = at.p;
  Vec<T> acc[M][V];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      acc[m][v] =
          at.first && p.bias != nullptr ? load<T>(p.bias + at.c + v * Simd<T>::lanes) : Vec<T>{};
    }
  }
  at.tile.fetch();
  // A constant where a block is as wide as a panel.
  const Index width = V * Simd<T>::lanes == kPanel<T> ? kPanel<T> : at.width;
  Ahead panel = at.panel;
  for (const Piece<T>& piece : at.pieces) {
    outer_products<T, M, V, 3>(acc, piece.k, piece.a + at.r * piece.lda, 1, piece.lda, piece.b,
                               width, [&] { panel.fetch(); });
  }
  at.panel = panel;
  if (!at.first) {
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        acc[m][v] += load<T>(p.c + (at.r + m) * p.ldc + at.c + v * Simd<T>::lanes);
      }
    }
  }
  if (at.last) {
    finish_block<T, M, V>(p, acc, at.r, at.c);
  } else {
    store_block<T, M, V>(p, acc, at.r, at.c);
  }
}

// All rows of V vectors of columns: full blocks, then ever lower ones.
template <class T, int V>
void multiply_columns(Block<T>& at) {
  constexpr int M = block_height(V);
  const Index rows = at.p.rows;
  at.r = 0;
  for (; at.r + M <= rows; at.r += M) multiply_block<T, M, V>(at);
  for (; at.r + 4 <= rows; at.r += 4) multiply_block<T, 4, V>(at);
  for (; at.r + 2 <= rows; at.r += 2) multiply_block<T, 2, V>(at);
  for (; at.r < rows; ++at.r) multiply_block<T, 1, V>(at);
}

// The first block of one panel in one pass.
template <class T>
Block<T> block_at(const Multiply<T>& p, Index pass, Index passes, Index panel) {
  const Index width = p.n - panel < kPanel<T> ? p.n - panel : kPanel<T>;
  const Index depth = p.k + p.k2, begin = depth * pass / passes, end = depth * (pass + 1) / passes;
  const auto piece = [&](const T* a, Index lda, const T* b, Index k, Index offset) -> Piece<T> {
    const Index from = begin > offset ? begin - offset : 0;
    const Index to = end - offset < k ? end - offset : k;
    if (to <= from) return {p.a, 0, 0, p.b};
    return {a + from, lda, to - from, b + k * panel + from * width};
  };
  return {.p = p,
          .pieces = {piece(p.a, p.lda, p.b, p.k, 0), piece(p.a2, p.lda2, p.b2, p.k2, p.k)},
          .width = width,
          .first = begin == 0,
          .last = end == depth,
          .c = panel,
          .r = 0,
          .panel = {(const char*)p.b, (const char*)p.b},
          .tile = {}};
}

// Pass by pass, panel by panel, block by block. The two products follow each other as one of depth
// k + k2. The part of A for one pass stays in the second-level cache while the panels go by.
template <class T>
void multiply(const Multiply<T>& p) {
  const Index passes = (p.k + p.k2 + kDepth - 1) / kDepth;
  const Index panels = (p.n + kPanel<T> - 1) / kPanel<T>;
  NextTile tile = NextTile::of(p, passes * panels * (p.rows / block_height(kMaxVectors) + 1));
  for (Index pass = 0; pass < passes; ++pass) {
    for (Index panel = 0; panel < p.n; panel += kPanel<T>) {
      Block<T> at = block_at(p, pass, passes, panel);
      const bool wraps = panel + kPanel<T> >= p.n;
      if (!wraps || !at.last) {  // fetch the longer of the next two pieces
        const Block<T> next = block_at(p, pass + wraps, passes, wraps ? 0 : panel + kPanel<T>);
        const Piece<T>& piece = next.pieces[next.pieces[1].k > next.pieces[0].k];
        at.panel = {(const char*)piece.b, (const char*)(piece.b + piece.k * next.width)};
      }
      at.tile = tile;
      for (Index left = at.width / Simd<T>::lanes; left > 0;) {
        const Index vectors = left < kMaxVectors ? left : kMaxVectors;
        switch (vectors) {
          case 1:
            multiply_columns<T, 1>(at);
            break;
          case 2:
            multiply_columns<T, 2>(at);
            break;
#if NATGRAD_VECTOR_BYTES == 64
          case 3:
            multiply_columns<T, 3>(at);
            break;
          case 4:
            multiply_columns<T, 4>(at);
            break;
#endif
        }
        const Index columns = vectors * Simd<T>::lanes;
        at.c += columns;
        left -= vectors;
        for (Piece<T>& piece : at.pieces) piece.b += columns;
      }
      tile = at.tile;
    }
  }
}

template <class T>
void add_multiply(Kernels<T>* kernels) {
  kernels->panel = kPanel<T>;
  kernels->multiply = multiply<T>;
}
template void add_multiply(Kernels<float>*);
template void add_multiply(Kernels<double>*);

}  // namespace NATGRAD_NAMESPACE
