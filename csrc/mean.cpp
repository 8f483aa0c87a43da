// The mean of each channel of a map, with torch's roundings: its additions in torch's order, then one division.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "operations.h"

namespace lowbit {

namespace {

constexpr int levels = 4;                      // of the cascade
constexpr int copied = 8;                      // numbers at once; there is room for as many behind all values
constexpr std::int64_t small_map = 1ll << 14;  // numbers in all that are not worth waking threads for

float running_sum(const float* x, std::int64_t count) {
  float sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += x[i];
  return sum;
}

// Lane by lane, four rows at a time; sums of 2^power blocks of these are added up a level higher, 2^power of those above
// that, and so on, like the digits of a counter. What makes no full four rows joins the first of them, what makes no full
// row is added up apart, and the lanes follow.
template <int lanes>
float cascade_sum(const float* x, std::int64_t count) {
  constexpr int wide = 4 * lanes;
  const std::int64_t blocks = count / wide, rows = count / lanes;
  int power = 0;
  while ((std::int64_t{1} << power) < blocks) ++power;
  power = std::max(4, power / levels);
  const std::int64_t unit = std::int64_t{1} << power;

  float sum[wide];
  std::int64_t done = 0;
  if (blocks >= unit) {
    std::memset(sum, 0, sizeof sum);
    float higher[levels][wide] = {};
    while (done + unit <= blocks) {
      for (const std::int64_t last = done + unit; done < last; ++done)
        for (int i = 0; i < wide; ++i) sum[i] += x[done * wide + i];
      std::memcpy(higher[0], sum, sizeof sum);
      std::memset(sum, 0, sizeof sum);
      for (int level = 1; level < levels; ++level) {
        for (int i = 0; i < wide; ++i) {
          higher[level][i] += higher[level - 1][i];
          higher[level - 1][i] = 0;
        }
        if ((done >> (level * power)) & (unit - 1)) break;  // this digit did not turn over
      }
    }
    for (; done < blocks; ++done)
      for (int i = 0; i < wide; ++i) sum[i] += x[done * wide + i];
    for (int level = 1; level < levels; ++level)
      for (int i = 0; i < wide; ++i) sum[i] += higher[level][i];
  } else {
    for (int i = 0; i < wide; ++i) sum[i] = 0.0f + (blocks ? x[i] : 0.0f);
    for (done = 1; done < blocks; ++done)
      for (int i = 0; i < wide; ++i) sum[i] += x[done * wide + i];
  }
  for (std::int64_t row = 4 * blocks; row < rows; ++row)
    for (int i = 0; i < lanes; ++i) sum[i] += x[row * lanes + i];
  for (int j = 1; j < 4; ++j)
    for (int i = 0; i < lanes; ++i) sum[i] += sum[j * lanes + i];
  float total = running_sum(x + rows * lanes, count - rows * lanes);
  for (int i = 0; i < lanes; ++i) total += sum[i];
  return total;
}

using Sum = float (*)(const float* x, std::int64_t count);

Sum sum_of(int lanes) {
  switch (lanes) {
    case 0: return running_sum;
    case 1: return cascade_sum<1>;
    case 4: return cascade_sum<4>;
    case 8: return cascade_sum<8>;
    case 16: return cascade_sum<16>;
    default: throw std::invalid_argument("mean: no order of additions has " + std::to_string(lanes) + " lanes");
  }
}

class Mean final : public Operation {
 public:
  Mean(const Program& program, int input, int output, int lanes)
      : program_(program), input_(input), output_(output), lanes_(lanes), sum_(sum_of(lanes)) {
    const Value &in = program.value(input), &out = program.value(output);
    if (in.is_codes || out.is_codes || out.channels != in.channels || out.geometry.height != 1 ||
        out.geometry.width != 1)
      throw std::invalid_argument("mean: the shapes do not fit");
  }

  void run(Context& context) override {
    const Value &in = program_.value(input_), &out = program_.value(output_);
    const Geometry& g = in.geometry;
    const std::int64_t count = static_cast<std::int64_t>(g.height) * g.width;
    const auto body = [&](int c, char* scratch) {
      const float* source = in.pixels ? nullptr : context.data.floats(input_, c);
      if (in.pixels) {
        auto* numbers = reinterpret_cast<float*>(scratch);
        const int wide = channels_wide(in.channels);
        for (std::int64_t y = 0; y < g.height; ++y)
          for (std::int64_t x = 0; x < g.width; ++x)
            numbers[y * g.width + x] = context.data.pixels(input_)[(y * g.pitch + x) * wide + c];
        source = numbers;
      } else if (g.pitch != g.width) {  // one row after the other, each over what the one before copied too much
        auto* rows = reinterpret_cast<float*>(scratch);
        for (std::int64_t y = 0; y < g.height; ++y)
          for (int x = 0; x < g.width; x += copied)
            std::memcpy(rows + y * g.width + x, source + y * g.pitch + x, sizeof(float) * copied);
        source = rows;
      }
      float* target = out.pixels ? context.data.pixels(output_) + c : context.data.floats(output_, c);
      *target = sum_(source, count) / static_cast<float>(count);
    };
    Context alone{context.data, context.workers, nullptr};
    (in.channels * count < small_map ? alone : context).each(in.channels, body);
  }
  std::size_t scratch() const override {
    const Geometry& g = program_.value(input_).geometry;
    return sizeof(float) * (static_cast<std::size_t>(g.height) * static_cast<std::size_t>(g.width) + copied);
  }
  std::vector<int> reads() const override { return {input_}; }
  std::vector<int> writes() const override { return {output_}; }
  std::string describe() const override {
    return "mean " + std::to_string(input_) + " -> " + std::to_string(output_) + ", " + std::to_string(lanes_) +
           " lanes";
  }

 private:
  const Program& program_;
  int input_, output_, lanes_;
  Sum sum_;
};

}  // namespace

std::unique_ptr<Operation> make_mean(const Program& program, int input, int output, int lanes) {
  return std::make_unique<Mean>(program, input, output, lanes);
}

}  // namespace lowbit
