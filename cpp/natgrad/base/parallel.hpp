// A small thread pool whose schedule can never change a result.
//
// `parallel_for(tasks, f)` calls f(task, worker) once for each task. Which worker gets which task is
// not determined, so f must write only what belongs to its task. Work is cut into tasks by the size of
// the problem alone, never by the number of threads, so that results have the same bits for any number
// of threads.
//
// The pool starts at the first call that can use it; idle helpers spin briefly, then yield, then park.
// After a fork the child starts a pool of its own. A call from inside a task, or while another thread
// uses the pool, runs in the calling thread. Where not all threads can be started, those that can do all tasks.
// What a task throws is thrown by the call, after all tasks have ended.
#pragma once

#include <atomic>
#include <mutex>
#include <new>

#include "natgrad/base/types.hpp"

namespace natgrad {

inline constexpr int kMaxThreads = 1024;

// Default: NATGRAD_NUM_THREADS, else the number of processors that this process may use. The first
// call throws std::runtime_error if the variable is not a number of threads.
int num_threads();
void set_num_threads(int n);  // 1 <= n <= kMaxThreads

// f(task, worker) with 0 <= worker < num_threads() at the time of the call.
void parallel_for(int tasks, FunctionRef<void(int task, int worker)> f);

// How many forks lie between this process and the first.
int fork_generation();

// A mutex that a forked child finds free, whichever thread of the parent held it: that thread is not in the
// child and would never unlock it.
class ForkSafeMutex {
 public:
  void lock() {
    renew();
    mutex_.lock();
  }
  bool try_lock() {
    renew();
    return mutex_.try_lock();
  }
  void unlock() { mutex_.unlock(); }

 private:
  void renew() {
    const int now = fork_generation();
    int mine = generation_.load(std::memory_order_acquire);
    if (mine == now) return;
    // The first thread of the child that comes here makes a new mutex, and others wait for it.
    if (mine != kRenewing && generation_.compare_exchange_strong(mine, kRenewing)) {
      new (&mutex_) std::mutex;
      generation_.store(now, std::memory_order_release);
    }
    while (generation_.load(std::memory_order_acquire) != now) {
    }
  }

  static constexpr int kRenewing = -1;
  std::mutex mutex_;
  std::atomic<int> generation_{fork_generation()};
};

}  // namespace natgrad
