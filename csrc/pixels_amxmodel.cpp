// The AMX product on a model of the tiles, so that what surrounds the instructions is tested on any processor. The names
// of the instructions are those of the compilers' immintrin.h, which this file does without.
#include "pixels_impl.h"  // before the names are taken

namespace lowbit {
namespace {

struct Tiles {
  int rows[8], bytes[8];
  std::uint8_t of[8][16][64];
};
static thread_local Tiles tiles;

struct Given {  // what a configuration holds
  std::uint8_t palette, start, reserved[14];
  std::uint16_t bytes[16];
  std::uint8_t rows[16];
};

static void model_loadconfig(const void* from) {
  Given given;
  std::memcpy(&given, from, sizeof given);
  for (int t = 0; t < 8; ++t) tiles.rows[t] = given.rows[t], tiles.bytes[t] = given.bytes[t];
  std::memset(tiles.of, 0, sizeof tiles.of);
}
static void model_zero(int t) { std::memset(tiles.of[t], 0, sizeof tiles.of[t]); }
static void model_loadd(int t, const void* from, std::ptrdiff_t stride) {
  for (int r = 0; r < tiles.rows[t]; ++r)
    std::memcpy(tiles.of[t][r], static_cast<const char*>(from) + r * stride, static_cast<std::size_t>(tiles.bytes[t]));
}
static void model_stored(int t, void* to, std::ptrdiff_t stride) {
  for (int r = 0; r < tiles.rows[t]; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, tiles.of[t][r], static_cast<std::size_t>(tiles.bytes[t]));
}
static void model_dpbusd(int c, int a, int b) {
  for (int m = 0; m < tiles.rows[c]; ++m)
    for (int k = 0; k < tiles.bytes[a] / 4; ++k)
      for (int n = 0; n < tiles.bytes[c] / 4; ++n) {
        std::int32_t sum;
        std::memcpy(&sum, tiles.of[c][m] + 4 * n, 4);
        for (int i = 0; i < 4; ++i)
          sum += tiles.of[a][m][4 * k + i] * static_cast<std::int8_t>(tiles.of[b][k][4 * n + i]);
        std::memcpy(tiles.of[c][m] + 4 * n, &sum, 4);
      }
}

}  // namespace
}  // namespace lowbit

#undef _tile_loadconfig
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_release
#define _tile_loadconfig model_loadconfig
#define _tile_zero model_zero
#define _tile_loadd model_loadd
#define _tile_stored model_stored
#define _tile_dpbusd model_dpbusd
#define _tile_release() static_cast<void>(0)

#include "amx_pixels.h"

namespace lowbit {

extern const PixelCore amxmodel_pixel_core;
const PixelCore amxmodel_pixel_core =
    pixel_core("amxmodel", 16, amx_product, 16, {16, 1, 30}, pack_depthwise_in_order, depthwise_in_order);

}  // namespace lowbit
