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

static inline Reals all(float number) { return number - Reals{}; }  // a −0 stays one

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
  if (words > 1) {
    const __m128i to_right = _mm_cvtsi32_si128(right), to_left = _mm_cvtsi32_si128(64 - right);  // 64 gives 0
    const __mmask8 some = static_cast<__mmask8>((1 << words) - 1);
    for (int i = 0; i < rows; ++i, source += row, out += words) {
      const __m512i low = _mm512_srl_epi64(_mm512_maskz_loadu_epi64(some, source), to_right);
      const __m512i high = _mm512_sll_epi64(_mm512_maskz_loadu_epi64(some, source + 1), to_left);
      _mm512_mask_storeu_epi64(out, some, _mm512_or_si512(low, high));
    }
    return;
  }
#endif
  if (words == 1) {
    for (int i = 0; i < rows; ++i, source += row) shift_row(source, right, 1, out + i);
    return;
  }
  for (int i = 0; i < rows; ++i, source += row, out += words) shift_row(source, right, words, out);
}

static inline std::uint64_t word_at(const std::uint64_t* source, std::int64_t bit) {
  const std::uint64_t* word = source + (bit >> 6);
  const int right = static_cast<int>(bit & 63);
  return right ? (word[0] >> right) | (word[1] << (64 - right)) : word[0];
}

// Every other bit, moved together.
static inline std::uint64_t every_other(std::uint64_t bits) {
#if defined(__AVX512F__)  // and so BMI2, where it is fast
  return _pext_u64(bits, 0x5555555555555555ull);
#else
  bits &= 0x5555555555555555ull;
  bits = (bits | (bits >> 1)) & 0x3333333333333333ull;
  bits = (bits | (bits >> 2)) & 0x0f0f0f0f0f0f0f0full;
  bits = (bits | (bits >> 4)) & 0x00ff00ff00ff00ffull;
  bits = (bits | (bits >> 8)) & 0x0000ffff0000ffffull;
  return (bits | (bits >> 16)) & 0x00000000ffffffffull;
#endif
}

static inline void append(std::uint64_t bits, int count, std::uint64_t* out, std::int64_t at) {
  if (count < 64) bits &= (1ull << count) - 1;
  const int left = static_cast<int>(at & 63);
  out[at >> 6] |= bits << left;
  if (left + count > 64) out[(at >> 6) + 1] |= bits >> (64 - left);
}

static void pick(const std::uint64_t* source, std::int64_t position, std::int64_t step, int stride, int count, int rows,
                 std::uint64_t* out, std::int64_t at, std::int64_t out_step) {
  if (stride == 2 && count <= 32 && out_step <= 64) {  // a row at once, without branches
    const std::uint64_t some = (1ull << count) - 1;
    std::uint64_t held = out[at >> 6];  // of the word that a row starts in
    for (int row = 0; row < rows; ++row, position += step) {
      const std::uint64_t* word = source + (position >> 6);
      const int right = static_cast<int>(position & 63), left = static_cast<int>(at & 63);
      const std::uint64_t bits = every_other((word[0] >> right) | (word[1] << 1 << (63 - right))) & some;
      held |= bits << left;
      const std::uint64_t over = bits >> 1 >> (63 - left);
      out[at >> 6] = held;
      out[(at >> 6) + 1] = over;
      const std::int64_t next = at + out_step;
      held = next >> 6 != at >> 6 ? over : held;
      at = next;
    }
    return;
  }
  const int chunk = stride < 2 ? 64 : stride == 2 ? 32 : 1;
  for (int row = 0; row < rows; ++row, position += step, at += out_step)
    for (int done = 0; done < count; done += chunk) {
      const std::uint64_t bits = word_at(source, position + static_cast<std::int64_t>(done) * stride);
      append(stride == 2 ? every_other(bits) : bits, count - done < chunk ? count - done : chunk, out, at + done);
    }
}

