#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms in GCC's own immintrin.h
#endif
#include "lanes_impl.h"

namespace lowbit {

extern const LaneOps lanes_avx512;
const LaneOps lanes_avx512 = LOWBIT_LANE_OPS("avx512");

}  // namespace lowbit
