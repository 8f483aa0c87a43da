#include "pool.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace lowbit {

namespace {

constexpr int spins = 4000;  // a few microseconds: the distance between two layers of a small network

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

long process() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(getpid());
#else
  return 0;
#endif
}

}  // namespace

Pool::Pool(int threads) : process_(process()) {
  for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
}

Pool::~Pool() {
  if (process_ != process()) {  // after a fork there are no threads to wait for
    for (auto& worker : workers_) worker.detach();
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    ++round_;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::take(int worker) {
  for (int item = next_.fetch_add(1); item < count_; item = next_.fetch_add(1)) call_(object_, item, worker);
}

void Pool::run(int count, void (*call)(void*, int, int), void* object) {
  if (workers_.empty() || count < 2 || process_ != process()) {
    for (int item = 0; item < count; ++item) call(object, item, 0);
    return;
  }
  count_ = count;
  call_ = call;
  object_ = object;
  next_ = 0;
  busy_ = static_cast<int>(workers_.size());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++round_;
  }
  wake_.notify_all();
  take(0);
  while (busy_.load(std::memory_order_acquire)) pause();
}

void Pool::serve(int worker) {
  std::uint64_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < spins && round_.load(std::memory_order_acquire) == seen; ++spin) pause();
    if (round_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_.load() != seen; });
    }
    seen = round_.load();
    if (stop_) return;
    take(worker);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace lowbit
