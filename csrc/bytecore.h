// Products of unsigned and signed bytes, accumulated exactly in 32 bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

struct ByteCore {
  const char* name;  // "avx512vnni", "avx512", "avx2", "neondot", "neon", "portable"

  // B, K × N signed bytes in row-major order (b[k * N + n]), packed for `gemm` of the same core; best at 64-byte alignment.
  std::size_t (*packed_size)(int K, int N);
  void (*pack)(const std::int8_t* b, int K, int N, std::uint8_t* packed);

  // Bytes that a row of A must offer for reading (K rounded up; the bytes after K may hold anything).
  std::size_t (*row_size)(int K);

  // c[m * ldc + n] = Σ_k a[m * lda + k] · b[k * N + n], exact for every input (|sum| < 2^31).
  void (*gemm)(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed, int K, int N, std::int32_t* c,
               std::size_t ldc);
};

const ByteCore* const* byte_cores(int* count);

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
