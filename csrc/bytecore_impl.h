// The frame that the byte cores of x86 share: packing, tiling and the three ways of multiplying.
//
// Everything here is in an anonymous namespace on purpose: each instruction set must get a copy compiled for itself, and
// the linker must never choose one of these copies for a file that runs on older processors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bytecore.h"

namespace lowbit {
namespace {

constexpr int kGroup = 4;  // vectors of columns that a tile covers

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

inline std::size_t round_up(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

// Columns of B in vectors of `Lanes`, the vectors in groups of kGroup (the last group may be smaller):
//   int32 bound[groups], padded to 64 bytes, then for each group [ceil(K / 4)][vectors][Lanes][4] bytes.
// A group lies in one piece so that a tile reads a single stream, whatever power of two K may be. The bound of a group is
// the largest magnitude that the positive or the negative members of a pair (b[2i][n], b[2i + 1][n]) add up to.
template <int Lanes>
struct Packing {
  static std::size_t row_size(int K) { return round_up(static_cast<std::size_t>(K), 4); }

  static std::size_t header_size(int N) {
    return round_up(sizeof(std::int32_t) * static_cast<std::size_t>(ceil_div(N, Lanes * kGroup)), 64);
  }

  static std::size_t group_offset(int K, int N, int group) {
    return header_size(N) + static_cast<std::size_t>(group) * kGroup * Lanes * row_size(K);
  }

  static std::size_t packed_size(int K, int N) {
    return header_size(N) + static_cast<std::size_t>(ceil_div(N, Lanes)) * Lanes * row_size(K);
  }

  static std::int32_t bound(const std::uint8_t* packed, int group) {
    std::int32_t value;
    std::memcpy(&value, packed + sizeof(value) * static_cast<std::size_t>(group), sizeof(value));
    return value;
  }

  static void pack(const std::int8_t* b, int K, int N, std::uint8_t* packed) {
    std::memset(packed, 0, packed_size(K, N));
    const int quads = ceil_div(K, 4);
    for (int group = 0; group * kGroup * Lanes < N; ++group) {
      const int first = group * kGroup * Lanes;
      const int columns = N - first < kGroup * Lanes ? N - first : kGroup * Lanes;
      const std::size_t width = static_cast<std::size_t>(ceil_div(columns, Lanes)) * Lanes * 4;
      std::uint8_t* out = packed + group_offset(K, N, group);
      std::int32_t bound = 0;
      for (int quad = 0; quad < quads; ++quad, out += width) {
        for (int pair = 0; pair < 2; ++pair) {
          const int k = 4 * quad + 2 * pair;
          if (k >= K) break;
          const std::int8_t* row = b + static_cast<std::size_t>(k) * N + first;
          const bool two = k + 1 < K;
          for (int n = 0; n < columns; ++n) {
            const int even = row[n];
            const int odd = two ? row[N + n] : 0;
            out[4 * n + 2 * pair] = static_cast<std::uint8_t>(even);
            out[4 * n + 2 * pair + 1] = static_cast<std::uint8_t>(odd);
            const int positive = (even > 0 ? even : 0) + (odd > 0 ? odd : 0);
            const int negative = (even < 0 ? -even : 0) + (odd < 0 ? -odd : 0);
            const int larger = positive > negative ? positive : negative;
            bound = larger > bound ? larger : bound;
          }
        }
      }
      std::memcpy(packed + sizeof(bound) * static_cast<std::size_t>(group), &bound, sizeof(bound));
    }
  }
};

struct TileArguments {
  const std::uint8_t* a;
  std::size_t lda;
  const std::uint8_t* b;
  int quads;
  std::int32_t* c;
  std::size_t ldc;
  int columns;  // columns of the tile that exist
  bool add;     // whether the sums go on top of what c holds
};

using TileFunction = void (*)(const TileArguments&);

template <class V>
inline typename V::Int broadcast_quad(const std::uint8_t* a) {
  std::int32_t quad;
  std::memcpy(&quad, a, sizeof(quad));
  return V::broadcast(quad);
}

// Only the last vector of a tile can be incomplete.
template <class V, int Rows, int Vectors, bool Add, bool Whole>
inline __attribute__((always_inline)) void store_tile_as(std::int32_t* c, std::size_t ldc, int last,
                                                         const typename V::Int (&sums)[Rows][Vectors]) {
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r, c += ldc) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      std::int32_t* out = c + v * V::lanes;
      if (Whole || v + 1 < Vectors) {
        V::store(out, Add ? V::add32(sums[r][v], V::load(out)) : sums[r][v]);
      } else {
        V::store_some(out, last, Add ? V::add32(sums[r][v], V::load_some(out, last)) : sums[r][v]);
      }
    }
  }
}

