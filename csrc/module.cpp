// lowbit._kernels: the Python face of the kernels.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "float_linear.h"
#include "program.h"

namespace nb = nanobind;
using namespace lowbit;

namespace {

using Row = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const std::int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Limits = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::vector<Step> steps_of(const nb::list& list) {
  std::vector<Step> steps;
  for (nb::handle item : list) {
    const auto pair = nb::cast<nb::tuple>(item);
    const auto kind = nb::cast<std::string>(pair[0]);
    Step step{};
    if (kind == "multiply" || kind == "add") {
      step.kind = kind == "add" ? StepKind::add : StepKind::multiply;
      const auto row = nb::cast<Row>(pair[1]);
      step.factors.assign(row.data(), row.data() + row.size());
    } else if (kind == "relu") {
      step.kind = StepKind::relu;
    } else if (kind == "add_value" || kind == "store" || kind == "quantize") {
      step.kind = kind == "store"      ? StepKind::store
                  : kind == "quantize" ? StepKind::quantize
                                       : StepKind::add_value;
      step.value = nb::cast<int>(pair[1]);
    } else {
      throw std::invalid_argument("unknown step '" + kind + "'");
    }
    steps.push_back(std::move(step));
  }
  return steps;
}

Convolution geometry_of(int input, const Bytes& weights, std::tuple<int, int> stride, std::tuple<int, int> padding,
                        std::tuple<int, int> dilation, int groups, int weight_low, int weight_step, int weight_bits) {
  Convolution c;
  c.input = input;
  c.out_channels = static_cast<int>(weights.shape(0));
  c.kernel_h = static_cast<int>(weights.shape(2));
  c.kernel_w = static_cast<int>(weights.shape(3));
  std::tie(c.stride_h, c.stride_w) = stride;
  std::tie(c.pad_h, c.pad_w) = padding;
  std::tie(c.dilation_h, c.dilation_w) = dilation;
  c.groups = groups;
  c.weight_low = weight_low;
  c.weight_step = weight_step;
  c.weight_bits = weight_bits;
  c.weights.assign(weights.data(), weights.data() + weights.size());
  return c;
}

int codes(Program& program, int channels, int height, int width, int margin, int bits, int low, int step, bool bytes,
          int rounding, float reciprocal, float least, float most, float keep) {
  Codes c;
  c.bits = bits;
  c.bytes = bytes;
  c.low = low;
  c.step = step;
  c.has_zero = -low % step == 0 && low <= 0 && -low / step < (1 << bits);
  c.pad = c.has_zero ? -low / step : 0;
  c.quantizer.rounding = static_cast<Rounding>(rounding);
  c.quantizer.reciprocal = reciprocal;
  c.quantizer.low = least;
  c.quantizer.high = most;
  c.quantizer.keep = keep;
  c.quantizer.bits = bits;
  return program.codes(channels, height, width, margin, c);
}

// Addresses of contiguous float tensors, [images][channels][height][width] or [rows][channels]; lowbit.deploy.kernels.lowering answers for them.
template <void (Program::*method)(const std::vector<const float*>&, const std::vector<float*>&, int)>
void run(Program& program, const std::vector<std::uintptr_t>& inputs, const std::vector<std::uintptr_t>& outputs,
         int number) {
  if (inputs.size() != program.inputs().size() || outputs.size() != program.outputs().size() || number < 0)
    throw std::invalid_argument("wrong number of tensors");
  std::vector<const float*> from;
  std::vector<float*> to;
  for (const auto address : inputs) from.push_back(reinterpret_cast<const float*>(address));
  for (const auto address : outputs) to.push_back(reinterpret_cast<float*>(address));
  nb::gil_scoped_release release;
  (program.*method)(from, to, number);
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.doc() = "Compiled kernels for few-bit networks; lowbit.deploy is their user.";
  m.def("instruction_sets", [] {
    int count;
    std::vector<std::string> names;
    const BitCore* const* cores = bit_cores(&count);
    for (int i = 0; i < count; ++i) names.emplace_back(cores[i]->name);
    return names;
  });
  m.def("paths", [] {  // what a program takes as its instruction set: each computes in another way
    int count;
    std::vector<std::string> names;
    const PixelCore* const* cores = pixel_cores(&count);
    for (int i = 0; i < count; ++i) names.emplace_back(cores[i]->name);
    names.emplace_back(amx_model().name);
    return names;
  });
  nb::class_<FloatLinear>(m, "FloatLinear")
      .def("__init__",
           [](FloatLinear* self, const Numbers& numbers, int bits, int low, int step, const Row& unit,
              const std::optional<Row>& bias, int threads) {
             if (unit.size() != numbers.shape(0) || (bias && bias->size() != numbers.shape(0)))
               throw std::invalid_argument("a number for each output is needed");
             new (self) FloatLinear(numbers.data(), static_cast<int>(numbers.shape(1)),
                                    static_cast<int>(numbers.shape(0)), bits, low, step, unit.data(),
                                    bias ? bias->data() : nullptr, threads);
           },
           nb::arg("numbers"), nb::arg("bits"), nb::arg("low"), nb::arg("step"), nb::arg("unit"),
           nb::arg("bias").none(), nb::arg("threads"))
      .def("run", [](FloatLinear& self, std::uintptr_t x, int rows, std::uintptr_t y) {
        nb::gil_scoped_release release;
        self.run(reinterpret_cast<const float*>(x), rows, reinterpret_cast<float*>(y));
      });
  nb::class_<Program>(m, "Program")
      .def(nb::init<int, const std::string&>(), nb::arg("threads") = 1, nb::arg("isa") = "")
      .def("input", &Program::input)
      .def("floats", &Program::floats)
      .def("codes", &codes)
      .def("output", &Program::output)
      .def("map", [](Program& p, int input, const nb::list& steps) { p.map(input, steps_of(steps)); })
      .def("pool", &Program::pool)
      .def("subsample", &Program::subsample)
      .def("mean", &Program::mean)
      .def("convolve",
           [](Program& p, int input, const Bytes& weights, std::tuple<int, int> stride, std::tuple<int, int> padding,
              std::tuple<int, int> dilation, int groups, int low, int step, int bits, const nb::list& steps) {
             Convolution c = geometry_of(input, weights, stride, padding, dilation, groups, low, step, bits);
             c.steps = steps_of(steps);
             p.convolve(std::move(c));
           })
      .def("convolve_and_pool",
           [](Program& p, int input, const Bytes& weights, std::tuple<int, int> stride, std::tuple<int, int> padding,
              std::tuple<int, int> dilation, int groups, int low, int step, int bits, const nb::list& steps,
              std::tuple<int, int, int> window, std::tuple<int, int, int> inner, const Flags& falling) {
             Convolution c = geometry_of(input, weights, stride, padding, dilation, groups, low, step, bits);
             c.steps = steps_of(steps);
             std::tie(c.pool_kernel, c.pool_stride, c.pool_padding) = window;
             c.inner = Geometry(std::get<0>(inner), std::get<1>(inner), std::get<2>(inner));
             c.falling.assign(falling.data(), falling.data() + falling.size());
             p.convolve(std::move(c));
           })
      .def("convolve_to_codes",
           [](Program& p, int input, const Bytes& weights, std::tuple<int, int> stride, std::tuple<int, int> padding,
              std::tuple<int, int> dilation, int groups, int low, int step, int bits, const Limits& thresholds,
              const Flags& falling, int output) {
             Convolution c = geometry_of(input, weights, stride, padding, dilation, groups, low, step, bits);
             c.thresholds.assign(thresholds.data(), thresholds.data() + thresholds.size());
             c.falling.assign(falling.data(), falling.data() + falling.size());
             c.output = output;
             p.convolve(std::move(c));
           })
      .def("finish", &Program::finish)
      .def("run", &run<&Program::run>)
      .def("run_rows", &run<&Program::run_rows>)
      .def("read_codes",
           [](const Program& p, int value, nb::ndarray<std::int32_t, nb::c_contig, nb::device::cpu> out) {
             const Value& v = p.value(value);
             if (!v.is_codes || out.size() != static_cast<std::size_t>(v.channels) * v.geometry.height * v.geometry.width)
               throw std::invalid_argument("not a value of codes of that size");
             p.read_codes(value, out.data());
           })
      .def_prop_ro("planes_worth", &Program::planes_worth)
      .def("profile", &Program::profile)
      .def("seconds", &Program::seconds)
      .def("workspace", &Program::workspace)
      .def("__str__", &Program::describe);
}
