// The functions of a PixelCore over a vector type V; included by one file per instruction set, to which all is local.
#pragma once

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"  // of what lanes_impl.h holds
#endif
#if defined(__aarch64__)
#include <arm_neon.h>  // for the portable files as well: every such processor has it
#endif

#include "lanes_impl.h"
#include "pixels.h"

#define LOWBIT_PIXEL_INLINE inline __attribute__((always_inline))

namespace lowbit {
namespace {

static inline void store(std::int32_t* to, Ints v) { std::memcpy(to, &v, sizeof v); }

static inline std::int32_t quad_at(const std::uint8_t* from) {
  std::int32_t quad;
  std::memcpy(&quad, from, sizeof quad);
  return quad;
}

// ---- products ----

template <int...>
struct Counted {};
template <int N, int... Numbers_>
struct Count : Count<N - 1, N - 1, Numbers_...> {};
template <int... Numbers_>
struct Count<0, Numbers_...> {  // 0, 1, …, N − 1
  using Numbers = Counted<Numbers_...>;
};

template <class V, int Pixels, int Groups, int Vectors>
static void product_tiles(const PixelTile& given, bool eight_bits) {
  using Int = typename V::Int;
  const PixelTile t = given;  // a copy: sums might alter what it refers to
  constexpr int width = Vectors * V::lanes * 4;
  Int sums[Groups][Pixels][Vectors];
  const auto every = [&](auto&& body) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int g = 0; g < Groups; ++g)
#pragma GCC unroll 16
      for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) body(g, p, v);
  };
  std::ptrdiff_t fetched = 0;
  for (int tile = 0; tile < t.tiles; ++tile) {
    const std::ptrdiff_t first = tile + 1 < t.tiles ? static_cast<std::ptrdiff_t>(tile) * t.span : t.last;
    // An address for each pixel of a group, and two numbers to add to it: more additions would take the products' slots.
    const std::uint8_t* x[Pixels];
#pragma GCC unroll 16
    for (int p = 0; p < Pixels; ++p) x[p] = t.base + (first + p) * t.step;
    const std::ptrdiff_t apart = t.apart;
    const std::uint8_t* w = t.weights;
    const std::int32_t* offsets = t.offsets;
    every([&](int g, int p, int v) __attribute__((always_inline)) { sums[g][p][v] = V::zero(); });

    if (V::chained && t.chain) {
      if constexpr (V::chained) {  // pairs of products in 16 bits, and as many of those as is exact, then widened
        for (int left = t.quads; left;) {
          const int now = left < t.chain ? left : t.chain;
          Int pairs[Groups][Pixels][Vectors];
          every([&](int g, int p, int v) __attribute__((always_inline)) { pairs[g][p][v] = V::zero(); });
          for (int q = 0; q < now; ++q, w += width) {
            const std::ptrdiff_t offset[2] = {offsets[q], offsets[q] + apart};
            every([&](int g, int p, int v) __attribute__((always_inline)) {
              const Int codes = V::broadcast(quad_at(x[p] + offset[g]));
              pairs[g][p][v] = V::add16(pairs[g][p][v], V::pairs(codes, w + v * V::lanes * 4));
            });
          }
          offsets += now;
          left -= now;
          every([&](int g, int p, int v) __attribute__((always_inline)) {
            sums[g][p][v] = V::add32(sums[g][p][v], V::widen(pairs[g][p][v]));
          });
        }
      }
    } else {
      const std::uint8_t* next = fetched < t.behind ? t.next + fetched : w;
      fetched += 64ll * t.quads;
      for (int q = 0; q < t.quads; ++q, w += width, next += 64) {
        const std::ptrdiff_t offset[2] = {offsets[q], offsets[q] + apart};
        typename V::Weights weights[Vectors];
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) weights[v] = V::weights(w + v * V::lanes * 4);
        __builtin_prefetch(next, 0, 2);
        every([&](int g, int p, int v) __attribute__((always_inline)) {
          V::dot(sums[g][p][v], V::codes(quad_at(x[p] + offset[g]), eight_bits), weights[v]);
        });
      }
    }
    std::int32_t* to = t.sums + first * t.stride;
    every([&](int g, int p, int v) __attribute__((always_inline)) {
      V::store(to + g * t.sums_apart + p * t.stride + v * V::lanes, sums[g][p][v]);
    });
  }
}

