// Test and benchmark of the bit-sliced cores against plain loops. Not part of the module; by hand, from csrc/:
//   for f in portable avx2 avx512; do g++ -std=c++17 -O3 -ffp-contract=off <flags of CMakeLists.txt> -c bitcore_$f.cpp;
//   done g++ -std=c++17 -O3 -mavx512bw -I. dev/bitcore_bench.cpp bitcore.cpp bitcore_*.o -o bitcore_bench
//   ./bitcore_bench test [seed]; ./bitcore_bench bench [core]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bitcore.h"
#if defined(__AVX512BW__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

using lowbit::BitCore;
using Clock = std::chrono::steady_clock;

namespace {

std::mt19937_64 rng(1);

// A heap block of exactly the stated size, so that the address sanitizer sees the first byte beyond it.
template <class T>
struct Buffer {
  T* data;
  std::size_t size;
  explicit Buffer(std::size_t n, std::size_t align = 64) : size(n) {
    void* p = nullptr;
    if (posix_memalign(&p, align, std::max<std::size_t>(1, n * sizeof(T))) != 0) std::abort();
    data = static_cast<T*>(p);
    std::memset(p, 0xa5, std::max<std::size_t>(1, n * sizeof(T)));
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
  T& operator[](std::size_t i) { return data[i]; }
};

int failures = 0;
void check(bool ok, const BitCore* core, const char* what, int M, int K, int shift, int depth) {
  if (ok) return;
  if (++failures < 20) std::printf("FAIL %s %s M=%d K=%d shift=%d depth=%d\n", core->name, what, M, K, shift, depth);
}

struct Layout {
  const BitCore* core;
  bool narrow;
  int words() const { return narrow ? 1 : core->words; }
  int rows(int M) const { return narrow ? (M + 7) / 8 * 8 : M; }
  std::size_t at(int m, int p, int w, int planes) const {
    return narrow ? (std::size_t(m / 8) * planes + p) * 8 + m % 8 : (std::size_t(m) * planes + p) * core->words + w;
  }
};

void test(const BitCore* core, bool narrow, int M, int K, int shift, int spare) {
  const Layout at{core, narrow};
  const int words = at.words(), lanes = 64 * words;
  const int calls = 1 + int(rng() % 2), digits = 1 + int(rng() % 3);
  int depth = 1;
  const std::int64_t most = (std::int64_t(K) << shift) * ((1 << digits) - 1) * calls + 5;
  while ((std::int64_t(1) << depth) <= most) ++depth;
  depth += spare;

  std::vector<std::int64_t> count(std::size_t(M) * lanes);
  for (auto& c : count) c = std::int64_t(rng() % 6);
  Buffer<std::uint64_t> counters(std::size_t(at.rows(M)) * depth * words, 8 + 56 * (rng() % 2));
  std::memset(counters.data, 0, counters.size * 8);
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < lanes; ++i) {
      for (int p = 0; p < depth; ++p) {
        counters[at.at(m, p, i / 64, depth)] |= std::uint64_t(count[std::size_t(m) * lanes + i] >> p & 1) << (i % 64);
      }
    }
  }
  for (int call = 0; call < calls; ++call) {
    const int stride = narrow ? 1 + int(rng() % 3) : words;
    Buffer<std::uint64_t> planes(std::size_t(K) * stride);
    Buffer<std::uint8_t> bits(std::size_t(digits) * M * K, 8);
    const int kind = int(rng() % 4);
    for (std::size_t i = 0; i < planes.size; ++i) planes[i] = kind == 0 ? ~0ull : kind == 1 ? 0 : rng();
    for (std::size_t i = 0; i < bits.size; ++i) bits[i] = kind == 0 ? 1 : std::uint8_t(rng() & 1);
    const std::size_t size = narrow ? core->narrow_packed_size(M, K) : core->packed_size(M, K);
    Buffer<std::uint8_t> packed(size * digits, 8);
    Buffer<std::uint8_t> scratch(core->scratch_size(M, K, depth, digits));
    const std::uint8_t* sets[3];
    for (int i = 0; i < digits; ++i) {
      sets[i] = packed.data + i * size;
      (narrow ? core->narrow_pack : core->pack)(bits.data + std::size_t(i) * M * K, M, K, packed.data + i * size);
    }
    if (narrow)
      core->narrow(planes.data, stride, K, sets, digits, M, shift, depth, counters.data, scratch.data);
    else
      core->wide(planes.data, K, sets, digits, M, shift, depth, counters.data, scratch.data);
    for (int digit = 0; digit < digits; ++digit) {
      for (int m = 0; m < M; ++m) {
        for (int k = 0; k < K; ++k) {
          const std::uint64_t flip = bits[(std::size_t(digit) * M + m) * K + k] ? 0 : ~0ull;
          for (int i = 0; i < lanes; ++i) {
            const std::uint64_t word = planes[std::size_t(k) * stride + i / 64] ^ flip;
            count[std::size_t(m) * lanes + i] += std::int64_t(word >> (i % 64) & 1) << (shift + digit);
          }
        }
      }
    }
  }
  bool ok = true;
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < lanes; ++i) {
      std::int64_t got = 0;
      for (int p = 0; p < depth; ++p) {
        got |= std::int64_t(counters[at.at(m, p, i / 64, depth)] >> (i % 64) & 1) << p;
      }
      ok &= got == count[std::size_t(m) * lanes + i];
    }
  }
  check(ok, core, narrow ? "narrow" : "wide", M, K, shift, depth);

  const std::size_t stride = lanes + rng() % 3;
  Buffer<std::int32_t> out(std::size_t(M - 1) * stride + lanes, 8);
  (narrow ? core->narrow_expand : core->wide_expand)(counters.data, M, depth, out.data, stride);
  ok = true;
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < lanes; ++i) ok &= out[std::size_t(m) * stride + i] == count[std::size_t(m) * lanes + i];
  }
  check(ok, core, narrow ? "narrow_expand" : "wide_expand", M, K, shift, depth);

  for (int bits = 1; bits <= 4; ++bits) {
    const int levels = (1 << bits) - 1;
    Buffer<std::int32_t> thresholds(std::size_t(M) * levels, 8);
    for (int m = 0; m < M; ++m) {
      for (int j = 0; j < levels; ++j) {
        std::int32_t& t = thresholds[std::size_t(m) * levels + j];
        const std::int64_t near = count[std::size_t(m) * lanes + rng() % lanes];
        const std::int64_t edge = std::int64_t(1) << depth;
        switch (rng() % 12) {
          case 0:
            t = -std::int32_t(rng() % 100);
            break;
          case 1:
            t = INT32_MIN;
            break;
          case 2:
            t = INT32_MAX;
            break;
          case 3:
            t = std::int32_t(std::min<std::int64_t>(edge - 2 + std::int64_t(rng() % 4), INT32_MAX));
            break;
          case 4:
            t = j > 0 ? thresholds[std::size_t(m) * levels + j - 1] : 0;
            break;
          default:
            t = std::int32_t(near + std::int64_t(rng() % 3) - 1);
        }
      }
      std::sort(&thresholds[std::size_t(m) * levels], &thresholds[std::size_t(m) * levels] + levels);
    }
    Buffer<std::uint64_t> codes(std::size_t(at.rows(M)) * bits * words, 8);
    (narrow ? core->narrow_compare : core->wide_compare)(counters.data, M, depth, thresholds.data, bits, codes.data);
    ok = true;
    for (int m = 0; m < M; ++m) {
      for (int i = 0; i < lanes; ++i) {
        int want = 0, got = 0;
        for (int j = 0; j < levels; ++j) {
          want += thresholds[std::size_t(m) * levels + j] <= count[std::size_t(m) * lanes + i];
        }
        for (int j = 0; j < bits; ++j) got |= int(codes[at.at(m, j, i / 64, bits)] >> (i % 64) & 1) << j;
        ok &= want == got;
      }
    }
    check(ok, core, narrow ? "narrow_compare" : "wide_compare", M, K, shift, depth);
  }
}

