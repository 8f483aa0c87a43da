#include "bitcore_impl.h"

namespace lowbit {
namespace {

// Two words: what the baseline vectors of most 64-bit processors hold, and a pair of registers elsewhere.
struct Pair {
  typedef uint64_t Reg __attribute__((vector_size(16)));
  static constexpr int kWords = 2;
  static constexpr int kScale = 8;
  static constexpr int kPlaneStride = kWords;
  static constexpr int kLog = 5;
  static constexpr int kChunk = 1 << kLog;
  static constexpr int kUpper = 2;
  static constexpr int kWideBlock = 12;
  static constexpr int kFewRowsBlock = 12;
  static constexpr int kCounterBytes = 192 << 10;

  static LOWBIT_INLINE Reg load(const void* p) {
    Reg r;
    memcpy(&r, p, sizeof r);
    return r;
  }
  static LOWBIT_INLINE void store(void* p, Reg r) { memcpy(p, &r, sizeof r); }
  static LOWBIT_INLINE Reg load_aligned(const void* p) { return load(__builtin_assume_aligned(p, 16)); }
  static LOWBIT_INLINE void store_aligned(void* p, Reg r) { store(__builtin_assume_aligned(p, 16), r); }
  static LOWBIT_INLINE Reg broadcast(const uint64_t* p) { return Reg{*p, *p}; }
  static LOWBIT_INLINE Reg zero() { return Reg{0, 0}; }
  static LOWBIT_INLINE Reg not_(Reg a) { return ~a; }
  static LOWBIT_INLINE Reg and_(Reg a, Reg b) { return a & b; }
  static LOWBIT_INLINE Reg andnot(Reg a, Reg b) { return ~a & b; }
  static LOWBIT_INLINE Reg or_(Reg a, Reg b) { return a | b; }
  static LOWBIT_INLINE Reg xor_(Reg a, Reg b) { return a ^ b; }
  static LOWBIT_INLINE Reg majority(Reg a, Reg b, Reg c) { return (a & b) | ((a | b) & c); }
  static LOWBIT_INLINE Reg add(Reg& sum, Reg a, Reg b) {
    const Reg differ = a ^ b, carry = (a & b) | (differ & sum);
    sum ^= differ;
    return carry;
  }
  static LOWBIT_INLINE void tabulate(uint8_t* table, Reg& p, Reg x, Reg y) { tabulate_by_parts<Pair>(table, p, x, y); }
  static LOWBIT_INLINE void expand(const uint64_t* counter, size_t stride, int depth, int32_t* out) {
    expand_by_bytes(counter, stride, depth, out);
  }
};

}  // namespace

const BitCore portable_bit_core = wide_core<Pair>("portable", 60);

}  // namespace lowbit
