// GCC 12's headers initialise a variable with itself to say that its value does not matter.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "bitcore_impl.h"

namespace lowbit {
namespace {

// vpternlog's table of a function of three bits.
template <class Function>
constexpr int truth_table(Function f) {
  int table = 0;
  for (int i = 0; i < 8; ++i) table |= f(i >> 2 & 1, i >> 1 & 1, i & 1) << i;
  return table;
}
constexpr int kParity = truth_table([](int a, int b, int c) { return a ^ b ^ c; });
constexpr int kMajority = truth_table([](int a, int b, int c) { return (a & b) | (a & c) | (b & c); });
// The carry of a + b + c from a, b and the sum bit: it needs no copy of c, which the sum has overwritten.
constexpr int kCarryBySum = truth_table([](int a, int b, int sum) { return a == b ? a : 1 - sum; });

struct Avx512 {
  using Reg = __m512i;
  static constexpr int kWords = 8;
  static constexpr int kScale = 8;
  static constexpr int kPlaneStride = kWords;
  static constexpr int kLog = 6;
  static constexpr int kChunk = 1 << kLog;
  static constexpr int kUpper = 0;
  static constexpr int kWideBlock = 8;
  static constexpr int kFewRowsBlock = 4;
  static constexpr int kCounterBytes = 384 << 10;

  static LOWBIT_INLINE Reg load(const void* p) { return _mm512_loadu_si512(p); }
  static LOWBIT_INLINE void store(void* p, Reg r) { _mm512_storeu_si512(p, r); }
  static LOWBIT_INLINE Reg load_aligned(const void* p) { return _mm512_load_si512(p); }
  static LOWBIT_INLINE void store_aligned(void* p, Reg r) { _mm512_store_si512(p, r); }
  static LOWBIT_INLINE Reg broadcast(const uint64_t* p) { return _mm512_set1_epi64(int64_t(*p)); }
  static LOWBIT_INLINE Reg zero() { return _mm512_setzero_si512(); }
  static LOWBIT_INLINE Reg not_(Reg a) { return _mm512_ternarylogic_epi64(a, a, a, 0x0f); }
  static LOWBIT_INLINE Reg and_(Reg a, Reg b) { return _mm512_and_si512(a, b); }
  static LOWBIT_INLINE Reg or_(Reg a, Reg b) { return _mm512_or_si512(a, b); }
  static LOWBIT_INLINE Reg xor_(Reg a, Reg b) { return _mm512_xor_si512(a, b); }
  static LOWBIT_INLINE Reg majority(Reg a, Reg b, Reg c) { return _mm512_ternarylogic_epi64(a, b, c, kMajority); }
  static LOWBIT_INLINE Reg add(Reg& sum, Reg a, Reg b) {
    sum = _mm512_ternarylogic_epi64(sum, a, b, kParity);
    return _mm512_ternarylogic_epi64(a, b, sum, kCarryBySum);
  }

  template <int Choice>
  static LOWBIT_INLINE void tabulate_entry(uint8_t* table, Reg p, Reg x, Reg y) {
    constexpr int v = Choice & 1, w = Choice >> 1 & 1, parity = Choice >> 2;
    constexpr int kCarry = truth_table(
        [](int a, int b, int c) { return ((a ^ parity) & (b ^ v)) | ((a ^ parity) & (c ^ w)) | ((b ^ v) & (c ^ w)); });
    store_aligned(table + Choice * 8 * kWords, _mm512_ternarylogic_epi64(p, x, y, kCarry));
  }
  static LOWBIT_INLINE void tabulate(uint8_t* table, Reg& p, Reg x, Reg y) {
    tabulate_entry<0>(table, p, x, y);
    tabulate_entry<1>(table, p, x, y);
    tabulate_entry<2>(table, p, x, y);
    tabulate_entry<3>(table, p, x, y);
    tabulate_entry<4>(table, p, x, y);
    tabulate_entry<5>(table, p, x, y);
    tabulate_entry<6>(table, p, x, y);
    tabulate_entry<7>(table, p, x, y);
    p = _mm512_ternarylogic_epi64(p, x, y, kParity);
  }

