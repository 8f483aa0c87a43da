// What one core of this processor can do at most, measured: python -m benchmarks.ceiling compiles and runs this.
//   c++ -std=c++17 -O3 -o ceiling csrc/dev/ceiling.cpp && ./ceiling
// Prints one JSON object. Each ceiling is the best of many short repeats, for other jobs share the machine. Every loop
// has an instruction set of its own, chosen when the program runs. x86-64 with AVX2 at least; elsewhere it says so and
// exits with status 3.
#include <cstdio>

#if !defined(__x86_64__)
int main() {
  std::puts("the ceilings are measured on x86-64 only");
  return 3;
}
#else

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "ceiling_loops.h"

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Cycles per second at this moment: a chain of dependent additions runs one per cycle. Of three looks, the highest
// counts: the others were interrupted.
double frequency(int looks = 3) {
  const double start = now();
  long x = 0;
  for (int i = 0; i < 4000; ++i) {
    asm volatile(
        "add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n"
        "add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n"
        : "+r"(x));
  }
  const double found = 4000.0 * 8 / (now() - start);
  return looks > 1 ? std::max(found, frequency(looks - 1)) : found;
}

struct Rate {
  double per_second = 0, hertz = 0;
};

// One ceiling: `body(n)` does n passes and returns how much that was.
struct Ceiling {
  const char* name;
  const char* how;
  std::function<double(long)> body;
  std::size_t kib;  // of memory that is read
  long passes;
  Rate best;

  // Keeps the highest rate seen within so many seconds.
  void measure(double seconds) {
    for (double took = 0; took < 2e-3; passes *= took < 2e-3 ? 2 : 1) {
      const double start = now();
      body(passes);
      took = now() - start;
    }
    for (const double stop = now() + seconds; now() < stop;) {
      const double start = now(), amount = body(passes), rate = amount / (now() - start), hertz = frequency();
      if (rate > best.per_second) best = {rate, hertz};
    }
  }
};

std::size_t cache(int which, std::size_t usual) {
  const long found = sysconf(which);
  return found > 0 ? std::size_t(found) : usual;
}

std::vector<Ceiling> products(bool wide) {
  std::vector<Ceiling> found;
  if (!wide) {
    found.push_back({"float32", "fused multiply-adds, 256 bits", float_avx2, 0, 1, {}});
    found.push_back({"int8", "maddubs and madd, 256 bits", int8_avx2, 0, 1, {}});
    found.push_back({"binary", "xor, carry-save adders, 256 bits", binary_avx2, 0, 1, {}});
    found.push_back({"binary_shared", "a looked-up carry for two products, 256 bits", shared_avx2, 0, 1, {}});
    return found;
  }
  found.push_back({"float32", "fused multiply-adds, 512 bits", float_avx512, 0, 1, {}});
  if (__builtin_cpu_supports("avx512vnni")) {
    found.push_back({"int8", "VNNI dot products, 512 bits", int8_vnni, 0, 1, {}});
  } else {
    found.push_back({"int8", "maddubs and madd, 256 bits", int8_avx2, 0, 1, {}});
  }
  found.push_back({"binary", "xor, carry-save adders, 512 bits", binary_avx512, 0, 1, {}});
  if (__builtin_cpu_supports("avx512vpopcntdq")) {
    found.push_back({"binary_popcount", "xor, vector popcount, 512 bits", binary_popcnt, 0, 1, {}});
  }
  found.push_back({"binary_shared", "a looked-up carry for two products, 512 bits", shared_avx512, 0, 1, {}});
  return found;
}

// Reading half of each private cache, a share of the third one, which other cores use too, and memory well beyond it.
std::vector<Ceiling> bandwidths(bool wide) {
  const std::size_t first = cache(_SC_LEVEL1_DCACHE_SIZE, 32 << 10), second = cache(_SC_LEVEL2_CACHE_SIZE, 1 << 20);
  const std::size_t third = cache(_SC_LEVEL3_CACHE_SIZE, 16 << 20);
  const std::size_t sizes[] = {first / 2, second / 2, std::max(2 * second, third / 4), 4 * third};
  const char* names[] = {"L1", "L2", "L3", "DRAM"};
  std::vector<Ceiling> found;
  for (int i = 0; i < 4; ++i) {
    const std::size_t bytes = std::min<std::size_t>(sizes[i], 512u << 20) / 512 * 512;
    void* data = nullptr;
    if (posix_memalign(&data, 4096, bytes) != 0) std::exit(1);
    std::memset(data, 1, bytes);
    const auto* from = static_cast<const std::uint8_t*>(data);
    const auto body = [=](long n) { return wide ? read_avx512(from, bytes, n) : read_avx2(from, bytes, n); };
    found.push_back({names[i], "", body, bytes >> 10, 1, {}});
  }
  return found;
}

// Rises by 0.01 when one of the ceilings rises by a hundredth.
double height(const std::vector<Ceiling>& ceilings) {
  double sum = 0;
  for (const auto& ceiling : ceilings) sum += std::log(std::max(ceiling.best.per_second, 1.0));
  return sum;
}

}  // namespace

int main() {
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!wide && !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) {
    std::puts("this processor has no AVX2");
    return 3;
  }
  for (std::size_t i = 0; i < sizeof l1; ++i) l1[i] = std::uint8_t(i * 2654435761u >> 13);
  double hertz = 0;  // without wide vectors
  std::vector<Ceiling> rates = products(wide), reads = bandwidths(wide);
  // In turn, for the neighbours' load changes from second to second, until four rounds in a row find nothing higher.
  for (int round = 0, quiet = 0; round < 40 && quiet < 4; ++round) {
    for (int i = 0; i < 400; ++i) hertz = std::max(hertz, frequency());
    const double before = height(rates) + height(reads);
    for (auto& ceiling : rates) ceiling.measure(0.1);
    for (auto& ceiling : reads) ceiling.measure(0.05);
    quiet = height(rates) + height(reads) > before + 0.01 ? 0 : quiet + 1;
  }
  std::printf("{\n  \"ghz\": %.2f,\n", hertz / 1e9);
  for (const auto& c : rates) {
    const double rate = c.best.per_second;
    std::printf("  \"%s\": {\"gmac_per_s\": %.1f, \"mac_per_cycle\": %.1f, \"ghz\": %.2f, \"how\": \"%s\"},\n", c.name,
                rate / 1e9, rate / c.best.hertz, c.best.hertz / 1e9, c.how);
  }
  std::printf("  \"bandwidth\": {");
  for (std::size_t i = 0; i < reads.size(); ++i) {
    std::printf("%s\"%s\": {\"gb_per_s\": %.1f, \"kib\": %zu}", i ? ", " : "", reads[i].name,
                reads[i].best.per_second / 1e9, reads[i].kib);
  }
  std::puts("}\n}");
  return 0;
}
#endif
