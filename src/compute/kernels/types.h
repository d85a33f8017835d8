// What: the GGUF weight types block by block: how 32 columns of a row are read as unsigned codes with their scales. Both the
// widening to f32 (Dequantize) and the packing into panels (pack.h) start from it.
// Owns: nothing.
// Threads: pure functions.
// Limits: quantised types come in whole blocks of 32 columns; a 256-column super-block is read by its eight parts.
// Reads next: pack.h (panels), linear.h (the interface).
#pragma once

#include <cstddef>
#include <cstdint>

#include "compute/kernels/linear.h"

namespace shoal::kernels {

inline constexpr int64_t kBlock = 32;       // columns per activation block
inline constexpr int64_t kSuperBlocks = 8;  // 32-column blocks of a 256-column super-block

// How many bits a code has in a panel; more than four lie in planes beside the nibbles.
enum class CodeBits : uint8_t { k4, k5, k6, k8 };

// The arithmetic of a quantised type. A weight is scale * (code - offset) + min, or scale * (table[code] - offset) for the
// non-linear types, where scale (and min) belong to 32 columns or to each half of them, and are an f16 of the block or an
// f16 of the super-block times a small integer.
struct Format {
  CodeBits bits = CodeBits::k4;
  bool table = false;   // codes index kNonLinear
  bool halves = false;  // scales (and mins) per 16 columns instead of per 32
  bool super = false;   // scale = f16 of the super-block * small integer
  bool sign = false;    // that small integer is int8, else uint8
  int min = 0;          // +1: min is added, -1: subtracted, 0: none
  int offset = 0;       // 0, 4, 8, 16, 32, 128
};

constexpr Format FormatOf(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
      return {.offset = 8};
    case WeightType::kQ4_1:
      return {.min = 1};
    case WeightType::kQ5_0:
      return {.bits = CodeBits::k5, .offset = 16};
    case WeightType::kQ5_1:
      return {.bits = CodeBits::k5, .min = 1};
    case WeightType::kQ8_0:
      return {.bits = CodeBits::k8, .offset = 128};
    case WeightType::kQ2_K:
      return {.halves = true, .super = true, .min = -1};
    case WeightType::kQ3_K:
      return {.halves = true, .super = true, .sign = true, .offset = 4};
    case WeightType::kQ4_K:
      return {.super = true, .min = -1};
    case WeightType::kQ5_K:
      return {.bits = CodeBits::k5, .super = true, .min = -1};
    case WeightType::kQ6_K:
      return {.bits = CodeBits::k6, .halves = true, .super = true, .sign = true, .offset = 32};
    case WeightType::kIQ4_NL:
      return {.table = true, .offset = 128};
    case WeightType::kIQ4_XS:
      return {.table = true, .super = true, .sign = true, .offset = 128};
    default:
      return {};
  }
}

// The values of IQ4_NL and IQ4_XS, plus 128.
inline constexpr uint8_t kNonLinear[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

// 32 columns of one row.
struct Codes {
  alignas(32) uint8_t q[kBlock];
  uint16_t scale;     // f16 bits
  uint16_t min;       // f16 bits
  uint8_t scales[2];  // small integers, one per half; [1] repeats [0] where a scale serves 32 columns
  uint8_t mins[2];
};

// Block `part` (0..7; 0 for types without super-blocks) of the source block at `block`.
void ReadCodes(WeightType type, const std::byte* block, int part, Codes& codes);

// The values that the codes stand for.
void Widen(const Format& format, const Codes& codes, float* out);

float HalfToFloat(uint16_t half);
inline float Bf16ToFloat(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

}  // namespace shoal::kernels
