// A network, or a part of one, as a list of operations on bit planes and floats; runs image by image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bitcore.h"
#include "lanes.h"
#include "pixels.h"
#include "pool.h"

namespace lowbit {

// Where the positions of an H × W map lie in a row of bits or floats. Rows follow each other at a pitch of W + margin:
// the margin after a row is also the margin before the next, so that a tap of a convolution is one shift. Position
// (0, 0) is at `front`, a multiple of 64; bits before it and after the last row are padding.
struct Geometry {
  int height = 0, width = 0, margin = 0;
  std::int64_t pitch = 0, front = 0, words = 0;  // words: 64-bit words of one plane, padding included

  Geometry() = default;
  Geometry(int height, int width, int margin);
  std::int64_t flat() const { return height * pitch; }          // positions, the margins between rows included
  int groups() const { return static_cast<int>((flat() + 63) / 64); }  // 64-position groups
  std::int64_t floats() const { return 64ll * groups(); }  // of one channel
  bool operator==(const Geometry& other) const {
    return height == other.height && width == other.width && margin == other.margin;
  }
};

// One step of an epilogue, applied to the rows of a map in the order given.
struct Step {
  StepKind kind;
  std::vector<float> factors;  // per channel, for multiply and add
  int value = -1;              // of add_value, store and quantize
};

struct Codes {  // what the codes of a value stand for: n = step·u + low, u = 0 … 2^bits − 1
  bool bytes = false;  // a byte for each code, channels last, or `bits` bit planes
  int bits = 1, low = 0, step = 1;
  int pad = 0;          // the u that stands for 0; where there is none, 0
  bool has_zero = true;  // whether one stands for 0
  Quantizer quantizer;
};

struct Value {
  bool is_codes = false;
  bool pixels = false;  // floats: channels last, rounded up to 16, or channel by channel
  int channels = 0;
  Geometry geometry;
  Codes codes;
};

struct Convolution {
  int input = -1;
  int out_channels = 0, kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1,
      dilation_w = 1, groups = 1;
  int weight_low = -1, weight_step = 2, weight_bits = 1;  // n_w = low + step·t, t = 0 … 2^bits − 1
  std::vector<std::uint8_t> weights;                       // t, [out][in / groups][kh][kw]
  std::vector<Step> steps;                                 // either these ...
  std::vector<std::int32_t> thresholds;                    // ... or ascending thresholds, [out][2^bits − 1]:
  std::vector<std::uint8_t> falling;                       // u = number of them ≤ N, or 2^bits − 1 less that number,
  int output = -1;                                         // written to this value
  // The largest sum of each window (the smallest where `falling`), before the steps; no kernel: no pooling. `inner` is
  // the map of the sums.
  int pool_kernel = 0, pool_stride = 1, pool_padding = 0;
  Geometry inner;
};

class Operation;
struct Worker;

class Program {
 public:
  Program(int threads, const std::string& isa);
  ~Program();

  int input(int channels, int height, int width, int margin);
  int codes(int channels, int height, int width, int margin, const Codes& codes);
  int floats(int channels, int height, int width, int margin);
  void convolve(Convolution convolution);
  void map(int input, std::vector<Step> steps);
  void pool(int input, int output, int kernel, int stride, int padding);  // the largest of a window
  void subsample(int input, int output, int stride);  // channels beyond the input's are 0
  // The mean of each channel, on a map of one position. `lanes`: 0: added up one by one, or the lanes of the cascade.
  void mean(int input, int output, int lanes);
  void output(int value);
  void finish();  // chooses how the floats lie, and makes the operations

  // inputs and outputs: contiguous [images][channels][height][width] each, in the order they were declared.
  void run(const std::vector<const float*>& inputs, const std::vector<float*>& outputs, int images);

  // The same for maps of one line, whose positions are the examples: [rows][channels] each, no more rows than positions.
  void run_rows(const std::vector<const float*>& inputs, const std::vector<float*>& outputs, int rows);

  // The codes' numbers n of the last image that worker 0 ran, [channels][height][width].
  void read_codes(int value, std::int32_t* numbers) const;

  const Value& value(int index) const { return values_[static_cast<std::size_t>(index)]; }
  int value_count() const { return static_cast<int>(values_.size()); }
  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<int>& outputs() const { return outputs_; }
  std::size_t workspace() const;
  // How many products of two bits cost as much as one of bytes: up to that, planes are the faster.
  double planes_worth() const { return static_cast<double>(core_->rate) / bytes_->traits.byte_rate; }
  std::string describe() const;

  // When asked for: the least processor time in seconds that each operation has taken on one thread, in the order of
  // `describe`.
  void profile(bool on);
  const std::vector<double>& seconds() const { return seconds_; }

 private:
  friend struct Worker;
  // An operation to be made: the floats that it touches lie alike, and channel by channel if it cannot do otherwise.
  struct Planned {
    std::function<std::unique_ptr<Operation>()> make;
    std::vector<int> floats;
    bool by_channel;
  };
  int add(Value value);
  void plan(std::function<std::unique_ptr<Operation>()> make, std::vector<int> floats, const std::vector<Step>& steps,
            bool by_channel);
  void choose_layouts();
  void run_image(Worker& worker, const std::vector<const float*>& inputs, const std::vector<float*>& outputs, int image,
                 Pool* pool);
  void operate(Worker& worker, Pool* pool);

  const BitCore* core_;
  const PixelCore* bytes_;
  const LaneOps* lanes_;
  Pool pool_;
  std::vector<Value> values_;
  std::vector<int> inputs_, outputs_;
  std::vector<bool> copied_;  // of the inputs: whether any operation reads them elsewhere than from the caller's memory
  std::vector<Planned> planned_;
  std::vector<std::unique_ptr<Operation>> operations_;
  std::vector<std::unique_ptr<Worker>> workers_;
  bool finished_ = false, profiling_ = false;
  std::mutex running_;
  std::vector<double> seconds_;
};

}  // namespace lowbit