template <class V, int Groups, int Vectors, int... Less>
static inline void product_of(const PixelTile& t, bool eight_bits, Counted<Less...>) {
  static constexpr void (*by_pixels[])(const PixelTile&, bool) = {product_tiles<V, Less + 1, Groups, Vectors>...};
  by_pixels[t.pixels - 1](t, eight_bits);
}

template <class V>
static void product(const PixelTile& t, bool eight_bits) {
  typename Count<V::most_pixels>::Numbers numbers{};
  if (t.groups == 2)
    t.vectors == 2 ? product_of<V, 2, 2>(t, eight_bits, numbers) : product_of<V, 2, 1>(t, eight_bits, numbers);
  else
    t.vectors == 2 ? product_of<V, 1, 2>(t, eight_bits, numbers) : product_of<V, 1, 1>(t, eight_bits, numbers);
}

// ---- a window for each channel ----

static void pack_depthwise_in_order(const std::int8_t* weights, int taps, int channels, std::uint8_t* packed) {
  std::memcpy(packed, weights, static_cast<std::size_t>(taps) * channels);
}

static void depthwise_in_order(const DepthwiseTile& t) {
  constexpr int block = 64;
  const auto* weights = reinterpret_cast<const std::int8_t*>(t.weights);
  for (int p = 0; p < t.pixels; ++p)
    for (int c = 0; c < t.channels; c += block) {
      std::int32_t sums[block] = {};
      for (int tap = 0; tap < t.taps; ++tap) {
        const std::uint8_t* x = t.base + p * t.step + t.offsets[tap] + c;
        const std::int8_t* w = weights + static_cast<std::ptrdiff_t>(tap) * t.channels + c;
        for (int i = 0; i < block; ++i) sums[i] += static_cast<std::int32_t>(x[i]) * w[i];
      }
      std::memcpy(t.sums + p * t.stride + c, sums, sizeof sums);
    }
}

// ---- single pixels ----

static void to_planes(const std::uint8_t* codes, int count, int bits, int words, std::uint64_t* planes) {
  for (int w = 0; w < words; ++w) {
    const int some = count - 64 * w < 64 ? count - 64 * w : 64;
    std::uint8_t last[64] = {};
    const std::uint8_t* from = codes + 64 * w;
    if (some < 64) {
      if (some > 0) std::memcpy(last, from, static_cast<std::size_t>(some));
      from = last;
    }
    for (int j = 0; j < bits; ++j) {
#if defined(__AVX512BW__)
      planes[j * words + w] = _mm512_test_epi8_mask(_mm512_loadu_si512(from), _mm512_set1_epi8(static_cast<char>(1 << j)));
#else
      std::uint64_t plane = 0;
      for (int i = 0; i < 64; i += 8) {  // eight bytes' bits to the top byte: no two partial products meet
        std::uint64_t eight;
        std::memcpy(&eight, from + i, 8);
        plane |= ((((eight >> j) & 0x0101010101010101ull) * 0x0102040810204080ull) >> 56) << i;
      }
      planes[j * words + w] = plane;
#endif
    }
  }
}

