#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms in GCC's own immintrin.h
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "vnni_pixels.h"

namespace lowbit {

extern const PixelCore avx512vpopcntdq_pixel_core;
const PixelCore avx512vpopcntdq_pixel_core =
    pixel_core("avx512vpopcntdq", 16, product<Vnni>, Vnni::most_pixels, {1, 100, 500}, pack_depthwise_by_quads, depthwise_by_quads);

}  // namespace lowbit
