#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms in GCC's own immintrin.h
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "amx_pixels.h"
#include "vnni_pixels.h"

namespace lowbit {

extern const PixelCore amx_pixel_core;
const PixelCore amx_pixel_core =
    pixel_core("amx", 16, amx_product, 16, {16, 800, 500}, pack_depthwise_by_quads, depthwise_by_quads);

}  // namespace lowbit
