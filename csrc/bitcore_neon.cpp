#if defined(__aarch64__)

#include <arm_neon.h>

#include "bitcore_impl.h"

namespace lowbit {
namespace {

struct Neon {
  using Reg = uint64x2_t;
  static constexpr int kWords = 2;
  static constexpr int kScale = 16;
  static constexpr int kPlaneStride = kWords;
  static constexpr int kLog = 6;
  static constexpr int kChunk = 1 << kLog;
  static constexpr int kUpper = 2;
  static constexpr int kWideBlock = 24;
  static constexpr int kFewRowsBlock = 24;
  static constexpr int kCounterBytes = 192 << 10;

  static LOWBIT_INLINE Reg load(const void* p) {
    return vreinterpretq_u64_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  }
  static LOWBIT_INLINE void store(void* p, Reg r) { vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_u64(r)); }
  static LOWBIT_INLINE Reg load_aligned(const void* p) { return load(p); }
  static LOWBIT_INLINE void store_aligned(void* p, Reg r) { store(p, r); }
  static LOWBIT_INLINE Reg broadcast(const uint64_t* p) { return vld1q_dup_u64(p); }
  static LOWBIT_INLINE Reg zero() { return vdupq_n_u64(0); }
  static LOWBIT_INLINE Reg not_(Reg a) { return vreinterpretq_u64_u8(vmvnq_u8(vreinterpretq_u8_u64(a))); }
  static LOWBIT_INLINE Reg and_(Reg a, Reg b) { return vandq_u64(a, b); }
  static LOWBIT_INLINE Reg andnot(Reg a, Reg b) { return vbicq_u64(b, a); }
  static LOWBIT_INLINE Reg or_(Reg a, Reg b) { return vorrq_u64(a, b); }
  static LOWBIT_INLINE Reg xor_(Reg a, Reg b) { return veorq_u64(a, b); }
  static LOWBIT_INLINE Reg majority(Reg a, Reg b, Reg c) { return vbslq_u64(veorq_u64(a, b), c, a); }
  // Three operations, as many as with the three-way exclusive or of the SHA3 extension.
  static LOWBIT_INLINE Reg add(Reg& sum, Reg a, Reg b) {
    const Reg differ = veorq_u64(a, b), carry = vbslq_u64(differ, sum, a);
    sum = veorq_u64(sum, differ);
    return carry;
  }
  static LOWBIT_INLINE void tabulate(uint8_t* table, Reg& p, Reg x, Reg y) { tabulate_by_parts<Neon>(table, p, x, y); }
  static LOWBIT_INLINE void expand(const uint64_t* counter, size_t stride, int depth, int32_t* out) {
    expand_by_bytes(counter, stride, depth, out);
  }
};

}  // namespace

const BitCore neon_bit_core = wide_core<Neon>("neon", 100);

}  // namespace lowbit

#endif
