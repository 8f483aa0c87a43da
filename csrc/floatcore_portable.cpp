// Few-bit weights times floats for any processor, in vectors of the compiler's own.
#include "floatcore_impl.h"

namespace lowbit {
namespace {

struct Portable {
  typedef std::uint32_t Int __attribute__((vector_size(16)));
  typedef std::int32_t Signed __attribute__((vector_size(16)));
  typedef float Float __attribute__((vector_size(16)));
  static constexpr int lanes = 4;
  static constexpr int table = 4;
  static constexpr int rows = 4, vectors_many = 2, vectors4 = 2, vectors_few = 2;

  template <int Bits>
  static constexpr int group() {
    return 1;
  }

  template <int Bits>
  struct Constants {
    explicit Constants(const Levels& l)
        : low(broadcast(static_cast<float>(l.low))), step(broadcast(static_cast<float>(l.step))) {}
    Float low, step;
  };

  static Float zero() { return Float{}; }
  static Float load(const float* p) { return load_some(p, lanes); }
  static Float load_some(const float* p, int n) {
    Float x{};
    std::memcpy(&x, p, sizeof(float) * static_cast<std::size_t>(n));
    return x;
  }
  static void store(float* p, Float x) { store_some(p, lanes, x); }
  static void store_some(float* p, int n, Float x) { std::memcpy(p, &x, sizeof(float) * static_cast<std::size_t>(n)); }
  static Int load_words(const void* p) {
    Int x;
    std::memcpy(&x, p, sizeof(x));
    return x;
  }
  static Float broadcast(float x) { return Float{x, x, x, x}; }
  static Float add(Float x, Float y) { return x + y; }
  static Float multiply_add(Float x, Float y, Float z) { return x * y + z; }

  template <int Bits, int F>
  static Int field(const Int (&w)[Unit<Bits>::words]) {
    if constexpr (Bits != 3) {
      return (w[0] >> (F * Bits)) & ((1u << Bits) - 1u);
    } else if constexpr (F < 30) {
      return (w[F / 10] >> (3 * (F % 10))) & 7u;
    } else {
      return (w[F - 30] >> 30) | ((w[2] >> (F - 2)) & 4u);
    }
  }

  static void settle(Float&) {}

  template <int Bits, int F>
  static Float level(Int field, const Constants<Bits>& constants) {
    return __builtin_convertvector(reinterpret_cast<Signed>(field), Float) * constants.step + constants.low;
  }

  static Float pick(Int, Float sums) { return sums; }  // no tables: group() is 1
};

using Implementation = Core<Portable>;

}  // namespace

const FloatCore portable_float_core = {"portable", Implementation::packed_size, Implementation::pack,
                                       Implementation::linear};

}  // namespace lowbit
