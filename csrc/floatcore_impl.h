// The float cores, and the frame that they share: the packed form of few-bit weights and the loops over it.
//
// All the code is in an anonymous namespace, so that every instruction set has its own copy.
// A file may define LOWBIT_FLOAT_TARGET, function attributes for the code below, before it includes this one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "floatcore.h"

#ifndef LOWBIT_FLOAT_TARGET
#define LOWBIT_FLOAT_TARGET
#endif
#define LOWBIT_FLOAT_INLINE LOWBIT_FLOAT_TARGET inline __attribute__((always_inline))

namespace lowbit {

extern const FloatCore avx512_float_core;
extern const FloatCore avx2_float_core;
extern const FloatCore neon_float_core;
extern const FloatCore portable_float_core;

namespace {

// A unit of `depth` successive k is held by `words` 32-bit words per output. Weight j of a unit takes the bits from
// bits · j upwards; with 3 bits, ten weights to a word, weights 30 and 31 take what is left of the three words.
template <int Bits>
struct Unit {
  static constexpr int depth = Bits == 3 ? 32 : 32 / Bits;
  static constexpr int words = Bits == 3 ? 3 : 1;
};

// A sum runs over one block of k after the other, so that blocks of x (or tables made of it) stay in the first-level
// cache. The blocks also fix the order of every sum, whatever M, N and the vectors are.
template <int Bits>
constexpr int kBlock = Bits == 1 ? 128 : 64;

constexpr int units_of(int k, int depth) { return (k + depth - 1) / depth; }

// Blocks of k, in them panels of `Lanes` outputs, in them [words][Lanes] words.
template <int Bits, int Lanes>
struct Weights {
  static constexpr int block_words = kBlock<Bits> / Unit<Bits>::depth * Unit<Bits>::words;
  static constexpr std::size_t kVector = Lanes * sizeof(std::uint32_t);

  static std::size_t panels(int N) { return static_cast<std::size_t>((N + Lanes - 1) / Lanes); }

  static int words(int k) { return units_of(k, Unit<Bits>::depth) * Unit<Bits>::words; }

  static std::size_t packed_size(int K, int N) {
    return panels(N) * kVector * static_cast<std::size_t>(words(K));
  }

  // In bytes: panel `panel` of the block that starts at `k`.
  static std::size_t offset(int K, int N, int k, int panel) {
    const int left = K - k < kBlock<Bits> ? K - k : kBlock<Bits>;
    const std::size_t before = static_cast<std::size_t>(k / kBlock<Bits>) * block_words * panels(N);
    return (before + static_cast<std::size_t>(panel) * static_cast<std::size_t>(words(left))) * kVector;
  }

  static void pack(const std::int8_t* q, int K, int N, int low, int step, std::uint8_t* packed) {
    std::memset(packed, 0, packed_size(K, N));
    for (int n = 0; n < N; ++n) {
      for (int k = 0; k < K; ++k) {
        const int difference = q[static_cast<std::size_t>(n) * K + k] - low;
        const std::uint32_t index = static_cast<std::uint32_t>(step != 0 ? difference / step : 0) & ((1u << Bits) - 1u);
        const int in_block = k % kBlock<Bits>;
        const int j = in_block % Unit<Bits>::depth;
        std::uint8_t* unit = packed + offset(K, N, k - in_block, n / Lanes) +
                             static_cast<std::size_t>(in_block / Unit<Bits>::depth) * Unit<Bits>::words * kVector +
                             sizeof(std::uint32_t) * static_cast<std::size_t>(n % Lanes);
        if (Bits != 3) {
          put(unit, 0, index << (Bits * j));
        } else if (j < 30) {
          put(unit, j / 10, index << (3 * (j % 10)));
        } else {
          put(unit, j - 30, index << 30);
          put(unit, 2, (index >> 2) << j);
        }
      }
    }
  }

