#include "lanes_impl.h"

namespace lowbit {

extern const LaneOps lanes_avx2;
const LaneOps lanes_avx2 = LOWBIT_LANE_OPS("avx2");

}  // namespace lowbit
