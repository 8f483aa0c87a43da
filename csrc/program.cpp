#include "program.h"

#include <algorithm>
#include <ctime>
#include <cstring>
#include <stdexcept>

#include "operations.h"

namespace lowbit {

namespace {

std::int64_t rounded(std::int64_t number, std::int64_t unit) { return (number + unit - 1) / unit * unit; }

const BitCore* pick_core(const std::string& isa) {
  int count;
  const BitCore* const* cores = bit_cores(&count);
  for (int i = 0; i < count; ++i)  // "avx512vnni" is "avx512" to these
    if (isa.rfind(cores[i]->name, 0) == 0 || isa.empty()) return cores[i];
  return cores[count - 1];
}

const PixelCore* pick_bytes(const std::string& isa) {
  int count;
  const PixelCore* const* cores = pixel_cores(&count);
  for (int i = 0; i < count; ++i)
    if (isa.empty() || isa == cores[i]->name) return cores[i];
  if (isa == amx_model().name) return &amx_model();
  throw std::invalid_argument("this processor has no instruction set '" + isa + "'");
}

const LaneOps* pick_lanes(const std::string& isa) {
  int count;
  const LaneOps* const* lanes = all_lane_ops(&count);
  for (int i = 0; i < count; ++i)
    if (isa.rfind(lanes[i]->name, 0) == 0) return lanes[i];
  return isa.empty() ? lanes[0] : lanes[count - 1];
}

// Of this thread: what others do on the machine does not count.
double processor_time() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// An operation gets as much scratch memory as it has asked for, and not what the largest of all needs.
void fence(Context& context, const Operation& operation) {
  context.data.shared.only(operation.shared());
  context.data.scratch.only(operation.scratch());
  if (!context.pool) return;
  for (const auto& worker : context.workers) worker->scratch.only(operation.scratch());
}

}  // namespace

Geometry::Geometry(int height, int width, int margin) : height(height), width(width), margin(margin) {
  pitch = width + margin;
  const std::int64_t reach = rounded(margin * pitch + margin, 64) + 64;
  front = reach;
  words = (front + rounded(flat(), 64) + reach) / 64 + 2 * widest_block;
}

Program::Program(int threads, const std::string& isa)
    : core_(pick_core(isa)), bytes_(pick_bytes(isa)), lanes_(pick_lanes(isa)), pool_(std::max(threads, 1)) {}

Program::~Program() = default;

int Program::add(Value value) {
  if (finished_) throw std::logic_error("the program is finished");
  values_.push_back(std::move(value));
  return static_cast<int>(values_.size()) - 1;
}

int Program::floats(int channels, int height, int width, int margin) {
  Value value;
  value.channels = channels;
  value.geometry = Geometry(height, width, margin);
  return add(std::move(value));
}

int Program::input(int channels, int height, int width, int margin) {
  inputs_.push_back(floats(channels, height, width, margin));
  return inputs_.back();
}

int Program::codes(int channels, int height, int width, int margin, const Codes& codes) {
  Value value;
  value.is_codes = true;
  value.channels = channels;
  value.geometry = Geometry(height, width, margin);
  value.codes = codes;
  return add(std::move(value));
}

void Program::output(int value) { outputs_.push_back(value); }

void Program::plan(std::function<std::unique_ptr<Operation>()> make, std::vector<int> floats,
                   const std::vector<Step>& steps, bool by_channel) {
  for (const Step& step : steps) {
    if (step.value < 0) continue;
    const Value& v = value(step.value);
    if (!v.is_codes) floats.push_back(step.value);
    by_channel = by_channel || (v.is_codes && !v.codes.bytes);
  }
  planned_.push_back({std::move(make), std::move(floats), by_channel});
}

void Program::convolve(Convolution convolution) {
  const bool bytes = value(convolution.input).codes.bytes;
  const std::vector<Step> steps = convolution.steps;
  const auto make = [this, bytes, c = std::move(convolution)] {
    return bytes ? make_byte_convolution(*this, c, *bytes_, *lanes_, pool_.size())
                 : make_convolution(*this, c, *core_, *lanes_, pool_.size());
  };
  plan(make, {}, steps, !bytes);
}

void Program::map(int input, std::vector<Step> steps) {
  plan([=] { return make_map(*this, input, steps, *lanes_, *bytes_); }, {input}, steps, false);
}

void Program::pool(int input, int output, int kernel, int stride, int padding) {
  plan([=] { return make_pool(*this, input, output, kernel, stride, padding, *lanes_); }, {input, output}, {}, false);
}

void Program::subsample(int input, int output, int stride) {
  plan([=] { return make_subsample(*this, input, output, stride, *lanes_); }, {input, output}, {}, false);
}

void Program::choose_layouts() {
  for (Value& v : values_) v.pixels = !v.is_codes;
  for (const int v : inputs_) {  // pictures are read where the caller has them
    const bool picture = value(v).channels <= picture_channels && value(v).geometry.height > 1;
    values_[static_cast<std::size_t>(v)].pixels = !picture;
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (Planned& operation : planned_) {
      const auto apart = [&](int v) { return !value(v).pixels; };
      if (!operation.by_channel && std::none_of(operation.floats.begin(), operation.floats.end(), apart)) continue;
      operation.by_channel = true;
      for (const int v : operation.floats) {
        changed = changed || value(v).pixels;
        values_[static_cast<std::size_t>(v)].pixels = false;
      }
    }
  }
}

void Program::mean(int input, int output, int lanes) {
  plan([=] { return make_mean(*this, input, output, lanes); }, {}, {}, false);
}

void Program::finish() {
  if (finished_) return;
  choose_layouts();
  for (const Planned& operation : planned_) operations_.push_back(operation.make());
  planned_.clear();
  for (const int v : inputs_)
    copied_.push_back(std::any_of(operations_.begin(), operations_.end(), [&](const auto& operation) {
      const std::vector<int> read = operation->reads();
      return std::find(read.begin(), read.end(), v) != read.end() && !operation->reads_given(v);
    }) || std::find(outputs_.begin(), outputs_.end(), v) != outputs_.end());
  finished_ = true;
  const Layout layout = lay_out(*this, operations_);
  std::size_t scratch = 0, shared = 0;
  for (const auto& operation : operations_) {
    scratch = std::max(scratch, operation->scratch());
    shared = std::max(shared, operation->shared());
  }
  for (int i = 0; i < pool_.size(); ++i) workers_.push_back(std::make_unique<Worker>(*this, layout, scratch, shared));
}

std::size_t Program::workspace() const {
  std::size_t bytes = 0;
  for (const auto& worker : workers_) bytes += worker->bytes();
  return bytes;
}

void Program::run_image(Worker& worker, const std::vector<const float*>& inputs, const std::vector<float*>& outputs,
                        int image, Pool* pool) {
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const Value& v = value(inputs_[i]);
    const Geometry& g = v.geometry;
    const std::size_t plane = static_cast<std::size_t>(g.height) * g.width;
    const float* source = inputs[i] + static_cast<std::size_t>(image) * v.channels * plane;
    worker.given[static_cast<std::size_t>(inputs_[i])] = source;
    if (!copied_[i]) continue;
    if (v.pixels) {
      const int wide = channels_wide(v.channels), blocks = g.width / 16 * 16;
      float* target = worker.pixels(inputs_[i]);
      if (plane == 1) std::memcpy(target, source, sizeof(float) * v.channels);
      for (int y = 0; y < g.height && plane > 1; ++y, source += g.width, target += g.pitch * wide) {
        if (blocks)
          bytes_->transpose(reinterpret_cast<const std::int32_t*>(source), static_cast<std::ptrdiff_t>(plane), v.channels,
                            blocks, reinterpret_cast<std::int32_t*>(target), wide);
        for (int x = blocks; x < g.width; ++x)
          for (int c = 0; c < v.channels; ++c) target[x * wide + c] = source[c * plane + x];
      }
      continue;
    }
    for (int c = 0; c < v.channels; ++c)
      for (int y = 0; y < g.height; ++y)
        std::memcpy(worker.floats(inputs_[i], c) + y * g.pitch, source + c * plane + y * g.width,
                    sizeof(float) * g.width);
  }
  operate(worker, pool);
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    const Value& v = value(outputs_[i]);
    const Geometry& g = v.geometry;
    const std::size_t plane = static_cast<std::size_t>(g.height) * g.width;
    float* target = outputs[i] + static_cast<std::size_t>(image) * v.channels * plane;
    if (v.pixels) {
      const int wide = channels_wide(v.channels);
      const float* source = worker.pixels(outputs_[i]);
      if (plane == 1) std::memcpy(target, source, sizeof(float) * v.channels);
      for (int y = 0; y < g.height && plane > 1; ++y, source += g.pitch * wide, target += g.width)
        bytes_->transpose(reinterpret_cast<const std::int32_t*>(source), wide, g.width, v.channels,
                          reinterpret_cast<std::int32_t*>(target), static_cast<std::ptrdiff_t>(plane));
      continue;
    }
    for (int c = 0; c < v.channels; ++c)
      for (int y = 0; y < g.height; ++y)
        std::memcpy(target + c * plane + y * g.width, worker.floats(outputs_[i], c) + y * g.pitch,
                    sizeof(float) * g.width);
  }
}

