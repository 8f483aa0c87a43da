// Bit-sliced products by table lookup, written once over a vector type V.
//
// The count of a row is Σ_k (x_k ^ v_k) over planes x_k, v_k = 1 where the weight is −1. The planes enter a chain of
// full adders one pair after the other,
//     carry_i = majority(p_i ^ π_i, x ^ v, y ^ w),    p_{i+1} = p_i ^ x ^ y,    π_{i+1} = π_i ^ v ^ w,
// whose sum output, but for a complement π that depends on the weights alone, is the same plane p for every row. So a
// row costs one carry (of weight 2) for two planes, and one parity plane at the very end. A carry is one of eight
// planes, chosen by the row's three bits v, w, π: they are tabulated for a block of pairs that stays in the L1 cache,
// and a row looks its carries up and adds them in a Harley–Seal tree of carry-save adders.
//
// Everything here has internal linkage: the same templates are compiled for several instruction sets, and the linker
// must not merge them. For the same reason nothing from the standard library is instantiated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bitcore.h"

#define LOWBIT_INLINE inline __attribute__((always_inline))

namespace lowbit {

extern const BitCore avx512_bit_core;
extern const BitCore avx2_bit_core;
extern const BitCore neon_bit_core;
extern const BitCore portable_bit_core;

namespace {

using std::int32_t;
using std::int64_t;
using std::size_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

LOWBIT_INLINE constexpr int smaller(int a, int b) { return a < b ? a : b; }
LOWBIT_INLINE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// How the pairs of a reduction of length K fall into blocks. An odd K starts the chain with its first plane, an even
// one with a plane of zeros. Pairs come in eights; the last is filled up with planes of zeros that no row complements.
struct Pairs {
  int first;   // the first plane that belongs to a pair
  int eights;  // in all
  int block;   // eights of every block but the last
  int blocks;  // at least one, perhaps empty: the last one also adds the parity

  // Blocks of at most `most` eights, as equal as multiples of `multiple` allow, which divides `most`.
  LOWBIT_INLINE Pairs(int K, int most, int multiple)
      : first(K & 1), eights(ceil_div(K / 2, 8)), block(eights), blocks(1) {
    if (eights <= most) return;
    block = ceil_div(ceil_div(eights, ceil_div(eights, most)), multiple) * multiple;
    blocks = ceil_div(eights, block);
  }
  LOWBIT_INLINE int eights_of(int b) const { return smaller(block, eights - b * block); }
  LOWBIT_INLINE bool is_last(int b) const { return b == blocks - 1; }
};

// The three-bit choices of one row, in the order of the chain.
class RowChoices {
 public:
  LOWBIT_INLINE RowChoices(const uint8_t* bits, int K)
      : bits_(bits), K_(K), k_(K & 1), parity_(k_ ? complement(0) : 0) {}
  LOWBIT_INLINE int next() {
    const int v = complement(k_), w = complement(k_ + 1);
    const int choice = parity_ << 2 | w << 1 | v;
    k_ += 2;
    parity_ ^= v ^ w;
    return choice;
  }
  LOWBIT_INLINE int parity() const { return parity_ << 2; }