  // Lane i of sixteen collects bits i and i + 16 of a broadcast half word, from the top plane down. The lane is rotated
  // by one before each plane, so bit p of the counts ends p places above the bit's own place, and one rotation at the
  // end brings every lane's two counts of 16 bits in place.
  typedef int32_t Half __attribute__((may_alias));
  static LOWBIT_INLINE void collect(const uint64_t* counter, size_t stride, int planes, Reg* low, Reg* high) {
    const Reg place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const Reg bits = _mm512_sllv_epi32(_mm512_set1_epi32(0x00010001), place);
    constexpr int kInsert = truth_table([](int a, int b, int c) { return a | (b & c); });
    Reg counts[2] = {zero(), zero()};
    for (int p = planes - 1; p >= 0; --p) {
      const Half* plane = reinterpret_cast<const Half*>(counter + size_t(p) * stride);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        counts[half] =
            _mm512_ternarylogic_epi32(_mm512_rol_epi32(counts[half], 1), bits, _mm512_set1_epi32(plane[half]), kInsert);
      }
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Reg both = _mm512_rorv_epi32(counts[half], place);
      low[half] = _mm512_and_si512(both, _mm512_set1_epi32(0xffff));
      high[half] = _mm512_srli_epi32(both, 16);
    }
  }
  static LOWBIT_INLINE void expand(const uint64_t* counter, size_t stride, int depth, int32_t* out) {
    Reg low[2], high[2];
    collect(counter, stride, smaller(depth, 16), low, high);
    if (__builtin_expect(depth > 16, 0)) {
      Reg low_above[2], high_above[2];
      collect(counter + 16 * stride, stride, depth - 16, low_above, high_above);
      for (int half = 0; half < 2; ++half) {
        low[half] = or_(low[half], _mm512_slli_epi32(low_above[half], 16));
        high[half] = or_(high[half], _mm512_slli_epi32(high_above[half], 16));
      }
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      store(out + 32 * half, low[half]);
      store(out + 32 * half + 16, high[half]);
    }
  }
};

// ---- the counts of eight words, of 64 positions each, from vectors of planes ----

// Swaps bit k of a plane's number with bit k of a position's, for two planes whose numbers differ in bit k alone. Says
// which of the planes are not zero.
template <int K, bool First, bool Second>
LOWBIT_INLINE void swap_bits(__m512i& a, __m512i& b) {
  constexpr int kShift = 1 << K;
  constexpr long long kLow = K == 0 ? 0x5555555555555555 : K == 1 ? 0x3333333333333333 : 0x0f0f0f0f0f0f0f0f;
  constexpr int kSelect = truth_table([](int mask, int x, int y) { return mask ? x : y; });
  const __m512i low = _mm512_set1_epi64(kLow);
  if constexpr (First && Second) {
    const __m512i up = _mm512_slli_epi64(b, kShift), down = _mm512_srli_epi64(a, kShift);
    a = _mm512_ternarylogic_epi64(low, a, up, kSelect);
    b = _mm512_ternarylogic_epi64(low, down, b, kSelect);
  } else if constexpr (First) {
    b = _mm512_and_si512(_mm512_srli_epi64(a, kShift), low);
    a = _mm512_and_si512(a, low);
  }
}

// Eight planes, of which the first Real may be other than zero, to bytes: byte v of lane i of
// bytes[q] is the count at position 16·v + i of word q.
template <int Real>
LOWBIT_INLINE void bytes_of_planes(const uint64_t* counter, int planes, __m512i* bytes) {
  __m512i b[8];
#pragma GCC unroll 8
  for (int p = 0; p < 8; ++p)
    b[p] = p < Real && p < planes ? _mm512_loadu_si512(counter + size_t(p) * 8) : _mm512_setzero_si512();
  constexpr bool kTwo = Real > 1, kFour = Real > 2, kEight = Real > 4;
  swap_bits<2, true, kEight>(b[0], b[4]);
  swap_bits<2, kTwo, kEight>(b[1], b[5]);
  swap_bits<2, kFour, kEight>(b[2], b[6]);
  swap_bits<2, kFour, kEight>(b[3], b[7]);
  swap_bits<1, true, kFour>(b[0], b[2]);
  swap_bits<1, kTwo, kFour>(b[1], b[3]);
  swap_bits<1, true, kFour>(b[4], b[6]);
  swap_bits<1, kTwo, kFour>(b[5], b[7]);
#pragma GCC unroll 4
  for (int r = 0; r < 8; r += 2) swap_bits<0, true, kTwo>(b[r], b[r + 1]);
  // Byte t of word q of b[r] is now position 8·t + r. The even t of each word go to its lower half.
  const __m512i halves = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) b[r] = _mm512_shuffle_epi8(b[r], halves);
  // Words 2·i and 2·i + 1 of four of them together, and at last the halves in the order of r.
  __m512i four[2][4];
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const __m512i *a = b + 4 * h, low01 = _mm512_shuffle_i32x4(a[0], a[1], 0x44),
                  low23 = _mm512_shuffle_i32x4(a[2], a[3], 0x44), high01 = _mm512_shuffle_i32x4(a[0], a[1], 0xee),
                  high23 = _mm512_shuffle_i32x4(a[2], a[3], 0xee);
    four[h][0] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    four[h][1] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    four[h][2] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    four[h][3] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
  const __m512i even = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(2));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    bytes[2 * i] = _mm512_permutex2var_epi32(four[0][i], even, four[1][i]);
    bytes[2 * i + 1] = _mm512_permutex2var_epi32(four[0][i], odd, four[1][i]);
  }
}

