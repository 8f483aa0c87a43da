#include "floatcore.h"

#include "floatcore_impl.h"

namespace lowbit {
namespace {

struct Cores {
  const FloatCore* list[3];
  int count = 0;

  Cores() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      list[count++] = &avx512_float_core;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list[count++] = &avx2_float_core;
#elif defined(__aarch64__)
    list[count++] = &neon_float_core;
#endif
    list[count++] = &portable_float_core;
  }
};

}  // namespace

const FloatCore* const* float_cores(int* count) {
  static const Cores cores;
  *count = cores.count;
  return cores.list;
}

}  // namespace lowbit
