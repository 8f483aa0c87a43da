// A strided convolution as one that shifts: the input, taken apart into planes that step as the output does.
//
// Output row y reads input row y·s + t, t = k·dilation − pad. With t = q·s + r, 0 ≤ r < s, that is row y + q of phase r,
// and likewise along x. At the output's own pitch, each tap is then one shift of a phase's plane.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "program.h"

namespace lowbit {

inline int floor_divide(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

class Phases {
 public:
  struct Tap {
    int phase;           // which plane; unused where the convolution is direct
    std::int64_t shift;  // from the output's position to the input's, in positions
  };

  Phases(const Convolution& c, const Geometry& in, const Geometry& out) : c_(c), in_(in), out_(out) {
    direct_ = c.stride_h == 1 && c.stride_w == 1 && in == out;
    int low_y = INT32_MAX, high_y = INT32_MIN, low_x = INT32_MAX, high_x = INT32_MIN;
    const auto each = [&](auto&& body) {
      for (int ky = 0; ky < c.kernel_h; ++ky)
        for (int kx = 0; kx < c.kernel_w; ++kx) body(ky * c.dilation_h - c.pad_h, kx * c.dilation_w - c.pad_w);
    };
    each([&](int ty, int tx) {
      low_y = std::min(low_y, floor_divide(ty, c.stride_h)), high_y = std::max(high_y, floor_divide(ty, c.stride_h));
      low_x = std::min(low_x, floor_divide(tx, c.stride_w)), high_x = std::max(high_x, floor_divide(tx, c.stride_w));
    });
    first_y_ = low_y, first_x_ = low_x;
    rows_ = out.height + high_y - low_y;
    spread_ = high_x - low_x;
    columns_ = out.width + spread_;
    if (!direct_ && columns_ > out.pitch) throw std::invalid_argument("the margin is too narrow for the convolution");
    std::vector<int> used;  // phases, as r_y * s_x + r_x
    each([&](int ty, int tx) {
      const int qy = floor_divide(ty, c.stride_h), qx = floor_divide(tx, c.stride_w);
      const int name = (ty - qy * c.stride_h) * c.stride_w + tx - qx * c.stride_w;
      auto found = std::find(used.begin(), used.end(), name);
      if (found == used.end()) found = used.insert(used.end(), name);
      const std::int64_t shift = direct_ ? ty * in.pitch + tx : (qy - low_y) * out.pitch + qx - low_x;
      taps_.push_back({static_cast<int>(found - used.begin()), shift});
    });
    names_ = used;
    for (int name : names_) {
      const int offset = first_y_ * c.stride_h + name / c.stride_w;  // input row of the plane's row 0
      const int first = std::clamp(-floor_divide(offset, c.stride_h), 0, rows_);
      const int end = std::clamp(floor_divide(in.height - 1 - offset, c.stride_h) + 1, first, rows_);
      const int column = first_x_ * c.stride_w + name % c.stride_w;
      inside_.push_back({first, end - first, offset + first * c.stride_h, column, columns_});
    }
  }

  bool direct() const { return direct_; }
  int count() const { return static_cast<int>(names_.size()); }
  const std::vector<Tap>& taps() const { return taps_; }
  // 64-position groups of one plane, slack for whole vectors included.
  std::int64_t groups() const { return (rows_ * out_.pitch + spread_ + 63) / 64 + 10; }

  // The rows of a phase's plane that come from rows of the input; those before and after lie in the padding.
  struct Inside {
    int first, rows;          // of the plane
    int row, column, columns;  // of the input
  };
  const Inside& inside(int phase) const { return inside_[static_cast<std::size_t>(phase)]; }
  int rows() const { return rows_; }

 private:
  const Convolution& c_;
  const Geometry& in_;
  const Geometry& out_;
  bool direct_ = false;
  int first_y_ = 0, first_x_ = 0, rows_ = 0, columns_ = 0, spread_ = 0;
  std::vector<Tap> taps_;
  std::vector<int> names_;
  std::vector<Inside> inside_;
};

}  // namespace lowbit
