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

// Rows that one call of the core takes: the counters of that many fit the second-level cache beside the tables.
constexpr int rows_at_once = 128;

// Bytes of counts that are taken from the counters to the epilogue at a time: what stays in the first-level cache.
constexpr std::size_t counts_at_once = 8 << 10;

struct Packed {  // a set of rows for the core, each digit of the weights
  std::vector<std::unique_ptr<Aligned>> memory;
  std::vector<const std::uint8_t*> digits;
};

struct Rows {  // a set of output channels of one group
  int first = 0, count = 0;
  Packed wide, narrow;
};

struct Block {  // of positions that are taken together: a vector of the wide form, or groups one by one
  int group = 0, words = 1, groups = 1;  // groups that exist: the last vector may reach beyond
  bool narrow = false;
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
    const int blocks = static_cast<int>(blocks_.size()), sets = static_cast<int>(rows_.size());
    context.each(blocks * sets, [&](int item, char* scratch) {
      const Rows& rows = rows_[static_cast<std::size_t>(item % sets)];
      block(context.data, rows, blocks_[static_cast<std::size_t>(item / sets)], scratch);
    });
  }

  std::size_t scratch() const override {
    return planes_bytes() + counters_bytes() + shared_bytes + core_scratch() +
           std::max(codes_bytes(), counts_bytes()) + 64;
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
  std::vector<int> replaces() const override { return steps_.replaces(); }
  std::string describe() const override {
    return describe_convolution(c_, in_, out_) + (any(false) ? ", wide" : "") + (any(true) ? ", narrow" : "") +
           (phases_.direct() ? "" : ", " + std::to_string(phases_.count()) + " phases") +
           (c_.thresholds.empty() ? steps_.describe() : ", thresholds " + std::to_string(c_.output));
  }

 private:
  // What one of the groups of a vector costs on its own, where the whole vector costs as many as it has.
  static constexpr double narrow_cost = 1.25;
  static constexpr std::size_t shared_bytes = 24 * widest_block * 8;  // a counter of the greatest depth

  void check() const {
    check_shapes(c_, in_, out_);
    if (!c_.thresholds.empty() &&
        (c_.thresholds.size() != static_cast<std::size_t>(c_.out_channels) * levels(program_.value(c_.output)) ||
         c_.falling.size() != static_cast<std::size_t>(c_.out_channels)))
      throw std::invalid_argument("the convolution has a wrong number of thresholds");
  }

  static std::size_t levels(const Value& v) { return (std::size_t{1} << v.codes.bits) - 1; }

  // Wide blocks cost less per position; but the last may stay half empty, and then its groups are taken one by one.
  void choose_form(int threads) {
    const int unit = core_.words, groups = out_.groups(), rest = groups % unit;
    const bool narrow = core_.has_narrow && outputs_ >= 8 && rest * narrow_cost < unit;
    for (int group = 0; group < groups; group += unit) {
      const int some = std::min(unit, groups - group);
      blocks_.push_back({group, narrow && some < unit ? some : unit, some, narrow && some < unit});
      words_ = std::max(words_, blocks_.back().words);
    }
    const int blocks = static_cast<int>(blocks_.size());
    int at_once = any(false) ? rows_at_once : 4 * rows_at_once;
    if (threads > 1 && blocks * c_.groups * ((outputs_ + at_once - 1) / at_once) < threads)
      at_once = std::max(8, (outputs_ + threads - 1) / threads);
    at_once_ = std::min(any(true) ? (at_once + 7) / 8 * 8 : at_once, outputs_);
  }

  bool any(bool narrow) const {
    return std::any_of(blocks_.begin(), blocks_.end(), [&](const Block& block) { return block.narrow == narrow; });
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
          if (any(false)) add_digit(set.wide, core_.packed_size, core_.pack, bits, set.count);
          if (any(true)) add_digit(set.narrow, core_.narrow_packed_size, core_.narrow_pack, bits, set.count);
        }
        rows_.push_back(std::move(set));
      }
  }

  template <class Size, class Pack>
  void add_digit(Packed& set, Size size, Pack pack, const std::vector<std::uint8_t>& bits, int rows) const {
    set.memory.push_back(std::make_unique<Aligned>(size(rows, k_)));
    auto* memory = static_cast<std::uint8_t*>(set.memory.back()->memory);
    pack(bits.data(), rows, k_, memory);
    set.digits.push_back(memory);
  }

  // Where no code stands for 0, taps in the padding must not count; positions differ by which of their taps do.
  void classify() {
    if (in_.codes.has_zero || (c_.pad_h == 0 && c_.pad_w == 0)) return;
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
        if (found == classes_.end()) {
          found = classes_.insert(classes_.end(), outside);
          class_masks_.emplace_back(static_cast<std::size_t>(out_.groups() + widest_block), 0);
        }
        const std::int64_t at = y * out_.pitch + x;
        class_masks_[static_cast<std::size_t>(found - classes_.begin())][static_cast<std::size_t>(at / 64)] |=
            1ull << (at % 64);
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

  int padded_rows() const { return (at_once_ + 7) / 8 * 8; }
  std::size_t planes_bytes() const {  // a whole vector may be read from the last word on
    return up64(static_cast<std::size_t>(in_.codes.bits) * k_ * words_ * 8) + 64;
  }
  std::size_t counters_bytes() const { return up64(static_cast<std::size_t>(padded_rows()) * depth_ * words_ * 8); }
  std::size_t core_scratch() const { return up64(core_.scratch_size(padded_rows(), k_, depth_, c_.weight_bits)); }
  std::size_t codes_bytes() const {
    const int bits = c_.thresholds.empty() ? 1 : program_.value(c_.output).codes.bits;
    return 2 * up64(static_cast<std::size_t>(padded_rows()) * bits * words_ * 8);
  }
  int counts_rows() const { return std::max(8, static_cast<int>(counts_at_once / (words_ * 64 * 4)) / 8 * 8); }
  std::size_t counts_bytes() const { return static_cast<std::size_t>(counts_rows()) * words_ * 64 * 4; }

  void take_apart(Context& context) {
    const Geometry& g = in_.geometry;
    context.each(in_.channels * in_.codes.bits, [&](int item, char*) {
      const int channel = item / in_.codes.bits, j = item % in_.codes.bits;
      const std::uint64_t* source = context.data.plane(c_.input, channel, j);
      const std::uint64_t pad = (in_.codes.pad >> j) & 1 ? ~0ull : 0ull;
      for (int phase = 0; phase < phases_.count(); ++phase) {
        std::uint64_t* target = phase_plane(context.data, channel, j, phase);
        std::memset(target, 0, static_cast<std::size_t>(phases_.groups()) * 8);
        const Phases::Inside& in = phases_.inside(phase);
        const std::int64_t from = g.front + in.row * g.pitch + in.column, pitch = out_.pitch;
        lanes_.pick(source, from, c_.stride_h * g.pitch, c_.stride_w, in.columns, in.rows, target, in.first * pitch,
                    pitch);
        if (!pad) continue;
        lanes_.pick(&pad, 0, 0, 0, in.columns, in.first, target, 0, pitch);
        const int end = in.first + in.rows;
        lanes_.pick(&pad, 0, 0, 0, in.columns, phases_.rows() - end, target, end * pitch, pitch);
      }
    });
  }

  std::uint64_t* phase_plane(Worker& worker, int channel, int j, int phase) const {
    const std::size_t index = (static_cast<std::size_t>(channel) * in_.codes.bits + j) * phases_.count() + phase;
    return static_cast<std::uint64_t*>(worker.shared.memory) + index * static_cast<std::size_t>(phases_.groups());
  }

  void fetch(Worker& worker, int first_channel, const Block& block, std::uint64_t* planes) {
    const bool direct = phases_.direct();
    const std::int64_t start = 64ll * block.group + (direct ? in_.geometry.front : 0);
    const std::int64_t row = (direct ? in_.geometry.words : phases_.groups() * phases_.count()) * in_.codes.bits;
    for (int j = 0; j < in_.codes.bits; ++j)
      for (const Phases::Tap& tap : taps_) {
        const std::uint64_t* source = direct ? worker.plane(c_.input, first_channel, j)
                                             : phase_plane(worker, first_channel, j, tap.phase);
        lanes_.shifted(source, row, inputs_, start + tap.shift, block.words, planes);
        planes += static_cast<std::ptrdiff_t>(inputs_) * block.words;
      }
  }

  // Words of the counters of one narrow group.
  std::size_t narrow_words(const Rows& rows) const {
    return static_cast<std::size_t>((rows.count + 7) / 8) * depth_ * 8;
  }

  void block(Worker& worker, const Rows& rows, const Block& block, char* scratch) {
    auto* planes = reinterpret_cast<std::uint64_t*>(scratch);
    auto* counters = reinterpret_cast<std::uint64_t*>(scratch += planes_bytes());
    auto* shared = reinterpret_cast<std::uint64_t*>(scratch += counters_bytes());
    char* work = scratch += shared_bytes;
    scratch += core_scratch();
    fetch(worker, rows.first / outputs_ * inputs_, block, planes);
    start(rows, block, planes, shared, counters);
    const std::size_t plane_words = static_cast<std::size_t>(k_) * block.words;
    for (int j = 0; j < in_.codes.bits; ++j) {
      const std::uint64_t* bits = planes + j * plane_words;
      if (!block.narrow)
        core_.wide(bits, k_, rows.wide.digits.data(), c_.weight_bits, rows.count, j, depth_, counters, work);
      for (int w = 0; w < block.words && block.narrow; ++w)
        core_.narrow(bits + w, block.words, k_, rows.narrow.digits.data(), c_.weight_bits, rows.count, j, depth_,
                     counters + w * narrow_words(rows), work);
    }
    if (c_.thresholds.empty())
      finish_values(worker, rows, block, counters, scratch);
    else
      finish_codes(worker, rows, block, counters, scratch);
  }

  // The counters before any product: what κ adds, the same for every row.
  void start(const Rows& rows, const Block& block, const std::uint64_t* planes, std::uint64_t* shared,
             std::uint64_t* counters) const {
    const int sets = block.narrow ? (rows.count + 7) / 8 : rows.count;  // rows whose counters lie side by side
    const int unit = core_.words;
    // Bytes of one counter, or of eight that lie together: the narrow form goes with vectors of eight words.
    const std::size_t each = static_cast<std::size_t>(depth_) * unit * 8;
    if (!kappa_) {
      std::memset(counters, 0, (block.narrow ? block.words : 1) * sets * each);
      return;
    }
    std::memset(shared, 0, each);
    for (int j = 0; j < in_.codes.bits; ++j)
      core_.sum(planes + static_cast<std::size_t>(j) * k_ * block.words, block.words, k_, kappa_ < 0, j, depth_,
                shared);
    if (!block.narrow) {
      for (int set = 0; set < sets; ++set) std::memcpy(counters + set * each / 8, shared, each);
      return;
    }
    for (int w = 0; w < block.words; ++w) {
      std::uint64_t* first = counters + w * narrow_words(rows);
      for (int p = 0; p < depth_; ++p) std::fill_n(first + 8 * p, 8, shared[p * unit + w]);
      for (int set = 1; set < sets; ++set) std::memcpy(first + static_cast<std::size_t>(set) * depth_ * 8, first, each);
    }
  }

  void compare(const std::uint64_t* counters, const Rows& rows, const Block& block, std::size_t kind, int bits,
               std::uint64_t* out) const {
    const std::int32_t* thresholds = thresholds_.data() + kind * c_.thresholds.size() +
                                     static_cast<std::size_t>(rows.first) * ((1 << bits) - 1);
    if (!block.narrow) core_.wide_compare(counters, rows.count, depth_, thresholds, bits, out);
    for (int w = 0; w < block.words && block.narrow; ++w)
      core_.narrow_compare(counters + w * narrow_words(rows), rows.count, depth_, thresholds, bits,
                           out + w * narrow_words(rows) / depth_ * bits);
  }

  void finish_codes(Worker& worker, const Rows& rows, const Block& block, const std::uint64_t* counters,
                    char* scratch) {
    const int bits = program_.value(c_.output).codes.bits, words = block.words;
    auto* codes = reinterpret_cast<std::uint64_t*>(scratch);
    auto* other = reinterpret_cast<std::uint64_t*>(scratch + codes_bytes() / 2);
    compare(counters, rows, block, 0, bits, codes);
    // Words of one narrow group.
    const std::size_t each = static_cast<std::size_t>((rows.count + 7) / 8) * 8 * bits;
    for (std::size_t kind = 1; kind <= classes_.size(); ++kind) {
      const std::uint64_t* mask = class_masks_[kind - 1].data() + block.group;
      if (std::all_of(mask, mask + block.groups, [](std::uint64_t here) { return here == 0; })) continue;
      compare(counters, rows, block, kind, bits, other);
      const std::size_t total = block.narrow ? words * each : static_cast<std::size_t>(rows.count) * bits * words;
      for (std::size_t i = 0; i < total; ++i) {
        const std::uint64_t here = mask[block.narrow ? i / each : i % words];
        codes[i] = (codes[i] & ~here) | (other[i] & here);
      }
    }
    const Value& out = program_.value(c_.output);
    const std::uint64_t* mask = steps_.mask(block.group);
    std::uint64_t* target = worker.plane(c_.output, rows.first, 0) + out.geometry.front / 64 + block.group;
    for (int m = 0; m < rows.count; ++m) {
      const std::uint64_t flip = c_.falling[static_cast<std::size_t>(rows.first + m)] ? ~0ull : 0ull;
      for (int j = 0; j < bits; ++j, target += out.geometry.words) {
        const std::uint64_t pad = (out.codes.pad >> j) & 1 ? ~0ull : 0ull;
        if (!block.narrow) {
          lanes_.put(codes + (static_cast<std::size_t>(m) * bits + j) * words, flip, mask, pad, block.groups, target);
          continue;
        }
        const std::uint64_t* row = codes + (m / 8 * bits + j) * 8 + m % 8;
        for (int w = 0; w < words; ++w) target[w] = ((row[w * each] ^ flip) & mask[w]) | (pad & ~mask[w]);
      }
    }
  }

  void finish_values(Worker& worker, const Rows& rows, const Block& block, const std::uint64_t* counters,
                     char* scratch) {
    const int n = 64 * block.words;
    auto* counts = reinterpret_cast<std::int32_t*>(scratch);
    for (int from = 0; from < rows.count; from += counts_rows()) {
      const int some = std::min(counts_rows(), rows.count - from), first = rows.first + from;
      const std::size_t skipped = static_cast<std::size_t>(from) * depth_;
      if (!block.narrow)
        core_.wide_expand(counters + skipped * core_.words, some, depth_, counts, static_cast<std::size_t>(n));
      for (int w = 0; w < block.words && block.narrow; ++w)
        core_.narrow_expand(counters + w * narrow_words(rows) + skipped, some, depth_, counts + 64 * w,
                            static_cast<std::size_t>(n));
      const std::int32_t* offsets = offsets_.data() + first;
      std::int32_t slope = slope_;
      if (!classes_.empty()) {
        correct(counts, n, first, some, block);
        offsets = zeros_.data();
        slope = 2;
      }
      BlockStep steps[most_steps];
      const int number = steps_.resolve(worker, first, block.group, steps);
      lanes_.finish_counts(counts, n, slope, offsets, some, block.groups, steps, number);
    }
  }

  // Counts to sums, with each position's own offset.
  void correct(std::int32_t* counts, int n, int first, int rows, const Block& block) const {
    for (int m = first; m < first + rows; ++m, counts += n) {
      const std::int32_t usual = offset(0, m);
      for (int at = 0; at < n; ++at) counts[at] = counts[at] * slope_ + usual;
      for (std::size_t kind = 1; kind <= classes_.size(); ++kind) {
        const std::int32_t more = offset(static_cast<int>(kind), m) - usual;
        const std::uint64_t* masks = class_masks_[kind - 1].data();
        for (int w = 0; w < block.groups; ++w)
          for (std::uint64_t rest = masks[block.group + w]; rest; rest &= rest - 1)
            counts[64 * w + __builtin_ctzll(rest)] += more;
      }
      for (int at = 0; at < n; ++at) counts[at] >>= 1;
    }
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
  std::vector<Block> blocks_;
  std::vector<Rows> rows_;
  std::vector<std::vector<bool>> classes_;
  std::vector<std::vector<std::uint64_t>> class_masks_;  // of each class: its positions, group by group
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
