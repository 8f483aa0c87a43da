#include "pixels.h"

#include <cstring>
#include <string>
#include <vector>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace lowbit {

extern const PixelCore portable_pixel_core, amxmodel_pixel_core;
#if defined(__x86_64__)
extern const PixelCore amx_pixel_core, avx512vpopcntdq_pixel_core, avx512vnni_pixel_core, avx512_pixel_core,
    avx2_pixel_core;
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
#elif defined(__x86_64__)
// Whether processor and system have AMX's tiles and its products of bytes, and the system lets this process use them.
bool has_tiles() {
#if defined(LOWBIT_HAS_AMX) && defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false;
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
  return false;
#endif
}
#endif

struct Numbers {  // the same ones everywhere
  std::uint32_t state = 12345;
  int next(int count) {
    state = state * 1664525u + 1013904223u;
    return static_cast<int>((state >> 8) % static_cast<unsigned>(count));
  }
};

// Whether a core computes what the portable one does. Paths for processors that we do not have must prove themselves on
// each before they are used there.
bool agrees(const PixelCore& core) {
  const PixelCore& other = portable_pixel_core;
  Numbers numbers;
  constexpr int quads = 32, step = 64, apart = 4096, outputs = 32, stride = 48;
  std::vector<std::uint8_t> codes(16384);
  for (auto& code : codes) code = static_cast<std::uint8_t>(numbers.next(256));
  std::vector<std::int32_t> offsets;
  for (int q = 0; q < quads; ++q) offsets.push_back(4 * (q % 16) + q / 16 * 512);
  std::vector<std::int8_t> weights(static_cast<std::size_t>(outputs) * quads * 4);
  for (auto& weight : weights) weight = static_cast<std::int8_t>(numbers.next(256) - 128);
  for (int vectors = 1; vectors <= 2; ++vectors)
    for (int groups = 1; groups <= 2; ++groups)
      for (int pixels = 1; pixels <= core.most_pixels; ++pixels) {
        const int wide = vectors * core.lanes;
        std::vector<std::uint8_t> packed(static_cast<std::size_t>(quads) * wide * 4);
        for (int q = 0; q < quads; ++q)
          for (int m = 0; m < wide; ++m) std::memcpy(&packed[(q * wide + m) * 4], &weights[(m * quads + q) * 4], 4);
        std::vector<std::int32_t> sums(static_cast<std::size_t>(2 * 16 * stride), -1);
        core.product({codes.data(), step, apart, pixels, groups, 1, pixels, 0, offsets.data(), quads, packed.data(),
                      packed.data(), 0, vectors, 0, sums.data(), stride, 16 * stride},
                     false);
        for (int g = 0; g < groups; ++g)
          for (int p = 0; p < pixels; ++p)
            for (int m = 0; m < wide; ++m) {
              std::int32_t sum = 0;
              for (int q = 0; q < quads; ++q)
                for (int i = 0; i < 4; ++i)
                  sum += codes[static_cast<std::size_t>(g * apart + p * step + offsets[q] + i)] * weights[(m * quads + q) * 4 + i];
              if (sums[(g * 16 + p) * stride + m] != sum) return false;
            }
      }
  std::vector<std::uint64_t> rows(2 * 16 * 40), planes(2 * 40);
  for (auto& word : rows) word = static_cast<std::uint64_t>(numbers.next(1 << 24)) << 40 ^ static_cast<std::uint64_t>(numbers.next(1 << 24)) << 20 ^ numbers.next(1 << 24);
  for (auto& word : planes) word = static_cast<std::uint64_t>(numbers.next(1 << 24)) << 40 ^ static_cast<std::uint64_t>(numbers.next(1 << 24)) << 20 ^ numbers.next(1 << 24);
  std::int32_t one[16], two[16];
  core.bit_sums(rows.data(), 16, 2, planes.data(), 2, 40, one);
  other.bit_sums(rows.data(), 16, 2, planes.data(), 2, 40, two);
  return std::memcmp(one, two, sizeof one) == 0;
}

struct Cores {
  const PixelCore* list[6];
  int count = 0;

  Cores() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512vnni")) {
        if (__builtin_cpu_supports("avx512vpopcntdq")) {
#if defined(LOWBIT_HAS_AMX)
          if (has_tiles()) prove(amx_pixel_core);
#endif
          prove(avx512vpopcntdq_pixel_core);
        }
        list[count++] = &avx512vnni_pixel_core;
      }
      list[count++] = &avx512_pixel_core;
    }
    if (__builtin_cpu_supports("avx2")) list[count++] = &avx2_pixel_core;
#elif defined(__aarch64__)
    if (has_dot_product()) list[count++] = &neondot_pixel_core;
    list[count++] = &neon_pixel_core;
#endif
    list[count++] = &portable_pixel_core;
  }
  void prove(const PixelCore& core) {
    if (agrees(core)) list[count++] = &core;
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

const PixelCore& amx_model() { return amxmodel_pixel_core; }

}  // namespace lowbit