// Plane p of eight words at counter + 8·p; the counts of word q to out + q · stride, for q < words.
template <int Real>
LOWBIT_INLINE void expand_high(const uint64_t* counter, int depth, const __m512i* low, int32_t* out, size_t stride,
                               int words) {
  constexpr int kSelect = truth_table([](int mask, int x, int y) { return mask ? x : y; });
  const __m512i bytes = _mm512_set1_epi32(0x00ff00ff), half = _mm512_set1_epi32(0xffff);
  __m512i high[8];
  bytes_of_planes<Real>(counter + 64, depth - 8, high);
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) {
    if (q >= words) break;
    const __m512i even = _mm512_ternarylogic_epi32(bytes, low[q], _mm512_slli_epi32(high[q], 8), kSelect);
    const __m512i odd = _mm512_ternarylogic_epi32(bytes, _mm512_srli_epi32(low[q], 8), high[q], kSelect);
    int32_t* const to = out + size_t(q) * stride;
    _mm512_storeu_si512(to, _mm512_and_si512(even, half));
    _mm512_storeu_si512(to + 16, _mm512_and_si512(odd, half));
    _mm512_storeu_si512(to + 32, _mm512_srli_epi32(even, 16));
    _mm512_storeu_si512(to + 48, _mm512_srli_epi32(odd, 16));
  }
}

void expand_eight(const uint64_t* counter, int depth, int32_t* out, size_t stride, int words) {
  if (depth > 16) {
    for (int q = 0; q < words; ++q) Avx512::expand(counter + q, 8, depth, out + size_t(q) * stride);
    return;
  }
  __m512i low[8];
  bytes_of_planes<8>(counter, depth, low);
  if (depth > 12) return expand_high<8>(counter, depth, low, out, stride, words);
  if (depth > 10) return expand_high<4>(counter, depth, low, out, stride, words);
  if (depth > 8) return expand_high<2>(counter, depth, low, out, stride, words);
  const __m512i byte = _mm512_set1_epi32(255);
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) {
    if (q >= words) break;
    int32_t* const to = out + size_t(q) * stride;
    _mm512_storeu_si512(to, _mm512_and_si512(low[q], byte));
    _mm512_storeu_si512(to + 16, _mm512_and_si512(_mm512_srli_epi32(low[q], 8), byte));
    _mm512_storeu_si512(to + 32, _mm512_and_si512(_mm512_srli_epi32(low[q], 16), byte));
    _mm512_storeu_si512(to + 48, _mm512_srli_epi32(low[q], 24));
  }
}

void expand_wide(const uint64_t* counters, int M, int depth, int32_t* out, size_t stride) {
  for (int m = 0; m < M; ++m, counters += size_t(depth) * 8, out += stride) expand_eight(counters, depth, out, 64, 8);
}

// ---- the narrow form: a vector is eight rows of 64 positions ----

struct Avx512Narrow : Avx512 {
  static constexpr int kUpper = 2;
};

struct NarrowForm {
  using V = Avx512Narrow;
  using Reg = V::Reg;
  static constexpr int kMostEights = 32;
  static_assert(8 * kMostEights <= V::kChunk << V::kUpper, "a block must not carry twice");
  static LOWBIT_INLINE Pairs pairs(int K, int) { return Pairs(K, kMostEights, V::kChunk / 8); }
  static constexpr int kTableBytes = 64;  // eight words: one register, and the lookup is a permutation

