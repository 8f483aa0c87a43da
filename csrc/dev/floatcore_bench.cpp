// Tests and measurements of the float cores. From the root of the repository, on x86-64:
//
//   f="-std=c++17 -O3 -ffp-contract=off -Wall -Wextra"; a="-mavx2 -mbmi -mbmi2 -mpopcnt"
//   z="$a -mavx512f -mavx512bw -mavx512dq -mavx512vl"; mkdir -p build/dev; cd csrc
//   for c in floatcore floatcore_portable; do g++ $f -c $c.cpp -o ../build/dev/$c.o; done
//   g++ $f $a -c floatcore_avx2.cpp -o ../build/dev/floatcore_avx2.o
//   g++ $f $z -c floatcore_avx512.cpp -o ../build/dev/floatcore_avx512.o
//   g++ $f -I. dev/floatcore_bench.cpp ../build/dev/floatcore*.o -o ../build/dev/floatcore_bench
//   ../build/dev/floatcore_bench test      (with -fsanitize=address,undefined in $f too)
//   ../build/dev/floatcore_bench speed
//
// On ARM: the files without a suffix, _portable and _neon, all with the same options.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms in GCC's own immintrin.h
#endif
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../floatcore.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using lowbit::FloatCore;

std::mt19937 generator(1);

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

// A buffer that ends where an unreadable page begins: reading behind it faults, in the vector code too.
class Guarded {
 public:
  explicit Guarded(std::size_t size) {
    page_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    body_ = (size + page_ - 1) / page_ * page_;
    void* start = mmap(nullptr, body_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(static_cast<char*>(start) + body_, page_, PROT_NONE) != 0) std::abort();
    start_ = static_cast<std::uint8_t*>(start);
    data = start_ + body_ - size;
  }
  ~Guarded() { munmap(start_, body_ + page_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  std::uint8_t* data;

 private:
  std::size_t page_, body_;
  std::uint8_t* start_;
};

// ---- tests ----------------------------------------------------------------------------------------------------------

bool test_floats(const FloatCore& core, int M, int N, int K, int bits, int low, int step, double* worst) {
  std::vector<std::int8_t> q(static_cast<std::size_t>(N) * K);
  for (auto& x : q) x = static_cast<std::int8_t>(low + step * uniform(0, (1 << bits) - 1));
  const std::size_t ldx = static_cast<std::size_t>(K + uniform(0, 3));
  const std::size_t ldy = static_cast<std::size_t>(N + uniform(0, 3));
  Guarded x_memory((ldx * static_cast<std::size_t>(M - 1) + static_cast<std::size_t>(K)) * sizeof(float));
  float* x = reinterpret_cast<float*>(x_memory.data);
  std::normal_distribution<float> normal;
  for (int m = 0; m < M; ++m) {
    for (std::size_t k = 0; k < (m + 1 < M ? ldx : static_cast<std::size_t>(K)); ++k) {
      x[m * ldx + k] = k < static_cast<std::size_t>(K) ? normal(generator) : NAN;
    }
  }
  std::vector<float> unit(N), bias(N);
  for (int n = 0; n < N; ++n) unit[n] = normal(generator), bias[n] = normal(generator);
  const bool has_bias = uniform(0, 1) == 1;
  Guarded packed(core.packed_size(K, N, bits));
  core.pack(q.data(), K, N, bits, low, step, packed.data);
  const std::size_t outputs = ldy * static_cast<std::size_t>(M - 1) + static_cast<std::size_t>(N);
  Guarded y_memory(outputs * sizeof(float));
  float* y = reinterpret_cast<float*>(y_memory.data);
  for (std::size_t i = 0; i < outputs; ++i) y[i] = -77.0f;
  core.linear(x, ldx, M, packed.data, K, N, bits, low, step, unit.data(), has_bias ? bias.data() : nullptr, y, ldy);
  bool good = true;
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      double sum = 0.0, size = 0.0;
      for (int k = 0; k < K; ++k) {
        const double product = static_cast<double>(x[m * ldx + k]) * q[static_cast<std::size_t>(n) * K + k];
        sum += product;
        size += product * product;
      }
      const double expected = sum * unit[n] + (has_bias ? bias[n] : 0.0f);
      // In units of 2^-24 of the size that a sum of K independent terms has, and of the result.
      const double scale = std::sqrt(size) * std::fabs(unit[n]) + std::fabs(expected) + 1e-30;
      const double error = std::fabs(y[m * ldy + n] - expected) / scale / 0x1p-24;
      *worst = std::max(*worst, error);
      if (!(error <= 8.0 + 2.0 * std::sqrt(static_cast<double>(K)))) good = false;
    }
    for (std::size_t n = static_cast<std::size_t>(N); m + 1 < M && n < ldy; ++n) {
      good = good && y[m * ldy + n] == -77.0f;
    }
  }
  // One row at a time, and with the outputs in two parts: the same bits.
  std::vector<float> row(N);
  for (int m = 0; m < M && good; ++m) {
    core.linear(x + m * ldx, ldx, 1, packed.data, K, N, bits, low, step, unit.data(), has_bias ? bias.data() : nullptr,
                row.data(), static_cast<std::size_t>(N));
    good = std::memcmp(row.data(), y + m * ldy, sizeof(float) * static_cast<std::size_t>(N)) == 0;
  }
  if (good && N > 1) {
    const int from = uniform(1, N - 1);
    std::vector<std::uint8_t> part(core.packed_size(K, N - from, bits));
    core.pack(q.data() + static_cast<std::size_t>(from) * K, K, N - from, bits, low, step, part.data());
    core.linear(x, ldx, 1, part.data(), K, N - from, bits, low, step, unit.data() + from,
                has_bias ? bias.data() + from : nullptr, row.data(), static_cast<std::size_t>(N));
    good = std::memcmp(row.data(), y + from, sizeof(float) * static_cast<std::size_t>(N - from)) == 0;
  }
  if (!good) std::printf("FAILED %s M %d N %d K %d bits %d low %d step %d\n", core.name, M, N, K, bits, low, step);
  return good;
}

