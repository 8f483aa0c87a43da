// The loops of ceiling.cpp: each does n passes and returns how many products, or bytes, those were.
#pragma once

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // the compiler's own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define AVX512_INLINE AVX512 inline __attribute__((always_inline))
#define AVX512_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define AVX512_POPCNT __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")))
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX2_INLINE AVX2 inline __attribute__((always_inline))
// Hides from the compiler what a register holds.
#define OPAQUE(x) asm volatile("" : "+v"(x))

namespace {

alignas(64) std::uint8_t l1[16384];  // operands that stay in the L1 cache
volatile std::uint64_t sink;

// ---- float32: fused multiply–adds into registers ----

AVX512 double float_avx512(long n) {
  __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f), sum[16];
#pragma GCC unroll 16
  for (auto& s : sum) s = _mm512_setzero_ps();
  for (long i = 0; i < 64 * n; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      sum[j] = _mm512_fmadd_ps(a, b, sum[j]);
      OPAQUE(sum[j]);
    }
  }
  return 64.0 * double(n) * 16 * 16;
}

AVX2 double float_avx2(long n) {
  __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f), sum[12];
#pragma GCC unroll 12
  for (auto& s : sum) s = _mm256_setzero_ps();
  for (long i = 0; i < 64 * n; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      sum[j] = _mm256_fmadd_ps(a, b, sum[j]);
      OPAQUE(sum[j]);
    }
  }
  return 64.0 * double(n) * 12 * 8;
}

// ---- int8: products of unsigned and signed bytes, added into 32 bits ----

AVX512_VNNI double int8_vnni(long n) {
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2), sum[16];
#pragma GCC unroll 16
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (long i = 0; i < 64 * n; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      sum[j] = _mm512_dpbusd_epi32(sum[j], a, b);
      OPAQUE(sum[j]);
    }
  }
  return 64.0 * double(n) * 16 * 64;
}

AVX2 double int8_avx2(long n) {
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2), ones = _mm256_set1_epi16(1), sum[8];
#pragma GCC unroll 8
  for (auto& s : sum) s = _mm256_setzero_si256();
  for (long i = 0; i < 64 * n; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      OPAQUE(b);
      sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
      OPAQUE(sum[j]);
    }
  }
  return 64.0 * double(n) * 8 * 32;
}

// ---- binary, one product after the other: exclusive or, and a count of the bits that differ ----

AVX512_INLINE __m512i add3(__m512i& sum, __m512i a, __m512i b) {
  const __m512i carry = _mm512_ternarylogic_epi64(sum, a, b, 0xe8);
  sum = _mm512_ternarylogic_epi64(sum, a, b, 0x96);
  return carry;
}
AVX512_INLINE __m512i differ(__m512i a, int i) { return _mm512_xor_si512(a, _mm512_load_si512(l1 + 64 * i)); }
AVX512_INLINE __m512i count_bytes(__m512i v) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i nibble = _mm512_set1_epi8(15);
  return _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(v, nibble)),
                         _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble)));
}

// Harley–Seal: carry-save adders (ternary logic), so that only one word of sixteen is counted by shuffles.
AVX512 double binary_avx512(long n) {
  __m512i a = _mm512_set1_epi64(0x123456789abcdef), ones = _mm512_setzero_si512(), twos = ones, fours = ones;
  __m512i eights = ones, total = ones;
  for (long i = 0; i < 64 * n; ++i) {
    OPAQUE(a);
    __m512i into_eights[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m512i into_fours[2];
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        const int k = 8 * h + 4 * q;
        const __m512i x = add3(ones, differ(a, k), differ(a, k + 1));
        const __m512i y = add3(ones, differ(a, k + 2), differ(a, k + 3));
        into_fours[q] = add3(twos, x, y);
      }
      into_eights[h] = add3(fours, into_fours[0], into_fours[1]);
    }
    const __m512i counts = count_bytes(add3(eights, into_eights[0], into_eights[1]));
    total = _mm512_add_epi64(total, _mm512_sad_epu8(counts, _mm512_setzero_si512()));
  }
  total = _mm512_add_epi64(total, _mm512_add_epi64(ones, _mm512_add_epi64(twos, _mm512_add_epi64(fours, eights))));
  sink = std::uint64_t(_mm512_reduce_add_epi64(total));
  return 64.0 * double(n) * 16 * 512;
}

AVX512_POPCNT double binary_popcnt(long n) {
  __m512i a = _mm512_set1_epi64(0x123456789abcdef), sum[16];
#pragma GCC unroll 16
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (long i = 0; i < 64 * n; ++i) {
    OPAQUE(a);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      const __m512i other = _mm512_xor_si512(a, _mm512_load_si512(l1 + 64 * j));
      sum[j] = _mm512_add_epi64(sum[j], _mm512_popcnt_epi64(other));
    }
  }
#pragma GCC unroll 16
  for (int j = 1; j < 16; ++j) sum[0] = _mm512_add_epi64(sum[0], sum[j]);
  sink = std::uint64_t(_mm512_reduce_add_epi64(sum[0]));
  return 64.0 * double(n) * 16 * 512;
}

AVX2_INLINE __m256i add3(__m256i& sum, __m256i a, __m256i b) {
  const __m256i half = _mm256_xor_si256(sum, a);
  const __m256i carry = _mm256_or_si256(_mm256_and_si256(sum, a), _mm256_and_si256(half, b));
  sum = _mm256_xor_si256(half, b);
  return carry;
}
AVX2_INLINE __m256i differ2(__m256i a, int i) {
  return _mm256_xor_si256(a, _mm256_load_si256(reinterpret_cast<const __m256i*>(l1) + i));
}

