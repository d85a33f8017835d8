// What: arithmetic on sizes that come from outside. Overflow is an empty optional, never a wrapped number.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>

namespace shoal {

template <std::integral T>
[[nodiscard]] constexpr std::optional<T> CheckedAdd(T a, T b) {
  T out;
  if (__builtin_add_overflow(a, b, &out)) return std::nullopt;
  return out;
}

template <std::integral T>
[[nodiscard]] constexpr std::optional<T> CheckedMul(T a, T b) {
  T out;
  if (__builtin_mul_overflow(a, b, &out)) return std::nullopt;
  return out;
}

// Smallest multiple of `step` (> 0) that is >= a.
template <std::unsigned_integral T>
[[nodiscard]] constexpr std::optional<T> CheckedRoundUp(T a, T step) {
  const T rest = a % step;
  return rest == 0 ? std::optional<T>(a) : CheckedAdd(a, static_cast<T>(step - rest));
}

template <std::integral T>
constexpr T CeilDiv(T a, T b) {
  return static_cast<T>(a / b + (a % b != 0));
}

}  // namespace shoal
