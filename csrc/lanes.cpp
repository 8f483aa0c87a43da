#include "lanes.h"

namespace lowbit {

extern const LaneOps lanes_portable;
#if defined(__x86_64__)
extern const LaneOps lanes_avx2, lanes_avx512;
#endif

const LaneOps* const* all_lane_ops(int* count) {
  static const LaneOps* found[3];
  static const int number = [] {
    int n = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found[n++] = &lanes_avx512;
    if (__builtin_cpu_supports("avx2")) found[n++] = &lanes_avx2;
#endif
    found[n++] = &lanes_portable;
    return n;
  }();
  *count = number;
  return found;
}

const LaneOps& lane_ops() {
  int count;
  return *all_lane_ops(&count)[0];
}

}  // namespace lowbit