template <class V, int Rows, int Vectors>
inline __attribute__((always_inline)) void store_tile(const TileArguments& t,
                                                      const typename V::Int (&sums)[Rows][Vectors]) {
  const int last = t.columns - (Vectors - 1) * V::lanes;
  if (last == V::lanes) {
    if (t.add) {
      store_tile_as<V, Rows, Vectors, true, true>(t.c, t.ldc, last, sums);
    } else {
      store_tile_as<V, Rows, Vectors, false, true>(t.c, t.ldc, last, sums);
    }
  } else if (t.add) {
    store_tile_as<V, Rows, Vectors, true, false>(t.c, t.ldc, last, sums);
  } else {
    store_tile_as<V, Rows, Vectors, false, false>(t.c, t.ldc, last, sums);
  }
}

template <class V, int Rows, int Vectors>
inline void clear_tile(typename V::Int (&sums)[Rows][Vectors]) {
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sums[r][v] = V::zero();
  }
}

// One instruction for four products and their sum.
template <class V>
struct Fused {
  static constexpr int rows(int vectors) { return vectors == 4 ? V::rows4 : vectors == 3 ? V::rows3 : V::rows2; }

  template <int Rows, int Vectors>
  static void tile(const TileArguments& t) {
    using Int = typename V::Int;
    Int sums[Rows][Vectors];
    clear_tile<V>(sums);
    const std::uint8_t* a = t.a;
    const std::uint8_t* b = t.b;
    const std::size_t lda = t.lda;
    for (int quad = 0; quad < t.quads; ++quad, a += 4, b += Vectors * V::lanes * 4) {
      Int weights[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) weights[v] = V::load(b + v * V::lanes * 4);
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        const Int x = broadcast_quad<V>(a + r * lda);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sums[r][v] = V::dot(sums[r][v], x, weights[v]);
      }
    }
    store_tile<V>(t, sums);
  }
};

// vpmaddubsw saturates at 16 bits: it is exact only where 255 times the bound of the group fits, and `Chain` of its
// results may be added before they are widened only where 255 · Chain times the bound fits.
template <class V, int Chain>
struct Chained {
  static constexpr int rows(int vectors) { return vectors == 4 ? V::rows4 : vectors == 3 ? V::rows3 : V::rows2; }

  template <int Rows, int Vectors, int Length>
  static inline __attribute__((always_inline)) void step(typename V::Int (&sums)[Rows][Vectors], const std::uint8_t* a,
                                                         std::size_t lda, const std::uint8_t* b) {
    using Int = typename V::Int;
    constexpr int width = Vectors * V::lanes * 4;
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
      Int x[Length];
#pragma GCC unroll 4
      for (int i = 0; i < Length; ++i) x[i] = broadcast_quad<V>(a + r * lda + 4 * i);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        Int pairs = V::pairs(x[0], V::load(b + v * V::lanes * 4));
#pragma GCC unroll 4
        for (int i = 1; i < Length; ++i) {
          pairs = V::add16(pairs, V::pairs(x[i], V::load(b + i * width + v * V::lanes * 4)));
        }
        sums[r][v] = V::add32(sums[r][v], V::widen_add(pairs));
      }
    }
  }

  template <int Rows, int Vectors>
  static void tile(const TileArguments& t) {
    typename V::Int sums[Rows][Vectors];
    clear_tile<V>(sums);
    const std::uint8_t* a = t.a;
    const std::uint8_t* b = t.b;
    constexpr int width = Vectors * V::lanes * 4;
    int quad = 0;
    for (; quad + Chain <= t.quads; quad += Chain, a += 4 * Chain, b += Chain * width) {
      step<Rows, Vectors, Chain>(sums, a, t.lda, b);
    }
    if (Chain > 1) {
      for (; quad < t.quads; ++quad, a += 4, b += width) step<Rows, Vectors, 1>(sums, a, t.lda, b);
    }
    store_tile<V>(t, sums);
  }
};

