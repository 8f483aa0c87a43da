#include "lanes_impl.h"

namespace lowbit {

extern const LaneOps lanes_portable;
const LaneOps lanes_portable = LOWBIT_LANE_OPS("portable");

}  // namespace lowbit