void test_sum(const BitCore* core, int K, int shift) {
  const int words = core->words, lanes = 64 * words, stride = 1 + int(rng() % words), start = int(rng() % 6);
  int depth = 1;
  while ((std::int64_t(1) << depth) <= (std::int64_t(K) << shift) + start) ++depth;
  Buffer<std::uint64_t> planes(std::size_t(K - 1) * stride + words, 8), counter(std::size_t(depth) * words, 8);
  for (std::size_t i = 0; i < planes.size; ++i) planes[i] = rng();
  for (int i = 0; i < depth * words; ++i) counter[i] = start >> i / words & 1 ? ~0ull : 0;
  const bool complement = rng() & 1;
  core->sum(planes.data, stride, K, complement, shift, depth, counter.data);
  bool ok = true;
  for (int i = 0; i < lanes; ++i) {
    std::int64_t want = start, got = 0;
    for (int k = 0; k < K; ++k)
      want += std::int64_t((planes[std::size_t(k) * stride + i / 64] >> (i % 64) & 1) ^ complement) << shift;
    for (int p = 0; p < depth; ++p) got |= std::int64_t(counter[p * words + i / 64] >> (i % 64) & 1) << p;
    ok &= want == got;
  }
  check(ok, core, "sum", 1, K, shift, depth);
}

