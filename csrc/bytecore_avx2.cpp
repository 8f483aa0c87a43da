// Byte products with AVX2.
#include <immintrin.h>

#include "bytecore_impl.h"

namespace lowbit {
namespace {

struct Avx2 {
  using Int = __m256i;
  static constexpr int lanes = 8;
  static constexpr int rows4 = 2, rows3 = 3, rows2 = 4;
  static constexpr int wide_rows4 = 2, wide_rows2 = 4;

  static Int zero() { return _mm256_setzero_si256(); }
  static Int load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Int load_some(const std::int32_t* p, int n) { return _mm256_maskload_epi32(p, first(n)); }
  static void store(void* p, Int x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  static void store_some(std::int32_t* p, int n, Int x) { _mm256_maskstore_epi32(p, first(n), x); }
  static Int broadcast(std::int32_t x) { return _mm256_set1_epi32(x); }
  static Int add16(Int x, Int y) { return _mm256_add_epi16(x, y); }
  static Int add32(Int x, Int y) { return _mm256_add_epi32(x, y); }
  static Int pairs(Int a, Int b) { return _mm256_maddubs_epi16(a, b); }
  static Int multiply_add(Int a, Int b) { return _mm256_madd_epi16(a, b); }
  static Int widen_add(Int x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }
  static Int even_unsigned(Int x) { return _mm256_and_si256(x, _mm256_set1_epi16(0xff)); }
  static Int odd_unsigned(Int x) { return _mm256_srli_epi16(x, 8); }
  static Int even_signed(Int x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
  static Int odd_signed(Int x) { return _mm256_srai_epi16(x, 8); }

 private:
  static Int first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

void gemm(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed, int K, int N, std::int32_t* c,
          std::size_t ldc) {
  product<Avx2::lanes>(a, lda, M, packed, K, N, c, ldc, run_by_bound<Avx2>);
}

using Pack = Packing<Avx2::lanes>;

}  // namespace

const ByteCore avx2_byte_core = {"avx2", Pack::packed_size, Pack::pack, Pack::row_size, gemm};

}  // namespace lowbit
