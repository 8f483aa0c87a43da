#include "operations.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace lowbit {

namespace {

std::size_t size_of(const Value& value) {
  const Geometry& g = value.geometry;
  const auto channels = static_cast<std::size_t>(value.channels);
  std::size_t bytes = channels * g.words * 8 * static_cast<std::size_t>(value.codes.bits);
  if (!value.is_codes) bytes = sizeof(float) * (value.pixels ? channels_wide(value.channels) * g.flat() : channels * g.floats() + 16);
  if (value.is_codes && value.codes.bytes) bytes = channels * g.words * 64 + 128;  // vectors may read beyond the last
  return (bytes + 63) / 64 * 64;
}

class Map final : public Operation {
 public:
  Map(const Program& program, int input, std::vector<Step> steps, const LaneOps& lanes, const PixelCore& core)
      : program_(program),
        input_(input),
        steps_(program, std::move(steps), program.value(input).geometry),
        lanes_(lanes),
        core_(core) {}

  void run(Context& context) override {
    const Value& v = program_.value(input_);
    if (v.pixels) return run_pixels(context);
    if (few_channels()) return run_picture(context);
    if (steps_.in_pixels()) return run_transposed(context);
    const int groups = v.geometry.groups();
    context.each(v.channels, [&](int c, char*) {
      BlockStep steps[most_steps];
      const int number = steps_.resolve(context.data, c, 0, steps);
      lanes_.finish_floats(context.data.floats(input_, c), 0, 1, groups, steps, number);
    });
  }
  std::size_t scratch() const override {
    const Value& v = program_.value(input_);
    if (few_channels()) return picture_channels * band_size() + 64;
    return sizeof(float) * static_cast<std::size_t>(rounded(v.geometry.width, 16)) * channels_wide(v.channels);
  }
  std::vector<int> reads() const override {
    std::vector<int> all = steps_.reads();
    all.push_back(input_);
    return all;
  }
  std::vector<int> writes() const override { return steps_.writes(); }
  bool reads_given(int value) const override { return value == input_ && few_channels(); }
  std::string describe() const override { return "map " + std::to_string(input_) + steps_.describe(); }

 private:
  static constexpr int rows_at_once = 8;

  static int rounded(int number, int unit) { return (number + unit - 1) / unit * unit; }
  std::size_t band_size() const {
    return static_cast<std::size_t>(rounded(rows_at_once * program_.value(input_).geometry.width + 64, 64));
  }

  // A picture that the caller gives: it is read where it is, and not copied first.
  bool few_channels() const {
    const auto& inputs = program_.inputs();
    return program_.value(input_).channels <= picture_channels && program_.value(input_).geometry.height > 1 &&
           steps_.only_bytes() &&
           std::find(inputs.begin(), inputs.end(), input_) != inputs.end();
  }

  void run_picture(Context& context) {
    const Value& v = program_.value(input_);
    const Geometry& g = v.geometry;
    const auto size = static_cast<std::ptrdiff_t>(band_size());
    const float* picture = context.data.given[static_cast<std::size_t>(input_)];
    context.each((g.height + rows_at_once - 1) / rows_at_once, [&](int band, char* scratch) {
      auto* bytes = reinterpret_cast<std::uint8_t*>(scratch);
      const int top = band * rows_at_once, rows = std::min(rows_at_once, g.height - top);
      BlockStep steps[most_steps];
      const int number = steps_.resolve_pixels(context.data, 0, top * g.pitch, steps);
      for (int i = 0; i < number; ++i) {
        BlockStep step = steps[i];
        for (int c = 0; c < v.channels; ++c) {
          step.bytes = bytes + c * size;
          const float* from = picture + (static_cast<std::int64_t>(c) * g.height + top) * g.width;
          // Sixteen at a time, as if they were channels; the rest from a copy, for whole vectors are read.
          const int count = rows * g.width, whole = count / 16;
          step.row = 16;
          core_.finish_floats(from, {whole, 1, 16, 16, 0, 0}, &step, 1);
          if (count % 16 == 0) continue;
          float last[16] = {};
          std::copy_n(from + 16 * whole, count % 16, last);
          step.bytes += 16 * whole;
          core_.finish_floats(last, {1, 1, count % 16, 0, 0, 0}, &step, 1);
        }
        for (int y = 0; y < rows; ++y)
          core_.interleave(bytes + y * g.width, size, v.channels, g.width, steps[i].bytes + y * g.pitch * v.channels);
      }
    });
  }

  // From channel by channel to channels last.
  void run_transposed(Context& context) {
    const Value& v = program_.value(input_);
    const Geometry& g = v.geometry;
    const int wide = channels_wide(v.channels);
    context.each(g.height, [&](int y, char* scratch) {
      const std::int64_t position = y * g.pitch;
      auto* row = reinterpret_cast<std::int32_t*>(scratch);
      core_.transpose(reinterpret_cast<const std::int32_t*>(context.data.floats(input_, 0) + position), g.floats(),
                      v.channels, g.width, row, wide);
      BlockStep steps[most_steps];
      const int number = steps_.resolve_pixels(context.data, 0, position, steps);
      core_.finish_floats(reinterpret_cast<const float*>(row), {g.width, 1, v.channels, wide, 0, 0}, steps, number);
    });
  }

