// What is done to the rows of a batch apart from their distributions: the observations are normalised,
// and probability ratios are added up for the surrogate. Computed in double.
#include "natgrad/kernels/kernels.hpp"
#include "natgrad/kernels/wide.hpp"

namespace NATGRAD_NAMESPACE {
namespace {

template <class T>
void normalize(const T* x, Index ldx, Index rows, Index columns, const double* mean,
               const double* inverse_std, double clip, T* h, Index ldh) {
  for (Index c = 0; c < ldh; c += kWideLanes) {
    if (c >= columns) {
      for (Index r = 0; r < rows; ++r) store_wide(h + r * ldh + c, Wide{});
      continue;
    }
    const Wide from = load_wide<false>(mean + c, columns - c);
    const Wide scale = load_wide<false>(inverse_std + c, columns - c);
    const IVec<double> inside = first_lanes(columns - c);
    const Index whole = whole_rows(rows, columns, ldx);
    for (Index r = 0; r < rows; ++r) {
      const T* at = x + r * ldx + c;
      const Wide value = r < whole ? load_wide(at) : load_wide<false>(at, columns - c);
      store_wide(h + r * ldh + c, only(clamp<double>((value - from) * scale, -clip, clip), inside));
    }
  }
}

double ratios(const double* log_probs, const double* behaviour, const double* baseline,
              const double* weights, Index rows, double* kept) {
  Wide total = {};
  for_each_strip(rows, rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    constexpr bool is_whole = decltype(whole)::is;
    const Wide ratio = exp<double>(load_wide<is_whole>(log_probs + r, count) -
                                   load_wide<is_whole>(behaviour + r, count));
    if (kept != nullptr) store_wide<is_whole>(kept + r, ratio, count);
    const Wide above =
        baseline != nullptr ? ratio - load_wide<is_whole>(baseline + r, count) : ratio;
    total += above * load_wide<is_whole>(weights + r, count);
  });
  return sum(total);
}

double sum_of_roots(const double* squares, Index rows) {
  Wide total = {};
  for_each_strip(rows, rows, [&](auto whole, Index r, Index count) NATGRAD_LAMBDA {
    total += root(load_wide<decltype(whole)::is>(squares + r, count));
  });
  return sum(total);
}

}  // namespace

template <class T>
void add_rows(Kernels<T>* kernels) {
  kernels->normalize = normalize<T>;
  kernels->ratios = ratios;
  kernels->sum_of_roots = sum_of_roots;
}
template void add_rows(Kernels<float>*);
template void add_rows(Kernels<double>*);

}  // namespace NATGRAD_NAMESPACE
