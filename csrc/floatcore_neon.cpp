// Few-bit weights times floats on 64-bit ARM.
#include <arm_neon.h>

#include "floatcore_impl.h"

namespace lowbit {
namespace {

struct Neon {
  using Int = uint32x4_t;
  using Float = float32x4_t;
  static constexpr int lanes = 4;
  static constexpr int table = 4;
  static constexpr int rows = 8, vectors_many = 2, vectors4 = 4, vectors_few = 4;

  template <int Bits>
  static constexpr int group() {
    return 1;
  }

  template <int Bits>
  struct Constants {
    explicit Constants(const Levels& l)
        : low(vdupq_n_f32(static_cast<float>(l.low))), step(vdupq_n_f32(static_cast<float>(l.step))) {}
    Float low, step;
  };

  static Float zero() { return vdupq_n_f32(0.0f); }
  static Float load(const float* p) { return vld1q_f32(p); }
  static Float load_some(const float* p, int n) {
    float whole[lanes] = {};
    std::memcpy(whole, p, sizeof(float) * static_cast<std::size_t>(n));
    return vld1q_f32(whole);
  }
  static void store(float* p, Float x) { vst1q_f32(p, x); }
  static void store_some(float* p, int n, Float x) {
    float whole[lanes];
    vst1q_f32(whole, x);
    std::memcpy(p, whole, sizeof(float) * static_cast<std::size_t>(n));
  }
  static Int load_words(const std::uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
  static Float broadcast(float x) { return vdupq_n_f32(x); }
  static Float add(Float x, Float y) { return vaddq_f32(x, y); }
  static Float multiply_add(Float x, Float y, Float z) { return vfmaq_f32(z, x, y); }

  template <int Bits, int F>
  static Int field(const Int (&w)[Unit<Bits>::words]) {
    if constexpr (Bits != 3) {
      constexpr int shift = F * Bits;
      if constexpr (shift == 0) return vandq_u32(w[0], vdupq_n_u32((1u << Bits) - 1u));
      else return vandq_u32(vshrq_n_u32(w[0], shift), vdupq_n_u32((1u << Bits) - 1u));
    } else if constexpr (F < 30) {
      constexpr int shift = 3 * (F % 10);
      if constexpr (shift == 0) return vandq_u32(w[F / 10], vdupq_n_u32(7u));
      else return vandq_u32(vshrq_n_u32(w[F / 10], shift), vdupq_n_u32(7u));
    } else {
      return vorrq_u32(vshrq_n_u32(w[F - 30], 30), vandq_u32(vshrq_n_u32(w[2], F - 2), vdupq_n_u32(4u)));
    }
  }

  static void settle(Float& x) { asm volatile("" : "+w"(x)); }

  template <int Bits, int F>
  static Float level(Int field, const Constants<Bits>& constants) {
    return vfmaq_f32(constants.low, vcvtq_f32_u32(field), constants.step);
  }

  static Float pick(Int, Float sums) { return sums; }  // no tables: group() is 1
};

using Implementation = Core<Neon>;

}  // namespace

const FloatCore neon_float_core = {"neon", Implementation::packed_size, Implementation::pack, Implementation::linear};

}  // namespace lowbit