// Eight words, each of another output; what is counted in them.
struct Counts {
#if defined(__AVX512VPOPCNTDQ__)
  __m512i total = _mm512_setzero_si512();
  void add(const std::uint64_t* row, std::uint64_t plane) {
    total = _mm512_add_epi64(
        total, _mm512_popcnt_epi64(_mm512_and_si512(_mm512_loadu_si512(row), _mm512_set1_epi64(static_cast<long long>(plane)))));
  }
  void settle() {}
  void read(std::uint64_t* to) const { _mm512_storeu_si512(to, total); }
#elif defined(__AVX512BW__)
  __m512i total = _mm512_setzero_si512(), bytes = _mm512_setzero_si512();
  void add(const std::uint64_t* row, std::uint64_t plane) {  // by halves of bytes
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i both = _mm512_and_si512(_mm512_loadu_si512(row), _mm512_set1_epi64(static_cast<long long>(plane)));
    const __m512i half = _mm512_set1_epi8(15);
    const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(both, half));
    const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(both, 4), half));
    bytes = _mm512_add_epi8(bytes, _mm512_add_epi8(low, high));
  }
  void settle() {
    total = _mm512_add_epi64(total, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
    bytes = _mm512_setzero_si512();
  }
  void read(std::uint64_t* to) const { _mm512_storeu_si512(to, total); }
#elif defined(__AVX2__)
  __m256i total[2] = {}, bytes[2] = {};
  void add(const std::uint64_t* row, std::uint64_t plane) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i half = _mm256_set1_epi8(15);
    for (int h = 0; h < 2; ++h) {
      const __m256i both = _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 4 * h)),
                                            _mm256_set1_epi64x(static_cast<long long>(plane)));
      const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(both, half));
      const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), half));
      bytes[h] = _mm256_add_epi8(bytes[h], _mm256_add_epi8(low, high));
    }
  }
  void settle() {
    for (int h = 0; h < 2; ++h) {
      total[h] = _mm256_add_epi64(total[h], _mm256_sad_epu8(bytes[h], _mm256_setzero_si256()));
      bytes[h] = _mm256_setzero_si256();
    }
  }
  void read(std::uint64_t* to) const {
    for (int h = 0; h < 2; ++h) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 4 * h), total[h]);
  }
#elif defined(__aarch64__)
  uint64x2_t total[4] = {};
  uint8x16_t bytes[4] = {};
  void add(const std::uint64_t* row, std::uint64_t plane) {
    for (int h = 0; h < 4; ++h)
      bytes[h] = vaddq_u8(bytes[h], vcntq_u8(vreinterpretq_u8_u64(vandq_u64(vld1q_u64(row + 2 * h), vdupq_n_u64(plane)))));
  }
  void settle() {
    for (int h = 0; h < 4; ++h) {
      total[h] = vpadalq_u32(total[h], vpaddlq_u16(vpaddlq_u8(bytes[h])));
      bytes[h] = vdupq_n_u8(0);
    }
  }
  void read(std::uint64_t* to) const {
    for (int h = 0; h < 4; ++h) vst1q_u64(to + 2 * h, total[h]);
  }
#else
  std::uint64_t total[8] = {};
  void add(const std::uint64_t* row, std::uint64_t plane) {
    for (int m = 0; m < 8; ++m) total[m] += static_cast<std::uint64_t>(__builtin_popcountll(row[m] & plane));
  }
  void settle() {}
  void read(std::uint64_t* to) const { std::memcpy(to, total, sizeof total); }
#endif
};

static void bit_sums(const std::uint64_t* rows, int outputs, int weight_bits, const std::uint64_t* planes, int code_bits,
                     int words, std::int32_t* sums) {
  constexpr int most = 31;  // words whose counts a byte holds
  for (int m = 0; m < outputs; m += 8, sums += 8) {
    std::uint64_t all_sums[8] = {};
    for (int i = 0; i < weight_bits; ++i, rows += 8ll * words)
      for (int j = 0; j < code_bits; ++j) {
        Counts counts;
        for (int start = 0; start < words; start += most) {
          const int end = words - start < most ? words : start + most;
          for (int w = start; w < end; ++w) counts.add(rows + 8ll * w, planes[j * words + w]);
          counts.settle();
        }
        std::uint64_t found[8];
        counts.read(found);
        for (int k = 0; k < 8; ++k) all_sums[k] += found[k] << (i + j);
      }
    for (int k = 0; k < 8; ++k) sums[k] = static_cast<std::int32_t>(all_sums[k]);
  }
}

// ---- epilogues ----

// The codes of any rounding; codes_of leaves out the signs, which maps of bits find by comparing.
static inline Ints any_codes_of(Reals y, const Quantizer& q) {
  return q.rounding == Rounding::sign ? Ints(y >= 0.0f) & 1 : codes_of(y, q);
}

static inline Reals factors_of(const BlockStep* step, int c, float none) {
  if (!step) return all(none);
  return step->row ? load(step->factors + c) : all(*step->factors);
}

