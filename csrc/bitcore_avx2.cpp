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
  static constexpr int kChunk = 1 << kLog;
  static constexpr int kUpper = 2;
  static constexpr int kWideBlock = 12;
  static constexpr int kFewRowsBlock = 12;
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

  // Counts of up to 16 planes at 32 positions. All lanes see the same half word of a plane; the 16-bit lanes 2i and 2i
  // + 1 look at its bits i and i + 16, in a second vector at i + 8 and i + 24.
  typedef uint32_t Half __attribute__((may_alias));
  static LOWBIT_INLINE void collect(const Half* counter, size_t stride, int planes, Reg* count) {
    const Reg bit = _mm256_setr_epi32(0x10001, 0x20002, 0x40004, 0x80008, 0x100010, 0x200020, 0x400040, 0x800080);
    const Reg bits[2] = {bit, _mm256_slli_epi16(bit, 8)};
    Reg both[2] = {zero(), zero()};
    for (int p = planes - 1; p >= 0; --p) {
      const Reg all = _mm256_set1_epi32(int32_t(counter[size_t(p) * stride]));
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const Reg minus = _mm256_cmpeq_epi16(and_(all, bits[i]), bits[i]);
        both[i] = _mm256_sub_epi16(_mm256_add_epi16(both[i], both[i]), minus);
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      count[i] = and_(both[i], _mm256_set1_epi32(0xffff));
      count[2 + i] = _mm256_srli_epi32(both[i], 16);
    }
  }
  static LOWBIT_INLINE void expand(const uint64_t* counter, size_t stride, int depth, int32_t* out) {
    for (int half = 0; half < 2; ++half) {
      Reg count[4];
      collect(reinterpret_cast<const Half*>(counter) + half, 2 * stride, smaller(depth, 16), count);
      if (__builtin_expect(depth > 16, 0)) {
        Reg above[4];
        collect(reinterpret_cast<const Half*>(counter) + half + 32 * stride, 2 * stride, depth - 16, above);
        for (int i = 0; i < 4; ++i) count[i] = or_(count[i], _mm256_slli_epi32(above[i], 16));
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(out + 32 * half + 8 * i, count[i]);
    }
  }
};

}  // namespace

const BitCore avx2_bit_core = wide_core<Avx2>("avx2", 130);

}  // namespace lowbit