 private:
  LOWBIT_INLINE int complement(int k) const { return k < K_ && bits_[k] == 0; }
  const uint8_t* bits_;
  int K_, k_, parity_;
};

// ---- one row: adding what was looked up ----

template <class V>
LOWBIT_INLINE typename V::Reg half_add(typename V::Reg& sum, typename V::Reg a) {
  const typename V::Reg carry = V::and_(sum, a);
  sum = V::xor_(sum, a);
  return carry;
}

// Adds 2^Log carries, `first` and following, to the running sum, whose planes of weight 2^l are level[l], l = 1 to Log.
// Returns the carry into level Log + 1.
template <class V, int Log, class Lookup>
LOWBIT_INLINE typename V::Reg add_full(typename V::Reg* level, const Lookup& lookup, int first) {
  if constexpr (Log == 0) {
    return lookup(first);
  } else {
    const typename V::Reg a = add_full<V, Log - 1>(level, lookup, first);
    const typename V::Reg b = add_full<V, Log - 1>(level, lookup, first + (1 << (Log - 1)));
    return V::add(level[Log], a, b);
  }
}

// The same for Count ≤ 2^Log carries, a positive multiple of 8; also returns the carry into level Log + 1.
template <class V, int Log, int Count, class Lookup>
LOWBIT_INLINE typename V::Reg add_some(typename V::Reg* level, const Lookup& lookup, int first) {
  constexpr int kPart = 1 << (Log - 1);
  static_assert(Count > 0 && Count <= 2 * kPart && Count % 8 == 0, "");
  if constexpr (Count == 2 * kPart) {
    return add_full<V, Log>(level, lookup, first);
  } else if constexpr (Count < kPart) {
    return half_add<V>(level[Log], add_some<V, Log - 1, Count>(level, lookup, first));
  } else {
    const typename V::Reg part = add_full<V, Log - 1>(level, lookup, first);
    if constexpr (Count == kPart) {
      return half_add<V>(level[Log], part);
    } else {
      return V::add(level[Log], part, add_some<V, Log - 1, Count - kPart>(level, lookup, first + kPart));
    }
  }
}

// Where a row's (or, narrow, eight rows') counter lies: plane p of it at start + p · kPlaneStride words. Carries out of
// the planes that a block works on wait to be added in pairs, as in a binary counter of the blocks: bit q of `blocks`
// says that one waits at waiting + q · waiting_stride for its partner. So a block touches two of the upper planes on
// average, not all of them.
struct Counter {
  uint64_t* start;
  int planes;
  int blocks;  // that were added before this one
  int ready;   // for how many of the lowest upper planes a carry waits
  uint64_t* waiting;
  size_t waiting_stride;
};

// Adds one block to one row: `chunks` times 2^kLog carries and Rest more, and with Last the parity and all that waits.
//
// The tree adds straight into the counter's low planes, held in registers; kUpper planes above them take the carries of
// up to 2^kUpper chunks, so that only one carry is left in the end to be handed up.
template <class V, int Rest, bool Last, class Lookup>
LOWBIT_INLINE void add_block(Lookup lookup, int chunks, const Counter& counter) {
  using Reg = typename V::Reg;
  constexpr int kTop = V::kLog + V::kUpper;
  constexpr int kStride = V::kPlaneStride;
  Reg level[kTop + 1];
#pragma GCC unroll 16
  for (int l = 1; l <= kTop; ++l) level[l] = V::load(counter.start + l * kStride);

  Reg over = V::zero();
  const auto hand_up = [&](Reg carry) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int l = V::kLog + 1; l <= kTop; ++l) carry = half_add<V>(level[l], carry);
    over = V::or_(over, carry);
  };
  if constexpr (V::kUpper > 0) {
    for (; chunks > 0; --chunks) {
      hand_up(add_full<V, V::kLog>(level, lookup, 0));
      lookup.advance(V::kChunk);
    }
  }
  if constexpr (Rest > 0) {
    hand_up(add_some<V, V::kLog, Rest>(level, lookup, 0));
    lookup.advance(Rest);
  }

  Reg carry = V::zero();
  if constexpr (Last) {
    Reg low = V::load(counter.start);
    carry = half_add<V>(low, lookup.parity());
    V::store(counter.start, low);
#pragma GCC unroll 16
    for (int l = 1; l <= kTop; ++l) carry = half_add<V>(level[l], carry);
  }
#pragma GCC unroll 16
  for (int l = 1; l <= kTop; ++l) V::store(counter.start + l * kStride, level[l]);

  uint64_t* upper = counter.start + (kTop + 1) * kStride;
  uint64_t* waiting = counter.waiting;
  for (int q = 0; q < counter.ready; ++q, upper += kStride, waiting += counter.waiting_stride) {
    Reg plane = V::load(upper);
    over = V::add(plane, over, V::load(waiting));
    V::store(upper, plane);
  }
  if constexpr (!Last) {
    V::store(waiting, over);
  } else {
    upper = counter.start + (kTop + 1) * kStride;
    waiting = counter.waiting;
    for (int q = 0; q < counter.planes - (kTop + 1); ++q, upper += kStride, waiting += counter.waiting_stride) {
      Reg plane = V::load(upper);
      if (q == counter.ready) {
        carry = V::add(plane, carry, over);
      } else if (q > counter.ready && (counter.blocks >> q & 1)) {
        carry = V::add(plane, carry, V::load(waiting));
      } else {
        carry = half_add<V>(plane, carry);
      }
      V::store(upper, plane);
    }
  }
}