  // Choices of eight rows, 64 bytes for sixteen pairs: byte j of word r holds row r's choices 2j and 2j + 1. Loading
  // from j bytes further on brings byte j to the bottom of every word, where the permutation reads its three bits,
  // without a shift. (One choice a byte would need no shifts at all, but such loads cross a cache line and cost as
  // much.)
  static LOWBIT_INLINE size_t row_bytes(int eights, bool last) { return size_t(ceil_div(eights, 2) + last) * 64; }

  struct Lookup {
    const uint8_t* table;
    const uint8_t* choice;
    LOWBIT_INLINE Reg operator()(int i) const {
      Reg choices = V::load(choice + i / 16 * 64 + i / 2 % 8);
      if (i % 2) choices = _mm512_srli_epi64(choices, 3);
      return _mm512_permutexvar_epi64(choices, V::load_aligned(table + i * kTableBytes));
    }
    LOWBIT_INLINE Reg parity() const { return _mm512_permutexvar_epi64(V::load(choice), V::load_aligned(table)); }
    // The rest of a block may leave half of its last 64 bytes empty.
    LOWBIT_INLINE void advance(int count) {
      table += count * kTableBytes;
      choice += ceil_div(count, 16) * 64;
    }
  };

  class Chain {
   public:
    LOWBIT_INLINE Chain(const uint64_t* planes, std::ptrdiff_t stride, int K)
        : plane_(planes + (K & 1) * stride), stride_(stride), left_(K - (K & 1)) {
      sum_ = V::xor_(K & 1 ? V::broadcast(planes) : V::zero(), complement<4>());
    }
    LOWBIT_INLINE void tabulate(uint8_t* tables, int count) {
      const int real = smaller(count, left_ / 2);
      for (int i = 0; i < real; ++i, tables += kTableBytes, plane_ += 2 * stride_)
        tabulate_pair(tables, V::broadcast(plane_), V::broadcast(plane_ + stride_));
      left_ -= 2 * real;
      for (int i = real; i < count; ++i, tables += kTableBytes) tabulate_pair(tables, V::zero(), V::zero());
    }
    LOWBIT_INLINE void tabulate_parity(uint8_t* table) const { V::store_aligned(table, sum_); }

