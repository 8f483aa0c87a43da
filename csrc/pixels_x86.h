// Products of bytes on x86 without vpdpbusd. vpmaddubsw adds pairs of products in 16 bits, and saturates: it is exact
// where the weights and codes are small enough (`chain_of`). Elsewhere both factors are widened to 16 bits, the even and
// the odd members of each group of four apart.
#pragma once

#include <immintrin.h>

#include "pixels_impl.h"

namespace lowbit {
namespace {

#if defined(__AVX512BW__)
struct Pairs16 {
  using Int = __m512i;
  static constexpr int lanes = 16, most_pixels = 3;
  static Int zero() { return _mm512_setzero_si512(); }
  static void store(void* p, Int x) { _mm512_storeu_si512(p, x); }
  static Int load(const void* p) { return _mm512_loadu_si512(p); }
  static Int broadcast(std::int32_t quad) { return _mm512_set1_epi32(quad); }
  static Int add16(Int a, Int b) { return _mm512_add_epi16(a, b); }
  static Int add32(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int maddubs(Int u, Int s) { return _mm512_maddubs_epi16(u, s); }
  static Int madd(Int a, Int b) { return _mm512_madd_epi16(a, b); }
  static Int low_byte(Int x) { return _mm512_and_si512(x, _mm512_set1_epi16(255)); }
  static Int left8(Int x) { return _mm512_slli_epi16(x, 8); }
  static Int right8(Int x) { return _mm512_srli_epi16(x, 8); }
  static Int right8_signed(Int x) { return _mm512_srai_epi16(x, 8); }
  static Int ones() { return _mm512_set1_epi16(1); }
};
#else
struct Pairs16 {
  using Int = __m256i;
  static constexpr int lanes = 8, most_pixels = 2;
  static Int zero() { return _mm256_setzero_si256(); }
  static void store(void* p, Int x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  static Int load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Int broadcast(std::int32_t quad) { return _mm256_set1_epi32(quad); }
  static Int add16(Int a, Int b) { return _mm256_add_epi16(a, b); }
  static Int add32(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int maddubs(Int u, Int s) { return _mm256_maddubs_epi16(u, s); }
  static Int madd(Int a, Int b) { return _mm256_madd_epi16(a, b); }
  static Int low_byte(Int x) { return _mm256_and_si256(x, _mm256_set1_epi16(255)); }
  static Int left8(Int x) { return _mm256_slli_epi16(x, 8); }
  static Int right8(Int x) { return _mm256_srli_epi16(x, 8); }
  static Int right8_signed(Int x) { return _mm256_srai_epi16(x, 8); }
  static Int ones() { return _mm256_set1_epi16(1); }
};
#endif

struct Chained : Pairs16 {
  static constexpr bool chained = true;
  struct Weights {
    Int even, odd;
  };
  static Weights weights(const std::uint8_t* p) {
    const Int w = load(p);
    return {right8_signed(left8(w)), right8_signed(w)};
  }
  static Weights codes(std::int32_t quad, bool) {
    const Int x = broadcast(quad);
    return {low_byte(x), right8(x)};
  }
  static void dot(Int& sum, const Weights& x, const Weights& w) {
    sum = add32(sum, add32(madd(x.even, w.even), madd(x.odd, w.odd)));
  }
  static Int pairs(Int x, const std::uint8_t* w) { return maddubs(x, load(w)); }
  static Int widen(Int pairs) { return madd(pairs, ones()); }
};

}  // namespace
}  // namespace lowbit
