#include "lanes_impl.h"

namespace lowbit {

extern const LaneOps lanes_avx512;
const LaneOps lanes_avx512 = LOWBIT_LANE_OPS("avx512");

}  // namespace lowbit
