#include "neon_pixels.h"

namespace lowbit {

extern const PixelCore neon_pixel_core;
const PixelCore neon_pixel_core =
    pixel_core("neon", 4, product<Neon>, Neon::most_pixels, {1, 16, 60, true}, pack_depthwise_in_order, depthwise_in_order);

}  // namespace lowbit
