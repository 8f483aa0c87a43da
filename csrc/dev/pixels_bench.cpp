// Tests and measurements of the pixel cores. From the root of the repository, on x86-64:
//
//   f="-std=c++17 -O3 -ffp-contract=off -Wall -Wextra"; a="-mavx2 -mbmi -mbmi2 -mpopcnt"
//   z="$a -mavx512f -mavx512bw -mavx512dq -mavx512vl"; v="$z -mavx512vnni"; p="$v -mavx512vpopcntdq"
//   mkdir -p build/dev; cd csrc; o=../build/dev
//   for c in pixels pixels_portable pixels_amxmodel; do g++ $f -DLOWBIT_HAS_AMX -c $c.cpp -o $o/$c.o; done
//   g++ $f $a -c pixels_avx2.cpp -o $o/pixels_avx2.o; g++ $f $z -c pixels_avx512.cpp -o $o/pixels_avx512.o
//   g++ $f $v -c pixels_avx512vnni.cpp -o $o/pixels_avx512vnni.o
//   g++ $f $p -c pixels_avx512vpopcntdq.cpp -o $o/pixels_avx512vpopcntdq.o
//   g++ $f $p -mamx-tile -mamx-int8 -c pixels_amx.cpp -o $o/pixels_amx.o
//   g++ $f -I. dev/pixels_bench.cpp $o/pixels*.o -o $o/pixels_bench
//   $o/pixels_bench test      (with -fsanitize=address,undefined in $f too)
//   $o/pixels_bench speed
//
// On ARM: the files without a suffix, _portable, _amxmodel and _neon, and _neondot with -march=armv8.2-a+dotprod.
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../pixels.h"

