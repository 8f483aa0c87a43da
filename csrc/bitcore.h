// Bit-sliced products of few-bit numbers: lanes are output positions, one bit plane per position of the reduction.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// The vertical counter of row m, plane p, word w of a block lies at
//   wide:   counters[(m * depth + p) * words + w]       64·words positions, any number of rows
//   narrow: counters[((m / 8) * depth + p) * 8 + m % 8] 64 positions, rows padded to a multiple of 8
// and bit b of that word is bit p of the count at position 64·w + b.
struct BitCore {
  const char* name;  // "avx512", "avx2", "neon", "portable"
  int words;         // 64-bit words of one lane vector in the wide form
  int rate;          // products in a cycle, about, with all that surrounds them
  bool has_narrow;   // whether the narrow form exists (null pointers otherwise)

  // Bytes of a packed row set, and its packing. bits[m * K + k] is 1 for a weight of +1 and 0 for −1.
  std::size_t (*packed_size)(int M, int K);
  void (*pack)(const std::uint8_t* bits, int M, int K, std::uint8_t* packed);
  std::size_t (*narrow_packed_size)(int M, int K);
  void (*narrow_pack)(const std::uint8_t* bits, int M, int K, std::uint8_t* packed);

  // Bytes of scratch that a call needs (64-byte aligned), for the M, K, depth and digits of that call; M is that of the
  // packing.
  std::size_t (*scratch_size)(int M, int K, int depth, int digits);

  // counters[m] += Σ_i 2^(shift + i) · Σ_k (bit of weight (m, k) in packed[i] ? planes[k] : ~planes[k]), i < digits, as
  // vertical counters of `depth` bits. The caller sees to it that no count overflows depth.
  // planes: wide [K][words], 64-byte aligned; narrow the words planes[k * stride].
  // Narrow: the rows from M up to the next multiple of 8 are written too, here and by compare; they mean nothing.
  void (*wide)(const std::uint64_t* planes, int K, const std::uint8_t* const* packed, int digits, int M, int shift,
               int depth, std::uint64_t* counters, void* scratch);
  void (*narrow)(const std::uint64_t* planes, std::ptrdiff_t stride, int K, const std::uint8_t* const* packed,
                 int digits, int M, int shift, int depth, std::uint64_t* counters, void* scratch);

  // counter[p * words + w] += 2^shift · Σ_k planes[k * stride + w], or of the complements; one counter of all words.
  void (*sum)(const std::uint64_t* planes, std::ptrdiff_t stride, int K, bool complement, int shift, int depth,
              std::uint64_t* counter);

  // codes: number of thresholds[m * levels + j] (ascending in j, any int32) that are ≤ count, as `bits` bit planes:
  //   wide:   out[(m * bits + j) * words + w]
  //   narrow: out[((m / 8) * bits + j) * 8 + m % 8]
  // levels = 2^bits − 1, bits 1 to 4.
  void (*wide_compare)(const std::uint64_t* counters, int M, int depth, const std::int32_t* thresholds, int bits,
                       std::uint64_t* out);
  void (*narrow_compare)(const std::uint64_t* counters, int M, int depth, const std::int32_t* thresholds, int bits,
                         std::uint64_t* out);

  // The counts as integers: out[m * stride + position], position < 64·words (wide) or 64 (narrow).
  void (*wide_expand)(const std::uint64_t* counters, int M, int depth, std::int32_t* out, std::size_t stride);
  void (*narrow_expand)(const std::uint64_t* counters, int M, int depth, std::int32_t* out, std::size_t stride);
};

// The cores this processor can run, the fastest first; `count` receives how many. The last is always "portable".
const BitCore* const* bit_cores(int* count);

}  // namespace lowbit
