#include "neon_pixels.h"

namespace lowbit {

extern const PixelCore neondot_pixel_core;
const PixelCore neondot_pixel_core =
    LOWBIT_PIXEL_CORE("neondot", Neon, true, pack_depthwise_in_order, depthwise_in_order);

}  // namespace lowbit
