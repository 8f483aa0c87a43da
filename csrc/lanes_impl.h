// Included by one file per instruction set, which the compiler vectorises for it. Everything here is local to that file.
#pragma once

#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "lanes.h"

namespace lowbit {
namespace {

static void shifted(const std::uint64_t* source, std::int64_t position, int words, std::uint64_t* out) {
  const std::int64_t word = position >> 6;  // the source starts long enough before position 0 for a negative one
  const int right = static_cast<int>(position & 63);
  source += word;
  if (right == 0) {
    std::memcpy(out, source, static_cast<std::size_t>(words) * 8);
    return;
  }
  for (int w = 0; w < words; ++w) out[w] = (source[w] >> right) | (source[w + 1] << (64 - right));
}

static void whole(const std::int32_t* counts, std::int32_t slope, std::int32_t offset, int n, std::int32_t* sums) {
  for (int i = 0; i < n; ++i) sums[i] = (counts[i] * slope + offset) >> 1;
}

static void to_float(const std::int32_t* sums, int n, float* y) {
  for (int i = 0; i < n; ++i) y[i] = static_cast<float>(sums[i]);
}

static void multiply(float* y, float factor, int n) {
  for (int i = 0; i < n; ++i) y[i] *= factor;
}

static void add(float* y, float term, int n) {
  for (int i = 0; i < n; ++i) y[i] += term;
}

static void add_row(float* y, const float* other, int n) {
  for (int i = 0; i < n; ++i) y[i] += other[i];
}

static void relu(float* y, int n) {
  for (int i = 0; i < n; ++i) y[i] = y[i] < 0 ? 0.0f : y[i];  // a NaN stays, as in torch
}

// Half to even for |z| < 2^22: the sum's last bit is worth 1. Unlike a call of rint it is vectorised everywhere.
static inline float nearest(float z) { return (z + 12582912.0f) - 12582912.0f; }

static inline float upward(float z) {
  const float near = nearest(z);
  return near < z ? near + 1.0f : near;
}

static std::uint64_t bits_of(const std::uint8_t* codes, int bit) {
#if defined(__AVX512BW__)
  return _mm512_test_epi8_mask(_mm512_loadu_si512(codes), _mm512_set1_epi8(static_cast<char>(1 << bit)));
#elif defined(__AVX2__)
  std::uint64_t result = 0;
  for (int half = 0; half < 2; ++half) {
    __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * half));
    v = _mm256_slli_epi16(v, 7 - bit);  // the wanted bit of each byte comes to its top
    result |= static_cast<std::uint64_t>(static_cast<std::uint32_t>(_mm256_movemask_epi8(v))) << (32 * half);
  }
  return result;
#else
  std::uint64_t result = 0;
  for (int group = 0; group < 8; ++group) {
    std::uint64_t eight = 0;
    for (int i = 0; i < 8; ++i) eight |= static_cast<std::uint64_t>((codes[8 * group + i] >> bit) & 1) << i;
    result |= eight << (8 * group);
  }
  return result;
#endif
}

static void quantize(const float* y, const Quantizer& q, int n, std::uint64_t* out, std::ptrdiff_t stride) {
  for (int start = 0; start < n; start += 64, ++out) {
    std::uint8_t codes[64];
    const float* x = y + start;
    if (q.rounding == Rounding::sign) {
      for (int i = 0; i < 64; ++i) codes[i] = x[i] >= 0.0f ? 1 : 0;
    } else if (q.rounding == Rounding::nearest) {
      for (int i = 0; i < 64; ++i) {
        float z = x[i] * q.reciprocal;
        z = z > q.low ? z : q.low;  // a NaN becomes the lowest code
        z = z < q.high ? z : q.high;
        codes[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(nearest(z) - q.low));
      }
    } else {
      for (int i = 0; i < 64; ++i) {
        float z = x[i] * q.reciprocal;
        z = z > q.low ? z : q.low;
        z = z < q.high ? z : q.high;
        codes[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(upward(z * q.keep)));
      }
    }
    for (int j = 0; j < q.bits; ++j) out[j * stride] = bits_of(codes, j);
  }
}

}  // namespace
}  // namespace lowbit

#define LOWBIT_LANE_OPS(NAME) \
  { NAME, shifted, whole, to_float, multiply, add, add_row, relu, quantize }
