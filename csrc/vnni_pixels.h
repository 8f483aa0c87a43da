// Products of bytes with AVX-512 VNNI (vpdpbusd: four products and their sum, without saturation).
#pragma once

#include <immintrin.h>

#include "pixels_impl.h"

namespace lowbit {
namespace {

struct Vnni {
  using Int = __m512i;
  using Weights = __m512i;
  static constexpr int lanes = 16, most_pixels = 7;
  static constexpr bool chained = false;
  static Int zero() { return _mm512_setzero_si512(); }
  static void store(void* p, Int x) { _mm512_storeu_si512(p, x); }
  static Weights weights(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static Int codes(std::int32_t quad, bool) { return _mm512_set1_epi32(quad); }
  static void dot(Int& sum, Int x, Int w) { sum = _mm512_dpbusd_epi32(sum, x, w); }
};

// The bytes of four taps, 64 channels each, brought together: lane l of out[i], an 128-bit lane, holds the channels from
// 16·l + 4·i on. Two levels of unpacking are enough; the order is put right once per pixel.
inline void gather_taps(const __m512i (&r)[4], __m512i (&out)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi8(r[0], r[1]), high01 = _mm512_unpackhi_epi8(r[0], r[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(r[2], r[3]), high23 = _mm512_unpackhi_epi8(r[2], r[3]);
  out[0] = _mm512_unpacklo_epi16(low01, low23), out[1] = _mm512_unpackhi_epi16(low01, low23);
  out[2] = _mm512_unpacklo_epi16(high01, high23), out[3] = _mm512_unpackhi_epi16(high01, high23);
}

static void pack_depthwise_by_quads(const std::int8_t* weights, int taps, int channels, std::uint8_t* packed) {
  for (int c = 0; c < channels; c += 64)
    for (int tap = 0; tap < taps; tap += 4) {
      __m512i rows[4], out[4];
      for (int i = 0; i < 4; ++i)
        rows[i] = _mm512_loadu_si512(weights + static_cast<std::ptrdiff_t>(tap + i) * channels + c);
      gather_taps(rows, out);
      for (int i = 0; i < 4; ++i, packed += 64) _mm512_storeu_si512(packed, out[i]);
    }
}

static void depthwise_by_quads(const DepthwiseTile& t) {
  for (int p = 0; p < t.pixels; ++p) {
    const std::uint8_t* w = t.weights;
    for (int c = 0; c < t.channels; c += 64) {
      __m512i sums[4] = {Vnni::zero(), Vnni::zero(), Vnni::zero(), Vnni::zero()};
      const std::uint8_t* x = t.base + p * t.step + c;
      for (int tap = 0; tap < t.taps; tap += 4, w += 256) {
        __m512i rows[4], quads[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) rows[i] = _mm512_loadu_si512(x + t.offsets[tap + i]);
        gather_taps(rows, quads);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], quads[i], _mm512_loadu_si512(w + 64 * i));
      }
      // Lane l of sums[i] to place 4·l + i.
      const __m512i a = _mm512_shuffle_i32x4(sums[0], sums[1], 0x44), b = _mm512_shuffle_i32x4(sums[2], sums[3], 0x44);
      const __m512i d = _mm512_shuffle_i32x4(sums[0], sums[1], 0xee), e = _mm512_shuffle_i32x4(sums[2], sums[3], 0xee);
      std::int32_t* out = t.sums + p * t.stride + c;
      _mm512_storeu_si512(out, _mm512_shuffle_i32x4(a, b, 0x88));
      _mm512_storeu_si512(out + 16, _mm512_shuffle_i32x4(a, b, 0xdd));
      _mm512_storeu_si512(out + 32, _mm512_shuffle_i32x4(d, e, 0x88));
      _mm512_storeu_si512(out + 48, _mm512_shuffle_i32x4(d, e, 0xdd));
    }
  }
}

}  // namespace
}  // namespace lowbit