 private:
  static void put(std::uint8_t* unit, int word, std::uint32_t bits) {
    std::uint8_t* at = unit + kVector * static_cast<std::size_t>(word);
    std::uint32_t value;
    std::memcpy(&value, at, sizeof(value));
    value |= bits;
    std::memcpy(at, &value, sizeof(value));
  }
};

struct Levels {
  int low, step;
  alignas(64) float values[16];       // level i modulo 2^bits
  alignas(64) float patterns[4][16];  // level of member j of the group of weights whose bits are i
};

struct Panel {
  const std::uint8_t* weights;
  std::size_t stride;  // bytes from one vector of outputs to the next
  int units;
  const float* x;  // of direct methods: [k][rows]; of those with tables: [group][rows][table]
  float* y;
  std::size_t ldy;
  int rows;     // rows of y that exist
  int columns;  // columns of y that exist
  bool add;
};

// `Isa` describes an instruction set:
//   lanes, Int, Float; zero, load, load_words, load_some, store, store_some, broadcast, add, multiply_add
//   rows, vectors_*    rows at a time, and vectors of outputs for that many, for 4, and for 1 or 2 rows
//   settle(x)          nothing, but the compiler must have computed x by then
//   table              entries of a table, for `pick`
//   group<Bits>()      1: weights become levels, which are multiplied by x. More: so many weights at a time choose
//                      among the sums that x can form with them, which a table holds
//   field<Bits, F>(w)  field F (group · Bits bits) of a unit, in the low bits
//   level<Bits, F>(field, constants), pick(field, table)
template <class Isa, int Bits, int Rows, int Vectors, int F>
LOWBIT_FLOAT_INLINE void fields(const typename Isa::Int (&words)[Vectors][Unit<Bits>::words],
                                const typename Isa::template Constants<Bits>& constants, const float* x,
                                typename Isa::Float (&sums)[Rows][Vectors]) {
  constexpr int group = Isa::template group<Bits>();
  if constexpr (group > 1) {
    typename Isa::Int index[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) index[v] = Isa::template field<Bits, F>(words[v]);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const typename Isa::Float table = Isa::load(x + (F * Rows + r) * Isa::table);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sums[r][v] = Isa::add(sums[r][v], Isa::pick(index[v], table));
    }
  } else {
    typename Isa::Float level[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      level[v] = Isa::template level<Bits, F>(Isa::template field<Bits, F>(words[v]), constants);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const typename Isa::Float factor = Isa::broadcast(x[F * Rows + r]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sums[r][v] = Isa::multiply_add(factor, level[v], sums[r][v]);
    }
  }
  // Compilers would otherwise look everything up first and keep the results of all fields on the stack.
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) Isa::settle(sums[r][v]);
  }
  asm volatile("" ::: "memory");
  if constexpr (F + 1 < Unit<Bits>::depth / group) fields<Isa, Bits, Rows, Vectors, F + 1>(words, constants, x, sums);
}

template <class Isa, int Bits, int Rows, int Vectors>
LOWBIT_FLOAT_TARGET __attribute__((noinline)) void panel_product(const Panel& p, const Levels& levels) {
  using Float = typename Isa::Float;
  constexpr int words = Unit<Bits>::words;
  constexpr int group = Isa::template group<Bits>();
  constexpr int x_step = Unit<Bits>::depth / group * Rows * (group > 1 ? Isa::table : 1);
  const typename Isa::template Constants<Bits> constants(levels);
  Float sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sums[r][v] = Isa::zero();
  }
  const float* x = p.x;
  constexpr int bytes = Isa::lanes * static_cast<int>(sizeof(std::uint32_t));
  const std::uint8_t* w = p.weights;
  const std::size_t stride = p.stride;
  for (int unit = 0; unit < p.units; ++unit, w += words * bytes, x += x_step) {
    typename Isa::Int loaded[Vectors][words];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
#pragma GCC unroll 4
      for (int i = 0; i < words; ++i) {
        loaded[v][i] = Isa::load_words(w + v * stride + i * bytes);
        // Two groups of panels ahead: the processor's own prefetching starts anew with every panel.
        __builtin_prefetch(w + (v + 2 * Vectors) * stride + i * bytes);
      }
    }
    fields<Isa, Bits, Rows, Vectors, 0>(loaded, constants, x, sums);
  }
  const int last = p.columns - (Vectors - 1) * Isa::lanes;
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    if (r >= p.rows) break;
    float* y = p.y + static_cast<std::size_t>(r) * p.ldy;
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      float* out = y + v * Isa::lanes;
      if (v + 1 < Vectors || last >= Isa::lanes) {
        Isa::store(out, p.add ? Isa::add(Isa::load(out), sums[r][v]) : sums[r][v]);
      } else {
        Isa::store_some(out, last, p.add ? Isa::add(Isa::load_some(out, last), sums[r][v]) : sums[r][v]);
      }
    }
  }
}

