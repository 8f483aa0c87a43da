#include <immintrin.h>

#include "bitcore_impl.h"

namespace lowbit {
namespace {

struct Avx2 {
  using Reg = __m256i;
  static constexpr int kWords = 4;
  static constexpr int kScale = 8;
  static constexpr int kPlaneStride = kWords;
  static constexpr int kLog = 5;
  static constexpr int kUpper = 2;
  static constexpr int kWideBlock = 16;
  static constexpr int kFewRowsBlock = 16;
  static constexpr int kCounterBytes = 192 << 10;

  static LOWBIT_INLINE Reg load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static LOWBIT_INLINE void store(void* p, Reg r) { _mm256_storeu_si256(static_cast<__m256i*>(p), r); }
  static LOWBIT_INLINE Reg load_aligned(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
  static LOWBIT_INLINE void store_aligned(void* p, Reg r) { _mm256_store_si256(static_cast<__m256i*>(p), r); }
  static LOWBIT_INLINE Reg broadcast(const uint64_t* p) { return _mm256_set1_epi64x(int64_t(*p)); }
  static LOWBIT_INLINE Reg zero() { return _mm256_setzero_si256(); }
  static LOWBIT_INLINE Reg not_(Reg a) { return _mm256_xor_si256(a, _mm256_set1_epi32(-1)); }
  static LOWBIT_INLINE Reg and_(Reg a, Reg b) { return _mm256_and_si256(a, b); }
  static LOWBIT_INLINE Reg andnot(Reg a, Reg b) { return _mm256_andnot_si256(a, b); }
  static LOWBIT_INLINE Reg or_(Reg a, Reg b) { return _mm256_or_si256(a, b); }
  static LOWBIT_INLINE Reg xor_(Reg a, Reg b) { return _mm256_xor_si256(a, b); }
  static LOWBIT_INLINE Reg majority(Reg a, Reg b, Reg c) { return or_(and_(a, b), and_(or_(a, b), c)); }
  static LOWBIT_INLINE Reg add(Reg& sum, Reg a, Reg b) {
    const Reg differ = xor_(a, b), carry = or_(and_(a, b), and_(differ, sum));
    sum = xor_(sum, differ);
    return carry;
  }
  static LOWBIT_INLINE void tabulate(uint8_t* table, Reg& p, Reg x, Reg y) { tabulate_by_parts<Avx2>(table, p, x, y); }

  // Lane i of eight looks at bits i, i + 8, i + 16 and i + 24 of a broadcast half word.
  static LOWBIT_INLINE void expand(const uint64_t* counter, size_t stride, int depth, int32_t* out) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    for (int half = 0; half < 2; ++half) {
      __m256i count[4] = {zero(), zero(), zero(), zero()};
      for (int p = depth - 1; p >= 0; --p) {
        int32_t planes;
        memcpy(&planes, reinterpret_cast<const char*>(counter + size_t(p) * stride) + 4 * half, sizeof planes);
        const __m256i all = _mm256_set1_epi32(planes);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const __m256i mine = _mm256_slli_epi32(bit, 8 * i);
          const __m256i minus = _mm256_cmpeq_epi32(_mm256_and_si256(all, mine), mine);
          count[i] = _mm256_sub_epi32(_mm256_add_epi32(count[i], count[i]), minus);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(out + 32 * half + 8 * i, count[i]);
    }
  }
};

}  // namespace

const BitCore avx2_bit_core = wide_core<Avx2>("avx2");

}  // namespace lowbit
