// Few-bit weights times floats with AVX2 and FMA: vpermps looks eight indices up at once, in a table of eight floats.
#include <immintrin.h>

#define LOWBIT_FLOAT_TARGET __attribute__((target("avx2,fma")))
#include "floatcore_impl.h"

namespace lowbit {
namespace {

struct Avx2 {
  using Int = __m256i;
  using Float = __m256;
  static constexpr int lanes = 8;
  static constexpr int table = 8;
  static constexpr int rows = 4, vectors_many = 2, vectors4 = 2, vectors_few = 4;

  template <int Bits>
  static constexpr int group() {
    return Bits == 1 ? 2 : 1;
  }

  template <int Bits>
  struct Constants {
    explicit Constants(const Levels& l) : levels(_mm256_load_ps(l.values)) {}
    Float levels;
  };

  static Float zero() { return _mm256_setzero_ps(); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load_some(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
  static void store_some(float* p, int n, Float x) { _mm256_maskstore_ps(p, first(n), x); }
  static Int load_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Float broadcast(float x) { return _mm256_set1_ps(x); }
  static Float add(Float x, Float y) { return _mm256_add_ps(x, y); }
  LOWBIT_FLOAT_INLINE static Float multiply_add(Float x, Float y, Float z) { return _mm256_fmadd_ps(x, y, z); }

  // Sixteen levels do not fit a table of eight. A field of 4 bits is put where it lies into the mantissa of a float
  // with an exponent that makes its lowest bit a 1: 2^(23 − position) + i, from which one exact multiply-add makes the
  // level. (From position 4 on: below, the constant of that multiply-add could need more than 24 bits.)
  template <int F>
  static constexpr int position() {
    return F == 0 ? 4 : F < 5 ? 4 * F : 4 * F - 12;
  }

  // Bits above the field remain otherwise: vpermps reads three bits only.
  template <int Bits, int F>
  static Int field(const Int (&w)[Unit<Bits>::words]) {
    if constexpr (Bits == 4) {
      constexpr int at = position<F>();
      const Int moved = F == 0 ? _mm256_slli_epi32(w[0], 4) : F < 5 ? w[0] : _mm256_srli_epi32(w[0], 12);
      return _mm256_or_si256(_mm256_and_si256(moved, _mm256_set1_epi32(15 << at)),
                             _mm256_set1_epi32(0x4b000000 - (at << 23)));
    } else if constexpr (Bits != 3) {
      constexpr int shift = F * Bits * group<Bits>();
      return shift == 0 ? w[0] : _mm256_srli_epi32(w[0], shift);
    } else if constexpr (F < 30) {
      return F % 10 == 0 ? w[F / 10] : _mm256_srli_epi32(w[F / 10], 3 * (F % 10));
    } else {
      return _mm256_or_si256(_mm256_srli_epi32(w[F - 30], 30),
                             _mm256_and_si256(_mm256_srli_epi32(w[2], F - 2), _mm256_set1_epi32(4)));
    }
  }

  static void settle(Float& x) { asm volatile("" : "+x"(x)); }

  template <int Bits, int F>
  LOWBIT_FLOAT_INLINE static Float level(Int field, const Constants<Bits>& constants) {
    if constexpr (Bits == 4) {
      return _mm256_fmadd_ps(_mm256_castsi256_ps(field), constants.step, constants.offset[position<F>() / 4 - 1]);
    } else {
      return _mm256_permutevar8x32_ps(constants.levels, field);
    }
  }

  static Float pick(Int field, Float sums) { return _mm256_permutevar8x32_ps(sums, field); }

 private:
  static Int first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

template <>
struct Avx2::Constants<4> {
  explicit Constants(const Levels& l) : step(_mm256_set1_ps(static_cast<float>(l.step))) {
    for (int i = 0; i < 4; ++i) offset[i] = _mm256_set1_ps(static_cast<float>(l.low - l.step * (1 << (19 - 4 * i))));
  }
  Float step;
  Float offset[4];
};

using Implementation = Core<Avx2>;

}  // namespace

const FloatCore avx2_float_core = {"avx2", Implementation::packed_size, Implementation::pack, Implementation::linear};

}  // namespace lowbit
