// An update as Python holds it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "models.hpp"

namespace natgrad::bindings {

// An update and the mutex that serialises its calls: it owns its scratch memory.
template <class Update>
class PyUpdate : public ZeroedUntilConstructed {
 public:
  explicit PyUpdate(const decltype(std::declval<Update>().options())& options)
      : update_(std::make_unique<Update>(options)) {}

  // f(update) without the GIL.
  template <class F>
  auto run(F f) {
    require_initialized();
    refuse_recursion();
    const py::gil_scoped_release release;  // plain memory from here on
    const std::lock_guard lock(mutex_);
    return f(*update_);
  }
  // The same for f that changes nothing, which a function of Python may ask for during its update.
  template <class F>
  auto read(F f) {
    return is_owner() ? f(*update_) : run(f);
  }
  // f(update) with the GIL, for functions of Python. One that calls its own update would wait for ever.
  template <class F>
  auto run_python(F f) {
    require_initialized();
    refuse_recursion();
    std::unique_lock lock(mutex_, std::defer_lock);
    {
      const py::gil_scoped_release release;
      lock.lock();
    }
    owner_ = std::this_thread::get_id();
    struct Disown {
      std::atomic<std::thread::id>& owner;
      ~Disown() { owner = std::thread::id(); }
    } const disown{owner_};
    return f(*update_);
  }

  py::array_t<double> state() {
    return state_to_python(read([](Update& update) { return update.state(); }));
  }
  void set_state(py::handle given) {
    state_from_python(given, [&](const auto& state) {
      return run([&](Update& update) { return update.set_state(state); });
    });
  }

 private:
  void require_initialized() const {
    if (!update_) not_initialized();
  }
  bool is_owner() const { return owner_ == std::this_thread::get_id(); }
  void refuse_recursion() const {
    if (is_owner()) throw std::runtime_error("the update is already running in this thread");
  }
  std::unique_ptr<Update> update_;
  ForkSafeMutex mutex_;
  std::atomic<std::thread::id> owner_;
};

}  // namespace natgrad::bindings