// What panel_product reads in the place of x: rows first to last, k from `from`, zero beyond K.
template <class Isa, int Bits, int Rows>
LOWBIT_FLOAT_TARGET inline void prepare(const float* const* rows, int from, int length, const Levels& levels,
                                        float* out) {
  constexpr int group = Isa::template group<Bits>();
  const int padded = units_of(length, Unit<Bits>::depth) * Unit<Bits>::depth;
  for (int k = 0; k < padded; k += group) {
    for (int r = 0; r < Rows; ++r) {
      const float* x = rows[r] + from + k;
      if constexpr (group > 1) {
        float* table = out + (k / group * Rows + r) * Isa::table;
        for (int i = 0; i < Isa::table; i += Isa::lanes) {
          typename Isa::Float sum = Isa::zero();
#pragma GCC unroll 4
          for (int j = 0; j < group; ++j) {
            const float factor = k + j < length ? x[j] : 0.0f;
            sum = Isa::multiply_add(Isa::broadcast(factor), Isa::load(levels.patterns[j] + i), sum);
          }
          Isa::store(table + i, sum);
        }
      } else {
        out[k * Rows + r] = k < length ? *x : 0.0f;
      }
    }
  }
}

template <class Isa, int Bits, int Rows, int Vectors>
LOWBIT_FLOAT_TARGET void rows_product(const float* x, std::size_t ldx, int M, const std::uint8_t* packed, int K, int N,
                                      const Levels& levels, float* y, std::size_t ldy) {
  constexpr int group = Isa::template group<Bits>();
  constexpr int width = Vectors * Isa::lanes;
  using Packed = Weights<Bits, Isa::lanes>;
  alignas(64) float prepared[kBlock<Bits> / group * Rows * (group > 1 ? Isa::table : 1)];
  // Rows that are wanting repeat the last one; their sums are not stored.
  const float* rows[Rows];
  for (int r = 0; r < Rows; ++r) rows[r] = x + static_cast<std::size_t>(r < M ? r : M - 1) * ldx;
  for (int k = 0; k < K; k += kBlock<Bits>) {
    const int length = K - k < kBlock<Bits> ? K - k : kBlock<Bits>;
    prepare<Isa, Bits, Rows>(rows, k, length, levels, prepared);
    Panel p{packed + Packed::offset(K, N, k, 0),
            static_cast<std::size_t>(Packed::words(length)) * Packed::kVector,
            units_of(length, Unit<Bits>::depth),
            prepared,
            y,
            ldy,
            M < Rows ? M : Rows,
            width,
            k > 0};
    int n = 0;
    for (; n + width <= N; n += width, p.weights += Vectors * p.stride, p.y += width) {
      panel_product<Isa, Bits, Rows, Vectors>(p, levels);
    }
    for (; n < N; n += Isa::lanes, p.weights += p.stride, p.y += Isa::lanes) {
      p.columns = N - n;
      panel_product<Isa, Bits, Rows, 1>(p, levels);
    }
  }
}

