// A few threads that share loops: no locks while a loop runs, and no allocation per loop.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace lowbit {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // call(object, item, worker) for every item in [0, count); returns when all are done. `worker` < size().
  void run(int count, void (*call)(void*, int, int), void* object);

  template <class F>
  void each(int count, F&& body) {
    run(count, [](void* object, int item, int worker) { (*static_cast<F*>(object))(item, worker); }, &body);
  }

 private:
  void serve(int worker);
  void take(int worker);

  const long process_;  // that made the threads
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> round_{0};
  std::atomic<int> next_{0}, busy_{0};
  int count_ = 0;
  void (*call_)(void*, int, int) = nullptr;
  void* object_ = nullptr;
  std::atomic<bool> stop_{false};
};

}  // namespace lowbit
