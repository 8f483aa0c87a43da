// Included by one file per instruction set. Everything here is local to that file.
#pragma once

#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "lanes.h"

namespace lowbit {
namespace {

#if defined(__AVX512F__)
constexpr int lanes_wide = 16;
#elif defined(__AVX2__)
constexpr int lanes_wide = 8;
#else
constexpr int lanes_wide = 4;
#endif
typedef float Reals __attribute__((vector_size(4 * lanes_wide)));
typedef std::int32_t Ints __attribute__((vector_size(4 * lanes_wide)));
constexpr int vectors = 64 / lanes_wide;  // of one group of positions

static inline Reals load(const float* from) {
  Reals v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

static inline Ints load(const std::int32_t* from) {
  Ints v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

static inline Reals all(float number) { return Reals{} + number; }

// The larger and the smaller; the second operand where the first is not a number.
static inline Reals larger(Reals a, Reals b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

static inline Reals smaller(Reals a, Reals b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
  return _mm_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// Half to even for |z| < 2^22: the sum's last bit is worth 1.
static inline Reals nearest(Reals z) { return (z + 12582912.0f) - 12582912.0f; }

static inline Reals upward(Reals z) {
  const Reals near = nearest(z);
  return near < z ? near + 1.0f : near;
}

// Bit j of each lane, lane 0 lowest.
static inline std::uint64_t bit_of(Ints codes, int j) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(codes), _mm512_set1_epi32(1 << j));
#elif defined(__AVX2__)
  const __m256i top = _mm256_sll_epi32(reinterpret_cast<__m256i>(codes), _mm_cvtsi32_si128(31 - j));
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(top)));
#elif defined(__SSE2__)
  const __m128i top = _mm_sll_epi32(reinterpret_cast<__m128i>(codes), _mm_cvtsi32_si128(31 - j));
  return static_cast<std::uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(top)));
#else
  std::uint64_t bits = 0;
  for (int lane = 0; lane < lanes_wide; ++lane) bits |= static_cast<std::uint64_t>((codes[lane] >> j) & 1) << lane;
  return bits;
#endif
}

static inline std::uint64_t not_negative(Reals y) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GE_OQ);
#else
  return bit_of(Ints(y >= 0.0f), 0);
#endif
}

static inline void shift_row(const std::uint64_t* source, int right, int words, std::uint64_t* out) {
  if (right == 0) {
    for (int w = 0; w < words; ++w) out[w] = source[w];
    return;
  }
  for (int w = 0; w < words; ++w) out[w] = (source[w] >> right) | (source[w + 1] << (64 - right));
}

static void shifted(const std::uint64_t* source, std::ptrdiff_t row, int rows, std::int64_t position, int words,
                    std::uint64_t* out) {
  source += position >> 6;
  const int right = static_cast<int>(position & 63);
#if defined(__AVX512F__)
  if (words == 8) {
    const __m128i to_right = _mm_cvtsi32_si128(right), to_left = _mm_cvtsi32_si128(64 - right);  // 64 gives 0
    for (int i = 0; i < rows; ++i, source += row, out += 8)
      _mm512_storeu_si512(out, _mm512_or_si512(_mm512_srl_epi64(_mm512_loadu_si512(source), to_right),
                                               _mm512_sll_epi64(_mm512_loadu_si512(source + 1), to_left)));
    return;
  }
#endif
  if (words == 1) {
    for (int i = 0; i < rows; ++i, source += row) shift_row(source, right, 1, out + i);
    return;
  }
  for (int i = 0; i < rows; ++i, source += row, out += words) shift_row(source, right, words, out);
}

static inline float winner(float a, float b) { return b > a || b != b ? b : a; }

static void largest(float* a, const float* b, int count) {
  for (int i = 0; i < count; ++i) a[i] = winner(a[i], b[i]);
}

static void largest_of(const float* source, int kernel, int stride, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = source[static_cast<std::ptrdiff_t>(stride) * i];
  for (int k = 1; k < kernel; ++k) {
    if (stride == 2)
      for (int i = 0; i < count; ++i) out[i] = winner(out[i], source[2 * i + k]);
    else
      for (int i = 0; i < count; ++i) out[i] = winner(out[i], source[static_cast<std::ptrdiff_t>(stride) * i + k]);
  }
}

static inline Ints codes_of(Reals y, const Quantizer& q) {
  Reals z = smaller(larger(y * q.reciprocal, all(q.low)), all(q.high));  // what is no number becomes the lowest
  z = q.rounding == Rounding::nearest ? nearest(z) : upward(z * q.keep);
  return __builtin_convertvector(z - q.low, Ints);
}

