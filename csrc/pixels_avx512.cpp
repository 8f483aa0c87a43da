#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms in GCC's own immintrin.h
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "pixels_x86.h"

namespace lowbit {

extern const PixelCore avx512_pixel_core;
const PixelCore avx512_pixel_core =
    pixel_core("avx512", 16, product<Chained>, Chained::most_pixels, {1, 40, 175}, pack_depthwise_in_order,
               depthwise_in_order);

}  // namespace lowbit