template <class Isa, int Bits>
LOWBIT_FLOAT_TARGET void linear_bits(const float* x, std::size_t ldx, int M, const std::uint8_t* packed, int K, int N,
                                     int low, int step, const float* unit, const float* bias, float* y,
                                     std::size_t ldy) {
  constexpr int group = Isa::template group<Bits>();
  Levels levels;
  levels.low = low;
  levels.step = step;
  for (int i = 0; i < 16; ++i) {
    levels.values[i] = static_cast<float>(low + step * (i & ((1 << Bits) - 1)));
    for (int j = 0; j < group; ++j) {
      levels.patterns[j][i] = static_cast<float>(low + step * ((i >> (Bits * j)) & ((1 << Bits) - 1)));
    }
  }
  for (int m = 0; m < M;) {
    const float* rows = x + static_cast<std::size_t>(m) * ldx;
    float* out = y + static_cast<std::size_t>(m) * ldy;
    const int left = M - m;
    if (Isa::rows > 4 && left > 4) {
      rows_product<Isa, Bits, Isa::rows, Isa::vectors_many>(rows, ldx, left, packed, K, N, levels, out, ldy);
      m += Isa::rows;
    } else if (left > 2) {
      rows_product<Isa, Bits, 4, Isa::vectors4>(rows, ldx, left, packed, K, N, levels, out, ldy);
      m += 4;
    } else if (left > 1) {
      rows_product<Isa, Bits, 2, Isa::vectors_few>(rows, ldx, left, packed, K, N, levels, out, ldy);
      m += 2;
    } else {
      rows_product<Isa, Bits, 1, Isa::vectors_few>(rows, ldx, left, packed, K, N, levels, out, ldy);
      m += 1;
    }
  }
  for (int m = 0; m < M; ++m) {
    float* out = y + static_cast<std::size_t>(m) * ldy;
    if (K <= 0) std::memset(out, 0, sizeof(float) * static_cast<std::size_t>(N));
    if (bias != nullptr) {
      for (int n = 0; n < N; ++n) out[n] = out[n] * unit[n] + bias[n];
    } else {
      for (int n = 0; n < N; ++n) out[n] *= unit[n];
    }
  }
}

template <class Isa>
struct Core {
  static std::size_t packed_size(int K, int N, int bits) {
    switch (bits) {
      case 1: return Weights<1, Isa::lanes>::packed_size(K, N);
      case 2: return Weights<2, Isa::lanes>::packed_size(K, N);
      case 3: return Weights<3, Isa::lanes>::packed_size(K, N);
      default: return Weights<4, Isa::lanes>::packed_size(K, N);
    }
  }

  static void pack(const std::int8_t* q, int K, int N, int bits, int low, int step, std::uint8_t* packed) {
    switch (bits) {
      case 1: Weights<1, Isa::lanes>::pack(q, K, N, low, step, packed); break;
      case 2: Weights<2, Isa::lanes>::pack(q, K, N, low, step, packed); break;
      case 3: Weights<3, Isa::lanes>::pack(q, K, N, low, step, packed); break;
      default: Weights<4, Isa::lanes>::pack(q, K, N, low, step, packed); break;
    }
  }

  LOWBIT_FLOAT_TARGET static void linear(const float* x, std::size_t ldx, int M, const std::uint8_t* packed, int K,
                                         int N, int bits, int low, int step, const float* unit, const float* bias,
                                         float* y, std::size_t ldy) {
    switch (bits) {
      case 1: linear_bits<Isa, 1>(x, ldx, M, packed, K, N, low, step, unit, bias, y, ldy); break;
      case 2: linear_bits<Isa, 2>(x, ldx, M, packed, K, N, low, step, unit, bias, y, ldy); break;
      case 3: linear_bits<Isa, 3>(x, ldx, M, packed, K, N, low, step, unit, bias, y, ldy); break;
      default: linear_bits<Isa, 4>(x, ldx, M, packed, K, N, low, step, unit, bias, y, ldy); break;
    }
  }
};

}  // namespace
}  // namespace lowbit
