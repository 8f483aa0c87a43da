// A convolution of few-bit numbers on bit planes; see bitcore.h for the product itself.
//
// With u the index of an input's code, n_x = a·u + l, and t that of a weight's, n_w = l' + a'·t, t = (Σ_i 2^i·β_i +
// 2^b' − 1)/2 with digits β = ±1:
//   Σ n_w·n_x = (a·a'/2)·Z + l·W,  Z = Σ_i 2^i·Σ β_i·u + κ·Σ u,  κ = 2·l'/a' + 2^b' − 1,  W = Σ n_w.
// κ is 0 for the signs and the odd integers, −1 for two's complement, +1 for {−1, 0, 1}. The counters hold
//   G = Σ_ij 2^(i+j)·(Σ_k agree(β_i, u_j)) + [κ = −1: Σ_j 2^j·Σ_k (1 − u_j), κ = +1: Σ u]  =  Z + a constant.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "operations.h"
#include "phases.h"

namespace lowbit {

namespace {

std::size_t up64(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

int bit_length(std::int64_t number) {
  int bits = 0;
  for (; number; number >>= 1) ++bits;
  return bits;
}

// `count` bits of a row, from bit `position` on at a distance of `stride`, to out from bit `at` on (which is zero there).
void pick(const std::uint64_t* source, std::int64_t position, int stride, int count, std::uint64_t* out,
          std::int64_t at) {
  const auto word_at = [&](std::int64_t bit) {  // a stride of 0 repeats one word
    const std::uint64_t* word = source + (bit >> 6);
    const int right = static_cast<int>(bit & 63);
    return right ? (word[0] >> right) | (word[1] << (64 - right)) : word[0];
  };
  const int chunk = stride < 2 ? 64 : stride == 2 ? 32 : 1;
  for (int done = 0; done < count; done += chunk) {
    const int some = std::min(chunk, count - done);
    std::uint64_t bits = word_at(position + static_cast<std::int64_t>(done) * stride);
    if (stride == 2) {  // every other bit, moved together
      bits &= 0x5555555555555555ull;
      bits = (bits | (bits >> 1)) & 0x3333333333333333ull;
      bits = (bits | (bits >> 2)) & 0x0f0f0f0f0f0f0f0full;
      bits = (bits | (bits >> 4)) & 0x00ff00ff00ff00ffull;
      bits = (bits | (bits >> 8)) & 0x0000ffff0000ffffull;
      bits = (bits | (bits >> 16)) & 0x00000000ffffffffull;
    }
    if (some < 64) bits &= (1ull << some) - 1;
    const std::int64_t to = at + done;
    const int left = static_cast<int>(to & 63);
    out[to >> 6] |= bits << left;
    if (left + some > 64) out[(to >> 6) + 1] |= bits >> (64 - left);
  }
}

// Rows that one call of the core takes: the counters of that many fit the second-level cache beside the tables.
constexpr int rows_at_once = 128;

struct Rows {  // a set of output channels of one group, packed for the core
  int first = 0, count = 0;
  std::vector<std::unique_ptr<Aligned>> digits;
};

class Conv final : public Operation {
 public:
  Conv(const Program& program, Convolution c, const BitCore& core, const LaneOps& lanes, int threads)
      : program_(program),
        c_(std::move(c)),
        core_(core),
        lanes_(lanes),
        in_(program.value(c_.input)),
        out_(geometry_of_result(program, c_)),
        steps_(program, c_.steps, out_),
        phases_(c_, in_.geometry, out_),
        taps_(phases_.taps()) {
    check();
    inputs_ = in_.channels / c_.groups;
    outputs_ = c_.out_channels / c_.groups;
    k_ = inputs_ * static_cast<int>(taps_.size());
    kappa_ = 2 * c_.weight_low / c_.weight_step + (1 << c_.weight_bits) - 1;
    const std::int64_t digits = (1 << c_.weight_bits) - 1, codes = (1 << in_.codes.bits) - 1;
    depth_ = bit_length((digits + (kappa_ != 0)) * codes * k_);
    if (depth_ > 24 || kappa_ < -1 || kappa_ > 1) throw std::invalid_argument("the convolution's sums are too long");
    choose_form(threads);
    pack();
    classify();
    set_offsets();
  }

  void run(Context& context) override {
    if (!phases_.direct()) take_apart(context);
    const int blocks = (out_.groups() + words_ - 1) / words_;
    const int sets = static_cast<int>(rows_.size());
    context.each(blocks * sets, [&](int item, char* scratch) {
      block(context.data, rows_[static_cast<std::size_t>(item % sets)], item / sets * words_, scratch);
    });
  }

  std::size_t scratch() const override {
    return planes_bytes() + 2 * counters_bytes() + core_scratch() + codes_bytes() + sums_bytes() + 64;
  }
  std::size_t shared() const override {
    if (phases_.direct()) return 0;
    return static_cast<std::size_t>(phases_.groups()) * in_.channels * in_.codes.bits * phases_.count() * 8;
  }
  std::vector<int> reads() const override {
    std::vector<int> all = steps_.reads();
    all.push_back(c_.input);
    return all;
  }
  std::vector<int> writes() const override {
    if (!c_.thresholds.empty()) return {c_.output};
    return steps_.writes();
  }
  std::string describe() const override {
    return describe_convolution(c_, in_, out_) + (narrow_ ? ", narrow" : ", wide") +
           (phases_.direct() ? "" : ", " + std::to_string(phases_.count()) + " phases") +
           (c_.thresholds.empty() ? steps_.describe() : ", thresholds " + std::to_string(c_.output));
  }

 private:
  void check() const {
    check_shapes(c_, in_, out_);
    if (!c_.thresholds.empty() &&
        (c_.thresholds.size() != static_cast<std::size_t>(c_.out_channels) * levels(program_.value(c_.output)) ||
         c_.falling.size() != static_cast<std::size_t>(c_.out_channels)))
      throw std::invalid_argument("the convolution has a wrong number of thresholds");
  }

  static std::size_t levels(const Value& v) { return (std::size_t{1} << v.codes.bits) - 1; }

  // The form of the product that does less work: wide blocks cost less per position, but may stay half empty.
  void choose_form(int threads) {
    const int groups = out_.groups();
    const auto cost = [&](int unit, double rate) { return (groups + unit - 1) / unit * unit / rate; };
    narrow_ = core_.has_narrow && cost(1, 1.0) < cost(core_.words, 1.6) && outputs_ >= 8;
    words_ = narrow_ ? 1 : core_.words;
    const int blocks = (groups + words_ - 1) / words_;
    int at_once = narrow_ ? 4 * rows_at_once : rows_at_once;
    if (threads > 1 && blocks * c_.groups * ((outputs_ + at_once - 1) / at_once) < threads)
      at_once = std::max(8, (outputs_ + threads - 1) / threads);
    if (narrow_) at_once = (at_once + 7) / 8 * 8;
    at_once_ = std::min(at_once, narrow_ ? (outputs_ + 7) / 8 * 8 : outputs_);
  }

  int weight(int row, int k) const {  // t of output channel `row`; k runs over taps, then channels
    const int tap = k / inputs_, channel = k % inputs_;
    return c_.weights[(static_cast<std::size_t>(row) * inputs_ + channel) * taps_.size() + tap];
  }

  void pack() {
    std::vector<std::uint8_t> bits;
    for (int group = 0; group < c_.groups; ++group)
      for (int start = 0; start < outputs_; start += at_once_) {
        Rows set;
        set.first = group * outputs_ + start;
        set.count = std::min(at_once_, outputs_ - start);
        for (int i = 0; i < c_.weight_bits; ++i) {
          bits.assign(static_cast<std::size_t>(set.count) * k_, 0);
          for (int m = 0; m < set.count; ++m)
            for (int k = 0; k < k_; ++k)
              bits[static_cast<std::size_t>(m) * k_ + k] = (weight(set.first + m, k) >> i) & 1;
          set.digits.push_back(packed(bits, set.count));
        }
        rows_.push_back(std::move(set));
      }
    if (kappa_) {
      bits.assign(static_cast<std::size_t>(k_), kappa_ > 0);
      all_ = packed(bits, 1);
    }
  }

  std::unique_ptr<Aligned> packed(const std::vector<std::uint8_t>& bits, int rows) const {
    auto memory = std::make_unique<Aligned>((narrow_ ? core_.narrow_packed_size : core_.packed_size)(rows, k_));
    (narrow_ ? core_.narrow_pack : core_.pack)(bits.data(), rows, k_, static_cast<std::uint8_t*>(memory->memory));
    return memory;
  }

  // Where no code stands for 0, taps in the padding must not count; positions differ by which of their taps do.
  void classify() {
    if (in_.codes.has_zero || (c_.pad_h == 0 && c_.pad_w == 0)) return;
    class_of_.assign(static_cast<std::size_t>(out_.groups() + widest_block) * 64, 0);
    for (int y = 0; y < out_.height; ++y)
      for (int x = 0; x < out_.width; ++x) {
        std::vector<bool> outside;
        bool any = false;
        for (std::size_t tap = 0; tap < taps_.size(); ++tap) {
          const int sy = y * c_.stride_h + static_cast<int>(tap) / c_.kernel_w * c_.dilation_h - c_.pad_h;
          const int sx = x * c_.stride_w + static_cast<int>(tap) % c_.kernel_w * c_.dilation_w - c_.pad_w;
          outside.push_back(sy < 0 || sx < 0 || sy >= in_.geometry.height || sx >= in_.geometry.width);
          any = any || outside.back();
        }
        if (!any) continue;
        auto found = std::find(classes_.begin(), classes_.end(), outside);
        if (found == classes_.end()) found = classes_.insert(classes_.end(), outside);
        class_of_[static_cast<std::size_t>(y * out_.pitch + x)] = static_cast<int>(found - classes_.begin()) + 1;
      }
  }

  void set_offsets() {
    slope_ = in_.codes.step * c_.weight_step;
    const int kinds = static_cast<int>(classes_.size()) + 1;
    const std::int64_t codes = (1 << in_.codes.bits) - 1;
    offsets_.resize(static_cast<std::size_t>(kinds) * c_.out_channels);
    zeros_.assign(static_cast<std::size_t>(c_.out_channels), 0);
    for (int m = 0; m < c_.out_channels; ++m) {
      std::int64_t constant = kappa_ < 0 ? codes * k_ : 0, total = 0;
      std::vector<std::int64_t> by_tap(taps_.size(), 0);
      for (int k = 0; k < k_; ++k) {
        const int t = weight(m, k), n = c_.weight_low + c_.weight_step * t;
        constant += codes * (~t & ((1 << c_.weight_bits) - 1));
        total += n;
        by_tap[static_cast<std::size_t>(k / inputs_)] += n;
      }
      for (int kind = 0; kind < kinds; ++kind) {
        std::int64_t counted = total;
        if (kind)
          for (std::size_t tap = 0; tap < taps_.size(); ++tap)
            if (classes_[static_cast<std::size_t>(kind - 1)][tap]) counted -= by_tap[tap];
        offsets_[static_cast<std::size_t>(kind) * c_.out_channels + m] =
            static_cast<std::int32_t>(-slope_ * constant + 2 * in_.codes.low * counted);
      }
    }
    if (c_.thresholds.empty()) return;
    const std::size_t each = levels(program_.value(c_.output));
    thresholds_.resize(static_cast<std::size_t>(kinds) * c_.thresholds.size());
    for (int kind = 0; kind < kinds; ++kind)
      for (int m = 0; m < c_.out_channels; ++m)
        for (std::size_t j = 0; j < each; ++j) {
          const std::size_t at = static_cast<std::size_t>(m) * each + j;
          const std::int64_t limit = 2ll * c_.thresholds[at] - offset(kind, m);
          const std::int64_t least = limit >= 0 ? (limit + slope_ - 1) / slope_ : -(-limit / slope_);
          thresholds_[static_cast<std::size_t>(kind) * c_.thresholds.size() + at] =
              static_cast<std::int32_t>(std::clamp<std::int64_t>(least, INT32_MIN, INT32_MAX));
        }
  }

  std::int32_t offset(int kind, int m) const {
    return offsets_[static_cast<std::size_t>(kind) * c_.out_channels + m];
  }

  int padded_rows() const { return narrow_ ? (at_once_ + 7) / 8 * 8 : at_once_; }
  std::size_t planes_bytes() const { return up64(static_cast<std::size_t>(in_.codes.bits) * k_ * words_ * 8); }
  std::size_t counters_bytes() const {
    return up64(static_cast<std::size_t>(padded_rows()) * depth_ * words_ * 8) + 8 * 64 * 24;
  }
  std::size_t core_scratch() const { return up64(core_.scratch_size(padded_rows(), k_, depth_)); }
  std::size_t codes_bytes() const {
    const int bits = c_.thresholds.empty() ? 1 : program_.value(c_.output).codes.bits;
    return 2 * up64(static_cast<std::size_t>(padded_rows()) * bits * words_ * 8);
  }
  std::size_t sums_bytes() const { return up64(static_cast<std::size_t>(padded_rows()) * words_ * 64 * 4); }

  void take_apart(Context& context) {
    const Geometry& g = in_.geometry;
    context.each(in_.channels * in_.codes.bits, [&](int item, char*) {
      const int channel = item / in_.codes.bits, j = item % in_.codes.bits;
      const std::uint64_t* source = context.data.plane(c_.input, channel, j);
      const std::uint64_t pad = (in_.codes.pad >> j) & 1 ? ~0ull : 0ull;
      for (int phase = 0; phase < phases_.count(); ++phase) {
        std::uint64_t* target = phase_plane(context.data, channel, j, phase);
        std::fill_n(target, phases_.groups(), 0);
        phases_.each_row(phase, [&](int row, int column, int count, std::int64_t at) {
          if (row >= 0)
            pick(source, g.front + row * g.pitch + column, c_.stride_w, count, target, at);
          else if (pad)
            pick(&pad, 0, 0, count, target, at);
        });
      }
    });
  }

  std::uint64_t* phase_plane(Worker& worker, int channel, int j, int phase) const {
    const std::size_t index = (static_cast<std::size_t>(channel) * in_.codes.bits + j) * phases_.count() + phase;
    return static_cast<std::uint64_t*>(worker.shared.memory) + index * static_cast<std::size_t>(phases_.groups());
  }

  void fetch(Worker& worker, int first_channel, int group, std::uint64_t* planes) {
    const std::int64_t start = 64ll * group + (phases_.direct() ? in_.geometry.front : 0);
    for (int j = 0; j < in_.codes.bits; ++j)
      for (const Phases::Tap& tap : taps_) {
        const bool direct = phases_.direct();
        const std::uint64_t* source = direct ? worker.plane(c_.input, first_channel, j)
                                             : phase_plane(worker, first_channel, j, tap.phase);
        const std::int64_t row = (direct ? in_.geometry.words : phases_.groups() * phases_.count()) * in_.codes.bits;
        lanes_.shifted(source, row, inputs_, start + tap.shift, words_, planes);
        planes += static_cast<std::ptrdiff_t>(inputs_) * words_;
      }
  }

  void block(Worker& worker, const Rows& rows, int group, char* scratch) {
    auto* planes = reinterpret_cast<std::uint64_t*>(scratch);
    auto* counters = reinterpret_cast<std::uint64_t*>(scratch += planes_bytes());
    auto* shared = reinterpret_cast<std::uint64_t*>(scratch += counters_bytes());
    char* work = scratch += counters_bytes();
    scratch += core_scratch();
    fetch(worker, rows.first / outputs_ * inputs_, group, planes);
    const auto product = narrow_ ? core_.narrow : core_.wide;
    const std::size_t plane_words = static_cast<std::size_t>(k_) * words_;
    const int sets = narrow_ ? (rows.count + 7) / 8 : rows.count;  // rows whose counters lie side by side
    const std::size_t each = static_cast<std::size_t>(depth_) * (narrow_ ? 8 : words_);
    if (kappa_) {
      std::memset(shared, 0, each * 8);
      for (int j = 0; j < in_.codes.bits; ++j)
        product(planes + j * plane_words, k_, static_cast<const std::uint8_t*>(all_->memory), 1, j, depth_, shared,
                work);
      if (narrow_)
        for (int p = 0; p < depth_; ++p) std::fill_n(shared + 8 * p, 8, shared[8 * p]);
      for (int set = 0; set < sets; ++set) std::memcpy(counters + set * each, shared, each * 8);
    } else {
      std::memset(counters, 0, sets * each * 8);
    }
    for (int j = 0; j < in_.codes.bits; ++j)
      for (int i = 0; i < c_.weight_bits; ++i)
        product(planes + j * plane_words, k_,
                static_cast<const std::uint8_t*>(rows.digits[static_cast<std::size_t>(i)]->memory), rows.count, i + j,
                depth_, counters, work);
    if (c_.thresholds.empty())
      finish_values(worker, rows, group, counters, scratch);
    else
      finish_codes(worker, rows, group, counters, scratch);
  }

  void compare(const std::uint64_t* counters, const Rows& rows, int kind, int bits, std::uint64_t* out) const {
    const std::int32_t* thresholds = thresholds_.data() + static_cast<std::size_t>(kind) * c_.thresholds.size() +
                                     static_cast<std::size_t>(rows.first) * ((1 << bits) - 1);
    (narrow_ ? core_.narrow_compare : core_.wide_compare)(counters, rows.count, depth_, thresholds, bits, out);
  }

  void finish_codes(Worker& worker, const Rows& rows, int group, const std::uint64_t* counters, char* scratch) {
    const int bits = program_.value(c_.output).codes.bits;
    auto* codes = reinterpret_cast<std::uint64_t*>(scratch);
    auto* other = reinterpret_cast<std::uint64_t*>(scratch + codes_bytes() / 2);
    compare(counters, rows, 0, bits, codes);
    for (std::size_t kind = 1; kind <= classes_.size(); ++kind) {
      std::uint64_t mask[widest_block] = {}, any = 0;
      for (int at = 0; at < 64 * words_; ++at)
        if (class_of_[static_cast<std::size_t>(64 * group + at)] == static_cast<int>(kind)) mask[at / 64] |= 1ull << (at % 64);
      for (int w = 0; w < words_; ++w) any |= mask[w];
      if (!any) continue;
      compare(counters, rows, static_cast<int>(kind), bits, other);
      const int total = (narrow_ ? (rows.count + 7) / 8 * 8 : rows.count) * bits * words_;
      for (int i = 0; i < total; ++i) {
        const std::uint64_t here = mask[i % words_];
        codes[i] = (codes[i] & ~here) | (other[i] & here);
      }
    }
    for (int m = 0; m < rows.count; ++m) {
      std::uint64_t* row = narrow_ ? codes + (m / 8) * bits * 8 + m % 8 : codes + m * bits * words_;
      if (c_.falling[static_cast<std::size_t>(rows.first + m)])
        for (int j = 0; j < bits; ++j)
          for (int w = 0; w < words_; ++w) row[j * (narrow_ ? 8 : words_) + w] ^= ~0ull;
      steps_.write(worker, c_.output, rows.first + m, group, words_, row, narrow_ ? 8 : words_);
    }
  }

  void finish_values(Worker& worker, const Rows& rows, int group, const std::uint64_t* counters, char* scratch) {
    const int n = 64 * words_;
    auto* counts = reinterpret_cast<std::int32_t*>(scratch);
    (narrow_ ? core_.narrow_expand : core_.wide_expand)(counters, rows.count, depth_, counts,
                                                        static_cast<std::size_t>(n));
    const std::int32_t* offsets = offsets_.data() + rows.first;
    std::int32_t slope = slope_;
    if (!classes_.empty()) {
      for (int m = 0; m < rows.count; ++m)
        for (int at = 0; at < n; ++at) {
          const int kind = class_of_[static_cast<std::size_t>(64 * group + at)];
          counts[m * n + at] = (counts[m * n + at] * slope_ + offset(kind, rows.first + m)) >> 1;
        }
      offsets = zeros_.data();
      slope = 2;
    }
    BlockStep steps[most_steps];
    const int number = steps_.resolve(worker, rows.first, group, steps);
    const int groups = std::min(words_, out_.groups() - group);
    lanes_.finish_counts(counts, n, slope, offsets, nullptr, rows.count, groups, steps, number);
  }

  const Program& program_;
  const Convolution c_;
  const BitCore& core_;
  const LaneOps& lanes_;
  const Value in_;
  const Geometry out_;
  Steps steps_;
  const Phases phases_;
  const std::vector<Phases::Tap>& taps_;
  int inputs_ = 0, outputs_ = 0, k_ = 0, kappa_ = 0, depth_ = 0, words_ = 1, at_once_ = 1;
  bool narrow_ = false;
  std::vector<Rows> rows_;
  std::unique_ptr<Aligned> all_;
  std::vector<std::vector<bool>> classes_;
  std::vector<int> class_of_;
  std::int32_t slope_ = 1;
  std::vector<std::int32_t> offsets_, thresholds_, zeros_;
};

}  // namespace

Geometry geometry_of_result(const Program& program, const Convolution& c) {
  if (!c.thresholds.empty()) return program.value(c.output).geometry;
  for (const Step& step : c.steps)
    if (step.kind == StepKind::store || step.kind == StepKind::quantize) return program.value(step.value).geometry;
  throw std::invalid_argument("a convolution must write something");
}

void check_shapes(const Convolution& c, const Value& in, const Geometry& out) {
  const auto extent = [](int size, int kernel, int stride, int pad, int dilation) {
    return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
  };
  const Geometry& g = in.geometry;
  const bool fit =
      in.is_codes && c.groups > 0 && in.channels % c.groups == 0 && c.out_channels % c.groups == 0 &&
      out.height == extent(g.height, c.kernel_h, c.stride_h, c.pad_h, c.dilation_h) &&
      out.width == extent(g.width, c.kernel_w, c.stride_w, c.pad_w, c.dilation_w) &&
      std::max(c.pad_h, c.pad_w) <= g.margin &&
      c.weights.size() ==
          static_cast<std::size_t>(c.out_channels) * (in.channels / c.groups) * c.kernel_h * c.kernel_w;
  if (!fit) throw std::invalid_argument("the convolution's shapes do not fit each other");
}

std::string describe_convolution(const Convolution& c, const Value& in, const Geometry& out) {
  const auto by = [](int a, int b) { return std::to_string(a) + "x" + std::to_string(b); };
  return "convolution " + std::to_string(c.input) + ": " + std::to_string(in.channels) + " -> " +
         std::to_string(c.out_channels) + ", " + by(c.kernel_h, c.kernel_w) + ", " + by(out.height, out.width) + ", W" +
         std::to_string(c.weight_bits) + " A" + std::to_string(in.codes.bits);
}

std::unique_ptr<Operation> make_convolution(const Program& program, Convolution convolution, const BitCore& core,
                                            const LaneOps& lanes, int threads) {
  return std::make_unique<Conv>(program, std::move(convolution), core, lanes, threads);
}

}  // namespace lowbit