   private:
    // All ones in the words whose number has this bit.
    template <int Bit>
    static LOWBIT_INLINE Reg complement() {
      constexpr auto word = [](int i) { return i & Bit ? -1LL : 0LL; };
      return _mm512_setr_epi64(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7));
    }
    LOWBIT_INLINE void tabulate_pair(uint8_t* table, Reg x, Reg y) {
      V::store_aligned(table, V::majority(sum_, V::xor_(x, complement<1>()), V::xor_(y, complement<2>())));
      sum_ = _mm512_ternarylogic_epi64(sum_, x, y, kParity);
    }
    const uint64_t* plane_;
    std::ptrdiff_t stride_;
    int left_;
    Reg sum_;  // complemented where the choice has π
  };

  static size_t packed_size(int M, int K) {
    const Pairs pairs = NarrowForm::pairs(K, M);
    size_t bytes = 0;
    for (int b = 0; b < pairs.blocks; ++b) bytes += row_bytes(pairs.eights_of(b), pairs.is_last(b));
    return size_t(ceil_div(M, 8)) * bytes + 64;  // loads of the last choices reach beyond them
  }

  static void pack(const uint8_t* bits, int M, int K, uint8_t* packed) {
    const Pairs pairs = NarrowForm::pairs(K, M);
    memset(packed, 0, packed_size(M, K));
    for (int m = 0; m < M; ++m) {
      RowChoices choices(bits + size_t(m) * K, K);
      uint8_t* block = packed;
      for (int b = 0; b < pairs.blocks; ++b) {
        const size_t bytes = row_bytes(pairs.eights_of(b), pairs.is_last(b));
        uint8_t* const row = block + size_t(m / 8) * bytes + m % 8 * 8;
        for (int i = 0; i < 8 * pairs.eights_of(b); ++i) {
          row[i / 16 * 64 + i / 2 % 8] |= uint8_t(choices.next() << (3 * (i % 2)));
        }
        if (pairs.is_last(b)) row[bytes - 64] = uint8_t(choices.parity());
        block += size_t(ceil_div(M, 8)) * bytes;
      }
    }
  }

  static size_t scratch_size(int M, int K, int depth, int digits) {
    return scratch_bytes<V, NarrowForm>(ceil_div(M, 8), K, depth, digits);
  }

  static void add(const uint64_t* planes, std::ptrdiff_t stride, int K, const uint8_t* const* packed, int digits, int M,
                  int shift, int depth, uint64_t* counters, void* scratch) {
    add_product<V, NarrowForm>(planes, stride, K, packed, digits, ceil_div(M, 8), shift, depth, counters, scratch);
  }

  template <int Bits>
  static LOWBIT_INLINE void compare_bits(const uint64_t* counters, int M, int depth, const int32_t* thresholds,
                                         uint64_t* out) {
    constexpr int kLevels = (1 << Bits) - 1;
    for (int m = 0; m < M; m += 8, counters += size_t(depth) * 8) {
      const int rows = smaller(8, M - m);
      Reg ge[kLevels + 1], t[kLevels + 1];
#pragma GCC unroll 16
      for (int j = 1; j <= kLevels; ++j) {
        // One threshold of each of eight rows; those of missing rows are 0.
        alignas(64) int64_t row[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int r = 0; r < rows; ++r) row[r] = thresholds[size_t(m + r) * kLevels + j - 1];
        const Reg wanted = V::load_aligned(row);
        const __mmask8 above = _mm512_cmpge_epi64_mask(wanted, _mm512_set1_epi64(int64_t(1) << depth));
        ge[j] = _mm512_maskz_set1_epi64(__mmask8(~above), -1);
        t[j] = _mm512_mask_set1_epi64(_mm512_max_epi64(wanted, V::zero()), above, -1);
      }
      Reg bit = _mm512_set1_epi64(1);
      for (int p = 0; p < depth; ++p, bit = _mm512_add_epi64(bit, bit)) {
        const Reg plane = V::load(counters + p * 8);
#pragma GCC unroll 16
        for (int j = 1; j <= kLevels; ++j) {
          const __mmask8 zeros = _mm512_testn_epi64_mask(t[j], bit);
          ge[j] = _mm512_mask_or_epi64(V::and_(plane, ge[j]), zeros, plane, ge[j]);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < Bits; ++j, out += 8) {
        Reg parity = ge[1 << j];
#pragma GCC unroll 16
        for (int i = 2 << j; i <= kLevels; i += 1 << j) parity = V::xor_(parity, ge[i]);
        V::store(out, parity);
      }
    }
  }

  static void compare(const uint64_t* counters, int M, int depth, const int32_t* thresholds, int bits, uint64_t* out) {
    switch (bits) {
      case 1:
        return compare_bits<1>(counters, M, depth, thresholds, out);
      case 2:
        return compare_bits<2>(counters, M, depth, thresholds, out);
      case 3:
        return compare_bits<3>(counters, M, depth, thresholds, out);
      default:
        return compare_bits<4>(counters, M, depth, thresholds, out);
    }
  }

  static void expand(const uint64_t* counters, int M, int depth, int32_t* out, size_t stride) {
    for (int m = 0; m < M; m += 8, counters += size_t(depth) * 8)
      expand_eight(counters, depth, out + size_t(m) * stride, stride, smaller(8, M - m));
  }
};

size_t scratch_size(int M, int K, int depth, int digits) {
  const size_t wide = WideForm<Avx512>::scratch_size(M, K, depth, digits);
  const size_t narrow = NarrowForm::scratch_size(M, K, depth, digits);
  return wide > narrow ? wide : narrow;
}

constexpr BitCore core() {
  BitCore c = wide_core<Avx512>("avx512", 300);
  c.wide_expand = expand_wide;
  c.has_narrow = true;
  c.narrow_packed_size = NarrowForm::packed_size;
  c.narrow_pack = NarrowForm::pack;
  c.scratch_size = scratch_size;
  c.narrow = NarrowForm::add;
  c.narrow_compare = NarrowForm::compare;
  c.narrow_expand = NarrowForm::expand;
  return c;
}

}  // namespace

const BitCore avx512_bit_core = core();

}  // namespace lowbit