void test_all(int rounds) {
  int n = 0;
  const BitCore* const* cores = lowbit::bit_cores(&n);
  for (int c = 0; c < n; ++c) {
    for (int K : {1, 2, 15, 16, 17, 33, 144, 577, 1000})
      for (int shift = 0; shift < 4; ++shift) test_sum(cores[c], K, shift);
    for (int narrow = 0; narrow <= int(cores[c]->has_narrow); ++narrow) {
      const int before = failures;
      int cases = 0;
      for (int K : {1,   2,   3,   4,   15,  16,  17,  31,  47,  48,  49,  95,  96,  97,  112,  113,  127,
                    128, 129, 144, 193, 255, 256, 320, 513, 575, 576, 577, 640, 641, 767, 1025, 1153, 4608}) {
        for (int M : {1, 7, 8, 9, 17}) {
          if (K > 1200 && M > 8) continue;
          test(cores[c], narrow, M, K, int(rng() % 7), int(rng() % 3)), ++cases;
        }
      }
      for (int r = 0; r < rounds; ++r, ++cases) {
        test(cores[c], narrow, 1 + int(rng() % 70), 1 + int(rng() % (r % 4 == 0 ? 700 : 60)), int(rng() % 7),
             int(rng() % 2));
      }
      // Counters too large for the L2 cache, taken in portions of rows; counts of more than sixteen bits.
      for (int M : {700, 1500}) test(cores[c], narrow, M, 33, 4, 10), ++cases;
      test(cores[c], narrow, 9, 600, 6, 9), ++cases;
      std::printf("%s %s: %d cases, %d failures\n", cores[c]->name, narrow ? "narrow" : "wide", cases,
                  failures - before);
    }
  }
}

// ---- benchmark ----

double now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

// Cycles per second at this moment: a chain of dependent additions runs one per cycle.
double frequency() {
  const double start = now();
  long x = 0;
  for (int i = 0; i < 2000; ++i) {
#if defined(__x86_64__)
    asm volatile(
        "add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n"
        "add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n add $1, %0\n"
        : "+r"(x));
#else
    for (int j = 0; j < 16; ++j) asm volatile("add %0, %0, #1" : "+r"(x));
#endif
  }
  return 2000.0 * 16 / (now() - start);
}

struct Timing {
  double seconds, cycles;
};
// The least of many repeats, for other jobs share the machine. The clock frequency changes with the use of wide
// vectors, so it is measured right before and after each repeat, and a repeat during which it changed, or that was
// interrupted while it was measured, does not count.
template <class Body>
Timing least(Body body, double budget = 0.4) {
  body();
  Timing best{1e9, 1e18};
  double fastest = 0;
  const double stop = now() + budget;
  int counted = 0;
  do {
    const double before = frequency(), start = now();
    body();
    const double seconds = now() - start, after = frequency();
    fastest = std::max(fastest, after);
    if (std::abs(before - after) > 0.02 * after || after < 0.7 * fastest) continue;
    ++counted;
    best.seconds = std::min(best.seconds, seconds);
    best.cycles = std::min(best.cycles, seconds * after);
  } while (now() < stop || counted < 3);
  return best;
}

