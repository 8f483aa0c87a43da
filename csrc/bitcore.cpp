#include "bitcore.h"

#include "bitcore_impl.h"

namespace lowbit {
namespace {

struct Cores {
  const BitCore* list[3];
  int count = 0;

  Cores() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      list[count++] = &avx512_bit_core;
    }
    if (__builtin_cpu_supports("avx2")) list[count++] = &avx2_bit_core;
#elif defined(__aarch64__)
    list[count++] = &neon_bit_core;
#endif
    list[count++] = &portable_bit_core;
  }
};

}  // namespace

const BitCore* const* bit_cores(int* count) {
  static const Cores cores;
  *count = cores.count;
  return cores.list;
}

}  // namespace lowbit