// Any bytes: both factors widened to 16 bits, the even and the odd members of each quad apart.
template <class V>
struct Widened {
  static constexpr int rows(int vectors) { return vectors >= 3 ? V::wide_rows4 : V::wide_rows2; }

  template <int Rows, int Vectors>
  static void tile(const TileArguments& t) {
    using Int = typename V::Int;
    Int sums[Rows][Vectors];
    clear_tile<V>(sums);
    const std::uint8_t* a = t.a;
    const std::uint8_t* b = t.b;
    const std::size_t lda = t.lda;
    for (int quad = 0; quad < t.quads; ++quad, a += 4, b += Vectors * V::lanes * 4) {
      Int weights[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) weights[v] = V::even_signed(V::load(b + v * V::lanes * 4));
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        const Int x = V::even_unsigned(broadcast_quad<V>(a + r * lda));
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sums[r][v] = V::add32(sums[r][v], V::multiply_add(x, weights[v]));
      }
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) weights[v] = V::odd_signed(V::load(b + v * V::lanes * 4));
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        const Int x = V::odd_unsigned(broadcast_quad<V>(a + r * lda));
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sums[r][v] = V::add32(sums[r][v], V::multiply_add(x, weights[v]));
      }
    }
    store_tile<V>(t, sums);
  }
};

template <class Method, int Vectors, int Rows>
inline void one_tile(const TileArguments& t, int rows) {
  if (rows == Rows) {
    Method::template tile<Rows, Vectors>(t);
  } else if constexpr (Rows > 1) {
    one_tile<Method, Vectors, Rows - 1>(t, rows);
  }
}

template <class Method, int Vectors>
inline void group_rows(TileArguments t, int M) {
  constexpr int largest = Method::rows(Vectors);
  // Tiles of nearly equal height: a last tile of one row would leave the multipliers waiting for each other.
  const int tiles = ceil_div(M, largest);
  const int height = M / tiles;
  const int taller = M % tiles;
  for (int i = 0; i < tiles; ++i) {
    const int rows = height + (i < taller ? 1 : 0);
    one_tile<Method, Vectors, largest>(t, rows);
    t.a += rows * t.lda;
    t.c += rows * t.ldc;
  }
}

// `block` quads of K at a time, so that the part of the group in use stays in the first-level cache.
template <class Method, int Lanes>
inline void group_product(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* group, int columns, int quads,
                          int block, std::int32_t* c, std::size_t ldc) {
  const int vectors = ceil_div(columns, Lanes);
  const int blocks = quads > 0 ? ceil_div(quads, block) : 1;
  int from = 0;
  for (int i = 0; i < blocks; ++i) {
    const int to = static_cast<int>(static_cast<std::int64_t>(quads) * (i + 1) / blocks);
    const TileArguments t{a + 4 * static_cast<std::size_t>(from),
                          lda,
                          group + static_cast<std::size_t>(from) * vectors * Lanes * 4,
                          to - from,
                          c,
                          ldc,
                          columns,
                          i > 0};
    switch (vectors) {
      case 1: group_rows<Method, 1>(t, M); break;
      case 2: group_rows<Method, 2>(t, M); break;
      case 3: group_rows<Method, 3>(t, M); break;
      default: group_rows<Method, 4>(t, M); break;
    }
    from = to;
  }
}

}  // namespace
}  // namespace lowbit
