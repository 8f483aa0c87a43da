// A convolution with few results for each weight, such as a linear layer on one example: reading the weights is what
// costs, so they stay bits, and so do the codes.
//
// n_w = l' + a'·t, n_x = l + a·u: Σ n_w·n_x = a·(a'·Σ t·u + l'·Σ u) + l·Σ n_w, and Σ t·u is counted.
#include <algorithm>
#include <stdexcept>

#include "operations.h"

namespace lowbit {

namespace {

std::size_t up64(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

class BitVectors final : public Operation {
 public:
  BitVectors(const Program& program, Convolution c, const PixelCore& core)
      : c_(std::move(c)),
        core_(core),
        in_(program.value(c_.input)),
        out_(geometry_of_result(program, c_)),
        steps_(program, c_.steps, out_),
        fan_in_(in_.channels * c_.kernel_h * c_.kernel_w),
        words_((fan_in_ + 63) / 64),
        sets_((c_.out_channels + at_once - 1) / at_once) {
    check_shapes(c_, in_, out_);
    if (!steps_.in_pixels()) throw std::invalid_argument("few positions are written channels last");
    pack();
  }

  void run(Context& context) override {
    for (int y = 0; y < out_.height; ++y)
      for (int x = 0; x < out_.width; ++x) one(context, y, x);
  }

  std::size_t scratch() const override { return up64(4 * (at_once + 64)); }
  std::size_t shared() const override {
    return up64(static_cast<std::size_t>(fan_in_)) + 8 * static_cast<std::size_t>(in_.codes.bits) * words_ + 64;
  }
  std::vector<int> reads() const override {
    std::vector<int> all = steps_.reads();
    all.push_back(c_.input);
    return all;
  }
  std::vector<int> writes() const override { return steps_.writes(); }
  std::string describe() const override {
    return describe_convolution(c_, in_, out_) + ", counted, " + core_.name + steps_.describe();
  }

 private:
  static constexpr int at_once = 128;  // output channels

  void pack() {
    const int taps = c_.kernel_h * c_.kernel_w, rows = (c_.out_channels + 7) / 8 * 8;
    const std::size_t plane = 8ull * words_;
    bits_ = std::make_unique<Aligned>(8 * plane * (rows / 8) * c_.weight_bits);
    auto* words = static_cast<std::uint64_t*>(bits_->memory);
    offsets_.assign(static_cast<std::size_t>(rows + at_once), 0);
    for (int m = 0; m < c_.out_channels; ++m) {
      std::int64_t total = 0;
      for (int k = 0; k < fan_in_; ++k) {  // over rows and columns of the window, then channels
        const std::uint8_t t = c_.weights[(static_cast<std::size_t>(m) * in_.channels + k % in_.channels) * taps + k / in_.channels];
        total += c_.weight_low + c_.weight_step * t;
        for (int i = 0; i < c_.weight_bits; ++i)
          words[(static_cast<std::size_t>(m / 8) * c_.weight_bits + i) * plane + static_cast<std::size_t>(k / 64) * 8 + m % 8] |=
              static_cast<std::uint64_t>(t >> i & 1) << (k % 64);
      }
      offsets_[static_cast<std::size_t>(m)] = static_cast<std::int32_t>(in_.codes.low * total);
    }
  }

  void one(Context& context, int y, int x) {
    auto* codes = static_cast<std::uint8_t*>(context.data.shared.memory);
    auto* planes = reinterpret_cast<std::uint64_t*>(codes + up64(static_cast<std::size_t>(fan_in_)));
    const std::ptrdiff_t run = static_cast<std::ptrdiff_t>(c_.kernel_w) * in_.channels;
    std::int64_t sum = 0;
    for (int ky = 0; ky < c_.kernel_h; ++ky) {
      const std::int64_t row = static_cast<std::int64_t>(y) * c_.stride_h + ky - c_.pad_h, column = x * c_.stride_w - c_.pad_w;
      const std::uint8_t* from = context.data.codes(c_.input) + (row * in_.geometry.pitch + column) * in_.channels;
      std::copy_n(from, run, codes + ky * run);
      for (std::ptrdiff_t i = 0; i < run; ++i) sum += from[i];
    }
    core_.to_planes(codes, fan_in_, in_.codes.bits, words_, planes);
    const auto shared = static_cast<std::int32_t>(in_.codes.step * c_.weight_low * sum);
    const std::int64_t position = y * out_.pitch + x;
    context.each(sets_, [&](int set, char* scratch) {
      auto* sums = reinterpret_cast<std::int32_t*>(scratch);
      const int first = set * at_once, count = std::min(at_once, c_.out_channels - first);
      const std::size_t row = 8ull * words_ * c_.weight_bits;
      core_.bit_sums(static_cast<const std::uint64_t*>(bits_->memory) + first / 8 * row, (count + 7) / 8 * 8,
                     c_.weight_bits, planes, in_.codes.bits, words_, sums);
      const std::int32_t slope = in_.codes.step * c_.weight_step;
      for (int m = 0; m < count; ++m) sums[m] = sums[m] * slope + shared;
      BlockStep steps[most_steps];
      const int number = steps_.resolve_pixels(context.data, first, position, steps);
      core_.finish(sums, {1, 1, count, 0, 0, 0}, 1, offsets_.data() + first, steps, number);
    });
  }

  const Convolution c_;
  const PixelCore& core_;
  const Value in_;
  const Geometry out_;
  const Steps steps_;
  const int fan_in_, words_, sets_;
  std::unique_ptr<Aligned> bits_;
  std::vector<std::int32_t> offsets_;
};

}  // namespace

bool counts_bits(const Program& program, const Convolution& c, const PixelCore& core) {
  const Value& in = program.value(c.input);
  const Geometry out = geometry_of_result(program, c);
  const bool simple = c.groups == 1 && c.dilation_w == 1 && c.dilation_h == 1 && !c.pool_kernel && c.thresholds.empty() &&
                      c.weight_bits <= 4 && in.codes.bits <= 4 && (in.codes.has_zero || (c.pad_h == 0 && c.pad_w == 0));
  if (!simple) return false;
  for (const Step& step : c.steps) {
    if (step.value < 0) continue;
    const Value& v = program.value(step.value);
    if (v.is_codes ? !v.codes.bytes : !v.pixels) return false;
  }
  // Cycles for each weight: products, or reading it, from the second-level cache or from beyond.
  const double weights = static_cast<double>(c.out_channels) * in.channels * c.kernel_h * c.kernel_w;
  const double bytes_each_cycle = weights < (700 << 10) ? 40 : 10, pixels = out.height * out.width;
  const double bytes = std::max(pixels / core.traits.byte_rate, 1 / bytes_each_cycle);
  const double bits = pixels * std::max(1.0 * c.weight_bits * in.codes.bits / core.traits.bit_rate,
                                        c.weight_bits / 8.0 / (weights * c.weight_bits / 8 < (700 << 10) ? 40 : 10));
  return bits < bytes;
}

std::unique_ptr<Operation> make_bit_vectors(const Program& program, Convolution convolution, const PixelCore& core) {
  return std::make_unique<BitVectors>(program, std::move(convolution), core);
}

}  // namespace lowbit