int depth_for(int K) {
  int depth = 1;
  while ((1 << depth) <= K) ++depth;
  return depth;
}

void bench(const BitCore* core, bool narrow, int M, int K, int groups, const char* note) {
  const Layout at{core, narrow};
  const int words = at.words(), lanes = 64 * words, depth = depth_for(K);
  if (groups == 0) groups = (1024 + lanes - 1) / lanes;
  Buffer<std::uint64_t> planes(std::size_t(groups) * K * words), counters(std::size_t(at.rows(M)) * depth * words);
  Buffer<std::uint8_t> bits(std::size_t(M) * K);
  for (std::size_t i = 0; i < planes.size; ++i) planes[i] = rng();
  for (std::size_t i = 0; i < bits.size; ++i) bits[i] = std::uint8_t(rng() & 1);
  Buffer<std::uint8_t> packed(narrow ? core->narrow_packed_size(M, K) : core->packed_size(M, K));
  Buffer<std::uint8_t> scratch(core->scratch_size(M, K, depth, 1));
  Buffer<std::int32_t> thresholds(M * 15), out(std::size_t(M) * lanes);
  Buffer<std::uint64_t> codes(std::size_t(at.rows(M)) * 4 * words);
  for (int i = 0; i < M * 15; ++i) thresholds[i] = std::int32_t(rng() % K);
  (narrow ? core->narrow_pack : core->pack)(bits.data, M, K, packed.data);
  const std::uint8_t* const set = packed.data;
  const Timing product = least([&] {
    for (int g = 0; g < groups; ++g) {
      std::memset(counters.data, 0, counters.size * 8);
      const std::uint64_t* const from = planes.data + std::size_t(g) * K * words;
      if (narrow)
        core->narrow(from, 1, K, &set, 1, M, 0, depth, counters.data, scratch.data);
      else
        core->wide(from, K, &set, 1, M, 0, depth, counters.data, scratch.data);
    }
  });
  const auto once = [&](auto body) { return least(body, 0.05).cycles; };
  const double c1 = once([&] {
    (narrow ? core->narrow_compare : core->wide_compare)(counters.data, M, depth, thresholds.data, 1, codes.data);
  });
  const double c4 = once([&] {
    (narrow ? core->narrow_compare : core->wide_compare)(counters.data, M, depth, thresholds.data, 4, codes.data);
  });
  const double e =
      once([&] { (narrow ? core->narrow_expand : core->wide_expand)(counters.data, M, depth, out.data, lanes); });
  const double mac = double(M) * K * lanes * groups, one = product.cycles / groups;
  std::printf(
      "%-8s %-6s M=%-4d K=%-4d lanes=%-4d x%-2d %7.1f MAC/cycle %7.1f GMAC/s %5.2f GHz  compare1 %4.1f%% compare4 "
      "%5.1f%% expand %5.1f%% %s\n",
      core->name, narrow ? "narrow" : "wide", M, K, lanes, groups, mac / product.cycles, mac / product.seconds * 1e-9,
      product.cycles / product.seconds * 1e-9, 100 * c1 / one, 100 * c4 / one, 100 * e / one, note);
  std::fflush(stdout);
}