// A counter with fewer planes than add_block holds in registers goes through a copy of its own.
template <class V, int Rest, bool Last, class Lookup>
LOWBIT_INLINE void add_block_shallow(const Lookup& lookup, int chunks, const Counter& counter) {
  constexpr int kPlanes = V::kLog + V::kUpper + 1, kStride = V::kPlaneStride;
  alignas(64) uint64_t copy[kPlanes * kStride];
  for (int l = 0; l < kPlanes; ++l) {
    V::store(copy + l * kStride, l < counter.planes ? V::load(counter.start + l * kStride) : V::zero());
  }
  add_block<V, Rest, Last>(lookup, chunks, Counter{copy, kPlanes, 0, 0, counter.waiting, 0});
  for (int l = 0; l < counter.planes; ++l) V::store(counter.start + l * kStride, V::load(copy + l * kStride));
}

// ---- all rows ----

// One block of tables applied to rows; each row's choices take row_bytes. A row is a vector, so in the narrow form
// eight.
struct BlockOfRows {
  const uint8_t* tables;
  const uint8_t* choices;
  size_t row_bytes;
  int chunks;
  int rows;
  uint64_t* counters;  // of the first row, plane `shift`
  size_t row_words;    // from one row's counter to the next
  int planes;          // of a counter, from plane `shift` up
  int blocks;          // that were added before
  uint64_t* waiting;   // of the first row
  size_t waiting_stride;
};

template <class V, class Lookup, int Rest, bool Last>
void add_rows(const BlockOfRows& work) {
  // Copies, for the stores to counters might alter what `work` refers to.
  const BlockOfRows b = work;
  const uint8_t* choices = b.choices;
  int ready = 0;
  while ((b.blocks >> ready & 1) && ready < b.planes - (V::kLog + V::kUpper + 1)) ++ready;
  Counter counter{b.counters, b.planes, b.blocks, ready, b.waiting, b.waiting_stride};
  const bool deep = b.planes > V::kLog + V::kUpper;
  for (int row = 0; row < b.rows; ++row) {
    const Lookup lookup{b.tables, choices};
    if (deep) {
      add_block<V, Rest, Last>(lookup, b.chunks, counter);
    } else {
      add_block_shallow<V, Rest, Last>(lookup, b.chunks, counter);
    }
    choices += b.row_bytes;
    counter.start += b.row_words;
    counter.waiting += V::kPlaneStride;
  }
}

template <class V, class Lookup, bool Last, int Rest = 0>
LOWBIT_INLINE void add_rows_any(const BlockOfRows& b, int rest) {
  if constexpr (Rest < V::kChunk + (V::kUpper == 0)) {
    if (rest == Rest) {
      add_rows<V, Lookup, Rest, Last>(b);
    } else {
      add_rows_any<V, Lookup, Last, Rest + 8>(b, rest);
    }
  }
}

// How many rows (of vectors) to take through all blocks at a time: their counters should survive in the L2 cache from
// one block to the next.
template <class V>
LOWBIT_INLINE int portion_of_rows(int rows, int depth) {
  const int some = V::kCounterBytes / (depth * V::kPlaneStride * int(sizeof(uint64_t)));
  return smaller(rows, some < 64 ? 64 : some);
}

LOWBIT_INLINE int bit_length(int x) {
  int length = 0;
  for (; x > 0; x >>= 1) ++length;
  return length;
}

// Scratch: the tables of a block and of the parity, then what waits of a portion of rows.
template <class V, class Form>
LOWBIT_INLINE size_t table_bytes(const Pairs& pairs) {
  return size_t(8 * smaller(pairs.eights, pairs.block) + 1) * Form::kTableBytes;
}
// Words of what waits, for each digit of the weights.
template <class V>
LOWBIT_INLINE size_t waiting_words(const Pairs& pairs, int rows, int depth) {
  return size_t(portion_of_rows<V>(rows, depth)) * bit_length(pairs.blocks - 1) * V::kPlaneStride;
}
template <class V, class Form>
LOWBIT_INLINE size_t scratch_bytes(int rows, int K, int depth, int digits) {
  const Pairs pairs = Form::pairs(K, rows);
  return table_bytes<V, Form>(pairs) + digits * waiting_words<V>(pairs, rows, depth) * sizeof(uint64_t);
}

