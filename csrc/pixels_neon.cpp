#include "neon_pixels.h"

namespace lowbit {

extern const PixelCore neon_pixel_core;
const PixelCore neon_pixel_core =
    LOWBIT_PIXEL_CORE("neon", Neon, true, pack_depthwise_in_order, depthwise_in_order);

}  // namespace lowbit