// Bit v·w + i for lane i of vector v.
template <class F>
static inline std::uint64_t gather_bits(F&& of_vector) {
  std::uint64_t bits = 0;
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) bits |= of_vector(v) << (v * lanes_wide);
  return bits;
}

static inline std::uint64_t above(Reals y, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(y, _mm512_set1_ps(limit), _CMP_GT_OQ);
#else
  return bit_of(Ints(y > limit), 0);
#endif
}

static inline void put_plane(const BlockStep& step, int group, int j, std::uint64_t bits) {
  const std::uint64_t mask = step.mask[group], pad = (step.pad >> j) & 1 ? ~0ull : 0ull;
  step.planes[j * step.plane + group] = (bits & mask) | (pad & ~mask);
}

static inline void write_planes(const Reals (&y)[vectors], const BlockStep& step, int group) {
  const Quantizer& q = *step.quantizer;
  if (q.rounding == Rounding::sign) {
    put_plane(step, group, 0, gather_bits([&](int v) { return not_negative(y[v]); }));
    return;
  }
  if (q.rounding == Rounding::nearest && q.bits == 1 && q.low == 0) {  // one half goes to the even code, 0
    put_plane(step, group, 0, gather_bits([&](int v) { return above(y[v] * q.reciprocal, 0.5f); }));
    return;
  }
  Ints codes[vectors];
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) codes[v] = codes_of(y[v], q);
  for (int j = 0; j < q.bits; ++j) put_plane(step, group, j, gather_bits([&](int v) { return bit_of(codes[v], j); }));
}

// Codes that are bytes lie with the channels last: one row's are far apart.
static inline void write_bytes(const Reals (&y)[vectors], const BlockStep& step, int group) {
  std::int32_t codes[64];
  for (int v = 0; v < vectors; ++v) {
    const bool sign = step.quantizer->rounding == Rounding::sign;
    const Ints some = sign ? Ints(y[v] >= 0.0f) & 1 : codes_of(y[v], *step.quantizer);
    std::memcpy(codes + v * lanes_wide, &some, sizeof some);
  }
  std::uint8_t* out = step.bytes + 64 * group * step.plane;
  const std::uint64_t mask = step.mask[group];
  if (mask == ~0ull) {
    for (int i = 0; i < 64; ++i, out += step.plane) *out = static_cast<std::uint8_t>(codes[i]);
    return;
  }
  for (std::uint64_t rest = mask; rest; rest &= rest - 1) {
    const int i = __builtin_ctzll(rest);
    out[i * step.plane] = static_cast<std::uint8_t>(codes[i]);
  }
}

static inline void finish_group(Reals (&y)[vectors], int group, const BlockStep* steps, int number) {
  for (const BlockStep* step = steps; step < steps + number; ++step) {
    switch (step->kind) {
      case StepKind::multiply:
        for (int v = 0; v < vectors; ++v) y[v] *= *step->factors;
        break;
      case StepKind::add:
        for (int v = 0; v < vectors; ++v) y[v] += *step->factors;
        break;
      case StepKind::add_value:
        for (int v = 0; v < vectors; ++v) y[v] += load(step->floats + 64 * group + v * lanes_wide);
        break;
      case StepKind::relu:
        for (int v = 0; v < vectors; ++v) y[v] = larger(Reals{}, y[v]);  // a NaN stays, as in torch
        break;
      case StepKind::store:
        std::memcpy(step->floats + 64 * group, y, sizeof y);
        break;
      case StepKind::quantize:
        write_planes(y, *step, group);
        break;
      case StepKind::quantize_bytes:
        write_bytes(y, *step, group);
        break;
    }
  }
}

// The usual epilogue as straight code: ((n·m + b)·α + β) [+ other], [ReLU], [store], [quantize].
struct Usual {
  const BlockStep *m = nullptr, *b = nullptr, *slope = nullptr, *offset = nullptr;
  const BlockStep *other = nullptr, *store = nullptr, *quantize = nullptr;
  bool relu = false;
};

static bool usual(const BlockStep* steps, int number, Usual& u) {
  int stage = 0;  // how far along the sequence above
  for (const BlockStep* step = steps; step < steps + number; ++step) {
    int place = 8;
    switch (step->kind) {
      case StepKind::multiply:
        place = stage == 0 ? 1 : 3;
        (place == 1 ? u.m : u.slope) = step;
        break;
      case StepKind::add:
        place = stage <= 1 ? 2 : 4;
        (place == 2 ? u.b : u.offset) = step;
        break;
      case StepKind::add_value:
        place = 5, u.other = step;
        break;
      case StepKind::relu:
        place = 6, u.relu = true;
        break;
      case StepKind::store:
        place = 7, u.store = step;
        break;
      default:
        u.quantize = step;
    }
    if (place <= stage) return false;
    stage = place;
  }
  return true;
}