// counters += 2^shift · Σ, all digits by the same tables. Form::row_bytes(eights, last) is the size of a row's choices
// in a block.
template <class V, class Form>
LOWBIT_INLINE void add_product(const uint64_t* planes, std::ptrdiff_t stride, int K, const uint8_t* const* packed,
                               int digits, int rows, int shift, int depth, uint64_t* counters, void* scratch) {
  if (K <= 0) return;
  const Pairs pairs = Form::pairs(K, rows);
  const size_t row_words = size_t(depth) * V::kPlaneStride;
  const int portion = portion_of_rows<V>(rows, depth);
  uint8_t* const tables = static_cast<uint8_t*>(scratch);
  uint64_t* const waiting = reinterpret_cast<uint64_t*>(tables + table_bytes<V, Form>(pairs));
  for (int row = 0; row < rows; row += portion) {
    typename Form::Chain chain(planes, stride, K);
    size_t block = 0;
    for (int b = 0; b < pairs.blocks; ++b) {
      const int eights = pairs.eights_of(b), count = 8 * eights;
      const bool last = pairs.is_last(b);
      chain.tabulate(tables, count);
      if (last) chain.tabulate_parity(tables + size_t(count) * Form::kTableBytes);
      const size_t row_bytes = Form::row_bytes(eights, last);
      // Without upper planes a block is no more than what add_rows is compiled for.
      const int chunks = V::kUpper > 0 ? count >> V::kLog : 0, rest = count - (chunks << V::kLog);
      for (int digit = 0; digit < digits; ++digit) {
        const BlockOfRows work{tables,
                               packed[digit] + block + size_t(row) * row_bytes,
                               row_bytes,
                               chunks,
                               smaller(portion, rows - row),
                               counters + size_t(row) * row_words + size_t(shift + digit) * V::kPlaneStride,
                               row_words,
                               depth - shift - digit,
                               b,
                               waiting + digit * waiting_words<V>(pairs, rows, depth),
                               size_t(portion) * V::kPlaneStride};
        if (last) {
          add_rows_any<V, typename Form::Lookup, true>(work, rest);
        } else {
          add_rows_any<V, typename Form::Lookup, false>(work, rest);
        }
      }
      block += size_t(rows) * row_bytes;
    }
  }
}

// counter += 2^shift · Σ_k planes[k · stride], or of the complements.
template <class V>
void add_planes(const uint64_t* planes, std::ptrdiff_t stride, int K, bool complement, int shift, int depth,
                uint64_t* counter) {
  using Reg = typename V::Reg;
  constexpr int kLow = 4, kChunk = 1 << kLow;
  const Reg flip = complement ? V::not_(V::zero()) : V::zero();
  counter += size_t(shift) * V::kWords;
  const int planes_left = depth - shift, low = smaller(kLow, planes_left);
  Reg level[kLow + 1];
  for (int l = 1; l <= kLow; ++l) level[l] = l <= low ? V::load(counter + (l - 1) * V::kWords) : V::zero();
  const auto hand_up = [&](Reg carry) {
    for (int p = kLow; p < planes_left; ++p) {
      Reg plane = V::load(counter + p * V::kWords);
      carry = half_add<V>(plane, carry);
      V::store(counter + p * V::kWords, plane);
    }
  };
  const auto plane = [&](int k) __attribute__((always_inline)) { return V::xor_(V::load(planes + k * stride), flip); };
  int k = 0;
  for (; k + kChunk <= K; k += kChunk) hand_up(add_full<V, kLow>(level, plane, k));
  for (; k < K; ++k) {
    Reg carry = plane(k);
#pragma GCC unroll 4
    for (int l = 1; l <= kLow; ++l) carry = half_add<V>(level[l], carry);
    hand_up(carry);
  }
  for (int l = 1; l <= low; ++l) V::store(counter + (l - 1) * V::kWords, level[l]);
}

// ---- the wide form: a row is a vector of positions ----

template <class V>
struct WideForm {
  using Reg = typename V::Reg;
  static constexpr int kEntry = 8 * V::kWords;
  static constexpr int kTableBytes = 8 * kEntry;
  // A choice is stored as a byte that becomes an address by the largest scale that the processor's loads offer.
  static constexpr int kChoice = kEntry / V::kScale;

