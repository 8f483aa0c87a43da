// Convolutions of codes that are bytes, channels last: every group of four bytes of a window times the weights of as many
// output channels as fill a vector. Nothing is copied to be multiplied. One table of functions per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lanes.h"

namespace lowbit {

// Sums of a run of neighbouring pixels, tile by tile, for one or two vectors of output channels:
//   sums[p * stride + c] = Σ_q Σ_i u[p·step + offsets[q] + i] · w[q][c][i],   i < 4.
// A tile has one or two groups of `pixels`: the other group's windows are `apart` away, in the same row or the one below,
// and its sums `sums_apart`. Tiles start every `span` pixels; the last one ends where the run does, and may repeat some.
struct PixelTile {
  const std::uint8_t* base;       // the first pixel's window
  std::ptrdiff_t step, apart;     // from a pixel's window to the next one's, and to that in the other group
  int pixels, groups;             // pixels of a group: 1 … most_pixels
  int tiles, span, last;          // `last`: the pixel that the last tile starts at
  const std::int32_t* offsets;
  int quads;
  const std::uint8_t* weights;    // [quads][vectors][lanes][4] signed bytes
  const std::uint8_t* next;       // what will be read next of the weights: tiles fetch it, 64 bytes a quad,
  std::ptrdiff_t behind;          // as long as so many bytes are left
  int vectors;                    // 1 or 2
  int chain;                      // how many quads 16 bits hold the sums of: see `chain_of`
  std::int32_t* sums;
  std::ptrdiff_t stride, sums_apart;
};

// Channels each of which has a window of its own.
struct DepthwiseTile {
  const std::uint8_t* base;
  std::ptrdiff_t step;
  int pixels;
  const std::int32_t* offsets;  // of each tap
  int taps;                     // a multiple of 4; those beyond the kernel's have weights of 0
  const std::uint8_t* weights;  // as pack_depthwise left them
  int channels;                 // a multiple of 64
  std::int32_t* sums;           // [pixels][stride]
  std::ptrdiff_t stride;
};

// Pixels of a few rows: their sums or floats are `stride` apart, those of rows `row`; their positions in a map `pitch`.
struct PixelBlock {
  int pixels, rows, channels;
  std::ptrdiff_t stride, row, pitch;
};

struct PixelTraits {
  int quads;                // runs of a window are filled up to a multiple of this many quads
  int byte_rate, bit_rate;  // products in a cycle, about: of bytes, and counted
  bool signed_inputs = false;  // multiplies u − 128 in the place of u, if u has 8 bits
};

struct PixelCore {
  const char* name;      // "avx512vnni", "avx512", "avx2", "neondot", "neon", "portable"
  int lanes;             // channels of a vector
  int most_pixels;       // of a group
  PixelTraits traits;
  void (*product)(const PixelTile& tile, bool eight_bits);

  // weights: [taps][channels] signed bytes, taps and channels rounded up as in DepthwiseTile.
  void (*pack_depthwise)(const std::int8_t* weights, int taps, int channels, std::uint8_t* packed);
  void (*depthwise)(const DepthwiseTile& tile);

  // Few-bit products of single pixels, by AND and population count: the memory that weights take is what counts there.
  // planes[j * words + k / 64]: bit j of codes[k], k < count, words·64 ≥ count; zeros behind.
  void (*to_planes)(const std::uint8_t* codes, int count, int bits, int words, std::uint64_t* planes);
  // sums[m] = Σ_ij 2^(i+j) · popcount(rows[(m / 8 · weight_bits + i) · words · 8 + w · 8 + m % 8] & planes[j · words + w]),
  // outputs a multiple of 8.
  void (*bit_sums)(const std::uint64_t* rows, int outputs, int weight_bits, const std::uint64_t* planes, int code_bits,
                   int words, std::int32_t* sums);

  // The steps of an epilogue for channels of some pixels, from y = float(sums·slope + offsets[channel]) on, or from
  // floats. In a step, factors and floats are of the first channel, whole vectors of them; `row` is the distance from
  // one pixel to the next, for factors 1 or, where one number serves all channels, 0.
  void (*finish)(const std::int32_t* sums, const PixelBlock& block, std::int32_t slope, const std::int32_t* offsets,
                 const BlockStep* steps, int number);
  void (*finish_floats)(const float* y, const PixelBlock& block, const BlockStep* steps, int number);

  // out[x] = the largest of (sums ^ flip) over the rows given and the columns x·stride − padding … + kernel − 1 that
  // exist, ^ flip again, for each channel (a multiple of 16): flip = −1 finds the smallest; no flip: 0. `column` holds a
  // row meanwhile.
  void (*pool)(const std::int32_t* const* rows, int count, int width, int channels, int kernel, int stride, int padding,
               int out_width, const std::int32_t* flip, std::int32_t* column, std::int32_t* out);

  // out[x * channels + c] = rows[c * stride + x]: codes of a row of pixels, brought together.
  void (*interleave)(const std::uint8_t* rows, std::ptrdiff_t stride, int channels, int pixels, std::uint8_t* out);

  // out[c * row + p] = sums[p * stride + c]; channels rounded up to 16 are read, those given written.
  void (*transpose)(const std::int32_t* sums, std::ptrdiff_t stride, int pixels, int channels, std::int32_t* out,
                    std::ptrdiff_t row);
};

// How many quads a sum of 16 bits can take, where the products are added in pairs to begin with; 0: not even one.
// `row` is even.
int chain_of(const std::int8_t* weights, std::size_t rows, std::size_t row, int most_code);

const PixelCore* const* pixel_cores(int* count);  // that this processor runs, the fastest first
const PixelCore& amx_model();  // AMX's core on a model of its tiles, for tests: any processor runs it, slowly

}  // namespace lowbit
