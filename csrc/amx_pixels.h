// Products of bytes with AMX: a tile of pixels times a tile of weights, sixteen groups of four bytes at a time.
//
// Tiles 0 to 3 hold the sums of (group, vector), 4 and 5 the windows of a group's pixels, 6 and 7 the weights of a vector.
#pragma once

#include "pixels_impl.h"

namespace lowbit {
namespace {

struct TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {};
  std::uint8_t rows[16] = {};
};

template <int Vectors>
static void amx_product_of(const PixelTile& t) {
  constexpr int lanes = 16, depth = 16;  // channels of a vector, quads of a tile
  static_assert(sizeof(TileConfig) == 64, "as the processor reads it");
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = 64;
    config.rows[tile] = static_cast<std::uint8_t>(tile < 6 ? t.pixels : depth);
  }
  _tile_loadconfig(&config);
  const bool two = t.groups == 2;
  const std::ptrdiff_t stride = 4 * t.stride;
  for (int tile = 0; tile < t.tiles; ++tile) {
    const std::ptrdiff_t first = tile + 1 < t.tiles ? static_cast<std::ptrdiff_t>(tile) * t.span : t.last;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int q = 0; q < t.quads; q += depth) {
      const std::uint8_t* x = t.base + first * t.step + t.offsets[q];
      const std::uint8_t* w = t.weights + static_cast<std::ptrdiff_t>(q) * Vectors * lanes * 4;
      _tile_loadd(6, w, Vectors * 64);
      if (Vectors == 2) _tile_loadd(7, w + 64, Vectors * 64);
      _tile_loadd(4, x, t.step);
      _tile_dpbusd(0, 4, 6);
      if (Vectors == 2) _tile_dpbusd(1, 4, 7);
      if (!two) continue;
      _tile_loadd(5, x + t.apart, t.step);
      _tile_dpbusd(2, 5, 6);
      if (Vectors == 2) _tile_dpbusd(3, 5, 7);
    }
    std::int32_t* sums = t.sums + first * t.stride;
    _tile_stored(0, sums, stride);
    if (Vectors == 2) _tile_stored(1, sums + lanes, stride);
    if (!two) continue;
    _tile_stored(2, sums + t.sums_apart, stride);
    if (Vectors == 2) _tile_stored(3, sums + t.sums_apart + lanes, stride);
  }
  _tile_release();
}

static void amx_product(const PixelTile& t, bool) {
  if (t.vectors == 2)
    amx_product_of<2>(t);
  else
    amx_product_of<1>(t);
}

}  // namespace
}  // namespace lowbit