namespace {

using lowbit::BlockStep;
using lowbit::PixelCore;
using lowbit::Quantizer;
using lowbit::Rounding;
using lowbit::StepKind;

std::mt19937 generator(1);

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
float normal() { return std::normal_distribution<float>()(generator); }
int up(int number, int unit) { return (number + unit - 1) / unit * unit; }

// Numbers that end where an unreadable page begins: reaching behind them faults, in the vector code too. All bytes are
// `kFree` at first, so that what is written between the results shows.
constexpr int kFree = 0xa5;

template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t count) : count_(count) {
    const std::size_t size = count * sizeof(T);
    page_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    body_ = (size + page_ - 1) / page_ * page_;
    void* start = mmap(nullptr, body_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(static_cast<char*>(start) + body_, page_, PROT_NONE) != 0) std::abort();
    start_ = static_cast<std::uint8_t*>(start);
    std::memset(start_, kFree, body_);
    data = reinterpret_cast<T*>(start_ + body_ - size);
  }
  ~Guarded() { munmap(start_, body_ + page_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T& operator[](std::ptrdiff_t i) const { return data[i]; }
  // Whether these are the numbers given, and nothing before them was written.
  bool holds(const std::vector<T>& expected) const {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(data);
    return std::memcmp(data, expected.data(), count_ * sizeof(T)) == 0 &&
           std::all_of(static_cast<const std::uint8_t*>(start_), bytes, [](std::uint8_t b) { return b == kFree; });
  }
  std::vector<T> untouched() const { return std::vector<T>(data, data + count_); }

  T* data;

 private:
  std::size_t count_, page_, body_;
  std::uint8_t* start_;
};

// ---- tests ----------------------------------------------------------------------------------------------------------

// Random numbers, or only extreme ones: the largest sums.
std::uint8_t code(int most, int extreme) { return static_cast<std::uint8_t>(extreme ? most : uniform(0, most)); }

std::int8_t weight(int bound, int extreme) {  // of −bound − 1 … bound
  if (extreme == 1) return static_cast<std::int8_t>(-bound - 1);
  if (extreme == 2) return static_cast<std::int8_t>(bound);
  if (extreme == 3) return static_cast<std::int8_t>(uniform(0, 1) ? bound : -bound - 1);
  return static_cast<std::int8_t>(uniform(-bound - 1, bound));
}

// `extreme`: 0 none, 1 the lowest weights, 2 the highest, 3 either.
bool product(const PixelCore& core, int pixels, int groups, int vectors, int quads, int bits, int bound, int extreme) {
  const int run = core.traits.quads, most = (1 << bits) - 1;
  quads = up(quads, run);
  const int wide = vectors * core.lanes;
  const int width = pixels + uniform(0, 2 * pixels), tiles = (width + pixels - 1) / pixels;
  const std::ptrdiff_t step = uniform(1, 200), apart = uniform(1, 2000);
  std::vector<std::int32_t> offsets;  // runs of quads that lie side by side, anywhere
  int furthest = 0;
  const int back = uniform(0, 500);  // some before the base
  for (int q = 0; q < quads; ++q) {
    offsets.push_back(q % run ? offsets.back() + 4 : uniform(-back, 3000));
    furthest = std::max(furthest, offsets.back() + 4);
  }
  const std::size_t size = static_cast<std::size_t>(back + furthest + (width - 1) * step + (groups - 1) * apart);
  Guarded<std::uint8_t> codes(size), packed(static_cast<std::size_t>(quads) * wide * 4);
  for (std::size_t i = 0; i < size; ++i) codes[static_cast<std::ptrdiff_t>(i)] = code(most, extreme);
  std::vector<std::int8_t> weights(static_cast<std::size_t>(wide) * quads * 4);
  for (auto& w : weights) w = weight(bound, extreme);
  const auto of_quad = [&](int m, int q) { return &weights[(static_cast<std::size_t>(m) * quads + q) * 4]; };
  for (int m = 0; m < wide; ++m)
    for (int q = 0; q < quads; ++q) std::memcpy(&packed[(q * wide + m) * 4], of_quad(m, q), 4);
  const std::ptrdiff_t stride = wide + uniform(0, 40), between = width * stride + uniform(0, 40);
  Guarded<std::int32_t> sums(static_cast<std::size_t>((groups - 1) * between + (width - 1) * stride + wide));
  auto expected = sums.untouched();
  const std::uint8_t* base = codes.data + back;
  const int shift = core.traits.signed_inputs && bits == 8 ? 128 : 0;
  for (int g = 0; g < groups; ++g)
    for (int p = 0; p < width; ++p)
      for (int m = 0; m < wide; ++m) {
        std::int32_t sum = 0;
        for (int q = 0; q < quads; ++q) {
          const std::uint8_t* quad = base + g * apart + p * step + offsets[static_cast<std::size_t>(q)];
          for (int i = 0; i < 4; ++i) sum += (quad[i] - shift) * of_quad(m, q)[i];
        }
        expected[static_cast<std::size_t>(g * between + p * stride + m)] = sum;
      }
  const auto row = static_cast<std::size_t>(quads) * 4;
  const int chain = lowbit::chain_of(weights.data(), static_cast<std::size_t>(wide), row, most);
  core.product({base, step, apart, pixels, groups, tiles, pixels, width - pixels, offsets.data(), quads, packed.data,
                packed.data, uniform(0, 1000), vectors, chain, sums.data, stride, between},
               bits == 8);
  if (sums.holds(expected)) return true;
  std::printf("FAILED %s product: pixels %d, groups %d, vectors %d, quads %d, bits %d, bound %d, extreme %d, "
              "chain %d\n", core.name, pixels, groups, vectors, quads, bits, bound, extreme, chain);
  return false;
}

bool depthwise(const PixelCore& core, int pixels, int taps, int channels, int bits, int extreme) {
  taps = up(taps, 4);
  channels = up(channels, 64);
  const std::ptrdiff_t step = uniform(1, 2 * channels), stride = channels + uniform(0, 40);
  std::vector<std::int32_t> offsets;
  for (int t = 0; t < taps; ++t) offsets.push_back(uniform(-500, 3000));
  const int furthest = *std::max_element(offsets.begin(), offsets.end());
  const int back = std::max(0, -*std::min_element(offsets.begin(), offsets.end()));
  const std::ptrdiff_t size = std::max(0, back + furthest) + (pixels - 1) * step + channels;
  Guarded<std::uint8_t> codes(static_cast<std::size_t>(size));
  for (std::ptrdiff_t i = 0; i < size; ++i) codes[i] = code((1 << bits) - 1, extreme);
  Guarded<std::int8_t> weights(static_cast<std::size_t>(taps) * channels);
  for (int i = 0; i < taps * channels; ++i) weights[i] = weight(127, extreme);
  Guarded<std::uint8_t> packed(static_cast<std::size_t>(taps) * channels);
  core.pack_depthwise(weights.data, taps, channels, packed.data);
  Guarded<std::int32_t> sums(static_cast<std::size_t>((pixels - 1) * stride + channels));
  auto expected = sums.untouched();
  const std::uint8_t* base = codes.data + back;
  for (int p = 0; p < pixels; ++p)
    for (int c = 0; c < channels; ++c) {
      std::int32_t sum = 0;
      for (int t = 0; t < taps; ++t)
        sum += base[p * step + offsets[static_cast<std::size_t>(t)] + c] * weights[t * channels + c];
      expected[static_cast<std::size_t>(p * stride + c)] = sum;
    }
  core.depthwise({base, step, pixels, offsets.data(), taps, packed.data, channels, sums.data, stride});
  if (sums.holds(expected)) return true;
  std::printf("FAILED %s depthwise: %d pixels, %d taps, %d channels, extreme %d\n", core.name, pixels, taps, channels,
              extreme);
  return false;
}

bool planes(const PixelCore& core, int count, int bits, int words) {
  Guarded<std::uint8_t> codes(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) codes[i] = code((1 << bits) - 1, 0);
  Guarded<std::uint64_t> out(static_cast<std::size_t>(bits) * words);
  std::vector<std::uint64_t> expected(static_cast<std::size_t>(bits) * words, 0);
  for (int j = 0; j < bits; ++j)
    for (int i = 0; i < count; ++i) {
      const std::uint64_t bit = codes[i] >> j & 1;
      expected[static_cast<std::size_t>(j * words + i / 64)] |= bit << (i % 64);
    }
  core.to_planes(codes.data, count, bits, words, out.data);
  if (out.holds(expected)) return true;
  std::printf("FAILED %s to_planes: %d codes, %d bits, %d words\n", core.name, count, bits, words);
  return false;
}

bool bit_sums(const PixelCore& core, int outputs, int weight_bits, int code_bits, int words, bool ones) {
  const auto random_word = [ones] {
    return ones ? ~0ull : static_cast<std::uint64_t>(generator()) << 32 | generator();
  };
  const std::ptrdiff_t length = static_cast<std::ptrdiff_t>(outputs) * weight_bits * words;
  Guarded<std::uint64_t> rows(static_cast<std::size_t>(length));
  Guarded<std::uint64_t> codes(static_cast<std::size_t>(code_bits) * words);
  for (std::ptrdiff_t i = 0; i < length; ++i) rows[i] = random_word();
  for (int i = 0; i < code_bits * words; ++i) codes[i] = random_word();
  Guarded<std::int32_t> sums(static_cast<std::size_t>(outputs));
  std::vector<std::int32_t> expected(static_cast<std::size_t>(outputs), 0);
  for (int m = 0; m < outputs; ++m)
    for (int i = 0; i < weight_bits; ++i)
      for (int j = 0; j < code_bits; ++j)
        for (int w = 0; w < words; ++w) {
          const std::uint64_t row = rows[((m / 8 * weight_bits + i) * words + w) * 8 + m % 8];
          expected[static_cast<std::size_t>(m)] += __builtin_popcountll(row & codes[j * words + w]) << (i + j);
        }
  core.bit_sums(rows.data, outputs, weight_bits, codes.data, code_bits, words, sums.data);
  if (sums.holds(expected)) return true;
  std::printf("FAILED %s bit_sums: %d outputs, %d and %d bits, %d words\n", core.name, outputs, weight_bits, code_bits,
              words);
  return false;
}

int code_of(float y, const Quantizer& q) {
  if (q.rounding == Rounding::sign) return y >= 0.0f;
  const float z = std::min(std::max(y * q.reciprocal, q.low), q.high);
  return static_cast<int>((q.rounding == Rounding::nearest ? std::nearbyint(z) : std::ceil(z * q.keep)) - q.low);
}

Quantizer random_quantizer(Rounding rounding) {
  Quantizer q;
  q.rounding = rounding;
  q.bits = rounding == Rounding::sign ? 1 : uniform(1, 8);
  q.reciprocal = uniform(0, 1) ? 0.25f : std::fabs(normal()) + 0.01f;  // with 0.25, ties
  q.low = rounding == Rounding::nearest && uniform(0, 1) ? static_cast<float>(-(1 << (q.bits - 1))) : 0.0f;
  q.high = q.low + static_cast<float>((1 << q.bits) - 1);
  if (rounding == Rounding::up) q.keep = 1.0f - 0x1p-22f;
  return q;
}

// The steps of the usual epilogue, each there or not, or any steps in any order.
std::vector<StepKind> random_kinds(bool quantizes) {
  const StepKind usual[] = {StepKind::multiply,  StepKind::add,  StepKind::multiply, StepKind::add,
                            StepKind::add_value, StepKind::relu, StepKind::store};
  std::vector<StepKind> kinds;
  const bool in_order = uniform(0, 2) > 0;
  for (int i = in_order ? 0 : uniform(0, 6); i < 7; ++i)
    if (!in_order || uniform(0, 3)) kinds.push_back(usual[in_order ? i : uniform(0, 6)]);
  if (in_order)
    for (std::size_t i = kinds.size(); i-- > 0;)
      if (uniform(0, 2) == 0) kinds.erase(kinds.begin() + static_cast<std::ptrdiff_t>(i));
  if (quantizes) kinds.push_back(StepKind::quantize_bytes);
  return kinds;
}

// What the steps read and write, whole vectors of 16 floats each but codes to the byte, and what they should write.
struct Written {
  std::vector<std::unique_ptr<Guarded<float>>> floats;
  std::vector<std::vector<float>> expected_floats;
  std::unique_ptr<Guarded<std::uint8_t>> codes;
  std::vector<std::uint8_t> expected_codes;
};

bool finish(const PixelCore& core, int pixels, int channels, std::int32_t slope, Rounding rounding, bool from_floats) {
  const int wide = up(channels, 16);
  const std::ptrdiff_t stride = wide + uniform(0, 20);
  const int rows = uniform(1, 3), pitch = pixels + uniform(0, 3), last = (rows - 1) * pitch + pixels - 1;
  const std::ptrdiff_t row_size = pixels * stride + uniform(0, 9);
  const auto reach = [&](std::ptrdiff_t row) { return static_cast<std::size_t>(last * row + wide); };
  const auto given = static_cast<std::size_t>((rows - 1) * row_size + (pixels - 1) * stride + wide);
  Guarded<std::int32_t> sums(given), offsets(static_cast<std::size_t>(wide));
  Guarded<float> floats(given);
  for (std::size_t i = 0; i < given; ++i) {
    sums[static_cast<std::ptrdiff_t>(i)] = uniform(-300, 300);
    floats[static_cast<std::ptrdiff_t>(i)] = uniform(0, 1) ? static_cast<float>(uniform(-30, 30)) : 10 * normal();
  }
  for (int c = 0; c < wide; ++c) offsets[c] = uniform(-50, 50);
  const Quantizer quantizer = random_quantizer(rounding);
  const auto kinds = random_kinds(uniform(0, 4) > 0);
  std::vector<BlockStep> steps;
  Written w;
  for (const StepKind kind : kinds) {
    BlockStep step{};
    step.kind = kind;
    if (kind == StepKind::multiply || kind == StepKind::add) {
      step.row = uniform(0, 3) > 0;
      w.floats.push_back(std::make_unique<Guarded<float>>(step.row ? static_cast<std::size_t>(wide) : 1));
      for (int c = 0; c < (step.row ? wide : 1); ++c)
        (*w.floats.back())[c] = uniform(0, 1) ? 0.5f * static_cast<float>(uniform(-3, 3)) : normal();
      step.factors = w.floats.back()->data;
    } else if (kind == StepKind::add_value || kind == StepKind::store) {
      step.row = wide + uniform(0, 20);
      w.floats.push_back(std::make_unique<Guarded<float>>(reach(step.row)));
      for (std::size_t i = 0; i < reach(step.row); ++i) (*w.floats.back())[static_cast<std::ptrdiff_t>(i)] = normal();
      step.floats = w.floats.back()->data;
    } else if (kind == StepKind::quantize_bytes) {
      step.row = channels + uniform(0, 20);
      w.codes = std::make_unique<Guarded<std::uint8_t>>(static_cast<std::size_t>(last * step.row + channels));
      w.expected_codes = w.codes->untouched();
      step.bytes = w.codes->data;
      step.quantizer = &quantizer;
    } else {
      w.floats.push_back(std::make_unique<Guarded<float>>(1));
    }
    if (kind != StepKind::quantize_bytes) w.expected_floats.push_back(w.floats.back()->untouched());
    steps.push_back(step);
  }
  for (int p = 0; p <= last; ++p)
    for (int c = 0; c < channels && p % pitch < pixels; ++c) {
      const std::ptrdiff_t from = p / pitch * row_size + p % pitch * stride + c;
      float y = from_floats ? floats[from] : static_cast<float>(sums[from] * slope + offsets[c]);
      for (std::size_t s = 0; s < steps.size(); ++s) {
        const BlockStep& step = steps[s];
        const std::ptrdiff_t at = p * step.row + c;
        switch (step.kind) {
          case StepKind::multiply: y *= step.factors[step.row ? c : 0]; break;
          case StepKind::add: y += step.factors[step.row ? c : 0]; break;
          case StepKind::add_value: y += step.floats[at]; break;
          case StepKind::relu: y = y > 0.0f ? y : 0.0f; break;
          case StepKind::store: w.expected_floats[s][static_cast<std::size_t>(at)] = y; break;
          default: w.expected_codes[static_cast<std::size_t>(at)] = static_cast<std::uint8_t>(code_of(y, quantizer));
        }
      }
    }
  const int number = static_cast<int>(steps.size());
  if (from_floats)
    core.finish_floats(floats.data, {pixels, rows, channels, stride, row_size, pitch}, steps.data(), number);
  else
    core.finish(sums.data, {pixels, rows, channels, stride, row_size, pitch}, slope, offsets.data, steps.data(), number);
  bool good = !w.codes || w.codes->holds(w.expected_codes);
  for (std::size_t s = 0; s < w.floats.size(); ++s) {
    // Behind the channels a store may write whole vectors; between those and the next pixel's, nothing. A zero's sign
    // is as it comes: a ReLU may leave −0.
    const std::ptrdiff_t row = steps[s].row;
    for (std::size_t i = 0; i < w.expected_floats[s].size(); ++i) {
      const bool free = steps[s].kind == StepKind::store && static_cast<std::ptrdiff_t>(i) % row >= channels &&
                        static_cast<std::ptrdiff_t>(i) % row < wide;
      good = good && (free || (*w.floats[s])[static_cast<std::ptrdiff_t>(i)] == w.expected_floats[s][i]);
    }
  }
  if (good) return true;
  std::printf("FAILED %s finish%s: %d pixels, %d channels, slope %d, rounding %d, %d bits, low %g, reciprocal %g;",
              core.name, from_floats ? "_floats" : "", pixels, channels, slope, static_cast<int>(rounding),
              quantizer.bits, quantizer.low, quantizer.reciprocal);
  for (const StepKind kind : kinds) std::printf(" step %d", static_cast<int>(kind));
  std::printf("\n");
  return false;
}

bool pool(const PixelCore& core, int count, int width, int channels, int kernel, int stride, int padding, int flips) {
  channels = up(channels, 16);
  if (width + 2 * padding < kernel) return true;
  const int out_width = (width + 2 * padding - kernel) / stride + 1;
  std::vector<std::unique_ptr<Guarded<std::int32_t>>> memory;
  std::vector<const std::int32_t*> rows;
  const std::size_t size = static_cast<std::size_t>(width) * channels;
  for (int r = 0; r < count; ++r) {
    memory.push_back(std::make_unique<Guarded<std::int32_t>>(size));
    rows.push_back(memory.back()->data);
    for (std::size_t i = 0; i < size; ++i) (*memory.back())[static_cast<std::ptrdiff_t>(i)] = uniform(-1000, 1000);
  }
  Guarded<std::int32_t> flip(static_cast<std::size_t>(channels)), column(size);
  for (int c = 0; c < channels; ++c) flip[c] = uniform(0, 1) ? -1 : 0;
  Guarded<std::int32_t> out(static_cast<std::size_t>(out_width) * channels);
  std::vector<std::int32_t> expected(static_cast<std::size_t>(out_width) * channels);
  for (int x = 0; x < out_width; ++x)
    for (int c = 0; c < channels; ++c) {
      std::int32_t best = 0;
      bool first = true;
      for (int i = std::max(0, x * stride - padding); i < std::min(width, x * stride - padding + kernel); ++i)
        for (int r = 0; r < count; ++r, first = false) {
          const std::int32_t number = rows[static_cast<std::size_t>(r)][i * channels + c];
          const bool smallest = flips && flip[c];
          if (first || (smallest ? number < best : number > best)) best = number;
        }
      expected[static_cast<std::size_t>(x * channels + c)] = best;
    }
  core.pool(rows.data(), count, width, channels, kernel, stride, padding, out_width, flips ? flip.data : nullptr,
            column.data, out.data);
  if (out.holds(expected)) return true;
  std::printf("FAILED %s pool: %d rows, width %d, %d channels, kernel %d, stride %d, padding %d, flips %d\n", core.name,
              count, width, channels, kernel, stride, padding, flips);
  return false;
}

bool interleave(const PixelCore& core, int channels, int pixels) {
  const std::ptrdiff_t stride = pixels + uniform(0, 20);
  const std::size_t size = static_cast<std::size_t>((channels - 1) * stride + pixels);
  Guarded<std::uint8_t> rows(size), out(static_cast<std::size_t>(channels) * pixels);
  for (std::size_t i = 0; i < size; ++i) rows[static_cast<std::ptrdiff_t>(i)] = code(255, 0);
  std::vector<std::uint8_t> expected;
  for (int x = 0; x < pixels; ++x)
    for (int c = 0; c < channels; ++c) expected.push_back(rows[c * stride + x]);
  core.interleave(rows.data, stride, channels, pixels, out.data);
  if (out.holds(expected)) return true;
  std::printf("FAILED %s interleave: %d channels, %d pixels\n", core.name, channels, pixels);
  return false;
}

bool transpose(const PixelCore& core, int pixels, int channels) {
  const int wide = up(channels, 16);
  const std::ptrdiff_t stride = wide + uniform(0, 20), row = pixels + uniform(0, 20);
  Guarded<std::int32_t> sums(static_cast<std::size_t>((pixels - 1) * stride + wide));
  for (std::ptrdiff_t i = 0; i < (pixels - 1) * stride + wide; ++i) sums[i] = static_cast<std::int32_t>(generator());
  Guarded<std::int32_t> out(static_cast<std::size_t>((channels - 1) * row + pixels));
  auto expected = out.untouched();
  for (int c = 0; c < channels; ++c)
    for (int p = 0; p < pixels; ++p) expected[static_cast<std::size_t>(c * row + p)] = sums[p * stride + c];
  core.transpose(sums.data, stride, pixels, channels, out.data, row);
  if (out.holds(expected)) return true;
  std::printf("FAILED %s transpose: %d pixels, %d channels\n", core.name, pixels, channels);
  return false;
}

// The bound is what 16 bits can hold, and one product of extreme pairs more would not fit.
bool chains() {
  bool good = true;
  for (int turn = 0; turn < 2000; ++turn) {
    const int row = 2 * uniform(1, 40), rows = uniform(1, 5), bound = uniform(0, 127), most = (1 << uniform(1, 8)) - 1;
    std::vector<std::int8_t> weights(static_cast<std::size_t>(rows) * row);
    for (auto& w : weights) w = weight(bound, uniform(0, 3));
    int largest = 1;  // of the sum of two products, by trying: codes are 0 or the most there is
    for (std::size_t i = 0; i < weights.size(); i += 2)
      for (int a : {0, most})
        for (int b : {0, most}) largest = std::max(largest, std::abs(a * weights[i] + b * weights[i + 1]));
    const int chain =
        lowbit::chain_of(weights.data(), static_cast<std::size_t>(rows), static_cast<std::size_t>(row), most);
    if (static_cast<std::int64_t>(chain) * largest > 32767 || static_cast<std::int64_t>(chain + 1) * largest <= 32767) {
      std::printf("FAILED chain_of: %d for pairs up to %d\n", chain, largest);
      good = false;
    }
  }
  return good;
}

int test_core(const PixelCore& core) {
  int failures = 0, cases = 0;
  const auto check = [&](bool good) { ++cases, failures += !good; };
  for (int pixels = 1; pixels <= core.most_pixels; ++pixels)
    for (int groups = 1; groups <= 2; ++groups)
      for (int vectors = 1; vectors <= 2; ++vectors)
        for (int bits = 1; bits <= 8; ++bits)
          for (int extreme = 0; extreme < 4; ++extreme) {
            const int bound = extreme ? 127 : (2 << uniform(0, 6)) - 1;
            check(product(core, pixels, groups, vectors, uniform(1, 80), bits, bound, extreme));
            check(product(core, pixels, groups, vectors, uniform(1, 80), bits, uniform(0, 8), extreme));
          }
  for (int quads : {1, 2, 3, 144, 1152})
    for (int extreme = 0; extreme < 4; ++extreme)
      for (int bits : {1, 2, 4, 8})
        for (int bound : {0, 1, 7, 127})
          check(product(core, core.most_pixels, 2, 2, quads, bits, bound, extreme));
  check(product(core, 1, 1, 1, 16384, 8, 127, 1));  // the most that 32 bits hold
  check(product(core, 1, 1, 1, 16384, 8, 127, 2));
  for (int taps = 1; taps <= 30; ++taps)
    for (int channels : {1, 64, 65, 200})
      for (int extreme = 0; extreme < 4; ++extreme)
        check(depthwise(core, uniform(1, 9), taps, channels, uniform(1, 8), extreme));
  for (int count = 1; count <= 200; ++count)
    for (int bits = 1; bits <= 8; ++bits) check(planes(core, count, bits, (count + 63) / 64 + uniform(0, 3)));
  for (int words : {1, 2, 7, 8, 30, 31, 32, 62, 63, 100})
    for (int weight_bits = 1; weight_bits <= 4; ++weight_bits)
      for (int code_bits = 1; code_bits <= 4; ++code_bits)
        for (bool ones : {false, true}) check(bit_sums(core, 8 * uniform(1, 5), weight_bits, code_bits, words, ones));
  for (int channels = 1; channels <= 70; ++channels)
    for (Rounding rounding : {Rounding::sign, Rounding::nearest, Rounding::up})
      for (int turn = 0; turn < 20; ++turn) {
        check(finish(core, uniform(1, 9), channels, turn % 2 ? 1 : uniform(-3, 3), rounding, false));
        check(finish(core, uniform(1, 9), channels, 1, rounding, true));
      }
  for (int turn = 0; turn < 3000; ++turn) {
    const int kernel = uniform(1, 5), padding = uniform(0, kernel / 2);
    check(pool(core, uniform(1, kernel), uniform(1, 30), uniform(1, 70), kernel, uniform(1, 4), padding, turn % 2));
  }
  for (int pixels = 1; pixels <= 100; ++pixels)
    for (int channels : {1, 2, 3, 4, 7, 16}) check(interleave(core, channels, pixels));
  for (int pixels = 1; pixels <= 50; ++pixels)
    for (int channels = 1; channels <= 50; ++channels) check(transpose(core, pixels, channels));
  std::printf("%-16s %d cases, %d failures\n", core.name, cases, failures);
  return failures;
}

std::vector<const PixelCore*> all_cores() {
  int count = 0;
  const PixelCore* const* cores = lowbit::pixel_cores(&count);
  std::vector<const PixelCore*> all(cores, cores + count);
  all.push_back(&lowbit::amx_model());
  return all;
}

int run_tests() {
  int failures = chains() ? 0 : 1;
  for (const PixelCore* core : all_cores()) failures += test_core(*core);
  std::printf(failures ? "%d FAILURES\n" : "all good\n", failures);
  return failures ? 1 : 0;
}

// ---- measurements ---------------------------------------------------------------------------------------------------

// Of this thread alone: on a shared machine the scheduler takes the processor away for longer than a product lasts.
double thread_time() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class F>
double best_of(double seconds, F work) {
  double best = 1e9;
  const double begin = thread_time();
  for (int turn = 0; turn < 5 || thread_time() - begin < seconds; ++turn) {
    const double start = thread_time();
    work();
    best = std::min(best, thread_time() - start);
  }
  return best;
}

// Cycles per second: a chain of dependent additions takes one each. AVX-512 lowers the clock while it runs and shortly
// after, so this is asked next to the work. 0: not known.
double clock_rate() {
#if defined(__x86_64__)
  double best = 1.0;
  for (int i = 0; i < 3; ++i) {
    const long turns = 2000;
    const double start = thread_time();
    asm volatile("mov %0, %%rcx\n1:\n.rept 64\nadd $1, %%rax\n.endr\ndec %%rcx\njnz 1b" ::"r"(turns)
                 : "rcx", "rax", "cc");
    best = std::min(best, (thread_time() - start) / (64.0 * turns));
  }
  return 1.0 / best;
#else
  return 0.0;
#endif
}

// All products of a 3×3 convolution with as many inputs as outputs, a map of size × size: two rows of pixels at a time.
double layer(const PixelCore& core, int size, int channels, int bits, int bound, double seconds) {
  const int pitch = size + 2, run = up(3 * channels / 4, core.traits.quads), wide = 2 * core.lanes;
  std::vector<std::int32_t> offsets;
  for (int ky = 0; ky < 3; ++ky)
    for (int q = 0; q < run; ++q) offsets.push_back(ky * pitch * channels + 4 * q);
  const int quads = 3 * run, blocks = (channels + wide - 1) / wide;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(size + 3) * pitch * channels + 256);
  for (auto& c : codes) c = code((1 << bits) - 1, 0);
  std::vector<std::int8_t> weights(static_cast<std::size_t>(blocks) * quads * wide * 4);
  for (auto& w : weights) w = static_cast<std::int8_t>(uniform(-bound, bound));
  const int chain = 32767 / (2 * bound * ((1 << bits) - 1));
  const auto* packed = reinterpret_cast<const std::uint8_t*>(weights.data());
  std::vector<std::int32_t> sums(static_cast<std::size_t>(2 * size * wide));
  const int parts = (size + core.most_pixels - 1) / core.most_pixels, pixels = (size + parts - 1) / parts;
  const double taken = best_of(seconds, [&] {
    for (int block = 0; block < blocks; ++block)
      for (int y = 0; y < size; y += 2) {
        const std::uint8_t* base = codes.data() + static_cast<std::ptrdiff_t>(y) * pitch * channels;
        const std::uint8_t* w = packed + static_cast<std::size_t>(block) * quads * wide * 4;
        core.product({base, channels, static_cast<std::ptrdiff_t>(pitch) * channels, pixels, size - y < 2 ? 1 : 2, parts,
                      pixels, size - pixels, offsets.data(), quads, w, w, 0, 2, chain, sums.data(), wide,
                      static_cast<std::ptrdiff_t>(size) * wide},
                     bits == 8);
      }
  });
  return 9.0 * channels * channels * size * size / taken;
}

