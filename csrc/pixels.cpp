#include "pixels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace lowbit {

extern const PixelCore portable_pixel_core;
#if defined(__x86_64__)
extern const PixelCore avx512vnni_pixel_core, avx512_pixel_core, avx2_pixel_core;
#elif defined(__aarch64__)
extern const PixelCore neondot_pixel_core, neon_pixel_core;
#endif

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
  const PixelCore* list[4];
  int count = 0;

  Cores() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512vnni")) list[count++] = &avx512vnni_pixel_core;
      list[count++] = &avx512_pixel_core;
    }
    if (__builtin_cpu_supports("avx2")) list[count++] = &avx2_pixel_core;
#elif defined(__aarch64__)
    if (has_dot_product()) list[count++] = &neondot_pixel_core;
    list[count++] = &neon_pixel_core;
#endif
    list[count++] = &portable_pixel_core;
  }
};

}  // namespace

int chain_of(const std::int8_t* weights, std::size_t rows, std::size_t row, int most_code) {
  int bound = 1;
  for (std::size_t i = 0; i < rows * row; i += 2) {
    const int a = weights[i], b = weights[i + 1];
    const int above = (a > 0 ? a : 0) + (b > 0 ? b : 0), below = (a < 0 ? -a : 0) + (b < 0 ? -b : 0);
    const int here = (above > below ? above : below) * most_code;
    bound = here > bound ? here : bound;
  }
  return 32767 / bound;
}

const PixelCore* const* pixel_cores(int* count) {
  static const Cores cores;
  *count = cores.count;
  return cores.list;
}

}  // namespace lowbit
