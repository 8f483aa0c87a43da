// Work on rows of positions: bit planes in, floats through, bit planes out. One table of functions per instruction set.
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

struct LaneOps {
  const char* name;

  // out[w] = the 64 bits of `source` from bit `position` + 64·w on.
  void (*shifted)(const std::uint64_t* source, std::int64_t position, int words, std::uint64_t* out);

  // y = float((count·slope + offset) / 2) for n counts; the sum is even.
  void (*whole)(const std::int32_t* counts, std::int32_t slope, std::int32_t offset, int n, std::int32_t* sums);
  void (*to_float)(const std::int32_t* sums, int n, float* y);

  void (*multiply)(float* y, float factor, int n);
  void (*add)(float* y, float term, int n);
  void (*add_row)(float* y, const float* other, int n);
  void (*relu)(float* y, int n);
  // u of n values (a multiple of 64), as bit planes: out[j * stride + w].
  void (*quantize)(const float* y, const Quantizer& quantizer, int n, std::uint64_t* out, std::ptrdiff_t stride);
};

const LaneOps& lane_ops();                        // the best this processor runs
const LaneOps* const* all_lane_ops(int* count);  // every one it runs

}  // namespace lowbit
