#include "operations.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace lowbit {

namespace {

std::size_t size_of(const Value& value) {
  const Geometry& g = value.geometry;
  std::size_t row = sizeof(float) * g.floats();  // bytes of one channel
  if (value.is_codes) row = g.words * (value.codes.bytes ? 64 : 8 * static_cast<std::size_t>(value.codes.bits));
  const std::size_t bytes = static_cast<std::size_t>(value.channels) * row;
  return (bytes + 63) / 64 * 64;
}

class Map final : public Operation {
 public:
  Map(const Program& program, int input, std::vector<Step> steps, const LaneOps& lanes)
      : program_(program), input_(input), steps_(program, std::move(steps), program.value(input).geometry), lanes_(lanes) {}

  void run(Context& context) override {
    const Value& v = program_.value(input_);
    const int groups = v.geometry.groups();
    context.each(v.channels, [&](int c, char*) {
      BlockStep steps[most_steps];
      const int number = steps_.resolve(context.data, c, 0, steps);
      lanes_.finish_floats(context.data.floats(input_, c), 0, 1, groups, steps, number);
    });
  }
  std::size_t scratch() const override { return 0; }
  std::vector<int> reads() const override {
    std::vector<int> all = steps_.reads();
    all.push_back(input_);
    return all;
  }
  std::vector<int> writes() const override { return steps_.writes(); }
  std::string describe() const override { return "map " + std::to_string(input_) + steps_.describe(); }

 private:
  const Program& program_;
  int input_;
  Steps steps_;
  const LaneOps& lanes_;
};

class Pool2d final : public Operation {
 public:
  Pool2d(const Program& program, int input, int output, int kernel, int stride, int padding, const LaneOps& lanes)
      : program_(program),
        input_(input),
        output_(output),
        kernel_(kernel),
        stride_(stride),
        padding_(padding),
        lanes_(lanes) {
    const Geometry &in = program.value(input).geometry, &out = program.value(output).geometry;
    const auto fits = [&](int before, int after) { return after == (before + 2 * padding - kernel) / stride + 1; };
    if (!fits(in.height, out.height) || !fits(in.width, out.width) || 2 * padding > kernel)
      throw std::invalid_argument("pool: the shapes do not fit");
  }

  void run(Context& context) override {
    const Geometry &in = program_.value(input_).geometry, &out = program_.value(output_).geometry;
    context.each(program_.value(input_).channels, [&](int c, char* scratch) {
      // The largest of each column of the window's rows, between −∞ for the padding.
      auto* column = reinterpret_cast<float*>(scratch) + padding_;
      const float* source = context.data.floats(input_, c);
      float* target = context.data.floats(output_, c);
      std::fill(column - padding_, column, -infinity);
      std::fill(column + in.width, column + in.width + kernel_, -infinity);
      for (int y = 0; y < out.height; ++y, target += out.pitch) {
        const int first = std::max(y * stride_ - padding_, 0);
        const int last = std::min(y * stride_ - padding_ + kernel_, in.height);
        std::memcpy(column, source + first * in.pitch, sizeof(float) * in.width);
        for (int row = first + 1; row < last; ++row) lanes_.largest(column, source + row * in.pitch, in.width);
        lanes_.largest_of(column - padding_, kernel_, stride_, out.width, target);
      }
    });
  }
  std::size_t scratch() const override {
    return sizeof(float) * (program_.value(input_).geometry.width + 2 * kernel_ + 16);
  }
  std::vector<int> reads() const override { return {input_}; }
  std::vector<int> writes() const override { return {output_}; }
  std::string describe() const override { return "pool " + std::to_string(input_) + " -> " + std::to_string(output_); }

 private:
  static constexpr float infinity = std::numeric_limits<float>::infinity();
  const Program& program_;
  int input_, output_, kernel_, stride_, padding_;
  const LaneOps& lanes_;
};

class Subsample final : public Operation {
 public:
  Subsample(const Program& program, int input, int output, int stride, const LaneOps& lanes)
      : program_(program), input_(input), output_(output), stride_(stride), lanes_(lanes) {
    const Value &in = program.value(input), &out = program.value(output);
    if (in.is_codes || out.is_codes || out.channels < in.channels ||
        out.geometry.height != (in.geometry.height + stride - 1) / stride ||
        out.geometry.width != (in.geometry.width + stride - 1) / stride)
      throw std::invalid_argument("subsample: the shapes do not fit");
  }

