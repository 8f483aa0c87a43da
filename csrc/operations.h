// What a program is made of, and the memory that one thread runs it in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "program.h"
#if defined(LOWBIT_SANITIZE)
#include <sanitizer/asan_interface.h>
#endif

namespace lowbit {

constexpr int picture_channels = 4;  // at most
constexpr int widest_block = 8;  // 64-bit words of the widest lane vector

// In a build with sanitizers, values and scratch memory keep apart from each other: what lies between must not be touched.
#if defined(LOWBIT_SANITIZE)
constexpr std::size_t fence_bytes = 256;
inline void forbid(const void* from, std::size_t bytes) { __asan_poison_memory_region(from, bytes); }
inline void permit(const void* from, std::size_t bytes) { __asan_unpoison_memory_region(from, bytes); }
#else
constexpr std::size_t fence_bytes = 0;
inline void forbid(const void*, std::size_t) {}
inline void permit(const void*, std::size_t) {}
#endif

struct Aligned {
  explicit Aligned(std::size_t bytes) : size((bytes + 127) / 64 * 64) {
    memory = std::aligned_alloc(64, size);
    if (!memory) throw std::bad_alloc();
    __builtin_memset(memory, 0, size);
  }
  ~Aligned() { std::free(memory); }
  void only(std::size_t bytes) {  // may be touched from now on
    permit(memory, size);
    if (bytes < size) forbid(static_cast<char*>(memory) + bytes, size - bytes);
  }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  std::size_t size;
  void* memory;
};

// Where each value lies in a worker's memory, in bytes. Floats whose last reader has run give their place to later ones.
struct Layout {
  std::vector<std::size_t> offsets;
  std::vector<std::size_t> fences;  // offsets behind which `fence_bytes` are nobody's
  std::size_t bytes = 0;
};

struct Worker {
  Worker(const Program& program, const Layout& layout, std::size_t scratch_bytes, std::size_t shared_bytes);

  // Of channel c, from position (0, 0) on, which is its start: nothing shifts floats.
  float* floats(int value, int c) {
    const Geometry& g = program.value(value).geometry;
    return reinterpret_cast<float*>(base(value)) + c * g.floats();
  }
  // Bit j of channel c, from the first padding bit on.
  std::uint64_t* plane(int value, int c, int j) {
    const Value& v = program.value(value);
    return reinterpret_cast<std::uint64_t*>(base(value)) + (c * v.codes.bits + j) * v.geometry.words;
  }
  // Of position (0, 0), the channels one after the other, as many floats as `channels_wide` says.
  float* pixels(int value) { return reinterpret_cast<float*>(base(value)); }
  // The codes of position (0, 0), one byte for each channel; the next position's follow.
  std::uint8_t* codes(int value) {
    const Value& v = program.value(value);
    return reinterpret_cast<std::uint8_t*>(base(value)) + v.geometry.front * v.channels;
  }
  std::size_t bytes() const { return values.size + scratch.size + shared.size; }
  char* base(int value) { return static_cast<char*>(values.memory) + layout.offsets[static_cast<std::size_t>(value)]; }

  const Program& program;
  const Layout layout;
  Aligned values, scratch, shared;
  std::vector<const float*> given;  // by value: what the caller gave of the image, where it is not copied
};

inline int channels_wide(int channels) { return (channels + 15) / 16 * 16; }

struct Context {
  Worker& data;  // the values of the image
  const std::vector<std::unique_ptr<Worker>>& workers;
  Pool* pool;  // null: this thread works alone

  // body(item, scratch) for each item
  template <class F>
  void each(int count, F&& body) {
    if (!pool) {
      for (int item = 0; item < count; ++item) body(item, static_cast<char*>(data.scratch.memory));
      return;
    }
    pool->each(count, [&](int item, int worker) { body(item, static_cast<char*>(workers[worker]->scratch.memory)); });
  }
};

class Operation {
 public:
  virtual ~Operation() = default;
  virtual void run(Context& context) = 0;
  virtual std::size_t scratch() const = 0;              // bytes per thread
  virtual std::size_t shared() const { return 0; }  // bytes per image
  virtual std::vector<int> reads() const = 0;
  virtual std::vector<int> writes() const = 0;
  virtual bool reads_given(int) const { return false; }  // of an input: from where the caller has it
  // Floats that it reads at the very positions that it then stores at, and not again: a store may take their place.
  virtual std::vector<int> replaces() const { return {}; }
  virtual std::string describe() const = 0;
};

Layout lay_out(const Program& program, const std::vector<std::unique_ptr<Operation>>& operations);

// The positions of a map, group of 64 by group: which belong to it and not to a margin.
std::vector<std::uint64_t> mask_of(const Geometry& geometry);

// The steps of an epilogue, and where they write.
class Steps {
 public:
  Steps(const Program& program, std::vector<Step> steps, const Geometry& geometry);
  // The steps for the channels from c and the groups from `group` on, in `steps` (at most `most_steps`); their number.
  int resolve(Worker& worker, int c, int group, BlockStep* steps) const;
  // The same for values that lie channels last, from channel c of a position on.
  int resolve_pixels(Worker& worker, int c, std::int64_t position, BlockStep* steps) const;
  // Whether the values do; false where there are none.
  bool in_pixels() const;
  bool only_bytes() const;  // whether they do nothing but quantize to bytes
  // Of the groups from `group` on: which positions belong to the map.
  const std::uint64_t* mask(int group) const { return mask_.data() + group; }
  std::vector<int> reads() const;
  std::vector<int> writes() const;
  std::vector<int> replaces() const;  // see Operation
  std::string describe() const;

 private:
  const Program& program_;
  std::vector<Step> steps_;
  std::vector<std::uint64_t> mask_;
};

// What every kind of convolution has to know of its result, to check, and to say.
Geometry geometry_of_result(const Program& program, const Convolution& convolution);
void check_shapes(const Convolution& convolution, const Value& input, const Geometry& output);
std::string describe_convolution(const Convolution& convolution, const Value& input, const Geometry& output);

std::unique_ptr<Operation> make_convolution(const Program& program, Convolution convolution, const BitCore& core,
                                            const LaneOps& lanes, int threads);
std::unique_ptr<Operation> make_byte_convolution(const Program& program, Convolution convolution,
                                                 const PixelCore& core, const LaneOps& lanes, int threads);
// Whether a convolution of bytes is better counted in bits, and the operation that does.
bool counts_bits(const Program& program, const Convolution& convolution, const PixelCore& core);
std::unique_ptr<Operation> make_bit_vectors(const Program& program, Convolution convolution, const PixelCore& core);
std::unique_ptr<Operation> make_pool(const Program& program, int input, int output, int kernel, int stride,
                                     int padding, const LaneOps& lanes);
std::unique_ptr<Operation> make_map(const Program& program, int input, std::vector<Step> steps, const LaneOps& lanes,
                                    const PixelCore& core);
std::unique_ptr<Operation> make_subsample(const Program& program, int input, int output, int stride,
                                          const LaneOps& lanes);
std::unique_ptr<Operation> make_mean(const Program& program, int input, int output, int lanes);

}  // namespace lowbit