static void put(const std::uint64_t* bits, std::uint64_t flip, const std::uint64_t* mask, std::uint64_t pad, int words,
                std::uint64_t* target) {
#if defined(__AVX512F__)
  const __mmask8 some = static_cast<__mmask8>((1 << words) - 1);
  const __m512i inside = _mm512_maskz_loadu_epi64(some, mask);
  const __m512i turned = _mm512_set1_epi64(static_cast<long long>(flip));
  const __m512i outside = _mm512_set1_epi64(static_cast<long long>(pad));
  const __m512i kept = _mm512_xor_si512(_mm512_maskz_loadu_epi64(some, bits), turned);
  // inside ? kept : outside
  _mm512_mask_storeu_epi64(target, some, _mm512_ternarylogic_epi64(inside, kept, outside, 0xca));
#else
  for (int w = 0; w < words; ++w) target[w] = ((bits[w] ^ flip) & mask[w]) | (pad & ~mask[w]);
#endif
}

static inline float winner(float a, float b) { return b > a || b != b ? b : a; }

static void largest(float* a, const float* b, int count) {
  for (int i = 0; i < count; ++i) a[i] = winner(a[i], b[i]);
}

static void largest_of(const float* source, int kernel, int stride, int count, float* out) {
  if (stride == 2)
    for (int i = 0; i < count; ++i) out[i] = source[2 * i];
  else
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

static inline bool is_one_bit(const Quantizer& q) {
  return q.rounding == Rounding::nearest && q.bits == 1 && q.low == 0;
}

static inline void write_planes(const Reals (&y)[vectors], const BlockStep& step, const Quantizer& q, int group) {
  if (q.rounding == Rounding::sign) {
    put_plane(step, group, 0, gather_bits([&](int v) { return not_negative(y[v]); }));
    return;
  }
  if (is_one_bit(q)) {  // one half goes to the even code, 0
    put_plane(step, group, 0, gather_bits([&](int v) { return above(y[v] * q.reciprocal, 0.5f); }));
    return;
  }
  Ints codes[vectors];
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) codes[v] = codes_of(y[v], q);
  for (int j = 0; j < q.bits; ++j) put_plane(step, group, j, gather_bits([&](int v) { return bit_of(codes[v], j); }));
}

