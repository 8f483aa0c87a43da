// The byte cores, and the frame that those of x86 share: packing, tiling and the three ways of multiplying.
//
// All the code here is in an anonymous namespace on purpose: each instruction set must get a copy compiled for itself,
// and the linker must never choose one of these copies for a file that runs on older processors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "bytecore.h"

namespace lowbit {

extern const ByteCore avx512vnni_byte_core;
extern const ByteCore avx512_byte_core;
extern const ByteCore avx2_byte_core;
extern const ByteCore neondot_byte_core;
extern const ByteCore neon_byte_core;
extern const ByteCore portable_byte_core;

namespace {

constexpr int kGroup = 4;  // vectors of columns that a tile covers

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

inline std::size_t round_up(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

// Columns of B in vectors of `Lanes`, the vectors in groups of kGroup (the last group may be smaller):
//   int32 bound[groups], padded to 64 bytes, then for each group [ceil(K / 4)][vectors][Lanes][4] bytes.
// A group lies in one piece so that a tile reads a single stream, whatever power of two K may be. The bound of a group
// is the largest magnitude that the positive or the negative members of a pair (b[2i][n], b[2i + 1][n]) add up to.
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

  static void pack(const std::int8_t* b, int K, int N, std::uint8_t* packed) { pack_bounded<true>(b, K, N, packed); }

  // Without the bounds, for cores that do not ask for them.
  static void pack_only(const std::int8_t* b, int K, int N, std::uint8_t* packed) {
    pack_bounded<false>(b, K, N, packed);
  }

  template <bool Bounded>
  static void pack_bounded(const std::int8_t* b, int K, int N, std::uint8_t* packed) {
    std::memset(packed, 0, header_size(N));
    const int quads = ceil_div(K, 4);
    const std::size_t stride = static_cast<std::size_t>(N);
    for (int group = 0; group * kGroup * Lanes < N; ++group) {
      const int first = group * kGroup * Lanes;
      const int columns = N - first < kGroup * Lanes ? N - first : kGroup * Lanes;
      const std::size_t width = static_cast<std::size_t>(ceil_div(columns, Lanes)) * Lanes * 4;
      std::uint8_t* out = packed + group_offset(K, N, group);
      std::int32_t bound = 0;
      for (int quad = 0; quad < quads; ++quad, out += width) {
        std::int8_t padded[4][kGroup * Lanes];
        const std::int8_t* rows[4];
        for (int i = 0; i < 4; ++i) {
          const int k = 4 * quad + i;
          rows[i] = b + static_cast<std::size_t>(k) * stride + first;
          if (k < K && columns == kGroup * Lanes) continue;
          std::memset(padded[i], 0, sizeof padded[i]);
          if (k < K) std::memcpy(padded[i], rows[i], static_cast<std::size_t>(columns));
          rows[i] = padded[i];
        }
        interleave(rows, static_cast<int>(width / 4), out);
        if (Bounded) {
          const int one = pair_bound(rows[0], rows[1], columns), other = pair_bound(rows[2], rows[3], columns);
          bound = one > bound ? one : bound;
          bound = other > bound ? other : bound;
        }
      }
      std::memcpy(packed + sizeof(bound) * static_cast<std::size_t>(group), &bound, sizeof(bound));
    }
  }

 private:
  static int pair_bound(const std::int8_t* even, const std::int8_t* odd, int columns) {
    int positive = 0, negative = 0;
    for (int n = 0; n < columns; ++n) {
      const int a = even[n], b = odd[n];
      const int above = (a > 0 ? a : 0) + (b > 0 ? b : 0), below = (a < 0 ? -a : 0) + (b < 0 ? -b : 0);
      positive = above > positive ? above : positive;
      negative = below > negative ? below : negative;
    }
    return positive > negative ? positive : negative;
  }

  // out[4n + i] = rows[i][n]
  static void interleave(const std::int8_t* const rows[4], int columns, std::uint8_t* out) {
    int n = 0;
#if defined(__AVX512BW__)
    for (; n + 64 <= columns; n += 64) {
      const __m512i r0 = _mm512_loadu_si512(rows[0] + n), r1 = _mm512_loadu_si512(rows[1] + n);
      const __m512i r2 = _mm512_loadu_si512(rows[2] + n), r3 = _mm512_loadu_si512(rows[3] + n);
      const __m512i low01 = _mm512_unpacklo_epi8(r0, r1), high01 = _mm512_unpackhi_epi8(r0, r1);
      const __m512i low23 = _mm512_unpacklo_epi8(r2, r3), high23 = _mm512_unpackhi_epi8(r2, r3);
      // Lane l of q0 … q3 holds the columns 16l + 0, 4, 8 and 12 on.
      const __m512i q0 = _mm512_unpacklo_epi16(low01, low23), q1 = _mm512_unpackhi_epi16(low01, low23);
      const __m512i q2 = _mm512_unpacklo_epi16(high01, high23), q3 = _mm512_unpackhi_epi16(high01, high23);
      const __m512i a = _mm512_shuffle_i32x4(q0, q1, 0x44), b = _mm512_shuffle_i32x4(q2, q3, 0x44);
      const __m512i c = _mm512_shuffle_i32x4(q0, q1, 0xee), d = _mm512_shuffle_i32x4(q2, q3, 0xee);
      _mm512_storeu_si512(out + 4 * n, _mm512_shuffle_i32x4(a, b, 0x88));
      _mm512_storeu_si512(out + 4 * n + 64, _mm512_shuffle_i32x4(a, b, 0xdd));
      _mm512_storeu_si512(out + 4 * n + 128, _mm512_shuffle_i32x4(c, d, 0x88));
      _mm512_storeu_si512(out + 4 * n + 192, _mm512_shuffle_i32x4(c, d, 0xdd));
    }
#endif
#if defined(__SSE2__)
    for (; n + 16 <= columns; n += 16) {
      const auto load = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + n)); };
      const auto store = [&](int at, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 4 * n + at), v); };
      const __m128i r0 = load(0), r1 = load(1), r2 = load(2), r3 = load(3);
      const __m128i low01 = _mm_unpacklo_epi8(r0, r1), high01 = _mm_unpackhi_epi8(r0, r1);
      const __m128i low23 = _mm_unpacklo_epi8(r2, r3), high23 = _mm_unpackhi_epi8(r2, r3);
      store(0, _mm_unpacklo_epi16(low01, low23));
      store(16, _mm_unpackhi_epi16(low01, low23));
      store(32, _mm_unpacklo_epi16(high01, high23));
      store(48, _mm_unpackhi_epi16(high01, high23));
    }
