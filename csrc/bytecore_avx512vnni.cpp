// Byte products with AVX-512 VNNI (vpdpbusd: four products and their sum, without saturation).
#include <immintrin.h>

#include "bytecore_impl.h"

namespace lowbit {
namespace {

struct Vnni {
  using Int = __m512i;
  static constexpr int lanes = 16;
#ifndef R4
#define R4 6
#endif
  static constexpr int rows4 = R4, rows3 = 8, rows2 = 12;
  static Int zero() { return _mm512_setzero_si512(); }
  static Int load(const void* p) { return _mm512_loadu_si512(p); }
  static Int load_some(const void* p, int n) { return _mm512_maskz_loadu_epi32(first(n), p); }
  static void store(void* p, Int x) { _mm512_storeu_si512(p, x); }
  static void store_some(void* p, int n, Int x) { _mm512_mask_storeu_epi32(p, first(n), x); }
  static Int broadcast(std::int32_t x) { return _mm512_set1_epi32(x); }
  static Int add32(Int x, Int y) { return _mm512_add_epi32(x, y); }
  static Int dot(Int sum, Int a, Int b) { return _mm512_dpbusd_epi32(sum, a, b); }

 private:
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

using Pack = Packing<Vnni::lanes>;

void gemm(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed, int K, int N, std::int32_t* c,
          std::size_t ldc) {
  constexpr int width = kGroup * Vnni::lanes;
#ifdef BLOCKENV
  extern int g_block;
  const int block = g_block;
#else
  constexpr int block = 96;
#endif
  if (M <= 0) return;
  for (int n = 0; n < N; n += width) {
    group_product<Fused<Vnni>, Vnni::lanes>(a, lda, M, packed + Pack::group_offset(K, N, n / width),
                                            N - n < width ? N - n : width, ceil_div(K, 4), block, c + n, ldc);
  }
}

}  // namespace

extern const ByteCore byte_core_avx512vnni;
const ByteCore byte_core_avx512vnni = {"avx512vnni", Pack::packed_size, Pack::pack, Pack::row_size, gemm};

}  // namespace lowbit