  void run(Context& context) override {
    const Value &in = program_.value(input_), &out = program_.value(output_);
    context.each(out.channels, [&](int c, char*) {
      float* target = context.data.floats(output_, c);
      if (c >= in.channels) {
        std::memset(target, 0, sizeof(float) * static_cast<std::size_t>(out.geometry.flat()));
        return;
      }
      const float* source = context.data.floats(input_, c);
      for (int y = 0; y < out.geometry.height; ++y, target += out.geometry.pitch)
        lanes_.largest_of(source + static_cast<std::int64_t>(y) * stride_ * in.geometry.pitch, 1, stride_,
                          out.geometry.width, target);
    });
  }
  std::size_t scratch() const override { return 0; }
  std::vector<int> reads() const override { return {input_}; }
  std::vector<int> writes() const override { return {output_}; }
  std::string describe() const override {
    return "subsample " + std::to_string(input_) + " -> " + std::to_string(output_);
  }

 private:
  const Program& program_;
  int input_, output_, stride_;
  const LaneOps& lanes_;
};

}  // namespace

Worker::Worker(const Program& program, const Layout& layout, std::size_t scratch_bytes, std::size_t shared_bytes)
    : program(program), layout(layout), values(layout.bytes), scratch(scratch_bytes), shared(shared_bytes) {
  for (std::size_t i = 0; i < layout.offsets.size(); ++i) {
    const Value& v = program.value(static_cast<int>(i));
    if (!v.is_codes || !v.codes.pad) continue;
    if (v.codes.bytes) {
      std::memset(base(static_cast<int>(i)), v.codes.pad, static_cast<std::size_t>(v.channels) * v.geometry.words * 64);
      continue;
    }
    for (int c = 0; c < v.channels; ++c)
      for (int j = 0; j < v.codes.bits; ++j)
        std::fill_n(plane(static_cast<int>(i), c, j), v.geometry.words, (v.codes.pad >> j) & 1 ? ~0ull : 0ull);
  }
}

Layout lay_out(const Program& program, const std::vector<std::unique_ptr<Operation>>& operations) {
  const int count = program.value_count(), last = static_cast<int>(operations.size());
  std::vector<int> first(static_cast<std::size_t>(count), -1), end(static_cast<std::size_t>(count), -1);
  for (int i = 0; i < last; ++i) {
    for (int v : operations[i]->writes()) first[v] = first[v] < 0 ? i : first[v];
    for (int v : operations[i]->reads()) end[v] = i;
    for (int v : operations[i]->writes()) end[v] = std::max(end[v], i);
  }
  for (int v : program.inputs()) first[v] = -1;
  for (int v : program.outputs()) end[v] = last;

  Layout layout;
  layout.offsets.resize(static_cast<std::size_t>(count));
  struct Place {
    std::size_t offset, size;
    int free_after;
    int value;  // that lies there now
  };
  const auto replaceable = [&](int old, int v) {
    if (first[v] < 0 || end[old] != first[v] || program.value(old).is_codes) return false;
    const std::vector<int> some = operations[static_cast<std::size_t>(first[v])]->replaces();
    const bool named = std::find(some.begin(), some.end(), old) != some.end();
    return named && size_of(program.value(old)) == size_of(program.value(v));
  };
  std::vector<Place> places;
  std::vector<int> order(static_cast<std::size_t>(count));
  for (int v = 0; v < count; ++v) order[v] = v;
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return first[a] < first[b]; });
  for (int v : order) {
    const std::size_t size = size_of(program.value(v));
    Place* best = nullptr;
    if (!program.value(v).is_codes)  // padding bits are set once, and must not be overwritten
      for (Place& place : places)
        if ((place.free_after < first[v] || replaceable(place.value, v)) && place.size >= size &&
            (!best || place.size < best->size || replaceable(place.value, v)))
          best = &place;
    if (!best) {
      places.push_back({layout.bytes, size, 0, v});
      layout.bytes += size;
      best = &places.back();
    }
    best->value = v;
    best->free_after = program.value(v).is_codes ? last + 1 : std::max(end[v], first[v]);
    layout.offsets[static_cast<std::size_t>(v)] = best->offset;
  }
  return layout;
}

