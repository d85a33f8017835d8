#include "compute/kernels/types.h"

#include <bit>
#include <cstring>

#include "base/check.h"

namespace shoal::kernels {
namespace {

uint16_t Load16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

uint32_t Load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void OneScale(Codes& c, uint8_t scale, uint8_t min = 0) {
  c.scales[0] = c.scales[1] = scale;
  c.mins[0] = c.mins[1] = min;
}

// Codes are read eight at a time: words of eight bytes, shifted, then masked byte by byte.
constexpr uint64_t kBytes = 0x0101010101010101;

uint64_t Word(const uint8_t* p, int i) {
  uint64_t v;
  std::memcpy(&v, p + 8 * i, sizeof v);
  return v;
}

void SetWord(Codes& c, int i, uint64_t v) { std::memcpy(c.q + 8 * i, &v, sizeof v); }

// Bits [shift, shift + n) of each byte, n ones being `mask`.
uint64_t Bits(uint64_t word, int shift, uint64_t mask) { return (word >> shift) & (mask * kBytes); }

// Columns 0..15 are the low nibbles of 16 bytes, columns 16..31 the high ones.
void Nibbles(const uint8_t* qs, Codes& c) {
  for (int i = 0; i < 2; ++i) {
    SetWord(c, i, Bits(Word(qs, i), 0, 15));
    SetWord(c, i + 2, Bits(Word(qs, i), 4, 15));
  }
}

// Bit j becomes bit 4 of column j's code.
void FifthBits(uint32_t qh, Codes& c) {
  for (int i = 0; i < 4; ++i) {
    // Each byte a copy of the eight bits, of which it keeps its own: then 0 or not becomes 0 or 16.
    const uint64_t own = (((qh >> (8 * i)) & 255) * kBytes) & 0x8040201008040201;
    SetWord(c, i, Word(c.q, i) | (Bits(own + 127 * kBytes, 7, 1) << 4));
  }
}

// The 6-bit scales and mins of Q4_K and Q5_K: eight of each in 12 bytes.
void SixBitScales(const uint8_t* s, int part, Codes& c) {
  if (part < 4) {
    OneScale(c, s[part] & 63, s[part + 4] & 63);
  } else {
    OneScale(c, static_cast<uint8_t>((s[part + 4] & 15) | ((s[part - 4] >> 6) << 4)),
             static_cast<uint8_t>((s[part + 4] >> 4) | ((s[part] >> 6) << 4)));
  }
}

void ReadQ2K(const uint8_t* b, int part, Codes& c) {
  const uint8_t* scales = b;
  const uint8_t* qs = b + 16 + (part / 4) * 32;
  const int shift = (part % 4) * 2;
  for (int i = 0; i < 4; ++i) SetWord(c, i, Bits(Word(qs, i), shift, 3));
  for (int h = 0; h < 2; ++h) {
    c.scales[h] = scales[2 * part + h] & 15;
    c.mins[h] = static_cast<uint8_t>(scales[2 * part + h] >> 4);
  }
  c.scale = Load16(b + 80);
  c.min = Load16(b + 82);
}

void ReadQ3K(const uint8_t* b, int part, Codes& c) {
  const uint8_t* high = b;
  const uint8_t* qs = b + 32 + (part / 4) * 32;
  const uint8_t* s = b + 96;
  const int shift = (part % 4) * 2;
  for (int i = 0; i < 4; ++i) SetWord(c, i, Bits(Word(qs, i), shift, 3) | (Bits(Word(high, i), part, 1) << 2));
  for (int h = 0; h < 2; ++h) {
    // 16 scales of 6 bits: low nibbles in bytes 0..7 (first eight low, last eight high), top bits in bytes 8..11.
    const int i = 2 * part + h;
    const int low = i < 8 ? (s[i] & 15) : (s[i - 8] >> 4);
    const int top = (s[8 + i % 4] >> (2 * (i / 4))) & 3;
    c.scales[h] = static_cast<uint8_t>((low | (top << 4)) - 32);
  }
  c.scale = Load16(b + 108);
}

void ReadQ6K(const uint8_t* b, int part, Codes& c) {
  const int half = part / 4;
  const int quarter = part % 4;
  const uint8_t* ql = b + half * 64 + (quarter % 2) * 32;
  const uint8_t* qh = b + 128 + half * 32;
  const int shift = quarter < 2 ? 0 : 4;
  for (int i = 0; i < 4; ++i) SetWord(c, i, Bits(Word(ql, i), shift, 15) | (Bits(Word(qh, i), 2 * quarter, 3) << 4));
  c.scales[0] = b[192 + 2 * part];
  c.scales[1] = b[192 + 2 * part + 1];
  c.scale = Load16(b + 208);
}

void ReadIq4Xs(const uint8_t* b, int part, Codes& c) {
  const int low = (b[4 + part / 2] >> (4 * (part % 2))) & 15;
  const int high = (Load16(b + 2) >> (2 * part)) & 3;
  OneScale(c, static_cast<uint8_t>((low | (high << 4)) - 32));
  Nibbles(b + 8 + part * 16, c);
  c.scale = Load16(b);
}

}  // namespace

void ReadCodes(WeightType type, const std::byte* block, int part, Codes& c) {
  const auto* b = reinterpret_cast<const uint8_t*>(block);
  c.scale = c.min = 0;
  OneScale(c, 0);
  switch (type) {
    case WeightType::kQ4_0:
    case WeightType::kIQ4_NL:
      c.scale = Load16(b);
      return Nibbles(b + 2, c);
    case WeightType::kQ4_1:
      c.scale = Load16(b);
      c.min = Load16(b + 2);
      return Nibbles(b + 4, c);
    case WeightType::kQ5_0:
      c.scale = Load16(b);
      Nibbles(b + 6, c);
      return FifthBits(Load32(b + 2), c);
    case WeightType::kQ5_1:
      c.scale = Load16(b);
      c.min = Load16(b + 2);
      Nibbles(b + 8, c);
      return FifthBits(Load32(b + 4), c);
    case WeightType::kQ8_0:
      c.scale = Load16(b);
      for (int i = 0; i < 4; ++i) SetWord(c, i, Word(b + 2, i) ^ (0x80 * kBytes));
      return;
    case WeightType::kQ2_K:
      return ReadQ2K(b, part, c);
    case WeightType::kQ3_K:
      return ReadQ3K(b, part, c);
    case WeightType::kQ4_K:
      c.scale = Load16(b);
      c.min = Load16(b + 2);
      SixBitScales(b + 4, part, c);
      for (int i = 0; i < 4; ++i) SetWord(c, i, Bits(Word(b + 16 + (part / 2) * 32, i), 4 * (part % 2), 15));
      return;
    case WeightType::kQ5_K:
      c.scale = Load16(b);
      c.min = Load16(b + 2);
      SixBitScales(b + 4, part, c);
      for (int i = 0; i < 4; ++i) {
        const uint64_t low = Bits(Word(b + 48 + (part / 2) * 32, i), 4 * (part % 2), 15);
        SetWord(c, i, low | (Bits(Word(b + 16, i), part, 1) << 4));
      }
      return;
    case WeightType::kQ6_K:
      return ReadQ6K(b, part, c);
    case WeightType::kIQ4_XS:
      return ReadIq4Xs(b, part, c);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  SHOAL_CHECK(false && "not a quantised type");
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float small = static_cast<float>(mantissa) * 0x1p-24f;  // exact: subnormal or zero
  return sign != 0 ? -small : small;
}

const TypeInfo* FindType(WeightType type) {
  static constexpr TypeInfo kF32{"f32", 1, 4}, kF16{"f16", 1, 2}, kBF16{"bf16", 1, 2};
  static constexpr TypeInfo kQ4_0{"q4_0", 32, 18}, kQ4_1{"q4_1", 32, 20}, kQ5_0{"q5_0", 32, 22}, kQ5_1{"q5_1", 32, 24};
  static constexpr TypeInfo kQ8_0{"q8_0", 32, 34}, kIQ4_NL{"iq4_nl", 32, 18};
  static constexpr TypeInfo kQ2_K{"q2_k", 256, 84}, kQ3_K{"q3_k", 256, 110}, kQ4_K{"q4_k", 256, 144};
  static constexpr TypeInfo kQ5_K{"q5_k", 256, 176}, kQ6_K{"q6_k", 256, 210}, kIQ4_XS{"iq4_xs", 256, 136};
  switch (type) {
    case WeightType::kF32:
      return &kF32;
    case WeightType::kF16:
      return &kF16;
    case WeightType::kBF16:
      return &kBF16;
    case WeightType::kQ4_0:
      return &kQ4_0;
    case WeightType::kQ4_1:
      return &kQ4_1;
    case WeightType::kQ5_0:
      return &kQ5_0;
    case WeightType::kQ5_1:
      return &kQ5_1;
    case WeightType::kQ8_0:
      return &kQ8_0;
    case WeightType::kQ2_K:
      return &kQ2_K;
    case WeightType::kQ3_K:
      return &kQ3_K;
    case WeightType::kQ4_K:
      return &kQ4_K;
    case WeightType::kQ5_K:
      return &kQ5_K;
    case WeightType::kQ6_K:
      return &kQ6_K;
    case WeightType::kIQ4_NL:
      return &kIQ4_NL;
    case WeightType::kIQ4_XS:
      return &kIQ4_XS;
  }
  return nullptr;
}

ActivationKind ActivationKindOf(WeightType type) {
  return type == WeightType::kF32 || type == WeightType::kF16 || type == WeightType::kBF16 ? ActivationKind::kF32
                                                                                           : ActivationKind::kI8;
}

// The order of the float operations is ggml's, so that the values are its values bit for bit.
void Widen(const Format& f, const Codes& c, float* out) {
  const float d = HalfToFloat(c.scale);
  const float m = HalfToFloat(c.min);
  for (int h = 0; h < 2; ++h) {
    const int small = f.sign ? static_cast<int8_t>(c.scales[h]) : c.scales[h];
    const float scale = f.super ? d * static_cast<float>(small) : d;
    const float min = f.super ? m * static_cast<float>(c.mins[h]) : m;
    for (int j = 16 * h; j < 16 * h + 16; ++j) {
      const int code = (f.table ? kNonLinear[c.q[j]] : c.q[j]) - f.offset;
      const float value = scale * static_cast<float>(code);
      out[j] = f.min == 0 ? value : f.min > 0 ? value + min : value - min;
    }
  }
}

void Dequantize(WeightType type, const std::byte* blocks, int64_t columns, float* out) {
  const TypeInfo* info = FindType(type);
  SHOAL_CHECK(info != nullptr && columns >= 0 && columns % info->block_columns == 0);
  const auto* bytes = reinterpret_cast<const uint8_t*>(blocks);
  switch (type) {
    case WeightType::kF32:
      if (columns > 0) std::memcpy(out, blocks, static_cast<size_t>(columns) * sizeof(float));
      return;
    case WeightType::kF16:
      for (int64_t i = 0; i < columns; ++i) out[i] = HalfToFloat(Load16(bytes + 2 * i));
      return;
    case WeightType::kBF16:
      for (int64_t i = 0; i < columns; ++i) out[i] = Bf16ToFloat(Load16(bytes + 2 * i));
      return;
    default:
      break;
  }
  const Format format = FormatOf(type);
  const int parts = static_cast<int>(info->block_columns / kBlock);
  Codes codes;
  for (int64_t b = 0; b < columns / kBlock; ++b) {
    ReadCodes(type, blocks + static_cast<size_t>(b / parts) * info->block_bytes, static_cast<int>(b % parts), codes);
    Widen(format, codes, out + b * kBlock);
  }
}

}  // namespace shoal::kernels
