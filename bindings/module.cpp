// Table of contents of natgrad._core. One file per concept; see models.hpp and arrays.hpp for what
// they share.
#include "models.hpp"

PYBIND11_MODULE(_core, m) {
  using namespace natgrad::bindings;
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const natgrad::OutOfMemory& error) {
      PyErr_Format(PyExc_MemoryError, "%s; nothing has changed", error.what());
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "cannot allocate memory; nothing has changed");
    }
  });
  m.doc() = "The compiled core of natgrad: analytic Fisher products, solvers and updates.";
  m.attr("__version__") = NATGRAD_VERSION;
  bind_random(m);
  bind_distribution(m);
  bind_policy(m);
  bind_value_function(m);
  bind_options(m);
  bind_solvers(m);
  bind_fisher(m);
  bind_preconditioners(m);
  bind_report(m);
  bind_update(m);
  bind_advantage(m);
  bind_machine(m);
}
