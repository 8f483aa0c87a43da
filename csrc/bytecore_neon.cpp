// Byte products on 64-bit ARM: with the dot-product instructions (ARMv8.2) and without.
#include <arm_neon.h>

#include "bytecore_impl.h"

#if defined(__clang__)
#define LOWBIT_DOTPROD __attribute__((target("dotprod")))
#else
#define LOWBIT_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define LOWBIT_INLINE inline __attribute__((always_inline))

namespace lowbit {
namespace {

constexpr int kColumns = 16;  // of a tile

template <int Rows>
LOWBIT_INLINE void store_rows(const int32x4_t (&sums)[Rows][4], std::int32_t* c, std::size_t ldc, int columns) {
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    std::int32_t* row = c + static_cast<std::size_t>(r) * ldc;
    if (columns == kColumns) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) vst1q_s32(row + 4 * v, sums[r][v]);
    } else {
      std::int32_t whole[kColumns];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) vst1q_s32(whole + 4 * v, sums[r][v]);
      std::memcpy(row, whole, sizeof(whole[0]) * static_cast<std::size_t>(columns));
    }
  }
}

// Tiles of at most `Rows` rows and 16 columns; a packed group of 16 columns has `group_bytes`.
using Tile = void (*)(const std::uint8_t* a, std::size_t lda, const std::uint8_t* b, int blocks, std::int32_t* c,
                      std::size_t ldc, int columns);

void tiles(const Tile* by_rows, int largest, const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed,
           std::size_t group_bytes, int blocks, int N, std::int32_t* c, std::size_t ldc) {
  if (M <= 0) return;
  const int count = ceil_div(M, largest);
  for (int n = 0; n < N; n += kColumns, packed += group_bytes) {
    const int columns = N - n < kColumns ? N - n : kColumns;
    for (int i = 0; i < count; ++i) {
      const int from = static_cast<int>(static_cast<std::int64_t>(M) * i / count);
      const int to = static_cast<int>(static_cast<std::int64_t>(M) * (i + 1) / count);
      by_rows[to - from - 1](a + static_cast<std::size_t>(from) * lda, lda, packed, blocks,
                             c + static_cast<std::size_t>(from) * ldc + n, ldc, columns);
    }
  }
}

// With dot products of signed bytes: a is read as a − 128, and 128 times the sum of each column of B, which is packed
// in front of its group, makes up for it. Groups: int32[16], then [K / 4][16][4] bytes, K rounded up to 16.
namespace dot {

constexpr std::size_t kHeader = kColumns * sizeof(std::int32_t);

std::size_t row_size(int K) { return round_up(static_cast<std::size_t>(K), 16); }

std::size_t group_bytes(int K) { return kHeader + kColumns * row_size(K); }

std::size_t packed_size(int K, int N) { return group_bytes(K) * static_cast<std::size_t>(ceil_div(N, kColumns)); }

void pack(const std::int8_t* b, int K, int N, std::uint8_t* packed) {
  std::memset(packed, 0, packed_size(K, N));
  for (int n = 0; n < N; ++n) {
    std::uint8_t* group = packed + group_bytes(K) * static_cast<std::size_t>(n / kColumns);
    std::uint32_t sum = 0;
    for (int k = 0; k < K; ++k) {
      const std::int8_t value = b[static_cast<std::size_t>(k) * N + n];
      sum += static_cast<std::uint32_t>(static_cast<std::int32_t>(value));
      group[kHeader + (static_cast<std::size_t>(k / 4) * kColumns + n % kColumns) * 4 + k % 4] =
          static_cast<std::uint8_t>(value);
    }
    sum *= 128;
    std::memcpy(group + sizeof(sum) * static_cast<std::size_t>(n % kColumns), &sum, sizeof(sum));
  }
}

template <int Quad, int Rows>
LOWBIT_DOTPROD LOWBIT_INLINE void step(int32x4_t (&sums)[Rows][4], const int8x16_t (&x)[Rows], const std::uint8_t* b) {
  int8x16_t weights[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) weights[v] = vreinterpretq_s8_u8(vld1q_u8(b + (Quad * 4 + v) * 16));
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[r][v] = vdotq_laneq_s32(sums[r][v], weights[v], x[r], Quad);
  }
}