int run_tests(bool thorough) {
  int failures = 0, count = 0;
  const FloatCore* const* cores = lowbit::float_cores(&count);
  for (int i = 0; i < count; ++i) {
    int cases = 0;
    double worst = 0.0;
    const auto check = [&](int M, int N, int K, int bits, int low, int step) {
      ++cases;
      if (!test_floats(*cores[i], M, N, K, bits, low, step, &worst)) ++failures;
    };
    for (int bits = 1; bits <= 4; ++bits) {
      const int half = 1 << (bits - 1), top = (1 << bits) - 1;
      const int forms[][2] = {{-half, 1}, {-top, 2}, {0, 1}, {-128, 255 / top}, {1 - half, 1}};
      for (int K = 1; K <= 300; K += thorough ? 1 : 5) {
        const auto& form = forms[K % 5];
        check(uniform(1, 20), uniform(1, 140), K, bits, form[0], form[1]);
      }
      for (int M = 1; M <= 20; ++M) check(M, uniform(1, 140), uniform(1, 300), bits, -half, 1);
      for (int N = 1; N <= 140; N += thorough ? 1 : 4) check(uniform(1, 3), N, uniform(1, 300), bits, -top, 2);
      check(9, 70, 576, bits, -half, 1);
      check(3, 33, 4608, bits, -half, 1);
    }
    std::printf("%-10s %d cases, largest error %.2f · 2^-24 of the root of the sum of squares\n",
                cores[i]->name, cases, worst);
  }
  std::printf(failures ? "%d FAILURES\n" : "all good\n", failures);
  return failures ? 1 : 0;
}

// ---- measurements ---------------------------------------------------------------------------------------------------

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of this thread alone: on a shared machine the scheduler takes the processor away for longer than a product lasts.
double thread_time() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

#if defined(__x86_64__)

// A chain of dependent additions takes one cycle each: the clock, which AVX-512 lowers while it runs and shortly after.
double clock_rate() {
  double best = 1.0;
  for (int i = 0; i < 3; ++i) {
    const long turns = 200;
    const double start = now();
    asm volatile("mov %0, %%rcx\n1:\n.rept 64\nadd $1, %%rax\n.endr\ndec %%rcx\njnz 1b" ::"r"(turns)
                 : "rcx", "rax", "cc");
    best = std::min(best, (now() - start) / (64.0 * turns));
  }
  return 1.0 / best;
}

// Instructions per second that the front end delivers. It halves while a neighbour runs on the other thread of the
// core, which says more about the neighbour than about the code: such samples are thrown away.
double front_end_rate() {
  double best = 1.0;
  for (int i = 0; i < 3; ++i) {
    const long turns = 200;
    const double start = now();
    asm volatile("mov %0, %%rcx\n1:\n.rept 64\nnop\n.endr\ndec %%rcx\njnz 1b" ::"r"(turns) : "rcx", "cc");
    best = std::min(best, (now() - start) / (64.0 * turns));
  }
  return 1.0 / best;
}
#else
double clock_rate() { return 1e9; }
double front_end_rate() { return 4e9; }
#endif

struct Sample {
  double best = 1e9, median = 1e9;
  int count = 0, quiet = 0;
};

template <class F>
Sample measure(double seconds, F work) {
  Sample s;
  std::vector<double> quiet, all;
  work();
  const double begin = now();
  while (now() - begin < seconds || all.size() < 5) {
    const bool before = front_end_rate() > 3.4 * clock_rate();
    const double start = thread_time();
    work();
    const double taken = thread_time() - start;
    all.push_back(taken);
    if (before && front_end_rate() > 3.4 * clock_rate()) quiet.push_back(taken);
  }
  s.count = static_cast<int>(all.size());
  s.quiet = static_cast<int>(quiet.size());
  auto& used = quiet.size() >= 5 ? quiet : all;
  std::sort(used.begin(), used.end());
  s.best = used.front();
  s.median = used[used.size() / 2];
  return s;
}

