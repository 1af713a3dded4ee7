#include "natgrad/base/parallel.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
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

// Where a parked helper may wake up. Linux may put it on the caller's own processor, which the caller
// does not leave, while others are idle: this happens in virtual machines, where a halted processor
// counts as busy. There it would wait some milliseconds for the next load balancing.
struct Place {
  bool parked = false;
#if defined(__linux__)
  bool restricted = false;
  cpu_set_t allowed;

  void leave_this_processor(std::thread& helper) {
    const int here = sched_getcpu();
    if (!parked || here < 0 || here >= CPU_SETSIZE) return;
    const auto thread = helper.native_handle();
    if (!restricted && pthread_getaffinity_np(thread, sizeof(allowed), &allowed) != 0) return;
    cpu_set_t others = allowed;
    CPU_CLR(here, &others);
    if (CPU_COUNT(&others) == 0) return;
    if (pthread_setaffinity_np(thread, sizeof(others), &others) == 0) restricted = true;
  }
  void restore() {
    if (restricted) pthread_setaffinity_np(pthread_self(), sizeof(allowed), &allowed);
    restricted = false;
  }
#else
  void leave_this_processor(std::thread&) {}
  void restore() {}
#endif
};

// A job is a number of tasks. Each worker begins with a range of its own, the same in every job of as
// many tasks, so that the data of a shard stay in the cache of one core; then it takes tasks from the
// ends of the other ranges. The caller works too, and waits for the tasks that were taken rather than
// for the helpers: a helper that wakes up late finds no task left and costs nothing.
class Pool {
 public:
  explicit Pool(int helpers)
      : ranges_(static_cast<std::size_t>(helpers) + 1), places_(static_cast<std::size_t>(helpers)) {
    threads_.reserve(static_cast<std::size_t>(helpers));
    try {
      for (int i = 0; i < helpers; ++i) threads_.emplace_back([this, i] { serve(i + 1); });
    } catch (const std::exception&) {
      // No memory or no process for another thread: those that there are do all tasks.
    }
  }

  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_.store(true);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int helpers() const { return static_cast<int>(places_.size()); }  // as asked for

  void run(int tasks, FunctionRef<void(int, int)> f) {
    job_ = &f;
    done_.store(0, std::memory_order_relaxed);
    const auto workers = static_cast<std::uint64_t>(ranges_.size());
    const auto count = static_cast<std::uint64_t>(tasks);
    for (std::uint64_t w = 0; w < workers; ++w) {
      ranges_[w].untaken.store((count * w / workers) << 32 | count * (w + 1) / workers);
    }
    if (parked_.load() > 0) {
      {
        const std::lock_guard lock(mutex_);  // a helper has looked and sleeps, or will look again
        for (std::size_t i = 0; i < threads_.size(); ++i)
          places_[i].leave_this_processor(threads_[i]);
      }
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
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
  }

 private:
  // Tasks [begin, end) that nobody has taken, as begin * 2^32 + end.
  struct alignas(64) Range {
    std::atomic<std::uint64_t> untaken{0};

    static std::uint32_t begin(std::uint64_t range) {
      return static_cast<std::uint32_t>(range >> 32);
    }
    static std::uint32_t end(std::uint64_t range) { return static_cast<std::uint32_t>(range); }

    bool empty() const {
      const std::uint64_t range = untaken.load();
      return begin(range) == end(range);
    }
    // The first task for its owner, the last one for others; -1 if there is none.
    int take(bool first) {
      std::uint64_t range = untaken.load();
      do {
        if (begin(range) == end(range)) return -1;
      } while (!untaken.compare_exchange_weak(
          range, first ? range + (std::uint64_t{1} << 32) : range - 1));
      return static_cast<int>(first ? begin(range) : end(range) - 1);
    }
  };

  bool has_work() const {
    return std::any_of(ranges_.begin(), ranges_.end(),
                       [](const Range& range) { return !range.empty(); });
  }

  // Takes one task and does it. Until it is done its job cannot end, so that job_ stays as it is; a
  // task is taken from whatever job is current at that instant, so a late helper can do no harm.
  bool work(int worker) {
    const std::size_t workers = ranges_.size(), own = static_cast<std::size_t>(worker);
    int task = -1;
    for (std::size_t i = 0; i < workers && task < 0; ++i) {
      task = ranges_[(own + i) % workers].take(i == 0);
    }
    if (task < 0) return false;
    try {
      (*job_)(task, worker);
    } catch (...) {  // the caller's, once all tasks have ended
      const std::lock_guard lock(mutex_);
      if (!thrown_) thrown_ = std::current_exception();
    }
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
        Place& place = places_[static_cast<std::size_t>(worker) - 1];
        place.parked = true;
        parked_.fetch_add(1);
        wake_.wait(lock, [&] {
          place.restore();
          return has_work() || stopping_.load();
        });
        parked_.fetch_sub(1);
        place.parked = false;
        idle = 0;
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Range> ranges_;  // one for each worker
  std::vector<Place> places_;  // one for each helper
  std::atomic<int> parked_{0}, done_{0};
  std::atomic<bool> stopping_{false};
  FunctionRef<void(int, int)>* job_ = nullptr;
  std::exception_ptr thrown_;  // by the first task that failed
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
int generation = 0;                // changes only in a child of fork, which has one thread then

// A forked child has none of the pool's threads: it forgets the pool and makes another when needed.
// The lock is taken around fork so that the child never inherits it locked.
[[maybe_unused]] const int fork_handlers =
    pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); },
                   [] {
                     ++generation;
                     pool = nullptr;
                     pool_mutex.unlock();
                   });

}  // namespace

int fork_generation() {
  return generation;
}

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
  try {
    pool->run(tasks, f);
  } catch (...) {
    inside = false;
    throw;
  }
  inside = false;
}

}  // namespace natgrad
