// What the options of an update look like in Python, beside the core's own structs.
#pragma once

#include "natgrad/solvers/line_search.hpp"
#include "natgrad/update/direction_solver.hpp"

namespace natgrad::bindings {

// As a solver: conjugate gradients alone, or a direct form where that is faster.
struct PyConjugateGradient : ConjugateGradient {
  bool or_direct = false;
};

}  // namespace natgrad::bindings
