// A linear layer of few-bit weights and float inputs: where one example is computed at a time, its cost is reading the
// weights, and they are few bits.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "floatcore.h"
#include "operations.h"
#include "pool.h"

namespace lowbit {

class FloatLinear {
 public:
  // numbers: [outputs][inputs], low + step·i with 0 ≤ i < 2^bits; unit and bias (or none): [outputs].
  FloatLinear(const std::int8_t* numbers, int inputs, int outputs, int bits, int low, int step, const float* unit,
              const float* bias, int threads);
  // x: [rows][inputs], y: [rows][outputs], contiguous.
  void run(const float* x, int rows, float* y);

 private:
  struct Slice {
    int first, count;
    std::unique_ptr<Aligned> packed;
  };
  const FloatCore* core_;
  int inputs_, outputs_, bits_, low_, step_;
  std::vector<float> unit_, bias_;
  std::vector<Slice> slices_;
  std::mutex running_;
  Pool pool_;
};

}  // namespace lowbit
