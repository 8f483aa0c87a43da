// A convolution of codes that are bytes: the sums of t·u by the byte core, its right operand the inputs of 64 positions.
//
// n_w = l' + a'·t, n_x = l + a·u, u' = u − δ a signed byte (δ = 128 for 8 bits, else 0):
//   Σ n_w·n_x = a·a'·Σ t·u' + a·l'·Σ u' + [a·a'·δ·Σ t + a·l'·δ·K + l·Σ n_w].
// A last row of t = 1 gives Σ u'.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "operations.h"

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
        steps_(program, c_.steps, out_) {
    check_shapes(c_, in_, out_);
    if (!c_.thresholds.empty() || !in_.codes.has_zero) throw std::invalid_argument("bytes take steps and a code for 0");
    inputs_ = in_.channels / c_.groups;
    outputs_ = c_.out_channels / c_.groups;
    k_ = inputs_ * c_.kernel_h * c_.kernel_w;
    delta_ = in_.codes.bits == 8 ? 128 : 0;
    direct_ = c_.stride_h == 1 && c_.stride_w == 1 && in_.geometry == out_;
    at_once_ = outputs_;
    if (out_.groups() * c_.groups < 2 * threads) at_once_ = std::max(16, (outputs_ + threads - 1) / threads);
    pack();
  }

  void run(Context& context) override {
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
  std::vector<int> reads() const override {
    std::vector<int> all = steps_.reads();
    all.push_back(c_.input);
    return all;
  }
  std::vector<int> writes() const override { return steps_.writes(); }
  std::string describe() const override {
    return describe_convolution(c_, in_, out_) + ", " + core_.name + (direct_ ? ", shifts" : ", gathers") +
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
      offsets_[static_cast<std::size_t>(m)] = static_cast<std::int32_t>(
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

  // The inputs of 64 positions, [k][64], k over taps, then channels.
  void fetch(Worker& worker, int first_channel, int group, std::int8_t* out) const {
    const Geometry& g = in_.geometry;
    const std::int64_t start = 64ll * group;
    for (int ky = 0; ky < c_.kernel_h; ++ky)
      for (int kx = 0; kx < c_.kernel_w; ++kx) {
        const std::int64_t dy = ky * c_.dilation_h - c_.pad_h, dx = kx * c_.dilation_w - c_.pad_w;
        for (int channel = 0; channel < inputs_; ++channel, out += positions) {
          const std::uint8_t* source = worker.codes(c_.input, first_channel + channel);
          if (direct_)
            std::memcpy(out, source + start + dy * g.pitch + dx, positions);
          else
            pick(source, start, dy, dx, out);
          if (delta_)
            for (int i = 0; i < positions; ++i) out[i] = static_cast<std::int8_t>(out[i] ^ -128);
        }
      }
  }

  void pick(const std::uint8_t* source, std::int64_t start, std::int64_t dy, std::int64_t dx, std::int8_t* out) const {
    for (int done = 0; done < positions;) {
      const std::int64_t at = start + done, y = at / out_.pitch, x = at % out_.pitch;
      const int left = static_cast<int>(std::min<std::int64_t>(positions - done, out_.pitch - x));
      const int inside = static_cast<int>(std::clamp<std::int64_t>(out_.width - x, 0, left));
      if (y >= out_.height || !inside) {
        std::memset(out + done, 0, static_cast<std::size_t>(left));
      } else {
        const std::uint8_t* from = source + (y * c_.stride_h + dy) * in_.geometry.pitch + x * c_.stride_w + dx;
        if (c_.stride_w == 2)
          for (int i = 0; i < inside; ++i) out[done + i] = static_cast<std::int8_t>(from[2 * i]);
        else
          for (int i = 0; i < inside; ++i) out[done + i] = static_cast<std::int8_t>(from[i * c_.stride_w]);
        std::memset(out + done + inside, 0, static_cast<std::size_t>(left - inside));
      }
      done += left;
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
    for (int m = 0; m < count; ++m) {
      const int channel = channels * outputs_ + first + m;
      RowStep steps[most_steps];
      const int number = steps_.resolve(worker, channel, group, steps);
      lanes_.finish_counts(sums + static_cast<std::size_t>(m) * positions, 2 * in_.codes.step * c_.weight_step,
                           2 * offsets_[static_cast<std::size_t>(channel)], shared, 1, steps, number);
    }
  }

  const Program& program_;
  const Convolution c_;
  const ByteCore& core_;
  const LaneOps& lanes_;
  const Value in_;
  const Geometry out_;
  Steps steps_;
  int inputs_ = 0, outputs_ = 0, k_ = 0, at_once_ = 1, delta_ = 0;
  bool direct_ = false;
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