void Program::operate(Worker& worker, Pool* pool) {
  Context context{worker, workers_, pool};
  if (profiling_ && &worker == workers_[0].get()) {
    for (std::size_t i = 0; i < operations_.size(); ++i) {
      const double start = processor_time();
      operations_[i]->run(context);
      const double taken = processor_time() - start;
      seconds_[i] = seconds_[i] > 0 ? std::min(seconds_[i], taken) : taken;
    }
  } else {
    for (const auto& operation : operations_) {
      if (fence_bytes) fence(context, *operation);
      operation->run(context);
    }
  }
}

void Program::run(const std::vector<const float*>& inputs, const std::vector<float*>& outputs, int images) {
  if (!finished_) throw std::logic_error("finish() comes before run()");
  const std::lock_guard<std::mutex> lock(running_);  // the workspaces serve one call at a time
  if (images >= pool_.size()) {
    pool_.each(images, [&](int image, int worker) { run_image(*workers_[worker], inputs, outputs, image, nullptr); });
    return;
  }
  for (int image = 0; image < images; ++image) run_image(*workers_[0], inputs, outputs, image, &pool_);
}

void Program::run_rows(const std::vector<const float*>& inputs, const std::vector<float*>& outputs, int rows) {
  if (!finished_) throw std::logic_error("finish() comes before run_rows()");
  for (const std::vector<int>& all : {inputs_, outputs_})
    for (int i : all)
      if (value(i).geometry.height != 1 || value(i).geometry.width < rows)
        throw std::invalid_argument("these are no maps of one line with a position for each row");
  const std::lock_guard<std::mutex> lock(running_);
  Worker& worker = *workers_[0];
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const Value& v = value(inputs_[i]);
    if (v.pixels) {
      const int wide = channels_wide(v.channels);
      for (int row = 0; row < rows; ++row)
        std::memcpy(worker.pixels(inputs_[i]) + row * wide, inputs[i] + static_cast<std::size_t>(row) * v.channels,
                    sizeof(float) * v.channels);
      continue;
    }
    for (int c = 0; c < v.channels; ++c) {
      float* target = worker.floats(inputs_[i], c);
      for (int row = 0; row < rows; ++row) target[row] = inputs[i][static_cast<std::size_t>(row) * v.channels + c];
      std::fill(target + rows, target + v.geometry.width, 0.0f);
    }
  }
  operate(worker, pool_.size() > 1 ? &pool_ : nullptr);
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    const Value& v = value(outputs_[i]);
    if (v.pixels) {
      const int wide = channels_wide(v.channels);
      for (int row = 0; row < rows; ++row)
        std::memcpy(outputs[i] + static_cast<std::size_t>(row) * v.channels, worker.pixels(outputs_[i]) + row * wide,
                    sizeof(float) * v.channels);
      continue;
    }
    for (int c = 0; c < v.channels; ++c) {
      const float* source = worker.floats(outputs_[i], c);
      for (int row = 0; row < rows; ++row) outputs[i][static_cast<std::size_t>(row) * v.channels + c] = source[row];
    }
  }
}

void Program::read_codes(int index, std::int32_t* numbers) const {
  const Value& v = value(index);
  const Geometry& g = v.geometry;
  for (int c = 0; c < v.channels; ++c)
    for (int y = 0; y < g.height; ++y)
      for (int x = 0; x < g.width; ++x) {
        const std::int64_t at = g.front + y * g.pitch + x;
        int u = 0;
        if (v.codes.bytes) u = workers_[0]->codes(index)[(at - g.front) * v.channels + c];
        for (int j = 0; j < v.codes.bits && !v.codes.bytes; ++j)
          u |= static_cast<int>((workers_[0]->plane(index, c, j)[at / 64] >> (at % 64)) & 1) << j;
        *numbers++ = v.codes.step * u + v.codes.low;
      }
}

void Program::profile(bool on) {
  profiling_ = on;
  seconds_.assign(operations_.size(), 0.0);
}

std::string Program::describe() const {
  std::string text = std::string(core_->name) + " / " + lanes_->name + "\n";
  for (const auto& operation : operations_) text += operation->describe() + "\n";
  return text;
}

}  // namespace lowbit
