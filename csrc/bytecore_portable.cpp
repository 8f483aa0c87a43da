// Byte products for any processor: dot products of 16-bit numbers, which compilers know how to vectorise.
#include "bytecore_impl.h"

namespace lowbit {
namespace {

constexpr int kRows = 4;
constexpr int kChunk = 512;  // of K; short enough for the sums of a chunk never to leave 32 bits

std::size_t padded(int K) { return round_up(static_cast<std::size_t>(K), 8); }

std::size_t row_size(int K) { return static_cast<std::size_t>(K); }

std::size_t packed_size(int K, int N) { return padded(K) * static_cast<std::size_t>(N) * sizeof(std::int16_t); }

// [N][K], widened; through memcpy, because the caller's bytes may lie anywhere.
void pack(const std::int8_t* b, int K, int N, std::uint8_t* packed) {
  std::memset(packed, 0, packed_size(K, N));
  for (int n = 0; n < N; ++n) {
    std::uint8_t* column = packed + padded(K) * sizeof(std::int16_t) * static_cast<std::size_t>(n);
    for (int k = 0; k < K; ++k) {
      const std::int16_t value = b[static_cast<std::size_t>(k) * N + n];
      std::memcpy(column + sizeof(value) * static_cast<std::size_t>(k), &value, sizeof(value));
    }
  }
}

void chunk_product(const std::int16_t (*a)[kChunk], int rows, int length, const std::uint8_t* packed,
                   std::size_t column_bytes, int N, bool add, std::int32_t* c, std::size_t ldc) {
  for (int n = 0; n < N; ++n) {
    std::int16_t b[kChunk];
    std::memcpy(b, packed + column_bytes * static_cast<std::size_t>(n),
                sizeof(b[0]) * static_cast<std::size_t>(length));
    std::int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (int k = 0; k < length; ++k) {
      s0 += static_cast<std::int32_t>(a[0][k]) * static_cast<std::int32_t>(b[k]);
      s1 += static_cast<std::int32_t>(a[1][k]) * static_cast<std::int32_t>(b[k]);
      s2 += static_cast<std::int32_t>(a[2][k]) * static_cast<std::int32_t>(b[k]);
      s3 += static_cast<std::int32_t>(a[3][k]) * static_cast<std::int32_t>(b[k]);
    }
    const std::int32_t sums[kRows] = {s0, s1, s2, s3};
    for (int r = 0; r < rows; ++r) {
      std::int32_t& out = c[static_cast<std::size_t>(r) * ldc + n];
      // Unsigned: partial sums may wrap where the whole one does not.
      const std::uint32_t before = add ? static_cast<std::uint32_t>(out) : 0u;
      out = static_cast<std::int32_t>(before + static_cast<std::uint32_t>(sums[r]));
    }
  }
}

void gemm(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed, int K, int N, std::int32_t* c,
          std::size_t ldc) {
  const std::size_t column_bytes = padded(K) * sizeof(std::int16_t);
  for (int m = 0; m < M; m += kRows) {
    const int rows = M - m < kRows ? M - m : kRows;
    int k = 0;
    do {
      std::int16_t wide[kRows][kChunk];
      const int length = K - k < kChunk ? K - k : kChunk;
      for (int r = 0; r < kRows; ++r) {  // rows that are wanting repeat the last one
        const std::uint8_t* row = a + static_cast<std::size_t>(m + (r < rows ? r : rows - 1)) * lda + k;
        for (int i = 0; i < length; ++i) wide[r][i] = row[i];
      }
      const std::uint8_t* b = packed + sizeof(std::int16_t) * static_cast<std::size_t>(k);
      std::int32_t* out = c + static_cast<std::size_t>(m) * ldc;
      chunk_product(wide, rows, length, b, column_bytes, N, k > 0, out, ldc);
      k += kChunk;
    } while (k < K);
  }
}

}  // namespace

const ByteCore portable_byte_core = {"portable", packed_size, pack, row_size, gemm};

}  // namespace lowbit