std::vector<std::uint64_t> mask_of(const Geometry& g) {
  std::vector<std::uint64_t> mask(static_cast<std::size_t>(g.groups() + widest_block), 0);
  for (int y = 0; y < g.height; ++y)
    for (int x = 0; x < g.width; ++x) {
      const std::int64_t at = y * g.pitch + x;
      mask[static_cast<std::size_t>(at / 64)] |= 1ull << (at % 64);
    }
  return mask;
}

Steps::Steps(const Program& program, std::vector<Step> steps, const Geometry& geometry)
    : program_(program), steps_(std::move(steps)), mask_(mask_of(geometry)) {
  if (steps_.size() > most_steps) throw std::invalid_argument("an epilogue has too many steps");
  for (const Step& step : steps_) {
    if (step.kind == StepKind::multiply || step.kind == StepKind::add || step.kind == StepKind::relu) continue;
    const Value& v = program.value(step.value);
    if (!(v.geometry == geometry) || v.is_codes != (step.kind == StepKind::quantize))
      throw std::invalid_argument("a step names a value of another shape or kind");
  }
}

int Steps::resolve(Worker& worker, int c, int group, BlockStep* resolved) const {
  for (const Step& step : steps_) {
    BlockStep& out = *resolved++;
    out.kind = step.kind;
    if (!step.factors.empty()) {
      out.row = step.factors.size() > 1;
      out.factors = step.factors.data() + c * out.row;
    }
    if (step.value < 0) continue;
    const Value& v = program_.value(step.value);
    out.row = v.is_codes ? v.geometry.words * 64 : v.geometry.floats();
    if (!v.is_codes) {
      out.floats = worker.floats(step.value, c) + 64 * group;
      continue;
    }
    out.mask = mask_.data() + group;
    out.quantizer = &v.codes.quantizer;
    out.pad = v.codes.pad;
    if (v.codes.bytes) {
      out.kind = StepKind::quantize_bytes;
      out.bytes = worker.codes(step.value, c) + 64 * group;
    } else {
      out.planes = worker.plane(step.value, c, 0) + v.geometry.front / 64 + group;
      out.plane = v.geometry.words;
      out.row = v.geometry.words * v.codes.bits;
    }
  }
  return static_cast<int>(steps_.size());
}

std::vector<int> Steps::reads() const {
  std::vector<int> all;
  for (const Step& step : steps_)
    if (step.kind == StepKind::add_value) all.push_back(step.value);
  return all;
}

std::vector<int> Steps::writes() const {
  std::vector<int> all;
  for (const Step& step : steps_)
    if (step.kind == StepKind::store || step.kind == StepKind::quantize) all.push_back(step.value);
  return all;
}

std::vector<int> Steps::replaces() const {
  std::vector<int> all;
  bool stored = false;
  for (const Step& step : steps_) {
    if (step.kind == StepKind::add_value && stored) return {};
    if (step.kind == StepKind::add_value) all.push_back(step.value);
    stored = stored || step.kind == StepKind::store;
  }
  return all;
}

std::string Steps::describe() const {
  static const char* const names[] = {"multiply", "add", "add value", "relu", "store", "quantize"};
  std::string text;
  for (const Step& step : steps_) {
    text += std::string(", ") + names[static_cast<int>(step.kind)];
    if (step.value >= 0) text += " " + std::to_string(step.value);
  }
  return text;
}

std::unique_ptr<Operation> make_map(const Program& program, int input, std::vector<Step> steps, const LaneOps& lanes) {
  return std::make_unique<Map>(program, input, std::move(steps), lanes);
}

std::unique_ptr<Operation> make_pool(const Program& program, int input, int output, int kernel, int stride,
                                     int padding, const LaneOps& lanes) {
  return std::make_unique<Pool2d>(program, input, output, kernel, stride, padding, lanes);
}

std::unique_ptr<Operation> make_subsample(const Program& program, int input, int output, int stride,
                                          const LaneOps& lanes) {
  return std::make_unique<Subsample>(program, input, output, stride, lanes);
}

}  // namespace lowbit
