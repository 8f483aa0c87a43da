// A convolution of codes that are bytes: the sums of t·u by the byte core, its right operand the inputs of 64 positions.
//
// n_w = l' + a'·t, n_x = l + a·u, u' = u − δ a signed byte (δ = 128 for 8 bits, else 0):
//   Σ n_w·n_x = a·a'·Σ t·u' + a·l'·Σ u' + [a·a'·δ·Σ t + a·l'·δ·K + l·Σ n_w].
// A last row of t = 1 gives Σ u'.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "operations.h"
#include "phases.h"

namespace lowbit {

namespace {

std::size_t up64(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

constexpr int positions = 64;

// The sums of t·u' of 64 positions at a time.
class ByteProduct {
 public:
  ByteProduct(const Program& program, const Convolution& c, const Geometry& out, const ByteCore& core,
              const LaneOps& lanes, int at_once)
      : c_(c),
        core_(core),
        lanes_(lanes),
        in_(program.value(c.input)),
        out_(out),
        phases_(c_, in_.geometry, out_),
        inputs_(in_.channels / c.groups),
        outputs_(c.out_channels / c.groups),
        k_(inputs_ * c.kernel_h * c.kernel_w),
        at_once_(at_once),
        delta_(in_.codes.bits == 8 ? 128 : 0) {
    check_shapes(c_, in_, out_);
    if (!c_.thresholds.empty() || !in_.codes.has_zero) throw std::invalid_argument("bytes take steps and a code for 0");
    pack();
  }

  void prepare(Context& context) const {
    if (!phases_.direct()) take_apart(context);
  }
  std::size_t scratch() const {
    return up64(static_cast<std::size_t>(k_) * positions) + up64(core_.packed_size(k_, positions));
  }
  std::size_t shared() const {
    if (phases_.direct()) return 0;
    return static_cast<std::size_t>(phases_.groups()) * 64 * in_.channels * phases_.count();
  }
  // sums[m * stride + i] for `at_once` output channels of a group of them from `first` on, and, in a last row, what has to
  // be added to each: slope / 2 · sums + last row + offset / 2.
  void run(Worker& worker, int group, int first, std::int64_t start, char* scratch, std::int32_t* sums,
           std::size_t stride) const {
    auto* inputs = reinterpret_cast<std::int8_t*>(scratch);
    auto* packed = reinterpret_cast<std::uint8_t*>(scratch + up64(static_cast<std::size_t>(k_) * positions));
    const int count = rows(first);
    fetch(worker, group * inputs_, start, inputs);
    core_.pack(inputs, k_, positions, packed);
    core_.gemm(row_of(group, first), row_, count + 1, packed, k_, positions, sums, stride);
    std::int32_t* last = sums + static_cast<std::size_t>(count) * stride;
    for (int i = 0; i < positions; ++i) last[i] *= in_.codes.step * c_.weight_low;
  }
  int rows(int first) const { return std::min(at_once_, outputs_ - first); }
  std::int32_t slope() const { return 2 * in_.codes.step * c_.weight_step; }
  const std::int32_t* offsets(int channel) const { return offsets_.data() + channel; }
  std::string describe() const {
    return describe_convolution(c_, in_, out_) + ", " + core_.name +
           (phases_.direct() ? "" : ", " + std::to_string(phases_.count()) + " phases");
  }

 private:
  void pack() {
    row_ = core_.row_size(k_);
    const std::size_t taps = static_cast<std::size_t>(c_.kernel_h) * c_.kernel_w;
    // Each set of rows ends with the row of ones.
    const int sets = (outputs_ + at_once_ - 1) / at_once_;
    rows_ = std::make_unique<Aligned>(static_cast<std::size_t>(c_.groups) * sets * (at_once_ + 1) * row_ + 64);
    offsets_.resize(static_cast<std::size_t>(c_.out_channels));
    const std::int64_t a = in_.codes.step, a2 = c_.weight_step;
    for (int m = 0; m < c_.out_channels; ++m) {
      std::uint8_t* row = row_of(m / outputs_, m % outputs_);
      std::int64_t total = 0;
      for (int k = 0; k < k_; ++k) {
        const std::size_t tap = static_cast<std::size_t>(k / inputs_), channel = static_cast<std::size_t>(k % inputs_);
        row[k] = c_.weights[(static_cast<std::size_t>(m) * inputs_ + channel) * taps + tap];
        total += row[k];
      }
      const std::int64_t numbers = c_.weight_low * static_cast<std::int64_t>(k_) + a2 * total;
      offsets_[static_cast<std::size_t>(m)] = 2 * static_cast<std::int32_t>(
          a * a2 * delta_ * total + a * c_.weight_low * delta_ * static_cast<std::int64_t>(k_) + in_.codes.low * numbers);
    }
    for (int group = 0; group < c_.groups; ++group)
      for (int set = 0; set < sets; ++set) {
        const int count = std::min(at_once_, outputs_ - set * at_once_);
        std::memset(row_of(group, set * at_once_) + static_cast<std::size_t>(count) * row_, 1, static_cast<std::size_t>(k_));
      }
  }

  std::uint8_t* row_of(int group, int row) const {
    const int sets = (outputs_ + at_once_ - 1) / at_once_;
    const std::size_t at = (static_cast<std::size_t>(group) * sets + row / at_once_) * (at_once_ + 1) + row % at_once_;
    return static_cast<std::uint8_t*>(rows_->memory) + at * row_;
  }

  void take_apart(Context& context) const {
    const Geometry& g = in_.geometry;
    context.each(in_.channels, [&](int channel, char*) {
      const std::uint8_t* source = context.data.codes(c_.input, channel);
      for (int phase = 0; phase < phases_.count(); ++phase) {
        std::uint8_t* target = phase_plane(context.data, channel, phase);
        phases_.each_row(phase, [&](int row, int column, int count, std::int64_t at) {
          if (row < 0)
            std::memset(target + at, in_.codes.pad, static_cast<std::size_t>(count));
          else
            lanes_.every(source + row * g.pitch + column, c_.stride_w, count, target + at);
        });
      }
    });
  }

  std::uint8_t* phase_plane(Worker& worker, int channel, int phase) const {
    const std::size_t index = static_cast<std::size_t>(channel) * phases_.count() + phase;
    return static_cast<std::uint8_t*>(worker.shared.memory) + index * static_cast<std::size_t>(phases_.groups()) * 64;
  }

  // The inputs of 64 positions from `start` on, [k][64], k over taps, then channels.
  void fetch(Worker& worker, int first_channel, std::int64_t start, std::int8_t* out) const {
    for (const Phases::Tap& tap : phases_.taps())
      for (int channel = first_channel; channel < first_channel + inputs_; ++channel, out += positions) {
        const std::uint8_t* source =
            phases_.direct() ? worker.codes(c_.input, channel) : phase_plane(worker, channel, tap.phase);
        std::memcpy(out, source + start + tap.shift, positions);
        if (delta_)
          for (int i = 0; i < positions; ++i) out[i] = static_cast<std::int8_t>(out[i] ^ -128);
      }
  }

  const Convolution& c_;
  const ByteCore& core_;
  const LaneOps& lanes_;
  const Value in_;
  const Geometry out_;
  const Phases phases_;
  const int inputs_, outputs_, k_, at_once_, delta_;
  std::size_t row_ = 0;
  std::unique_ptr<Aligned> rows_;
  std::vector<std::int32_t> offsets_;
};

class ByteConv final : public Operation {
 public:
  ByteConv(const Program& program, Convolution c, const ByteCore& core, const LaneOps& lanes, int threads)
      : c_(std::move(c)),
        lanes_(lanes),
        out_(geometry_of_result(program, c_)),
        outputs_(c_.out_channels / c_.groups),
        at_once_(out_.groups() * c_.groups < 2 * threads ? std::max(16, (outputs_ + threads - 1) / threads) : outputs_),
        product_(program, c_, out_, core, lanes, at_once_),
        steps_(program, c_.steps, out_) {}

  void run(Context& context) override {
    product_.prepare(context);
    const int sets = (outputs_ + at_once_ - 1) / at_once_;
    context.each(out_.groups() * c_.groups * sets, [&](int item, char* scratch) {
      const int first = item % sets * at_once_, channels = item / sets % c_.groups, group = item / sets / c_.groups;
      auto* sums = reinterpret_cast<std::int32_t*>(scratch + product_.scratch());
      product_.run(context.data, channels, first, 64ll * group, scratch, sums, positions);
      const int count = product_.rows(first), channel = channels * outputs_ + first;
      BlockStep steps[most_steps];
      const int number = steps_.resolve(context.data, channel, group, steps);
      lanes_.finish_counts(sums, positions, product_.slope(), product_.offsets(channel),
                           sums + static_cast<std::size_t>(count) * positions, count, 1, steps, number);
    });
  }

  std::size_t scratch() const override {
    return product_.scratch() + up64(static_cast<std::size_t>(at_once_ + 1) * positions * 4) + 64;
  }
  std::size_t shared() const override { return product_.shared(); }
  std::vector<int> reads() const override {
    std::vector<int> all = steps_.reads();
    all.push_back(c_.input);
    return all;
  }
  std::vector<int> writes() const override { return steps_.writes(); }
  std::string describe() const override { return product_.describe() + steps_.describe(); }

 private:
  const Convolution c_;
  const LaneOps& lanes_;
  const Geometry out_;
  const int outputs_, at_once_;
  const ByteProduct product_;
  const Steps steps_;
};

// A convolution and the max-pooling behind it. The steps between them are monotone for each channel, roundings included,
// so that the largest result comes from the largest sum, or from the smallest: only one in four is worth the steps.
class PooledByteConv final : public Operation {
 public:
  PooledByteConv(const Program& program, Convolution c, const ByteCore& core, const LaneOps& lanes)
      : c_(std::move(c)),
        lanes_(lanes),
        out_(geometry_of_result(program, c_)),
        product_(program, c_, c_.inner, core, lanes, c_.out_channels),
        steps_(program, c_.steps, out_) {
    const auto fits = [&](int before, int after) {
      return after == (before + 2 * c_.pool_padding - c_.pool_kernel) / c_.pool_stride + 1;
    };
    if (c_.groups != 1 || !fits(c_.inner.height, out_.height) || !fits(c_.inner.width, out_.width) ||
        2 * c_.pool_padding > c_.pool_kernel || c_.falling.size() != static_cast<std::size_t>(c_.out_channels))
      throw std::invalid_argument("the pooled convolution's shapes do not fit each other");
  }

  void run(Context& context) override {
    product_.prepare(context);
    const int bands = (out_.height + rows_at_once - 1) / rows_at_once;
    context.each(bands, [&](int band, char* scratch) {
      pool(context.data, band * rows_at_once, std::min(out_.height, (band + 1) * rows_at_once), scratch);
    });
    constexpr int chunk = 16;
    context.each((c_.out_channels + chunk - 1) / chunk, [&](int item, char*) {
      const int first = item * chunk, count = std::min(chunk, c_.out_channels - first);
      BlockStep steps[most_steps];
      const int number = steps_.resolve(context.data, first, 0, steps);
      lanes_.finish_counts(pooled(context.data, first), out_.floats(), 2, product_.offsets(first), nullptr, count,
                           out_.groups(), steps, number);
    });
  }

  std::size_t scratch() const override {
    return product_.scratch() + 4 * (static_cast<std::size_t>(c_.out_channels + 1) * band_positions() + column_size()) +
           128;
  }
  std::size_t shared() const override {
    return up64(product_.shared()) + 4 * static_cast<std::size_t>(c_.out_channels) * out_.floats();
  }
  std::vector<int> reads() const override {
    std::vector<int> all = steps_.reads();
    all.push_back(c_.input);
    return all;
  }
  std::vector<int> writes() const override { return steps_.writes(); }
  std::string describe() const override { return product_.describe() + ", pool" + steps_.describe(); }

 private:
  static constexpr int rows_at_once = 2;

  std::size_t band_positions() const {
    const std::int64_t rows = (rows_at_once - 1) * c_.pool_stride + c_.pool_kernel;
    return static_cast<std::size_t>((rows * c_.inner.pitch + 63) / 64 * 64);
  }
  std::size_t column_size() const { return static_cast<std::size_t>(c_.inner.width + 2 * c_.pool_kernel + 64); }
  std::int32_t* pooled(Worker& worker, int channel) const {
    auto* start = static_cast<char*>(worker.shared.memory) + up64(product_.shared());
    return reinterpret_cast<std::int32_t*>(start) + channel * out_.floats();
  }

  void pool(Worker& worker, int top, int bottom, char* scratch) const {
    const int s = c_.pool_stride, p = c_.pool_padding, k = c_.pool_kernel;
    const int first = std::max(top * s - p, 0), last = std::min((bottom - 1) * s - p + k, c_.inner.height);
    const std::int64_t pitch = c_.inner.pitch, start = first * pitch, end = last * pitch;
    const std::size_t stride = band_positions();
    auto* sums = reinterpret_cast<std::int32_t*>(scratch + product_.scratch());
    for (std::int64_t at = start; at < end; at += positions)
      product_.run(worker, 0, 0, at, scratch, sums + (at - start), stride);
    const std::int32_t* shared = sums + c_.out_channels * stride;
    std::int32_t* column = sums + (c_.out_channels + 1) * stride + p;
    for (int m = 0; m < c_.out_channels; ++m) {
      const bool smaller = c_.falling[static_cast<std::size_t>(m)];
      const std::int32_t worst = smaller ? INT32_MAX : INT32_MIN;
      std::fill(column - p, column, worst);
      std::fill(column + c_.inner.width, column + c_.inner.width + k, worst);
      for (int y = top; y < bottom; ++y) {
        const int from = std::max(y * s - p, 0), to = std::min(y * s - p + k, c_.inner.height);
        for (int row = from; row < to; ++row) {
          const std::int64_t at = (row - first) * pitch;
          lanes_.best_sums(column, sums + m * stride + at, product_.slope() / 2, shared + at, c_.inner.width, smaller,
                           row == from);
        }
        lanes_.best_of(column - p, k, s, out_.width, smaller, pooled(worker, m) + y * out_.pitch);
      }
    }
  }

  const Convolution c_;
  const LaneOps& lanes_;
  const Geometry out_;
  const ByteProduct product_;
  const Steps steps_;
};

}  // namespace

std::unique_ptr<Operation> make_byte_convolution(const Program& program, Convolution convolution,
                                                 const ByteCore& core, const LaneOps& lanes, int threads) {
  if (convolution.pool_kernel)
    return std::make_unique<PooledByteConv>(program, std::move(convolution), core, lanes);
  return std::make_unique<ByteConv>(program, std::move(convolution), core, lanes, threads);
}

}  // namespace lowbit
