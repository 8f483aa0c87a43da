#include "pixels_impl.h"

namespace lowbit {
namespace {

struct Plain {
  using Int = Ints;
  using Weights = const std::uint8_t*;
  static constexpr int lanes = lanes_wide, most_pixels = 2;
  static constexpr bool chained = false;
  static Int zero() { return Int{}; }
  static void store(void* p, Int x) { std::memcpy(p, &x, sizeof x); }
  static Weights weights(const std::uint8_t* p) { return p; }
  static std::int32_t codes(std::int32_t quad, bool) { return quad; }
  static void dot(Int& sum, std::int32_t quad, Weights w) {
    std::uint8_t x[4];
    std::memcpy(x, &quad, 4);
    for (int lane = 0; lane < lanes; ++lane)
      for (int i = 0; i < 4; ++i) sum[lane] += x[i] * static_cast<std::int8_t>(w[4 * lane + i]);
  }
};

}  // namespace

extern const PixelCore portable_pixel_core;
const PixelCore portable_pixel_core =
    pixel_core("portable", lanes_wide, product<Plain>, Plain::most_pixels, {1, 2, 30}, pack_depthwise_in_order,
               depthwise_in_order);

}  // namespace lowbit
