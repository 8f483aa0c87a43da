// Few-bit weights times floats.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// Few-bit weights times floats, for linear layers:
//   y[m * ldy + n] = unit[n] · Σ_k x[m * ldx + k] · q[n * K + k] + bias[n].
struct FloatCore {
  const char* name;  // "avx512", "avx2", "neon", "portable"

  // q[n * K + k] are integers low + step·i, 0 ≤ i < 2^bits, bits 1 to 4, stored in `bits` bits each (padding per row).
  std::size_t (*packed_size)(int K, int N, int bits);
  void (*pack)(const std::int8_t* q, int K, int N, int bits, int low, int step, std::uint8_t* packed);
  void (*linear)(const float* x, std::size_t ldx, int M, const std::uint8_t* packed, int K, int N, int bits, int low,
                 int step, const float* unit, const float* bias, float* y, std::size_t ldy);  // bias may be null
};

const FloatCore* const* float_cores(int* count);

}  // namespace lowbit