  static_assert(8 * V::kWideBlock <= V::kChunk << V::kUpper, "a block must not carry twice");
  // Few rows do not repay tables that other data must leave the L1 cache for.
  static LOWBIT_INLINE Pairs pairs(int K, int rows) {
    return Pairs(K, rows < 96 ? V::kFewRowsBlock : V::kWideBlock, V::kUpper > 0 ? V::kChunk / 8 : 1);
  }
  static LOWBIT_INLINE size_t row_bytes(int eights, bool last) { return size_t(8 * eights + last); }

  struct Lookup {
    const uint8_t* table;
    const uint8_t* choice;
    LOWBIT_INLINE Reg operator()(int i) const {
      return V::load_aligned(table + i * kTableBytes + size_t(choice[i]) * V::kScale);
    }
    LOWBIT_INLINE Reg parity() const { return (*this)(0); }
    LOWBIT_INLINE void advance(int count) {
      table += count * kTableBytes;
      choice += count;
    }
  };

  class Chain {
   public:
    LOWBIT_INLINE Chain(const uint64_t* planes, std::ptrdiff_t, int K)
        : plane_(planes + (K & 1) * V::kWords), left_(K - (K & 1)), sum_(K & 1 ? V::load(planes) : V::zero()) {}

    LOWBIT_INLINE void tabulate(uint8_t* tables, int count) {
      const int real = smaller(count, left_ / 2);
      for (int i = 0; i < real; ++i, tables += kTableBytes, plane_ += 2 * V::kWords) {
        V::tabulate(tables, sum_, V::load(plane_), V::load(plane_ + V::kWords));
      }
      left_ -= 2 * real;
      for (int i = real; i < count; ++i, tables += kTableBytes) V::tabulate(tables, sum_, V::zero(), V::zero());
    }
    LOWBIT_INLINE void tabulate_parity(uint8_t* table) const {
      V::store_aligned(table, sum_);
      V::store_aligned(table + 4 * kEntry, V::not_(sum_));
    }

   private:
    const uint64_t* plane_;
    int left_;
    Reg sum_;
  };

  static size_t packed_size(int M, int K) {
    const Pairs pairs = WideForm::pairs(K, M);
    return size_t(M) * row_bytes(pairs.eights, true);
  }

  static void pack(const uint8_t* bits, int M, int K, uint8_t* packed) {
    const Pairs pairs = WideForm::pairs(K, M);
    for (int m = 0; m < M; ++m) {
      RowChoices choices(bits + size_t(m) * K, K);
      uint8_t* block = packed;
      for (int b = 0; b < pairs.blocks; ++b) {
        const size_t bytes = row_bytes(pairs.eights_of(b), pairs.is_last(b));
        uint8_t* const row = block + size_t(m) * bytes;
        for (int i = 0; i < 8 * pairs.eights_of(b); ++i) row[i] = uint8_t(choices.next() * kChoice);
        if (pairs.is_last(b)) row[bytes - 1] = uint8_t(choices.parity() * kChoice);
        block += size_t(M) * bytes;
      }
    }
  }

  static size_t scratch_size(int M, int K, int depth, int digits) {
    return scratch_bytes<V, WideForm>(M, K, depth, digits);
  }

  static void add(const uint64_t* planes, int K, const uint8_t* const* packed, int digits, int M, int shift, int depth,
                  uint64_t* counters, void* scratch) {
    add_product<V, WideForm>(planes, V::kWords, K, packed, digits, M, shift, depth, counters, scratch);
  }

  // ---- comparing ----