// Codes that are bytes lie with the channels last: one row's are far apart.
static inline void write_bytes(const Reals (&y)[vectors], const BlockStep& step, const Quantizer& q, int group) {
  std::int32_t codes[64];
  for (int v = 0; v < vectors; ++v) {
    const Ints some = q.rounding == Rounding::sign ? Ints(y[v] >= 0.0f) & 1 : codes_of(y[v], q);
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
        write_planes(y, *step, *step->quantizer, group);
        break;
      case StepKind::quantize_bytes:
        write_bytes(y, *step, *step->quantizer, group);
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

// What a step's pointer is for the first row, and how far it is to the next; `none` for a step that there is not.
template <class T>
struct Walk {
  T* at;
  std::ptrdiff_t row;
};

static inline Walk<const float> factors_of(const BlockStep* step, const float* none) {
  return step ? Walk<const float>{step->factors, step->row} : Walk<const float>{none, 0};
}

enum class Writes { nothing, one_bit, planes, bytes };

template <bool other, bool store, Writes writes, class Source>
static void finish_usual(const Usual& u, int rows, int groups, const Source& source) {
  // Times 1 and plus −0 change no number at all, nor does the larger of it and −∞.
  const float one = 1.0f, nothing = -0.0f;
  const Reals least = all(u.relu ? 0.0f : -__builtin_inff());
  Walk<const float> m = factors_of(u.m, &one), b = factors_of(u.b, &nothing);
  Walk<const float> slope = factors_of(u.slope, &one), offset = factors_of(u.offset, &nothing);
  const float* added = other ? u.other->floats : nullptr;
  float* stored = store ? u.store->floats : nullptr;
  BlockStep quantize{};
  Quantizer how;
  if (writes != Writes::nothing) quantize = *u.quantize, how = *u.quantize->quantizer;
  const std::uint64_t pad = quantize.pad & 1 ? ~0ull : 0ull;
  const Reals reciprocal = all(how.reciprocal);
  for (int row = 0; row < rows; ++row) {
    const auto of_row = source(row);
    const Reals m_row = all(*m.at), b_row = all(*b.at), slope_row = all(*slope.at), offset_row = all(*offset.at);
    for (int group = 0; group < groups; ++group) {
      Reals y[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        const int at = 64 * group + v * lanes_wide;
        y[v] = (of_row(at) * m_row + b_row) * slope_row + offset_row;
        if (other) y[v] += load(added + at);
        y[v] = larger(least, y[v]);  // a NaN stays, as in torch
        if (store) std::memcpy(stored + at, &y[v], sizeof(Reals));
      }
      if (writes == Writes::one_bit) {  // one half goes to the even code, 0
        const std::uint64_t bits = gather_bits([&](int v) { return above(y[v] * reciprocal, 0.5f); });
        const std::uint64_t mask = quantize.mask[group];
        quantize.planes[group] = (bits & mask) | (pad & ~mask);
      }
      if (writes == Writes::planes) write_planes(y, quantize, how, group);
      if (writes == Writes::bytes) write_bytes(y, quantize, how, group);
    }
    m.at += m.row, b.at += b.row, slope.at += slope.row, offset.at += offset.row;
    if (other) added += u.other->row;
    if (store) stored += u.store->row;
    if (writes == Writes::bytes) quantize.bytes += quantize.row;
    if (writes == Writes::one_bit || writes == Writes::planes) quantize.planes += quantize.row;
  }
}

template <bool other, bool store, class Source>
static inline void finish_usual(const Usual& u, int rows, int groups, const Source& source) {
  if (!u.quantize)
    finish_usual<other, store, Writes::nothing>(u, rows, groups, source);
  else if (u.quantize->kind != StepKind::quantize)
    finish_usual<other, store, Writes::bytes>(u, rows, groups, source);
  else if (is_one_bit(*u.quantize->quantizer))
    finish_usual<other, store, Writes::one_bit>(u, rows, groups, source);
  else
    finish_usual<other, store, Writes::planes>(u, rows, groups, source);
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
  if (usual(steps, number, u)) {
    if (u.other && u.store)
      finish_usual<true, true>(u, rows, groups, source);
    else if (u.other)
      finish_usual<true, false>(u, rows, groups, source);
    else if (u.store)
      finish_usual<false, true>(u, rows, groups, source);
    else
      finish_usual<false, false>(u, rows, groups, source);
    return;
  }
  for (int row = 0; row < rows; ++row, next_row(steps, number)) {
    const auto of_row = source(row);
    for (int group = 0; group < groups; ++group) {
      Reals y[vectors];
      for (int v = 0; v < vectors; ++v) y[v] = of_row(64 * group + v * lanes_wide);
      finish_group(y, group, steps, number);
    }
  }
}

static inline Reals real(Ints n) { return __builtin_convertvector(n, Reals); }

// n·slope + offset, modulo 2^32: what stands in the margins between rows may be anything, and is masked later.
static inline Ints scaled(Ints n, std::int32_t slope, std::int32_t offset) {
  typedef std::uint32_t Words __attribute__((vector_size(4 * lanes_wide)));
  return Ints(Words(n) * static_cast<std::uint32_t>(slope) + static_cast<std::uint32_t>(offset));
}

static void finish_counts(const std::int32_t* counts, std::ptrdiff_t stride, std::int32_t slope,
                          const std::int32_t* offsets, int rows, int groups, const BlockStep* steps, int number) {
  if (slope == 2)  // the usual case: no product, no shift
    finish_rows(rows, groups, steps, number, [&](int row) {
      return [from = counts + row * stride, half = offsets[row] / 2](int at) {
        return real(scaled(load(from + at), 1, half));
      };
    });
  else if (slope == 1)
    finish_rows(rows, groups, steps, number, [&](int row) {
      return [from = counts + row * stride, offset = offsets[row]](int at) {
        return real(scaled(load(from + at), 1, offset) >> 1);
      };
    });
  else
    finish_rows(rows, groups, steps, number, [&](int row) {
      return [from = counts + row * stride, slope, offset = offsets[row]](int at) {
        return real(scaled(load(from + at), slope, offset) >> 1);
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
  { NAME, shifted, pick, put, largest, largest_of, finish_counts, finish_floats }
