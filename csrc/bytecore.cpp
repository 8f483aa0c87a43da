#include "bytecore.h"

#include "bytecore_impl.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace lowbit {
namespace {

#if defined(__aarch64__)
bool has_dot_product() {
#if defined(__linux__)
  constexpr unsigned long asimddp = 1ul << 20;  // HWCAP_ASIMDDP, which old headers lack
  return (getauxval(AT_HWCAP) & asimddp) != 0;
#elif defined(__APPLE__)
  int value = 0;
  std::size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}
#endif

struct Cores {
  const ByteCore* list[4];
  int count = 0;

  Cores() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512vnni")) list[count++] = &avx512vnni_byte_core;
      list[count++] = &avx512_byte_core;
    }
    if (__builtin_cpu_supports("avx2")) list[count++] = &avx2_byte_core;
#elif defined(__aarch64__)
    if (has_dot_product()) list[count++] = &neondot_byte_core;
    list[count++] = &neon_byte_core;
#endif
    list[count++] = &portable_byte_core;
  }
};

}  // namespace

const ByteCore* const* byte_cores(int* count) {
  static const Cores cores;
  *count = cores.count;
  return cores.list;
}

}  // namespace lowbit