struct Aligned {
  explicit Aligned(std::size_t size) {
    data = static_cast<std::uint8_t*>(std::aligned_alloc(4096, (size + 8191) / 4096 * 4096));
    if (data == nullptr) std::abort();
    std::memset(data, 1, size);
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  std::uint8_t* data;
};

#if defined(__x86_64__)
// The measure of float32: rows of W four at a time, eight accumulators.
__attribute__((target("avx512f"))) void float_gemv(const float* x, const float* w, int K, int N, float* y) {
  for (int n = 0; n < N; n += 4) {
    const float* rows = w + static_cast<std::size_t>(n) * K;
    __m512 s[4][2];
    for (auto& pair : s) pair[0] = pair[1] = _mm512_setzero_ps();
    for (int k = 0; k < K; k += 32) {
      const __m512 x0 = _mm512_loadu_ps(x + k), x1 = _mm512_loadu_ps(x + k + 16);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        s[r][0] = _mm512_fmadd_ps(x0, _mm512_loadu_ps(rows + static_cast<std::size_t>(r) * K + k), s[r][0]);
        s[r][1] = _mm512_fmadd_ps(x1, _mm512_loadu_ps(rows + static_cast<std::size_t>(r) * K + k + 16), s[r][1]);
      }
    }
    for (int r = 0; r < 4; ++r) y[n + r] = _mm512_reduce_add_ps(_mm512_add_ps(s[r][0], s[r][1]));
  }
}
#endif

void bench(double seconds) {
  std::printf("%-9s %-5s %-14s %10s %10s %10s %10s  %s\n", "core", "bits", "M,K,N",
              "best us", "GB/s of W", "GMAC/s", "median us", "quiet/all");
  const auto report = [&](const char* core, int bits, int M, int K, int N, double bytes, const Sample& s) {
    char name[32];
    std::snprintf(name, sizeof(name), "%d,%d,%d", M, K, N);
    std::printf("%-9s %-5d %-14s %10.1f %10.2f %10.1f %10.1f  %d/%d\n", core, bits, name, s.best * 1e6,
                bytes / s.best * 1e-9, static_cast<double>(M) * K * N / s.best * 1e-9, s.median * 1e6, s.quiet,
                s.count);
    std::fflush(stdout);
  };
  for (int size : {1024, 4096}) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
      const std::size_t bytes = sizeof(float) * static_cast<std::size_t>(size) * size;
      Aligned w(bytes), y(sizeof(float) * static_cast<std::size_t>(size));
      const std::vector<float> x(static_cast<std::size_t>(size), 1.5f);
      float* weights = reinterpret_cast<float*>(w.data);
      for (std::size_t i = 0; i < bytes / sizeof(float); ++i) weights[i] = static_cast<float>(i % 7);
      const Sample s = measure(seconds, [&] {
        float_gemv(x.data(), weights, size, size, reinterpret_cast<float*>(y.data));
      });
      report("float32", 32, 1, size, size, static_cast<double>(bytes), s);
    }
#endif
    int count = 0;
    const FloatCore* const* cores = lowbit::float_cores(&count);
    for (int i = 0; i < count; ++i) {
      for (int bits = 1; bits <= 4; ++bits) {
        const std::size_t bytes = cores[i]->packed_size(size, size, bits);
        std::vector<std::int8_t> q(static_cast<std::size_t>(size) * size);
        const int half = 1 << (bits - 1);
        for (auto& v : q) v = static_cast<std::int8_t>(static_cast<int>(generator() >> (32 - bits)) - half);
        Aligned packed(bytes);
        cores[i]->pack(q.data(), size, size, bits, -(1 << (bits - 1)), 1, packed.data);
        for (int M : {1, 8, 64}) {
          const std::vector<float> x(static_cast<std::size_t>(size) * M, 1.5f);
          Aligned y(sizeof(float) * static_cast<std::size_t>(size) * M);
          std::vector<float> unit(static_cast<std::size_t>(size), 1.0f);
          const Sample s = measure(seconds, [&] {
            cores[i]->linear(x.data(), static_cast<std::size_t>(size), M, packed.data, size, size,
                             bits, -(1 << (bits - 1)), 1, unit.data(), nullptr, reinterpret_cast<float*>(y.data),
                             static_cast<std::size_t>(size));
          });
          report(cores[i]->name, bits, M, size, size, static_cast<double>(bytes), s);
        }
      }
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "";
  const double seconds = count > 2 ? std::atof(arguments[2]) : 1.0;
  if (what == "test") return run_tests(true);
  if (what == "quick") return run_tests(false);
  if (what == "speed") return bench(seconds), 0;
  std::printf("usage: floatcore_bench test | quick | speed [seconds per case]\n");
  return 2;
}