void speed(double seconds) {
  std::printf("GMAC/s of 3×3 convolutions, products alone\n%-16s %5s %8s", "core", "codes", "weights");
  const int shapes[][2] = {{56, 64}, {28, 128}, {14, 256}, {7, 512}, {32, 16}, {16, 32}, {8, 64}};
  for (const auto& s : shapes) std::printf("  %3d²×%-4d", s[0], s[1]);
  std::printf("  at GHz\n");
  int count = 0;
  const PixelCore* const* cores = lowbit::pixel_cores(&count);
  for (int i = 0; i < count; ++i)
    for (const auto& kind : {std::pair{2, 1}, std::pair{4, 7}, std::pair{8, 127}}) {
      std::printf("%-16s %5d %8d", cores[i]->name, kind.first, kind.second);
      for (const auto& s : shapes) {
        std::printf(" %10.1f", 1e-9 * layer(*cores[i], s[0], s[1], kind.first, kind.second, seconds));
        std::fflush(stdout);
      }
      std::printf("  %.2f\n", 1e-9 * clock_rate());
    }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "";
  const double seconds = count > 2 ? std::atof(arguments[2]) : 0.2;
  if (what == "test") return run_tests();
  if (what == "speed") return speed(seconds), 0;
  std::printf("usage: pixels_bench test | speed [seconds per case]\n");
  return 2;
}
