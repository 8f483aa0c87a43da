// A convolution of codes that are bytes, channels last: windows times weights, see pixels.h.
//
// n_x = l + a·u, so that Σ n_w·n_x = a·Σ n_w·u + l·Σ n_w, with the weights' numbers n_w as signed bytes.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "operations.h"

namespace lowbit {

namespace {

std::size_t up64(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// The sums of Σ n_w·u of a few pixels of a row, for a range of blocks of output channels.
class Windows {
 public:
  Windows(const Program& program, const Convolution& c, const Geometry& out, const PixelCore& core)
      : c_(c),
        core_(core),
        in_(program.value(c.input)),
        out_(out),
        inputs_(in_.channels / std::max(c.groups, 1)),
        outputs_(c.out_channels / std::max(c.groups, 1)),
        block_(2 * core.lanes),
        depthwise_(c.groups > 1 && inputs_ == 1 && outputs_ == 1) {
    check_shapes(c_, in_, out_);
    if (!c_.thresholds.empty() || (!in_.codes.has_zero && (c.pad_h || c.pad_w)))
      throw std::invalid_argument("bytes take steps and, where there is padding, a code for 0");
    if (c_.weight_low < -128 || c_.weight_low + c_.weight_step * ((1 << c_.weight_bits) - 1) > 127)
      throw std::invalid_argument("the weights' numbers do not fit signed bytes");
    for (int width = 0; width <= out_.width; ++width)
      for (int rows = 1; rows <= 2; ++rows) shapes_.push_back(shape_of(width, rows));
    if (depthwise_)
      pack_depthwise();
    else
      pack();
    set_offsets();
  }

  // Blocks of output channels, and how many of them have to be computed together: with groups, vectors of one may reach
  // into the next.
  int blocks() const { return depthwise_ ? 1 : c_.groups * group_blocks(); }
  int together() const { return c_.groups == 1 ? 1 : blocks(); }
  int first_channel(int block) const {
    return depthwise_ ? 0 : places_[static_cast<std::size_t>(block)].channel;
  }
  int end_channel(int block) const {  // of the block before
    return block == blocks() ? c_.out_channels : first_channel(block);
  }
  // Numbers from one pixel's sums to the next one's, for blocks computed together.
  std::ptrdiff_t stride() const {
    if (depthwise_) return rounded(c_.out_channels, 64);
    return together() == 1 ? block_ : channels_wide(c_.out_channels) + block_;
  }
  std::int32_t slope() const { return in_.codes.step; }
  const std::int32_t* offsets(int channel) const { return offsets_.data() + channel; }
  const std::int32_t* doubled_offsets(int channel) const { return doubled_.data() + channel; }

  // Some pixels of a row, or of two, from (y, x) on.
  struct Piece {
    int y, x, width, rows;
    int turn;  // how often the same blocks were gone through before
  };

  // sums[row * sums_row + p * stride + channel − first channel]
  void run(Worker& worker, int block, int end, const Piece& piece, std::int32_t* sums, std::ptrdiff_t stride,
           std::ptrdiff_t sums_row) const {
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(c_.stride_h) * in_.geometry.pitch * in_.channels;
    const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(c_.stride_w) * in_.channels;
    const std::uint8_t* base = worker.codes(c_.input) + piece.y * row + piece.x * step;
    if (depthwise_) {
      const auto* weights = static_cast<const std::uint8_t*>(weights_->memory);
      for (int i = 0; i < piece.rows; ++i)
        core_.depthwise({base + i * row, step, piece.width, taps_.data(), static_cast<int>(taps_.size()), weights,
                         rounded(c_.out_channels, 64), sums + i * sums_row, stride});
      return;
    }
    const int from = first_channel(block), quads = static_cast<int>(taps_.size());
    const Shape& shape = shapes_[static_cast<std::size_t>(2 * piece.width + piece.rows - 1)];
    const bool below = piece.rows == 2;
    // Later turns go on fetching the next block's weights where the one before stopped.
    const std::ptrdiff_t part = static_cast<std::ptrdiff_t>(piece.turn) * shape.tiles * quads * 64;
    for (const Place* place = &places_[static_cast<std::size_t>(block)]; block < end; ++block, ++place)
      core_.product({base + place->input, step, below ? row : shape.pixels * step, shape.pixels, shape.groups,
                     shape.tiles, shape.span, piece.width - shape.span, taps_.data(), quads, place->weights,
                     place->weights + place->size + part, static_cast<std::ptrdiff_t>(place->behind) - part,
                     place->vectors, chain_, sums + place->channel - from, stride,
                     below ? sums_row : shape.pixels * stride},
                    in_.codes.bits == 8);
  }

  // body(x, width) for equal parts of a row
  template <class F>
  static void each_part(int width, int most, F&& body) {
    const int parts = (width + most - 1) / most;
    for (int i = 0; i < parts; ++i) {
      const int from = static_cast<int>(static_cast<std::int64_t>(width) * i / parts);
      body(from, static_cast<int>(static_cast<std::int64_t>(width) * (i + 1) / parts) - from);
    }
  }

  std::string describe() const { return describe_convolution(c_, in_, out_) + ", " + core_.name; }

 private:
  struct Shape {  // of the tiles of a piece
    int pixels, groups, tiles, span;
  };

  // For one row or two of so many pixels: what costs least, where a tile costs its pixels and some for itself, and one
  // group alone leaves the processor waiting.
  Shape shape_of(int width, int rows) const {
    Shape best{1, 1, width, 1};
    double least = 1e30;
    for (int groups = rows; groups <= 2; ++groups)
      for (int pixels = 1; pixels <= core_.most_pixels; ++pixels) {
        const int span = rows == 2 ? pixels : pixels * groups;
        if (span > width) break;
        const int tiles = (width + span - 1) / span;
        const double cost = tiles * (pixels * groups + 1.5) * (groups == 1 ? 1.2 : 1);
        if (cost < least) least = cost, best = Shape{pixels, groups, tiles, span};
      }
    return best;
  }

  static int rounded(int number, int unit) { return (number + unit - 1) / unit * unit; }
  int group_blocks() const { return (outputs_ + block_ - 1) / block_; }
  std::size_t group_bytes() const {
    return taps_.size() * 4 * static_cast<std::size_t>(rounded(outputs_, core_.lanes));
  }
  int number(int m, int channel, int ky, int kx) const {
    const std::size_t at =
        ((static_cast<std::size_t>(m) * inputs_ + channel) * c_.kernel_h + ky) * c_.kernel_w + static_cast<std::size_t>(kx);
    return c_.weight_low + c_.weight_step * c_.weights[at];
  }
  std::int64_t tap(int ky, int kx) const {  // from a window's base, in bytes
    return (static_cast<std::int64_t>(ky * c_.dilation_h - c_.pad_h) * in_.geometry.pitch + kx * c_.dilation_w - c_.pad_w) *
           in_.channels;
  }

  // Runs of bytes that lie side by side, in groups of four; what a last group reads too much has weights of 0.
  void pack() {
    const bool joined = c_.groups == 1 && c_.dilation_w == 1;
    const int run = joined ? c_.kernel_w * inputs_ : inputs_, runs = joined ? 1 : c_.kernel_w;
    const int quads = rounded((run + 3) / 4, core_.traits.quads);
    for (int ky = 0; ky < c_.kernel_h; ++ky)
      for (int r = 0; r < runs; ++r)
        for (int q = 0; q < quads; ++q) taps_.push_back(static_cast<std::int32_t>(tap(ky, r) + 4 * q));
    weights_ = std::make_unique<Aligned>(static_cast<std::size_t>(c_.groups) * group_bytes());
    auto* packed = static_cast<std::int8_t*>(weights_->memory);
    std::vector<std::int8_t> all(static_cast<std::size_t>(c_.out_channels) * taps_.size() * 4, 0);
    for (int m = 0; m < c_.out_channels; ++m) {
      const int group = m / outputs_, row = m % outputs_, block = row / block_, lane = row % block_;
      const int wide = outputs_ - block * block_ > core_.lanes ? block_ : core_.lanes;  // lanes of this block
      std::int8_t* to = packed + static_cast<std::size_t>(group) * group_bytes() +
                        static_cast<std::size_t>(block) * taps_.size() * block_ * 4;
      for (std::size_t q = 0; q < taps_.size(); ++q)
        for (int i = 0; i < 4; ++i) {
          const int byte = 4 * (static_cast<int>(q) % quads) + i, which = static_cast<int>(q) / quads;
          if (byte >= run) continue;
          const int kx = joined ? byte / inputs_ : which % runs;
          const auto n = static_cast<std::int8_t>(number(m, byte % inputs_, which / runs, kx));
          to[(q * wide + lane) * 4 + i] = n;
          all[(static_cast<std::size_t>(m) * taps_.size() + q) * 4 + i] = n;
        }
    }
    const auto* weights = static_cast<const std::uint8_t*>(weights_->memory);
    for (int block = 0; block < blocks(); ++block) {
      const int group = block / group_blocks(), row = block % group_blocks() * block_;
      const int vectors = outputs_ - row > core_.lanes ? 2 : 1;
      const std::size_t size = taps_.size() * vectors * core_.lanes * 4;
      if (block) places_.back().behind = size;
      places_.push_back({weights, size, 0, group * outputs_ + row, vectors, group * inputs_});
      weights += size;
    }
    chain_ = chain_of(all.data(), static_cast<std::size_t>(c_.out_channels), taps_.size() * 4, (1 << in_.codes.bits) - 1);
  }

  void pack_depthwise() {
    const int count = c_.kernel_h * c_.kernel_w, wide = rounded(c_.out_channels, 64);
    for (int i = 0; i < rounded(count, 4); ++i) {
      const int t = std::min(i, count - 1);
      taps_.push_back(static_cast<std::int32_t>(tap(t / c_.kernel_w, t % c_.kernel_w)));
    }
    std::vector<std::int8_t> numbers(taps_.size() * wide, 0);
    for (int t = 0; t < count; ++t)
      for (int m = 0; m < c_.out_channels; ++m)
        numbers[static_cast<std::size_t>(t) * wide + m] =
            static_cast<std::int8_t>(number(m, 0, t / c_.kernel_w, t % c_.kernel_w));
    weights_ = std::make_unique<Aligned>(numbers.size());
    core_.pack_depthwise(numbers.data(), static_cast<int>(taps_.size()), wide,
                         static_cast<std::uint8_t*>(weights_->memory));
  }

  void set_offsets() {
    offsets_.assign(static_cast<std::size_t>(channels_wide(c_.out_channels) + block_), 0);
    // The depthwise products and those of most cores take u as it is.
    const int shift = core_.traits.signed_inputs && in_.codes.bits == 8 && !depthwise_ ? 128 : 0;
    for (int m = 0; m < c_.out_channels; ++m) {
      std::int64_t total = 0;
      for (int channel = 0; channel < inputs_; ++channel)
        for (int t = 0; t < c_.kernel_h * c_.kernel_w; ++t) total += number(m, channel, t / c_.kernel_w, t % c_.kernel_w);
      offsets_[static_cast<std::size_t>(m)] = static_cast<std::int32_t>((in_.codes.low + in_.codes.step * shift) * total);
    }
    for (const std::int32_t offset : offsets_) doubled_.push_back(2 * offset);
  }

  const Convolution& c_;
  const PixelCore& core_;
  const Value in_;
  const Geometry out_;
  const int inputs_, outputs_, block_;
  const bool depthwise_;
  int chain_ = 0;
  std::vector<std::int32_t> taps_;  // where each group of four bytes, or each tap of a channel, lies in a window
  struct Place {  // a block of output channels
    const std::uint8_t* weights;
    std::size_t size, behind;  // of its weights, and of the next block's
    int channel, vectors, input;  // the first output channel, and the first input
  };
  std::vector<Place> places_;
  std::vector<Shape> shapes_;  // by width, of one row and of two
  std::unique_ptr<Aligned> weights_;
  std::vector<std::int32_t> offsets_, doubled_;
};

// What byte convolutions have in common: where their sums go once they are complete.
class ByteOperation : public Operation {
 public:
  ByteOperation(const Program& program, Convolution c, const PixelCore& core, const LaneOps& lanes)
      : c_(std::move(c)),
        core_(core),
        lanes_(lanes),
        out_(geometry_of_result(program, c_)),
        windows_(program, c_, c_.pool_kernel ? c_.inner : out_, core),
        steps_(program, c_.steps, out_),
        by_channel_(!steps_.in_pixels()) {}

  std::size_t shared() const override {
    return by_channel_ && bands_ > 1 ? 4 * static_cast<std::size_t>(c_.out_channels) * row_size() : 0;
  }
  std::vector<int> reads() const override {
    std::vector<int> all = steps_.reads();
    all.push_back(c_.input);
    return all;
  }
  std::vector<int> writes() const override { return steps_.writes(); }
  std::vector<int> replaces() const override { return steps_.replaces(); }
  std::string describe() const override {
    return windows_.describe() + (c_.pool_kernel ? ", pool" : "") + steps_.describe();
  }

 protected:
  // Takes the sums of `pixels` of `rows` rows from position (y, x) on, of channels from `first` to `end`. What lies channel
  // by channel is finished in groups of 64 positions: as soon as a few are complete, where one thread sees them all (then
  // there is a buffer for those that wait), or else in the end.
  class Delivery {
   public:
    Delivery(const ByteOperation& operation, Worker& worker, int first, int end, std::int32_t* buffer)
        : operation_(operation), worker_(worker), first_(first), end_(end) {
      if (!operation.by_channel_) {
        number_ = operation.steps_.resolve_pixels(worker, first, 0, steps_);
        return;
      }
      buffer_ = buffer;
      sums_ = buffer ? buffer : operation.row(worker, first);
      size_ = buffer ? operation.buffer_row() : operation.row_size();
    }
    void operator()(int y, int x, int pixels, int rows, const std::int32_t* sums, std::ptrdiff_t stride,
                    std::ptrdiff_t row) {
      const ByteOperation& o = operation_;
      const std::int64_t position = static_cast<std::int64_t>(y) * o.out_.pitch + x;
      if (o.by_channel_) {
        for (int i = 0; i < rows; ++i)
          o.core_.transpose(sums + i * row, stride, pixels, end_ - first_,
                            sums_ + position - 64ll * done_ + i * o.out_.pitch, size_);
        return;
      }
      for (int i = 0; i < number_; ++i) {
        if (steps_[i].floats) steps_[i].floats += (position - position_) * steps_[i].row;
        if (steps_[i].bytes) steps_[i].bytes += (position - position_) * steps_[i].row;
      }
      position_ = position;
      o.core_.finish(sums, {pixels, rows, end_ - first_, stride, row, o.out_.pitch}, o.windows_.slope(),
                     o.windows_.offsets(first_), steps_, number_);
    }
    // Everything above row y has come.
    void advance(int y) {
      if (!buffer_) return;
      const ByteOperation& o = operation_;
      const std::int64_t position = static_cast<std::int64_t>(y) * o.out_.pitch;
      const int complete = y == o.out_.height ? o.out_.groups() : static_cast<int>(position / 64);
      if (complete - done_ < 2 && y < o.out_.height) return;
      o.finish_channels(worker_, first_, end_, done_, complete - done_, buffer_, size_);
      const std::int64_t left = position - 64ll * complete;
      for (int m = 0; m < end_ - first_ && left > 0; ++m)
        std::memmove(buffer_ + m * size_, buffer_ + m * size_ + 64ll * (complete - done_),
                     sizeof(std::int32_t) * static_cast<std::size_t>(left));
      done_ = complete;
    }

   private:
    const ByteOperation& operation_;
    Worker& worker_;
    const int first_, end_;
    std::int32_t *buffer_ = nullptr, *sums_ = nullptr;
    std::int64_t size_ = 0, position_ = 0;
    int done_ = 0;  // groups
    int number_ = 0;
    BlockStep steps_[most_steps];
  };

  // When all are delivered.
  void complete(Context& context) const {
    if (!by_channel_ || bands_ == 1) return;
    constexpr int chunk = 16;
    context.each((c_.out_channels + chunk - 1) / chunk, [&](int item, char*) {
      const int first = item * chunk, end = std::min(first + chunk, c_.out_channels);
      finish_channels(context.data, first, end, 0, out_.groups(), row(context.data, first), row_size());
    });
  }

  // Bytes of a buffer for the sums of so many channels; 0 where none is needed.
  std::size_t buffer_size(int channels) const {
    return by_channel_ && bands_ == 1 ? up64(4 * static_cast<std::size_t>(channels) * buffer_row()) : 0;
  }

  const Convolution c_;
  const PixelCore& core_;
  const LaneOps& lanes_;
  const Geometry out_;
  const Windows windows_;
  int bands_ = 1;     // that are computed apart
  int delivered_ = 2;  // rows that come at once

 private:
  void finish_channels(Worker& worker, int first, int end, int group, int groups, const std::int32_t* sums,
                       std::int64_t stride) const {
    BlockStep steps[most_steps];
    const int number = steps_.resolve(worker, first, group, steps);
    lanes_.finish_counts(sums, stride, 2 * windows_.slope(), windows_.doubled_offsets(first), end - first, groups, steps,
                         number);
  }
  std::int64_t buffer_row() const {
    return ((static_cast<std::int64_t>(delivered_) * out_.pitch + 256) / 16 | 1) * 16;
  }
  std::int32_t* row(Worker& worker, int channel) const {
    return static_cast<std::int32_t*>(worker.shared.memory) + channel * row_size();
  }
  // An odd number of cache lines: the same position of all channels must not fall into the same few places of a cache.
  std::int64_t row_size() const { return out_.floats() + (out_.groups() % 2 ? 32 : 16); }

  const Steps steps_;
  const bool by_channel_;
};

class ByteConv final : public ByteOperation {
 public:
  ByteConv(const Program& program, Convolution c, const PixelCore& core, const LaneOps& lanes, int threads)
      : ByteOperation(program, std::move(c), core, lanes), sets_(windows_.blocks() / windows_.together()) {
    delivered_ = rows_at_once();
    if (threads > 1) bands_ = std::clamp((4 * threads + sets_ - 1) / sets_, 1, out_.height);
  }

  void run(Context& context) override {
    context.each(sets_ * bands_, [&](int item, char* scratch) {
      auto* sums = reinterpret_cast<std::int32_t*>(scratch);
      const int block = item / bands_ * windows_.together(), end = block + windows_.together();
      const int first = windows_.first_channel(block), last = windows_.end_channel(end);
      const int band = item % bands_, bottom = out_.height * (band + 1) / bands_;
      Delivery deliver(*this, context.data, first, last,
                       bands_ == 1 ? reinterpret_cast<std::int32_t*>(scratch + sums_size()) : nullptr);
      int turn = 0;
      for (int y = out_.height * band / bands_, rows; y < bottom; y += rows) {
        rows = std::min(rows_at_once(), bottom - y);
        windows_.each_part(out_.width, most_at_once, [&](int left, int width) {
          const std::ptrdiff_t stride = windows_.stride(), below = width * stride;
          for (int row = 0; row < rows; row += 2)
            windows_.run(context.data, block, end, {y + row, left, width, std::min(2, rows - row), turn++},
                         sums + row * below, stride, below);
          deliver(y, left, width, rows, sums, stride, below);
        });
        deliver.advance(y + rows);
      }
    });
    complete(context);
  }

  std::size_t scratch() const override {
    return sums_size() + buffer_size(static_cast<int>(std::min<std::ptrdiff_t>(c_.out_channels, windows_.stride())));
  }

 private:
  static constexpr int most_at_once = 56;  // pixels of a row whose sums wait for the steps
  int rows_at_once() const { return std::max(2, 112 / out_.width / 2 * 2); }
  std::size_t sums_size() const {
    const auto pixels = static_cast<std::size_t>(std::min(most_at_once, out_.width)) * rows_at_once();
    return up64(4 * (pixels * windows_.stride() + 64));
  }
  const int sets_;
};

// A convolution and the max-pooling behind it. The steps between them are monotone for each channel, roundings included,
// so that the largest result comes from the largest sum, or from the smallest: only one in four is worth the steps.
class PooledByteConv final : public ByteOperation {
 public:
  PooledByteConv(const Program& program, Convolution c, const PixelCore& core, const LaneOps& lanes, int threads)
      : ByteOperation(program, std::move(c), core, lanes) {
    const auto fits = [&](int before, int after) {
      return after == (before + 2 * c_.pool_padding - c_.pool_kernel) / c_.pool_stride + 1;
    };
    if (c_.groups != 1 || !fits(c_.inner.height, out_.height) || !fits(c_.inner.width, out_.width) ||
        2 * c_.pool_padding > c_.pool_kernel || c_.pool_kernel > most_rows || c_.falling.size() != static_cast<std::size_t>(c_.out_channels))
      throw std::invalid_argument("the pooled convolution's shapes do not fit each other");
    flip_.assign(static_cast<std::size_t>(wide()), 0);
    for (std::size_t m = 0; m < c_.falling.size(); ++m) {
      flip_[m] = c_.falling[m] ? -1 : 0;
      falls_ = falls_ || c_.falling[m];
    }
    if (threads > 1) bands_ = std::min(out_.height, 2 * threads);
  }

  void run(Context& context) override {
    context.each(bands_, [&](int band, char* scratch) {
      pool(context.data, out_.height * band / bands_, out_.height * (band + 1) / bands_, scratch);
    });
    complete(context);
  }

  std::size_t scratch() const override { return sums_size() + buffer_size(c_.out_channels); }

 private:
  std::size_t sums_size() const {
    return up64(4 * (inner_size() * static_cast<std::size_t>(c_.pool_kernel + 1) +
                     static_cast<std::size_t>(out_.width) * wide() + 64));
  }
  int wide() const { return channels_wide(c_.out_channels); }
  std::int32_t* of_row(std::int32_t* sums, int row) const {
    return sums + inner_size() * static_cast<std::size_t>(row % c_.pool_kernel);
  }
  std::size_t inner_size() const { return static_cast<std::size_t>(c_.inner.width) * wide() + 64; }

  void pool(Worker& worker, int top, int bottom, char* scratch) const {
    auto* sums = reinterpret_cast<std::int32_t*>(scratch);  // as many rows as a window has, by number modulo those
    std::int32_t* column = sums + inner_size() * static_cast<std::size_t>(c_.pool_kernel);
    std::int32_t* largest = column + inner_size();
    Delivery deliver(*this, worker, 0, c_.out_channels,
                     bands_ == 1 ? reinterpret_cast<std::int32_t*>(scratch + sums_size()) : nullptr);
    int done = 0;
    for (int y = top; y < bottom; ++y) {
      const int from = std::max(y * c_.pool_stride - c_.pool_padding, 0);
      const int to = std::min(y * c_.pool_stride - c_.pool_padding + c_.pool_kernel, c_.inner.height);
      done = std::max(done, from);
      for (int rows; done < to; done += rows) {
        rows = std::min(2, to - done);
        std::int32_t *row = of_row(sums, done), *below = of_row(sums, done + 1);
        for (int block = 0; block < windows_.blocks(); ++block)
          windows_.run(worker, block, block + 1, {done, 0, c_.inner.width, rows, 0}, row + windows_.first_channel(block),
                       wide(), below - row);
      }
      // Rows of a window follow each other in the ring, from its start again.
      const std::int32_t* rows[most_rows];
      for (int i = from; i < to; ++i) rows[i - from] = of_row(sums, i);
      core_.pool(rows, to - from, c_.inner.width, wide(), c_.pool_kernel, c_.pool_stride, c_.pool_padding, out_.width,
                 falls_ ? flip_.data() : nullptr, column, largest);
      deliver(y, 0, out_.width, 1, largest, wide(), 0);
      deliver.advance(y + 1);
    }
  }

  static constexpr int most_rows = 64;
  std::vector<std::int32_t> flip_;
  bool falls_ = false;  // any channel
};

}  // namespace

std::unique_ptr<Operation> make_byte_convolution(const Program& program, Convolution convolution, const PixelCore& core,
                                                 const LaneOps& lanes, int threads) {
  if (counts_bits(program, convolution, core)) return make_bit_vectors(program, std::move(convolution), core);
  if (convolution.pool_kernel)
    return std::make_unique<PooledByteConv>(program, std::move(convolution), core, lanes, threads);
  return std::make_unique<ByteConv>(program, std::move(convolution), core, lanes, threads);
}

}  // namespace lowbit