// As codes_of, for codes that rounding to the nearest gives.
static inline Ints nearest_codes(Reals y, const Quantizer& q) {
  const Reals z = smaller(larger(y * q.reciprocal, all(q.low)), all(q.high));
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_cvt_roundps_epi32(z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) -
         static_cast<std::int32_t>(q.low);
#else
  return __builtin_convertvector(nearest(z) - q.low, Ints);
#endif
}

static inline void put_codes(Ints codes, std::uint8_t* to, int count) {
#if defined(__AVX512F__)
  const auto bytes = _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(codes));
  if (count >= 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
  else
    _mm_mask_storeu_epi8(to, static_cast<__mmask16>((1u << count) - 1), bytes);
#elif defined(__AVX2__)
  const auto v = reinterpret_cast<__m256i>(codes);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i bytes = _mm_packus_epi16(words, words);
  std::uint8_t all_bytes[16];
  if (count >= 8) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
  } else {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(all_bytes), bytes);
    for (int i = 0; i < count; ++i) to[i] = all_bytes[i];
  }
#else
  for (int i = 0; i < (count < lanes_wide ? count : lanes_wide); ++i) to[i] = static_cast<std::uint8_t>(codes[i]);
#endif
}

template <bool bias, bool other, bool relu, bool store_too, class Source>
static inline void finish_usual_pixels(const Usual& u, const PixelBlock& given, const Source& source) {
  const bool near = u.quantize && u.quantize->quantizer->rounding == Rounding::nearest;
  // Copies: what is written might alter what the steps refer to.
  const PixelBlock block = given;
  const Quantizer q = u.quantize ? *u.quantize->quantizer : Quantizer{};
  const std::ptrdiff_t added_row = other ? u.other->row : 0, stored_row = store_too ? u.store->row : 0;
  const std::ptrdiff_t codes_row = u.quantize ? u.quantize->row : 0;
  for (int c = 0; c < block.channels; c += lanes_wide) {
    const Reals m = factors_of(u.m, c, 1.0f), b = factors_of(u.b, c, -0.0f);
    const Reals slope = factors_of(u.slope, c, 1.0f), offset = factors_of(u.offset, c, -0.0f);
    for (int row = 0; row < block.rows; ++row) {
      const auto of_channels = source(c, row);
      const std::ptrdiff_t position = row * block.pitch;
      const float* added = other ? u.other->floats + position * added_row + c : nullptr;
      float* stored = store_too ? u.store->floats + position * stored_row + c : nullptr;
      const auto value = [=](int p) __attribute__((always_inline)) {
        Reals y = of_channels(p) * m;
        if (bias) y += b;
        y = y * slope + offset;
        if (other) y += load(added + p * added_row);
        if (relu) y = larger(Reals{}, y);
        if (store_too) std::memcpy(stored + p * stored_row, &y, sizeof y);
        return y;
      };
      if (!u.quantize) {
        for (int p = 0; p < block.pixels; ++p) value(p);
        continue;
      }
      std::uint8_t* to = u.quantize->bytes + position * codes_row + c;
      if (near && block.channels - c >= lanes_wide)
        for (int p = 0; p < block.pixels; ++p, to += codes_row) put_codes(nearest_codes(value(p), q), to, lanes_wide);
      else
        for (int p = 0; p < block.pixels; ++p, to += codes_row)
          put_codes(any_codes_of(value(p), q), to, block.channels - c);
    }
  }
}

template <class Source>
static inline void finish_any_pixels(const PixelBlock& block, const BlockStep* steps, int number, const Source& source) {
  for (int c = 0; c < block.channels; c += lanes_wide)
    for (int row = 0; row < block.rows; ++row) {
      const auto of_channels = source(c, row);
      for (int p = 0; p < block.pixels; ++p) {
        Reals y = of_channels(p);
        const std::ptrdiff_t position = row * block.pitch + p;
        for (const BlockStep* step = steps; step < steps + number; ++step) {
          const std::ptrdiff_t at = position * step->row + c;
          switch (step->kind) {
            case StepKind::multiply: y *= factors_of(step, c, 1.0f); break;
            case StepKind::add: y += factors_of(step, c, -0.0f); break;
            case StepKind::add_value: y += load(step->floats + at); break;
            case StepKind::relu: y = larger(Reals{}, y); break;
            case StepKind::store: std::memcpy(step->floats + at, &y, sizeof y); break;
            default: put_codes(any_codes_of(y, *step->quantizer), step->bytes + at, block.channels - c);
          }
        }
      }
    }
}

