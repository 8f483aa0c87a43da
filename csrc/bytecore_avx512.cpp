// Byte products with AVX-512 BW.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms in GCC's own immintrin.h
#endif
#include <immintrin.h>

#include "bytecore_impl.h"

namespace lowbit {
namespace {

struct Avx512 {
  using Int = __m512i;
  static constexpr int lanes = 16;
  static constexpr int rows4 = 5, rows3 = 6, rows2 = 8;
  static constexpr int wide_rows4 = 5, wide_rows2 = 8;

  static Int zero() { return _mm512_setzero_si512(); }
  static Int load(const void* p) { return _mm512_loadu_si512(p); }
  static Int load_some(const void* p, int n) { return _mm512_maskz_loadu_epi32(first(n), p); }
  static void store(void* p, Int x) { _mm512_storeu_si512(p, x); }
  static void store_some(void* p, int n, Int x) { _mm512_mask_storeu_epi32(p, first(n), x); }
  static Int broadcast(std::int32_t x) { return _mm512_set1_epi32(x); }
  static Int add16(Int x, Int y) { return _mm512_add_epi16(x, y); }
  static Int add32(Int x, Int y) { return _mm512_add_epi32(x, y); }
  static Int pairs(Int a, Int b) { return _mm512_maddubs_epi16(a, b); }
  static Int multiply_add(Int a, Int b) { return _mm512_madd_epi16(a, b); }
  static Int widen_add(Int x) { return _mm512_madd_epi16(x, _mm512_set1_epi16(1)); }
  static Int even_unsigned(Int x) { return _mm512_and_si512(x, _mm512_set1_epi16(0xff)); }
  static Int odd_unsigned(Int x) { return _mm512_srli_epi16(x, 8); }
  static Int even_signed(Int x) { return _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8); }
  static Int odd_signed(Int x) { return _mm512_srai_epi16(x, 8); }

 private:
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

void gemm(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed, int K, int N, std::int32_t* c,
          std::size_t ldc) {
  product<Avx512::lanes>(a, lda, M, packed, K, N, c, ldc, run_by_bound<Avx512>);
}

using Pack = Packing<Avx512::lanes>;

}  // namespace

const ByteCore avx512_byte_core = {"avx512", Pack::packed_size, Pack::pack, Pack::row_size, gemm};

}  // namespace lowbit