#endif
    for (; n < columns; ++n)
      for (int i = 0; i < 4; ++i) out[4 * n + i] = static_cast<std::uint8_t>(rows[i][n]);
  }
};

struct TileArguments {
  const std::uint8_t* a;
  std::size_t lda;
  const std::uint8_t* b;
  int quads;
  std::int32_t* c;
  std::size_t ldc;
  int columns;               // columns of the tile that exist
  bool add;                  // whether the sums go on top of what c holds
  const std::uint8_t* next;  // what is read of B after this group
  bool cold;                 // whether c is too large to be in the second-level cache already
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
    const std::uint8_t* next = t.next;
    const std::size_t lda = t.lda;
    if (t.cold) {
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) __builtin_prefetch(t.c + r * t.ldc + v * V::lanes, 1, 3);
      }
    }
    // Unrolled: one quad per turn leaves a sixth of the multipliers' time unused.
#pragma GCC unroll 4
    for (int quad = 0; quad < t.quads; ++quad, a += 4, b += Vectors * V::lanes * 4) {
      Int weights[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) weights[v] = V::load(b + v * V::lanes * 4);
      __builtin_prefetch(next + 64 * quad, 0, 2);
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
__attribute__((noinline)) void all_rows(TileArguments t, int M) {
  constexpr int largest = Method::rows(Vectors);
  // Tiles of nearly equal height: a last tile of one row would leave the multipliers waiting for each other.
  const int tiles = ceil_div(M, largest);
  const int height = M / tiles;
  const int taller = M % tiles;
  for (int i = 0; i < tiles; ++i) {
    const int rows = height + (i < taller ? 1 : 0);
    one_tile<Method, Vectors, largest>(t, rows);
    // The first few tiles fetch the next group into the second-level cache, each an equal part.
    t.next = i + 1 < Vectors ? t.next + 64 * static_cast<std::size_t>(t.quads) : t.b;
    t.a += static_cast<std::size_t>(rows) * t.lda;
    t.c += static_cast<std::size_t>(rows) * t.ldc;
  }
}

template <class Method>
inline void all_rows(const TileArguments& t, int M, int vectors) {
  switch (vectors) {
    case 1: all_rows<Method, 1>(t, M); break;
    case 2: all_rows<Method, 2>(t, M); break;
    case 3: all_rows<Method, 3>(t, M); break;
    default: all_rows<Method, kGroup>(t, M); break;
  }
}

// Runs `group(first row, rows, quads from, quads to)` over blocks: as many rows of A as stay in the second-level cache
// while all groups of columns pass by, and quads of K only where a group of B alone would not fit there. (Blocking for
// the first-level cache costs more in repeated sums than it gains: the second level keeps up.)
constexpr int kBlockBytes = 192 * 1024;  // of A
constexpr int kBlockQuads = 1536;
constexpr std::int64_t kCold = 1 << 18;  // sums

template <class Group>
inline void blocked(int M, int K, int groups, Group group) {
  const int quads = ceil_div(K, 4);
  const int k_blocks = quads > kBlockQuads ? ceil_div(quads, kBlockQuads) : 1;
  const int block_quads = ceil_div(quads, k_blocks);
  const int fitting = kBlockBytes / (4 * (block_quads > 0 ? block_quads : 1));
  const int m_blocks = ceil_div(M, fitting > 24 ? fitting : 24);
  for (int i = 0; i < m_blocks; ++i) {
    const int row = static_cast<int>(static_cast<std::int64_t>(M) * i / m_blocks);
    const int rows = static_cast<int>(static_cast<std::int64_t>(M) * (i + 1) / m_blocks) - row;
    for (int n = 0; n < groups; ++n) {
      for (int k = 0; k < k_blocks; ++k) {
        const int from = k * block_quads < quads ? k * block_quads : quads;
        const int to = from + block_quads < quads ? from + block_quads : quads;
        group(n, row, rows, from, to);
      }
    }
  }
}

// A whole product; `run(tile arguments, rows, vectors, bound of the group)` chooses the method.
template <int Lanes, class Run>
inline void product(const std::uint8_t* a, std::size_t lda, int M, const std::uint8_t* packed, int K, int N,
                    std::int32_t* c, std::size_t ldc, Run run) {
  constexpr int width = kGroup * Lanes;
  using Pack = Packing<Lanes>;
  blocked(M, K, ceil_div(N, width), [&](int group, int row, int rows, int from, int to) {
    const int columns = N - group * width < width ? N - group * width : width;
    const int vectors = ceil_div(columns, Lanes);
    const std::size_t quad_bytes = static_cast<std::size_t>(vectors) * Lanes * 4;
    const std::uint8_t* b = packed + Pack::group_offset(K, N, group) + static_cast<std::size_t>(from) * quad_bytes;
    const bool last = (group + 1) * width >= N && 4 * to >= K;
    const TileArguments t{
        a + static_cast<std::size_t>(row) * lda + 4 * static_cast<std::size_t>(from),
        lda,
        b,
        to - from,
        c + static_cast<std::size_t>(row) * ldc + static_cast<std::size_t>(group) * width,
        ldc,
        columns,
        from > 0,
        last ? b : b + static_cast<std::size_t>(to - from) * quad_bytes,
        static_cast<std::int64_t>(M) * N > kCold};
    run(t, rows, vectors, Pack::bound(packed, group));
  });
}

// For `product`, on processors without vpdpbusd: 32767 = 255 · 128 + 127.
template <class V>
inline void run_by_bound(const TileArguments& t, int rows, int vectors, std::int32_t bound) {
  if (bound <= 32) {
    all_rows<Chained<V, 4>>(t, rows, vectors);
  } else if (bound <= 64) {
    all_rows<Chained<V, 2>>(t, rows, vectors);
  } else if (bound <= 128) {
    all_rows<Chained<V, 1>>(t, rows, vectors);
  } else {
    all_rows<Widened<V>>(t, rows, vectors);
  }
}

}  // namespace
}  // namespace lowbit
