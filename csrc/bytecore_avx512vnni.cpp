// Byte products with AVX-512 VNNI (vpdpbusd: four products and their sum, without saturation).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms in GCC's own immintrin.h
#endif
#include <immintrin.h>

#include "bytecore_impl.h"

namespace lowbit {
namespace {

struct Vnni {
  using Int = __m512i;
  static constexpr int lanes = 16;
  // Rows of a tile of 4, 3 and at most 2 vectors: 24 sums in registers, more than the two multipliers need.
  static constexpr int rows4 = 6, rows3 = 8, rows2 = 12;

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

void gemm(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed, int K, int N, std::int32_t* c,
          std::size_t ldc) {
  product<Vnni::lanes>(a, lda, M, packed, K, N, c, ldc,
                       [](const TileArguments& t, int rows, int vectors, std::int32_t /*bound*/) {
                         all_rows<Fused<Vnni>>(t, rows, vectors);
                       });
}

using Pack = Packing<Vnni::lanes>;

}  // namespace

const ByteCore avx512vnni_byte_core = {"avx512vnni", Pack::packed_size, Pack::pack_only, Pack::row_size, gemm};

}  // namespace lowbit