template <bool bias, class Source>
static inline void finish_with(const Usual& u, const PixelBlock& block, const Source& source) {
  switch ((u.other ? 4 : 0) + (u.relu ? 2 : 0) + (u.store ? 1 : 0)) {
    case 0: return finish_usual_pixels<bias, false, false, false>(u, block, source);
    case 1: return finish_usual_pixels<bias, false, false, true>(u, block, source);
    case 2: return finish_usual_pixels<bias, false, true, false>(u, block, source);
    case 3: return finish_usual_pixels<bias, false, true, true>(u, block, source);
    case 4: return finish_usual_pixels<bias, true, false, false>(u, block, source);
    case 5: return finish_usual_pixels<bias, true, false, true>(u, block, source);
    case 6: return finish_usual_pixels<bias, true, true, false>(u, block, source);
    default: return finish_usual_pixels<bias, true, true, true>(u, block, source);
  }
}

// source(c, row)(p) gives a vector of y
template <class Source>
static inline void finish_pixels(const PixelBlock& block, const BlockStep* steps, int number, const Source& source) {
  Usual u;
  if (!usual(steps, number, u)) return finish_any_pixels(block, steps, number, source);
  // Codes that start at 0 clip what a ReLU clips.
  if (u.relu && !u.store && u.quantize && u.quantize->quantizer->rounding != Rounding::sign &&
      u.quantize->quantizer->low >= 0 && u.quantize->quantizer->reciprocal > 0)
    u.relu = false;
  if (u.b)
    finish_with<true>(u, block, source);
  else
    finish_with<false>(u, block, source);
}

static void finish(const std::int32_t* sums, const PixelBlock& block, std::int32_t slope, const std::int32_t* offsets,
                   const BlockStep* steps, int number) {
  const std::ptrdiff_t stride = block.stride, row_size = block.row;
  if (slope == 1)  // the usual case: no product
    return finish_pixels(block, steps, number, [=](int c, int row) {
      return [from = sums + row * row_size + c, stride, offset = load(offsets + c)](int p) {
        return real(load(from + p * stride) + offset);
      };
    });
  finish_pixels(block, steps, number, [=](int c, int row) {
    return [from = sums + row * row_size + c, stride, slope, offset = load(offsets + c)](int p) {
      return real(load(from + p * stride) * slope + offset);
    };
  });
}

static void finish_pixel_floats(const float* y, const PixelBlock& block, const BlockStep* steps, int number) {
  const std::ptrdiff_t stride = block.stride, row_size = block.row;
  finish_pixels(block, steps, number, [=](int c, int row) {
    return [from = y + row * row_size + c, stride](int p) { return load(from + p * stride); };
  });
}

// ---- moving ----

static inline Ints larger_of(Ints a, Ints b) { return a > b ? a : b; }