  // ge ends as count ≥ t if it starts as all ones, or as count > t if as zeros: from the lowest bit up, a bit of t that
  // is 0 makes ge |= c, a 1 makes ge &= c; both are a majority with a constant.
  template <int Bits>
  static LOWBIT_INLINE void compare_bits(const uint64_t* counters, int M, int depth, const int32_t* thresholds,
                                         uint64_t* out) {
    constexpr int kLevels = (1 << Bits) - 1;
    for (int m = 0; m < M; ++m, counters += size_t(depth) * V::kWords, thresholds += kLevels) {
      Reg ge[kLevels + 1];
      alignas(64) uint64_t t[kLevels + 1] = {}, constant[kLevels + 1];
      for (int j = 0; j < kLevels; ++j) {
        const int64_t wanted = thresholds[j];
        const bool above = wanted >> depth > 0;
        t[j] = above ? ~uint64_t(0) : wanted < 0 ? 0 : uint64_t(wanted);
        constant[j] = above ? 0 : ~uint64_t(0);
      }
#pragma GCC unroll 16
      for (int j = 1; j <= kLevels; ++j) ge[j] = V::broadcast(constant + j - 1);
      for (int p = 0; p < depth; ++p) {
        // One more than there are thresholds, a number that vectors divide.
        for (int j = 0; j < kLevels + (kLevels > 1); ++j) constant[j] = (t[j] >> p & 1) - 1;
        const Reg plane = V::load(counters + size_t(p) * V::kWords);
#pragma GCC unroll 16
        for (int j = 1; j <= kLevels; ++j) ge[j] = V::majority(ge[j], plane, V::broadcast(constant + j - 1));
      }
      // The sets are nested, so bit j of the number of true ones is the parity of every 2^j-th.
#pragma GCC unroll 4
      for (int j = 0; j < Bits; ++j, out += V::kWords) {
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
    for (int m = 0; m < M; ++m, counters += size_t(depth) * V::kWords, out += stride) {
      for (int w = 0; w < V::kWords; ++w) V::expand(counters + w, V::kWords, depth, out + 64 * w);
    }
  }
};

// ---- for vector types with the usual operations alone ----

// The eight carries of a pair; complementing all three operands complements a majority.
template <class V>
LOWBIT_INLINE void tabulate_by_parts(uint8_t* table, typename V::Reg& p, typename V::Reg x, typename V::Reg y) {
  using Reg = typename V::Reg;
  constexpr int kEntry = 8 * V::kWords;
  const Reg differ = V::xor_(x, y), both = V::and_(x, y), only_y = V::andnot(x, y);
  const Reg carry[4] = {
      V::or_(both, V::and_(p, differ)),            // p, x, y
      V::or_(only_y, V::andnot(differ, p)),        // p, ~x, y
      V::or_(only_y, V::not_(V::or_(p, differ))),  // ~p, ~x, y
      V::or_(both, V::andnot(p, differ)),          // ~p, x, y
  };
  constexpr int kChoice[4] = {0, 1, 5, 4};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    V::store_aligned(table + kChoice[i] * kEntry, carry[i]);
    V::store_aligned(table + (7 - kChoice[i]) * kEntry, V::not_(carry[i]));
  }
  p = V::xor_(p, differ);
}

// Transposes 8 × 8 bits: bit p of byte i becomes bit i of byte p.
LOWBIT_INLINE uint64_t transpose_bits(uint64_t x) {
  uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aaULL;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000cccc0000ccccULL;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0ULL;
  return x ^ t ^ (t << 28);
}

// The counts of 64 positions; plane p is the word counter[p * stride].
LOWBIT_INLINE void expand_by_bytes(const uint64_t* counter, size_t stride, int depth, int32_t* out) {
  for (int from = 0; from < depth; from += 8) {
    const int planes = smaller(8, depth - from);
    for (int i = 0; i < 64; i += 8) {
      uint64_t bits = 0;
      for (int p = 0; p < planes; ++p) bits |= (counter[size_t(from + p) * stride] >> i & 255) << (8 * p);
      bits = transpose_bits(bits);
      for (int j = 0; j < 8; ++j) {
        const int32_t count = int32_t(uint32_t(bits >> (8 * j) & 255) << from);
        out[i + j] = from == 0 ? count : out[i + j] | count;
      }
    }
  }
}

template <class V>
constexpr BitCore wide_core(const char* name, int rate) {
  using Wide = WideForm<V>;
  BitCore core{};
  core.name = name;
  core.rate = rate;
  core.words = V::kWords;
  core.has_narrow = false;
  core.packed_size = Wide::packed_size;
  core.pack = Wide::pack;
  core.scratch_size = Wide::scratch_size;
  core.wide = Wide::add;
  core.sum = add_planes<V>;
  core.wide_compare = Wide::compare;
  core.wide_expand = Wide::expand;
  return core;
}

}  // namespace
}  // namespace lowbit
