// Products of bytes with NEON: of signed bytes, for which codes of 8 bits are taken less 128.
#pragma once

#include <arm_neon.h>

#include "pixels_impl.h"

namespace lowbit {
namespace {

struct Neon {
  using Int = int32x4_t;
  using Weights = int8x16_t;
  static constexpr int lanes = 4, most_pixels = 6;
  static constexpr bool chained = false;
  static Int zero() { return vdupq_n_s32(0); }
  static void store(void* p, Int x) { vst1q_s32(static_cast<std::int32_t*>(p), x); }
  static Weights weights(const std::uint8_t* p) { return vld1q_s8(reinterpret_cast<const std::int8_t*>(p)); }
  static int8x16_t codes(std::int32_t quad, bool eight_bits) {
    return vreinterpretq_s8_s32(vdupq_n_s32(eight_bits ? quad ^ static_cast<std::int32_t>(0x80808080u) : quad));
  }
  static void dot(Int& sum, int8x16_t x, int8x16_t w) {
#if defined(__ARM_FEATURE_DOTPROD)
    sum = vdotq_s32(sum, x, w);
#else
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(w)));
    sum = vaddq_s32(sum, vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(x, w))));
#endif
  }
};

}  // namespace
}  // namespace lowbit