template <bool other, bool relu, bool store, class Source>
static inline void finish_usual(const Usual& u, int groups, const Source& source) {
  const auto factor = [](const BlockStep* step, float none) { return all(step ? *step->factors : none); };
  // Times 1 and plus −0 change no number at all.
  const Reals m = factor(u.m, 1.0f), b = factor(u.b, -0.0f);
  const Reals slope = factor(u.slope, 1.0f), offset = factor(u.offset, -0.0f);
  for (int group = 0; group < groups; ++group) {
    Reals y[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      const int at = 64 * group + v * lanes_wide;
      y[v] = (source(at) * m + b) * slope + offset;
      if (other) y[v] += load(u.other->floats + at);
      if (relu) y[v] = larger(Reals{}, y[v]);
      if (store) std::memcpy(u.store->floats + at, &y[v], sizeof(Reals));
    }
    if (!u.quantize) continue;
    if (u.quantize->kind == StepKind::quantize)
      write_planes(y, *u.quantize, group);
    else
      write_bytes(y, *u.quantize, group);
  }
}

static inline void next_row(BlockStep* steps, int number) {
  for (BlockStep* step = steps; step < steps + number; ++step) {
    switch (step->kind) {
      case StepKind::multiply:
      case StepKind::add:
        step->factors += step->row;
        break;
      case StepKind::add_value:
      case StepKind::store:
        step->floats += step->row;
        break;
      case StepKind::relu:
        break;
      case StepKind::quantize:
        step->planes += step->row;
        break;
      case StepKind::quantize_bytes:
        step->bytes += step->row;
        break;
    }
  }
}

// source(row)(position) gives a vector of y
template <class Source>
static void finish_rows(int rows, int groups, const BlockStep* given, int number, Source&& source) {
  BlockStep steps[most_steps];
  std::memcpy(steps, given, sizeof(BlockStep) * static_cast<std::size_t>(number));
  Usual u;
  const bool straight = usual(steps, number, u);
  for (int row = 0; row < rows; ++row, next_row(steps, number)) {
    const auto of_row = source(row);
    if (!straight) {
      for (int group = 0; group < groups; ++group) {
        Reals y[vectors];
        for (int v = 0; v < vectors; ++v) y[v] = of_row(64 * group + v * lanes_wide);
        finish_group(y, group, steps, number);
      }
      continue;
    }
    switch ((u.other ? 4 : 0) + (u.relu ? 2 : 0) + (u.store ? 1 : 0)) {
      case 0: finish_usual<false, false, false>(u, groups, of_row); break;
      case 1: finish_usual<false, false, true>(u, groups, of_row); break;
      case 2: finish_usual<false, true, false>(u, groups, of_row); break;
      case 3: finish_usual<false, true, true>(u, groups, of_row); break;
      case 4: finish_usual<true, false, false>(u, groups, of_row); break;
      case 5: finish_usual<true, false, true>(u, groups, of_row); break;
      case 6: finish_usual<true, true, false>(u, groups, of_row); break;
      default: finish_usual<true, true, true>(u, groups, of_row);
    }
  }
}

static inline Reals real(Ints n) { return __builtin_convertvector(n, Reals); }

static void finish_counts(const std::int32_t* counts, std::ptrdiff_t stride, std::int32_t slope,
                          const std::int32_t* offsets, const std::int32_t* shared, int rows, int groups,
                          const BlockStep* steps, int number) {
  if (slope == 2 && !shared)  // the usual case: no product, no shift
    finish_rows(rows, groups, steps, number, [&](int row) {
      return [from = counts + row * stride, half = offsets[row] / 2](int at) { return real(load(from + at) + half); };
    });
  else if (!shared)
    finish_rows(rows, groups, steps, number, [&](int row) {
      return [from = counts + row * stride, slope, offset = offsets[row]](int at) {
        return real((load(from + at) * slope + offset) >> 1);
      };
    });
  else
    finish_rows(rows, groups, steps, number, [&](int row) {
      return [from = counts + row * stride, shared, slope, offset = offsets[row]](int at) {
        return real(((load(from + at) * slope + offset) >> 1) + load(shared + at));
      };
    });
}

static void finish_floats(const float* y, std::ptrdiff_t stride, int rows, int groups, const BlockStep* steps,
                          int number) {
  finish_rows(rows, groups, steps, number,
              [&](int row) { return [from = y + row * stride](int at) { return load(from + at); }; });
}

}  // namespace
}  // namespace lowbit

#define LOWBIT_LANE_OPS(NAME) \
  { NAME, shifted, largest, largest_of, finish_counts, finish_floats }
