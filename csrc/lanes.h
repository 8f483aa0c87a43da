// Work on rows of positions: whole numbers or floats in, floats and bit planes out. One table of functions per
// instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// How a real value becomes a code's index u (0 … 2^bits − 1); docs/semantics.md.
enum class Rounding : int { nearest = 0, up = 1, sign = 2 };

struct Quantizer {
  Rounding rounding = Rounding::nearest;
  float reciprocal = 1;  // r = 1/s
  float low = 0, high = 0;
  float keep = 1;  // 1 − slack, for rounding up
  int bits = 1;
};

enum class StepKind : int { multiply, add, add_value, relu, store, quantize, quantize_bytes };

// A step of an epilogue for a block of rows (channels), from its first row and its first 64 positions on; `row` is the
// distance from one row to the next.
struct BlockStep {
  StepKind kind;
  const float* factors;   // multiply, add: of the first row; the same for all where row is 0
  float* floats;          // add_value: what is added; store: where to
  std::uint64_t* planes;  // quantize: planes[j * plane + group] = (bits & mask[group]) | (pad & ~mask[group])
  std::uint8_t* bytes;    // quantize_bytes: the codes themselves, bytes[plane · position], where the mask is set
  std::ptrdiff_t row, plane;
  const std::uint64_t* mask;
  const Quantizer* quantizer;
  int pad;
};

constexpr int most_steps = 16;

struct LaneOps {
  const char* name;

  // out[i * words + w] = the 64 bits of row i from bit `position` + 64·w on; rows are `row` words apart.
  void (*shifted)(const std::uint64_t* source, std::ptrdiff_t row, int rows, std::int64_t position, int words,
                  std::uint64_t* out);

  // `count` bits of each of `rows` rows, a distance of `stride` apart, the first of row i at bit position + i · step,
  // to out from bit at + i · out_step on, which is zero there (out_step ≥ count). A stride of 0 repeats one word.
  void (*pick)(const std::uint64_t* source, std::int64_t position, std::int64_t step, int stride, int count, int rows,
               std::uint64_t* out, std::int64_t at, std::int64_t out_step);

  // target[w] = mask[w] ? bits[w] ^ flip : pad, bit by bit, for w < words ≤ 8.
  void (*put)(const std::uint64_t* bits, std::uint64_t flip, const std::uint64_t* mask, std::uint64_t pad, int words,
              std::uint64_t* target);

  // a = the larger of a and b; what is no number wins, as in torch.
  void (*largest)(float* a, const float* b, int count);
  // out[i] = the largest of the `kernel` numbers from source[stride · i] on
  void (*largest_of)(const float* source, int kernel, int stride, int count, float* out);

  // The steps over a block of `rows` times `groups` groups of 64 positions,
  // from y = float((counts·slope + offsets[row]) / 2) on, where the sum is even,
  void (*finish_counts)(const std::int32_t* counts, std::ptrdiff_t stride, std::int32_t slope,
                        const std::int32_t* offsets, int rows, int groups, const BlockStep* steps, int number);
  // or from floats on.
  void (*finish_floats)(const float* y, std::ptrdiff_t stride, int rows, int groups, const BlockStep* steps,
                        int number);
};

const LaneOps& lane_ops();                        // the best this processor runs
const LaneOps* const* all_lane_ops(int* count);  // every one it runs

}  // namespace lowbit
