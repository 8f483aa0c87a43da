#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms in GCC's own immintrin.h
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "pixels_x86.h"

namespace lowbit {

extern const PixelCore avx2_pixel_core;
const PixelCore avx2_pixel_core =
    pixel_core("avx2", 8, product<Chained>, Chained::most_pixels, {1, 27, 90}, pack_depthwise_in_order, depthwise_in_order);

}  // namespace lowbit