  void run_pixels(Context& context) {
    const Value& v = program_.value(input_);
    const int wide = channels_wide(v.channels);
    constexpr int rows = 4;
    context.each((v.geometry.height + rows - 1) / rows, [&](int band, char*) {
      const int y = band * rows, count = std::min(rows, v.geometry.height - y);
      BlockStep steps[most_steps];
      const std::int64_t pitch = v.geometry.pitch, position = y * pitch;
      const int number = steps_.resolve_pixels(context.data, 0, position, steps);
      core_.finish_floats(context.data.pixels(input_) + position * wide,
                          {v.geometry.width, count, v.channels, wide, pitch * wide, pitch}, steps, number);
    });
  }

  const Program& program_;
  int input_;
  Steps steps_;
  const LaneOps& lanes_;
  const PixelCore& core_;
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
    if (program_.value(input_).pixels) return run_pixels(context);
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
  void run_pixels(Context& context) {
    const Geometry &in = program_.value(input_).geometry, &out = program_.value(output_).geometry;
    const int wide = channels_wide(program_.value(input_).channels);
    context.each(out.height, [&](int y, char*) {
      const int top = std::max(y * stride_ - padding_, 0), bottom = std::min(y * stride_ - padding_ + kernel_, in.height);
      for (int x = 0; x < out.width; ++x) {
        const int left = std::max(x * stride_ - padding_, 0), right = std::min(x * stride_ - padding_ + kernel_, in.width);
        float* target = context.data.pixels(output_) + (y * out.pitch + x) * wide;
        for (int row = top; row < bottom; ++row)
          for (int column = left; column < right; ++column) {
            const float* source = context.data.pixels(input_) + (row * in.pitch + column) * wide;
            if (row == top && column == left)
              std::memcpy(target, source, sizeof(float) * wide);
            else
              lanes_.largest(target, source, wide);
          }
      }
    });
  }

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
    if (in.pixels) return run_pixels(context);
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
  void run_pixels(Context& context) {
    const Value &in = program_.value(input_), &out = program_.value(output_);
    const int from = channels_wide(in.channels), to = channels_wide(out.channels);
    context.each(out.geometry.height, [&](int y, char*) {
      const float* source = context.data.pixels(input_) + static_cast<std::int64_t>(y) * stride_ * in.geometry.pitch * from;
      float* target = context.data.pixels(output_) + y * out.geometry.pitch * to;
      for (int x = 0; x < out.geometry.width; ++x, source += static_cast<std::int64_t>(stride_) * from, target += to) {
        std::memcpy(target, source, sizeof(float) * in.channels);
        std::fill(target + in.channels, target + to, 0.0f);
      }
    });
  }

  const Program& program_;
  int input_, output_, stride_;
  const LaneOps& lanes_;
};

}  // namespace

Worker::Worker(const Program& program, const Layout& layout, std::size_t scratch_bytes, std::size_t shared_bytes)
    : program(program),
      layout(layout),
      values(layout.bytes),
      scratch(scratch_bytes),
      shared(shared_bytes),
      given(static_cast<std::size_t>(program.value_count()), nullptr) {
  for (const std::size_t offset : layout.fences) forbid(static_cast<char*>(values.memory) + offset, fence_bytes);
  for (std::size_t i = 0; i < layout.offsets.size(); ++i) {
    const Value& v = program.value(static_cast<int>(i));
    if (!v.is_codes || !v.codes.pad) continue;
    if (v.codes.bytes) {
      std::memset(base(static_cast<int>(i)), v.codes.pad, size_of(v));
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
      if (fence_bytes) layout.fences.push_back(layout.bytes);
      layout.bytes += fence_bytes;
      best = &places.back();
    }
    best->value = v;
    const bool forever = program.value(v).is_codes || fence_bytes;
    best->free_after = forever ? last + 1 : std::max(end[v], first[v]);
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
  for (Step& step : steps_)  // so that vectors of them can be read
    if (step.factors.size() > 1) step.factors.resize(step.factors.size() + 64, 0.0f);
}

bool Steps::only_bytes() const {
  return std::all_of(steps_.begin(), steps_.end(), [&](const Step& step) {
    return step.kind == StepKind::quantize && program_.value(step.value).codes.bytes;
  });
}

bool Steps::in_pixels() const {
  return std::all_of(steps_.begin(), steps_.end(), [&](const Step& step) {
    if (step.value < 0) return true;
    const Value& v = program_.value(step.value);
    return v.is_codes ? v.codes.bytes : v.pixels;
  });
}

int Steps::resolve_pixels(Worker& worker, int c, std::int64_t position, BlockStep* resolved) const {
  for (const Step& step : steps_) {
    BlockStep& out = *resolved++;
    out = BlockStep{};
    out.kind = step.kind;
    if (!step.factors.empty()) {
      out.row = step.factors.size() > 1;
      out.factors = step.factors.data() + c * out.row;
    }
    if (step.value < 0) continue;
    const Value& v = program_.value(step.value);
    out.row = v.is_codes ? v.channels : channels_wide(v.channels);
    if (!v.is_codes) {
      out.floats = worker.pixels(step.value) + position * out.row + c;
      continue;
    }
    out.kind = StepKind::quantize_bytes;
    out.bytes = worker.codes(step.value) + position * out.row + c;
    out.quantizer = &v.codes.quantizer;
  }
  return static_cast<int>(steps_.size());
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
      out.bytes = worker.codes(step.value) + 64ll * group * v.channels + c;
      out.plane = v.channels;
      out.row = 1;
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

std::unique_ptr<Operation> make_map(const Program& program, int input, std::vector<Step> steps, const LaneOps& lanes,
                                    const PixelCore& core) {
  return std::make_unique<Map>(program, input, std::move(steps), lanes, core);
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