#if defined(__AVX512BW__)
// The usual way, for comparison: exclusive or, Harley–Seal over sixteen words, bytes counted by a shuffle. Lanes are
// eight columns, every one of its sixteen-word steps ends in one popcount.
inline __m512i count_bytes(__m512i v) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i nibble = _mm512_set1_epi8(15);
  return _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(v, nibble)),
                         _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble)));
}
inline __m512i full_add(__m512i& sum, __m512i a, __m512i b) {
  const __m512i carry = _mm512_ternarylogic_epi64(sum, a, b, 0xe8);
  sum = _mm512_ternarylogic_epi64(sum, a, b, 0x96);
  return carry;
}
// a [M][words], b [N / 8][words][8], c [M][N] counts of differing bits.
void usual(const std::uint64_t* a, const std::uint64_t* b, std::uint64_t* c, int M, int N, int words) {
  for (int n = 0; n < N; n += 8, b += 8 * words) {
    for (int m = 0; m < M; ++m) {
      __m512i total = _mm512_setzero_si512();
      for (int w = 0; w < words; w += 16) {
        const auto differ = [&](int i) {
          return _mm512_xor_si512(_mm512_set1_epi64(std::int64_t(a[std::size_t(m) * words + w + i])),
                                  _mm512_load_si512(b + (w + i) * 8));
        };
        __m512i ones = _mm512_setzero_si512(), twos = ones, fours = ones, eights = ones, into_eights[2];
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          __m512i into_fours[2];
#pragma GCC unroll 2
          for (int q = 0; q < 2; ++q) {
            const int i = 8 * h + 4 * q;
            const __m512i x = full_add(ones, differ(i), differ(i + 1)),
                          y = full_add(ones, differ(i + 2), differ(i + 3));
            into_fours[q] = full_add(twos, x, y);
          }
          into_eights[h] = full_add(fours, into_fours[0], into_fours[1]);
        }
        const __m512i sixteens = full_add(eights, into_eights[0], into_eights[1]);
        __m512i bytes = _mm512_slli_epi16(count_bytes(sixteens), 1);
        bytes = _mm512_slli_epi16(_mm512_add_epi8(bytes, count_bytes(eights)), 1);
        bytes = _mm512_slli_epi16(_mm512_add_epi8(bytes, count_bytes(fours)), 1);
        bytes = _mm512_slli_epi16(_mm512_add_epi8(bytes, count_bytes(twos)), 1);
        bytes = _mm512_add_epi8(bytes, count_bytes(ones));
        total = _mm512_add_epi64(total, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
      }
      _mm512_store_si512(c + std::size_t(n) * M + m * 8, total);
    }
  }
}

void bench_usual(int M, int K, int N) {
  const int words = K / 64;
  Buffer<std::uint64_t> a(std::size_t(M) * words), b(std::size_t(words) * N), c(std::size_t(M) * N);
  for (std::size_t i = 0; i < a.size; ++i) a[i] = rng();
  for (std::size_t i = 0; i < b.size; ++i) b[i] = rng();
  const Timing t = least([&] { usual(a.data, b.data, c.data, M, N, words); });
  for (int i = 0; i < 50; ++i) {
    const int m = int(rng() % M), n = int(rng() % N);
    std::uint64_t want = 0;
    for (int w = 0; w < words; ++w) {
      want += __builtin_popcountll(a[std::size_t(m) * words + w] ^ b[std::size_t(n / 8 * words + w) * 8 + n % 8]);
    }
    if (want != c[std::size_t(n / 8 * M + m) * 8 + n % 8]) std::printf("FAIL usual\n");
  }
  const double mac = double(M) * K * N;
  std::printf("%-8s %-6s M=%-4d K=%-4d N=%-9d %7.1f MAC/cycle %7.1f GMAC/s %5.2f GHz  xor, Harley-Seal, shuffles\n",
              "avx512", "usual", M, K, N, mac / t.cycles, mac / t.seconds * 1e-9, t.cycles / t.seconds * 1e-9);
}
#endif

void bench_all(const std::string& only) {
  int n = 0;
  const BitCore* const* cores = lowbit::bit_cores(&n);
#if defined(__AVX512BW__)
  if (only.empty() || only == "usual") bench_usual(1024, 1024, 1024);
#endif
  for (int c = 0; c < n; ++c) {
    if (!only.empty() && only != cores[c]->name) continue;
    bench(cores[c], false, 1024, 1024, 0, "(GEMM)");
    const int shapes[][2] = {{64, 576}, {128, 1152}, {256, 2304}, {512, 4608}, {16, 144}, {32, 288}};
    for (auto& s : shapes) bench(cores[c], false, s[0], s[1], 1, "");
    if (!cores[c]->has_narrow) continue;
    bench(cores[c], true, 1024, 1024, 0, "(GEMM)");
    for (auto& s : shapes) bench(cores[c], true, s[0], s[1], 1, "");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "test";
  if (mode == "test") {
    if (argc > 2) rng.seed(std::strtoull(argv[2], nullptr, 10));
    test_all(argc > 3 ? std::atoi(argv[3]) : 60);
    return failures != 0;
  }
  bench_all(argc > 2 ? argv[2] : "");
  return 0;
}
