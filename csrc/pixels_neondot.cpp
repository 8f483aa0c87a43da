#include "neon_pixels.h"

namespace lowbit {

extern const PixelCore neondot_pixel_core;
const PixelCore neondot_pixel_core =
    pixel_core("neondot", 4, product<Neon>, Neon::most_pixels, {1, 50, 60, true}, pack_depthwise_in_order, depthwise_in_order);

}  // namespace lowbit