static void pool_rows(const std::int32_t* const* rows, int count, int width, int channels, int kernel, int stride,
                      int padding, int out_width, const std::int32_t* flip, std::int32_t* column, std::int32_t* out) {
  const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(width) * channels;
  if (count == 3 && !flip) {  // the usual window
    for (std::ptrdiff_t i = 0; i < size; i += lanes_wide)
      store(column + i, larger_of(larger_of(load(rows[0] + i), load(rows[1] + i)), load(rows[2] + i)));
  } else {
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < channels; c += lanes_wide) {
        const std::ptrdiff_t i = static_cast<std::ptrdiff_t>(x) * channels + c;
        const Ints flipped = flip ? load(flip + c) : Ints{};
        Ints best = load(rows[0] + i) ^ flipped;
        for (int r = 1; r < count; ++r) best = larger_of(best, load(rows[r] + i) ^ flipped);
        store(column + i, best);
      }
  }
  for (int x = 0; x < out_width; ++x, out += channels) {
    int from = x * stride - padding, to = from + kernel;
    from = from < 0 ? 0 : from;
    to = to > width ? width : to;
    const std::int32_t* source = column + static_cast<std::ptrdiff_t>(from) * channels;
    if (to - from == 3 && !flip) {
      for (int c = 0; c < channels; c += lanes_wide)
        store(out + c, larger_of(larger_of(load(source + c), load(source + channels + c)), load(source + 2 * channels + c)));
      continue;
    }
    for (int c = 0; c < channels; c += lanes_wide) {
      Ints best = load(source + c);
      for (int i = 1; i < to - from; ++i) best = larger_of(best, load(source + static_cast<std::ptrdiff_t>(i) * channels + c));
      store(out + c, flip ? best ^ load(flip + c) : best);
    }
  }
}

#if defined(__AVX512F__)
// 16 × 16 numbers, rows r[i] to columns.
static inline void transpose_block(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}
#endif

static void transpose(const std::int32_t* sums, std::ptrdiff_t stride, int pixels, int channels, std::int32_t* out,
                      std::ptrdiff_t row) {
#if defined(__AVX512F__)
  for (int c = 0; c < channels; c += 16)
    for (int p = 0; p < pixels; p += 16) {
      __m512i r[16];
      const std::int32_t* from = sums + static_cast<std::ptrdiff_t>(p) * stride + c;
      std::int32_t* to = out + c * row + p;
      if (pixels - p >= 16 && channels - c >= 16) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * stride);
        transpose_block(r);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * row, r[i]);
        continue;
      }
      const int some = pixels - p < 16 ? pixels - p : 16, rows = channels - c < 16 ? channels - c : 16;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        r[i] = _mm512_loadu_si512(from + (i < some ? i : 0) * stride);
      transpose_block(r);
      const auto mask = static_cast<__mmask16>((1u << some) - 1);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        if (i < rows) _mm512_mask_storeu_epi32(to + i * row, mask, r[i]);
    }
#else
  for (int c = 0; c < channels; ++c)
    for (int p = 0; p < pixels; ++p) out[c * row + p] = sums[p * stride + c];
#endif
}

static void interleave(const std::uint8_t* rows, std::ptrdiff_t stride, int channels, int pixels, std::uint8_t* out) {
  int x = 0;
#if defined(__SSSE3__)
  if (channels == 3) {  // pictures: four bytes a pixel, of which the last is squeezed out
    const __m128i squeeze = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    for (; x + 18 <= pixels; x += 16, out += 48) {  // each store writes four bytes too many
      const auto row = [&](int c) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + c * stride + x)); };
      const __m128i low01 = _mm_unpacklo_epi8(row(0), row(1)), high01 = _mm_unpackhi_epi8(row(0), row(1));
      const __m128i low2 = _mm_unpacklo_epi8(row(2), row(2)), high2 = _mm_unpackhi_epi8(row(2), row(2));
      const auto put = [&](int i, __m128i v) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 12 * i), _mm_shuffle_epi8(v, squeeze));
      };
      put(0, _mm_unpacklo_epi16(low01, low2));
      put(1, _mm_unpackhi_epi16(low01, low2));
      put(2, _mm_unpacklo_epi16(high01, high2));
      put(3, _mm_unpackhi_epi16(high01, high2));
    }
  }
#endif
  for (; x < pixels; ++x, out += channels)
    for (int c = 0; c < channels; ++c) out[c] = rows[c * stride + x];
}

constexpr PixelCore pixel_core(const char* name, int lanes, void (*product_)(const PixelTile&, bool), int most_pixels,
                               PixelTraits traits, void (*pack)(const std::int8_t*, int, int, std::uint8_t*),
                               void (*depthwise)(const DepthwiseTile&)) {
  return {name,     lanes,    most_pixels, traits, product_,            pack,      depthwise,  to_planes,
          bit_sums, finish, finish_pixel_floats, pool_rows, interleave, transpose};
}

}  // namespace
}  // namespace lowbit