AVX2 double binary_avx2(long n) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
  __m256i a = _mm256_set1_epi64x(0x123456789abcdef), ones = zero, twos = zero, total = zero;
  for (long i = 0; i < 64 * n; ++i) {
    OPAQUE(a);
#pragma GCC unroll 4
    for (int k = 0; k < 16; k += 4) {
      const __m256i x = add3(ones, differ2(a, k), differ2(a, k + 1));
      const __m256i y = add3(ones, differ2(a, k + 2), differ2(a, k + 3));
      const __m256i v = add3(twos, x, y);
      const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble));
      const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
      total = _mm256_add_epi64(total, _mm256_sad_epu8(_mm256_add_epi8(low, high), zero));
    }
  }
  total = _mm256_add_epi64(total, _mm256_add_epi64(ones, twos));
  sink = std::uint64_t(_mm256_extract_epi64(total, 0) + _mm256_extract_epi64(total, 2));
  return 64.0 * double(n) * 16 * 256;
}

// ---- binary, as bitcore_impl.h does it: two products' carry is looked up and added; the table is ready ----

AVX512_INLINE __m512i looked_up(const std::uint8_t* from, int i) { return _mm512_load_si512(from + 64 * i); }

AVX512 double shared_avx512(long n) {
  __m512i level[5], high = _mm512_setzero_si512();
#pragma GCC unroll 5
  for (auto& l : level) l = high;
  const std::uint8_t* from = l1;
  for (long i = 0; i < 64 * n; ++i) {
    asm volatile("" : "+r"(from)::"memory");  // what the table holds is not known from before
    __m512i sixteen[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m512i eight[2];
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        __m512i four[2];
#pragma GCC unroll 2
        for (int p = 0; p < 2; ++p) {
          const int k = 16 * h + 8 * q + 4 * p;
          const __m512i x = add3(level[0], looked_up(from, k), looked_up(from, k + 1));
          const __m512i y = add3(level[0], looked_up(from, k + 2), looked_up(from, k + 3));
          four[p] = add3(level[1], x, y);
        }
        eight[q] = add3(level[2], four[0], four[1]);
      }
      sixteen[h] = add3(level[3], eight[0], eight[1]);
    }
    high = _mm512_xor_si512(high, add3(level[4], sixteen[0], sixteen[1]));
  }
#pragma GCC unroll 5
  for (auto& l : level) high = _mm512_xor_si512(high, l);
  sink = std::uint64_t(_mm512_reduce_add_epi64(high));
  return 64.0 * double(n) * 32 * 2 * 512;
}

AVX2 double shared_avx2(long n) {
  __m256i level[3], high = _mm256_setzero_si256();
#pragma GCC unroll 3
  for (auto& l : level) l = high;
  const std::uint8_t* from = l1;
  for (long i = 0; i < 64 * n; ++i) {
    asm volatile("" : "+r"(from)::"memory");
    const __m256i* table = reinterpret_cast<const __m256i*>(from);
    __m256i four[2];
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      const __m256i x = add3(level[0], _mm256_load_si256(table + 4 * p), _mm256_load_si256(table + 4 * p + 1));
      const __m256i y = add3(level[0], _mm256_load_si256(table + 4 * p + 2), _mm256_load_si256(table + 4 * p + 3));
      four[p] = add3(level[1], x, y);
    }
    high = _mm256_xor_si256(high, add3(level[2], four[0], four[1]));
  }
#pragma GCC unroll 3
  for (auto& l : level) high = _mm256_xor_si256(high, l);
  sink = std::uint64_t(_mm256_extract_epi64(high, 0) + _mm256_extract_epi64(high, 2));
  return 64.0 * double(n) * 8 * 2 * 256;
}

// ---- bytes read per second from a block of memory, again and again ----

AVX512 double read_avx512(const std::uint8_t* data, std::size_t bytes, long n) {
  __m512i sum[4];
#pragma GCC unroll 4
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (long i = 0; i < n; ++i) {
    asm volatile("" : "+r"(data)::"memory");
    for (std::size_t k = 0; k < bytes; k += 512) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) sum[j % 4] = _mm512_or_si512(sum[j % 4], _mm512_load_si512(data + k + 64 * j));
    }
  }
#pragma GCC unroll 4
  for (int j = 1; j < 4; ++j) sum[0] = _mm512_or_si512(sum[0], sum[j]);
  sink = std::uint64_t(_mm512_reduce_add_epi64(sum[0]));
  return double(n) * double(bytes);
}

AVX2 double read_avx2(const std::uint8_t* data, std::size_t bytes, long n) {
  __m256i sum[4];
#pragma GCC unroll 4
  for (auto& s : sum) s = _mm256_setzero_si256();
  for (long i = 0; i < n; ++i) {
    asm volatile("" : "+r"(data)::"memory");
    const __m256i* from = reinterpret_cast<const __m256i*>(data);
    for (std::size_t k = 0; k < bytes / 32; k += 16) {
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) sum[j % 4] = _mm256_or_si256(sum[j % 4], _mm256_load_si256(from + k + j));
    }
  }
#pragma GCC unroll 4
  for (int j = 1; j < 4; ++j) sum[0] = _mm256_or_si256(sum[0], sum[j]);
  sink = std::uint64_t(_mm256_extract_epi64(sum[0], 0) + _mm256_extract_epi64(sum[0], 2));
  return double(n) * double(bytes);
}

}  // namespace

#undef OPAQUE
