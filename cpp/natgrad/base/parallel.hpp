// A small thread pool whose schedule can never change a result.
//
// `parallel_for(tasks, f)` calls f(task, worker) once for each task. Which worker gets which task is
// not determined, so f must write only what belongs to its task. Work is cut into tasks by the size of
// the problem alone, never by the number of threads, so that results have the same bits for any number
// of threads.
//
// The pool starts at the first call that can use it; idle helpers spin briefly, then yield, then park.
// After a fork the child starts a pool of its own. A call from inside a task, or while another thread
// uses the pool, runs in the calling thread.
#pragma once

#include "natgrad/base/types.hpp"

namespace natgrad {

inline constexpr int kMaxThreads = 1024;

// Default: NATGRAD_NUM_THREADS, else the number of processors that this process may use. The first
// call throws std::runtime_error if the variable is not a number of threads.
int num_threads();
void set_num_threads(int n);  // 1 <= n <= kMaxThreads

// f(task, worker) with 0 <= worker < num_threads() at the time of the call.
void parallel_for(int tasks, FunctionRef<void(int task, int worker)> f);

}  // namespace natgrad
