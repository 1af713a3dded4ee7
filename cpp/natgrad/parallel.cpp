#include "natgrad/parallel.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace natgrad {
namespace {

// Bounded waiting: pure spinning collapses when the machine has fewer idle cores than threads.
constexpr int kSpins = 2000;
constexpr int kYields = 200;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A job is a number of tasks, taken one at a time. The caller works too, and waits for the tasks that
// were taken, not for the helpers: one that wakes up late, because something else has its core, finds
// nothing left and costs nothing.
class Pool {
 public:
  explicit Pool(int helpers) {
    threads_.reserve(static_cast<std::size_t>(helpers));
    for (int i = 0; i < helpers; ++i) threads_.emplace_back([this, i] { serve(i + 1); });
  }

  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_.store(true);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int helpers() const { return static_cast<int>(threads_.size()); }

  void run(int tasks, FunctionRef<void(int, int)> f) {
    job_ = &f;
    tasks_ = tasks;
    done_.store(0, std::memory_order_relaxed);
    ++number_;
    left_.store((number_ << 32) + static_cast<std::uint64_t>(tasks));
    if (parked_.load() > 0) {
      {
        const std::lock_guard lock(mutex_);
      }  // a helper has looked and sleeps, or will look again
      wake_.notify_all();
    }
    while (work(0)) continue;
    for (int i = 0; done_.load(std::memory_order_acquire) < tasks; ++i) {
      if (i < kSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  bool has_work() const { return static_cast<std::uint32_t>(left_.load()) > 0; }

  // Takes one task of the current job and does it. Until it is done the job cannot end, so that job_
  // and tasks_ stay as they are; the job's number keeps a late helper from taking one of the next.
  bool work(int worker) {
    std::uint64_t left = left_.load();
    do {
      if (static_cast<std::uint32_t>(left) == 0) return false;
    } while (!left_.compare_exchange_weak(left, left - 1));
    (*job_)(tasks_ - static_cast<int>(static_cast<std::uint32_t>(left)), worker);
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  void serve(int worker) {
    for (int idle = 0; !stopping_.load(std::memory_order_relaxed); ++idle) {
      if (work(worker)) {
        idle = 0;
      } else if (idle < kSpins) {
        relax();
      } else if (idle < kSpins + kYields) {
        std::this_thread::yield();
      } else {
        std::unique_lock lock(mutex_);
        parked_.fetch_add(1);
        wake_.wait(lock, [&] { return has_work() || stopping_.load(); });
        parked_.fetch_sub(1);
        idle = 0;
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> left_{
      0};  // the job's number, and how many of its tasks nobody has taken
  std::atomic<int> parked_{0}, done_{0};
  std::atomic<bool> stopping_{false};
  FunctionRef<void(int, int)>* job_ = nullptr;
  int tasks_ = 0;
  std::uint64_t number_ = 0;
  std::vector<std::thread> threads_;
};

int default_threads() {
  const char* wanted = std::getenv("NATGRAD_NUM_THREADS");
  if (wanted != nullptr && *wanted != '\0') {
    char* end = nullptr;
    const long n = std::strtol(wanted, &end, 10);
    if (*end == '\0' && n >= 1 && n <= kMaxThreads) return static_cast<int>(n);
    throw std::runtime_error(std::string("NATGRAD_NUM_THREADS=") + wanted +
                             ": want an integer from 1 to " + std::to_string(kMaxThreads));
  }
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

std::atomic<int> wanted_threads{0};
std::mutex pool_mutex;             // held while the pool is in use
Pool* pool = nullptr;              // leaked at exit: its threads may outlive static destruction
thread_local bool inside = false;  // this thread is already working for the pool

// A forked child has none of the pool's threads: it forgets the pool and makes another when needed.
// The lock is taken around fork so that the child never inherits it locked.
[[maybe_unused]] const int fork_handlers =
    pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); },
                   [] {
                     pool = nullptr;
                     pool_mutex.unlock();
                   });

}  // namespace

int num_threads() {
  int n = wanted_threads.load();
  if (n == 0) {
    n = default_threads();
    wanted_threads.store(n);
  }
  return n;
}

void set_num_threads(int n) {
  wanted_threads.store(n);
}

void parallel_for(int tasks, FunctionRef<void(int, int)> f) {
  const int threads = num_threads();
  std::unique_lock lock(pool_mutex, std::defer_lock);
  if (threads == 1 || tasks <= 1 || inside || !lock.try_lock()) {
    for (int task = 0; task < tasks; ++task) f(task, 0);
    return;
  }
  if (pool == nullptr || pool->helpers() != threads - 1) {
    delete pool;
    pool = nullptr;
    pool = new Pool(threads - 1);
  }
  inside = true;
  pool->run(tasks, f);
  inside = false;
}

}  // namespace natgrad
