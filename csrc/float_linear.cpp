#include "float_linear.h"

#include <algorithm>

namespace lowbit {

FloatLinear::FloatLinear(const std::int8_t* numbers, int inputs, int outputs, int bits, int low, int step,
                         const float* unit, const float* bias, int threads)
    : inputs_(inputs),
      outputs_(outputs),
      bits_(bits),
      low_(low),
      step_(step),
      unit_(unit, unit + outputs),
      pool_(std::max(threads, 1)) {
  int count;
  core_ = float_cores(&count)[0];
  if (bias) bias_.assign(bias, bias + outputs);
  const int share = (outputs + pool_.size() - 1) / pool_.size();
  const int width = std::max(64, (share + 63) / 64 * 64);  // whole vectors, whatever the instruction set
  for (int first = 0; first < outputs; first += width) {
    const int some = std::min(width, outputs - first);
    Slice slice{first, some, std::make_unique<Aligned>(core_->packed_size(inputs, some, bits))};
    core_->pack(numbers + static_cast<std::size_t>(first) * inputs, inputs, some, bits, low, step,
                static_cast<std::uint8_t*>(slice.packed->memory));
    slices_.push_back(std::move(slice));
  }
}

void FloatLinear::run(const float* x, int rows, float* y) {
  const std::lock_guard<std::mutex> lock(running_);
  pool_.each(static_cast<int>(slices_.size()), [&](int item, int) {
    const Slice& slice = slices_[static_cast<std::size_t>(item)];
    core_->linear(x, static_cast<std::size_t>(inputs_), rows, static_cast<const std::uint8_t*>(slice.packed->memory),
                  inputs_, slice.count, bits_, low_, step_, unit_.data() + slice.first,
                  bias_.empty() ? nullptr : bias_.data() + slice.first, y + slice.first,
                  static_cast<std::size_t>(outputs_));
  });
}

}  // namespace lowbit