template <int Rows>
LOWBIT_DOTPROD void tile(const std::uint8_t* a, std::size_t lda, const std::uint8_t* b, int blocks, std::int32_t* c,
                         std::size_t ldc, int columns) {
  int32x4_t sums[Rows][4];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[r][v] = vreinterpretq_s32_u8(vld1q_u8(b + 16 * v));
  }
  b += kHeader;
  for (int i = 0; i < blocks; ++i, a += 16, b += 16 * kColumns) {
    int8x16_t x[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      x[r] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(a + static_cast<std::size_t>(r) * lda), vdupq_n_u8(0x80)));
    }
    step<0>(sums, x, b);
    step<1>(sums, x, b);
    step<2>(sums, x, b);
    step<3>(sums, x, b);
  }
  store_rows(sums, c, ldc, columns);
}

void gemm(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed, int K, int N, std::int32_t* c,
          std::size_t ldc) {
  static constexpr Tile by_rows[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>};
  tiles(by_rows, 5, a, lda, M, packed, group_bytes(K), ceil_div(K, 16), N, c, ldc);
}

}  // namespace dot

// Without: both factors widened to 16 bits. Groups: [K][16] bytes, K rounded up to 8.
namespace plain {

std::size_t row_size(int K) { return round_up(static_cast<std::size_t>(K), 8); }

std::size_t group_bytes(int K) { return kColumns * row_size(K); }

std::size_t packed_size(int K, int N) { return group_bytes(K) * static_cast<std::size_t>(ceil_div(N, kColumns)); }

void pack(const std::int8_t* b, int K, int N, std::uint8_t* packed) {
  std::memset(packed, 0, packed_size(K, N));
  for (int n = 0; n < N; ++n) {
    std::uint8_t* group = packed + group_bytes(K) * static_cast<std::size_t>(n / kColumns);
    for (int k = 0; k < K; ++k) {
      group[k * kColumns + n % kColumns] = static_cast<std::uint8_t>(b[static_cast<std::size_t>(k) * N + n]);
    }
  }
}

template <int Lane, int Rows>
LOWBIT_INLINE void step(int32x4_t (&sums)[Rows][4], const int16x8_t (&x)[Rows], const std::uint8_t* b) {
  const int8x16_t weights = vreinterpretq_s8_u8(vld1q_u8(b + Lane * kColumns));
  const int16x8_t low = vmovl_s8(vget_low_s8(weights));
  const int16x8_t high = vmovl_high_s8(weights);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    sums[r][0] = vmlal_laneq_s16(sums[r][0], vget_low_s16(low), x[r], Lane);
    sums[r][1] = vmlal_high_laneq_s16(sums[r][1], low, x[r], Lane);
    sums[r][2] = vmlal_laneq_s16(sums[r][2], vget_low_s16(high), x[r], Lane);
    sums[r][3] = vmlal_high_laneq_s16(sums[r][3], high, x[r], Lane);
  }
}

template <int Rows>
void tile(const std::uint8_t* a, std::size_t lda, const std::uint8_t* b, int blocks, std::int32_t* c, std::size_t ldc,
          int columns) {
  int32x4_t sums[Rows][4];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[r][v] = vdupq_n_s32(0);
  }
  for (int i = 0; i < blocks; ++i, a += 8, b += 8 * kColumns) {
    int16x8_t x[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      x[r] = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(a + static_cast<std::size_t>(r) * lda)));
    }
    step<0>(sums, x, b);
    step<1>(sums, x, b);
    step<2>(sums, x, b);
    step<3>(sums, x, b);
    step<4>(sums, x, b);
    step<5>(sums, x, b);
    step<6>(sums, x, b);
    step<7>(sums, x, b);
  }
  store_rows(sums, c, ldc, columns);
}

void gemm(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed, int K, int N, std::int32_t* c,
          std::size_t ldc) {
  static constexpr Tile by_rows[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>};
  tiles(by_rows, 5, a, lda, M, packed, group_bytes(K), ceil_div(K, 8), N, c, ldc);
}

}  // namespace plain
}  // namespace

const ByteCore neondot_byte_core = {"neondot", dot::packed_size, dot::pack, dot::row_size, dot::gemm};
const ByteCore neon_byte_core = {"neon", plain::packed_size, plain::pack, plain::row_size, plain::gemm};

}  // namespace lowbit
