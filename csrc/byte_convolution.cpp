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

class ByteConv final : public Operation {
 public:
  ByteConv(const Program& program, Convolution c, const ByteCore& core, const LaneOps& lanes, int threads)
      : program_(program),
        c_(std::move(c)),
        core_(core),
        lanes_(lanes),
        in_(program.value(c_.input)),
        out_(geometry_of_result(program, c_)),
        steps_(program, c_.steps, out_),
        phases_(c_, in_.geometry, out_) {
    check_shapes(c_, in_, out_);
    if (!c_.thresholds.empty() || !in_.codes.has_zero) throw std::invalid_argument("bytes take steps and a code for 0");
    inputs_ = in_.channels / c_.groups;
    outputs_ = c_.out_channels / c_.groups;
    k_ = inputs_ * c_.kernel_h * c_.kernel_w;
    delta_ = in_.codes.bits == 8 ? 128 : 0;
    at_once_ = outputs_;
    if (out_.groups() * c_.groups < 2 * threads) at_once_ = std::max(16, (outputs_ + threads - 1) / threads);
    pack();
  }

  void run(Context& context) override {
    if (!phases_.direct()) take_apart(context);
    const int sets = (outputs_ + at_once_ - 1) / at_once_;
    context.each(out_.groups() * c_.groups * sets, [&](int item, char* scratch) {
      const int set = item % sets, group = item / sets % c_.groups;
      block(context.data, group, set * at_once_, item / sets / c_.groups, scratch);
    });
  }

  std::size_t scratch() const override {
    return up64(static_cast<std::size_t>(k_) * positions) + up64(core_.packed_size(k_, positions)) +
           up64(static_cast<std::size_t>(at_once_ + 1) * positions * 4) + 64;
  }
  std::size_t shared() const override {
    if (phases_.direct()) return 0;
    return static_cast<std::size_t>(phases_.groups()) * 64 * in_.channels * phases_.count();
  }
  std::vector<int> reads() const override {
    std::vector<int> all = steps_.reads();
    all.push_back(c_.input);
    return all;
  }
  std::vector<int> writes() const override { return steps_.writes(); }
  std::string describe() const override {
    return describe_convolution(c_, in_, out_) + ", " + core_.name + (phases_.direct() ? "" : ", " + std::to_string(phases_.count()) + " phases") +
           steps_.describe();
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

  void take_apart(Context& context) {
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

  // The inputs of 64 positions, [k][64], k over taps, then channels.
  void fetch(Worker& worker, int first_channel, int group, std::int8_t* out) const {
    const std::int64_t start = 64ll * group;
    for (const Phases::Tap& tap : phases_.taps())
      for (int channel = first_channel; channel < first_channel + inputs_; ++channel, out += positions) {
        const std::uint8_t* source =
            phases_.direct() ? worker.codes(c_.input, channel) : phase_plane(worker, channel, tap.phase);
        std::memcpy(out, source + start + tap.shift, positions);
        if (delta_)
          for (int i = 0; i < positions; ++i) out[i] = static_cast<std::int8_t>(out[i] ^ -128);
      }
  }

  void block(Worker& worker, int channels, int first, int group, char* scratch) {
    auto* inputs = reinterpret_cast<std::int8_t*>(scratch);
    auto* packed = reinterpret_cast<std::uint8_t*>(scratch += up64(static_cast<std::size_t>(k_) * positions));
    auto* sums = reinterpret_cast<std::int32_t*>(scratch + up64(core_.packed_size(k_, positions)));
    const int count = std::min(at_once_, outputs_ - first);
    fetch(worker, channels * inputs_, group, inputs);
    core_.pack(inputs, k_, positions, packed);
    core_.gemm(row_of(channels, first), row_, count + 1, packed, k_, positions, sums, positions);
    std::int32_t* shared = sums + static_cast<std::size_t>(count) * positions;
    for (int i = 0; i < positions; ++i) shared[i] *= in_.codes.step * c_.weight_low;
    const int channel = channels * outputs_ + first;
    BlockStep steps[most_steps];
    const int number = steps_.resolve(worker, channel, group, steps);
    lanes_.finish_counts(sums, positions, 2 * in_.codes.step * c_.weight_step, offsets_.data() + channel, shared, count,
                         1, steps, number);
  }

  const Program& program_;
  const Convolution c_;
  const ByteCore& core_;
  const LaneOps& lanes_;
  const Value in_;
  const Geometry out_;
  Steps steps_;
  const Phases phases_;
  int inputs_ = 0, outputs_ = 0, k_ = 0, at_once_ = 1, delta_ = 0;
  std::size_t row_ = 0;
  std::unique_ptr<Aligned> rows_;
  std::vector<std::int32_t> offsets_;
};

}  // namespace

std::unique_ptr<Operation> make_byte_convolution(const Program& program, Convolution convolution,
                                                 const ByteCore& core, const LaneOps& lanes, int threads) {
  return std::make_unique<ByteConv>(program, std::move(convolution), core, lanes, threads);
}

}  // namespace lowbit
