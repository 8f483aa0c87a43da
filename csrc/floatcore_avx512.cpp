// Few-bit weights times floats with AVX-512: vpermps looks sixteen indices up at once, in a table of sixteen floats.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms in GCC's own immintrin.h
#endif
#include <immintrin.h>

#include "floatcore_impl.h"

namespace lowbit {
namespace {

struct Avx512 {
  using Int = __m512i;
  using Float = __m512;
  static constexpr int lanes = 16;
  static constexpr int table = 16;
  static constexpr int rows = 8, vectors_many = 2, vectors4 = 4, vectors_few = 4;

  // Four bits of weights choose a sum: four weights of 1 bit, two of 2 bits.
  template <int Bits>
  static constexpr int group() {
    return Bits == 1 ? 4 : Bits == 2 ? 2 : 1;
  }

  template <int Bits>
  struct Constants {
    explicit Constants(const Levels& l) : levels(_mm512_load_ps(l.values)) {}
    Float levels;
  };

  static Float zero() { return _mm512_setzero_ps(); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load_some(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static void store_some(float* p, int n, Float x) { _mm512_mask_storeu_ps(p, first(n), x); }
  static Int load_words(const void* p) { return _mm512_loadu_si512(p); }
  static Float broadcast(float x) { return _mm512_set1_ps(x); }
  static Float add(Float x, Float y) { return _mm512_add_ps(x, y); }
  static Float multiply_add(Float x, Float y, Float z) { return _mm512_fmadd_ps(x, y, z); }

  // Bits above the field remain: vpermps reads four bits only, and the levels of fewer bits repeat in the table.
  template <int Bits, int F>
  static Int field(const Int (&w)[Unit<Bits>::words]) {
    if constexpr (Bits != 3) {
      constexpr int shift = F * Bits * group<Bits>();
      return shift == 0 ? w[0] : _mm512_srli_epi32(w[0], shift);
    } else if constexpr (F < 30) {
      return F % 10 == 0 ? w[F / 10] : _mm512_srli_epi32(w[F / 10], 3 * (F % 10));
    } else {
      return _mm512_ternarylogic_epi32(_mm512_srli_epi32(w[F - 30], 30), _mm512_srli_epi32(w[2], F - 2),
                                       _mm512_set1_epi32(4), 0xf8);  // a | (b & c)
    }
  }

  static void settle(Float& x) { asm volatile("" : "+v"(x)); }

  template <int Bits, int F>
  static Float level(Int field, const Constants<Bits>& constants) {
    return _mm512_permutexvar_ps(field, constants.levels);
  }

  static Float pick(Int field, Float sums) { return _mm512_permutexvar_ps(field, sums); }

 private:
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

using Implementation = Core<Avx512>;

}  // namespace

const FloatCore avx512_float_core = {"avx512", Implementation::packed_size, Implementation::pack,
                                     Implementation::linear};

}  // namespace lowbit
