// What: a metadata value as a number of ours, checked; for GgufFile's accessors and for the keys of a single part.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "model/gguf_parse.h"

namespace shoal {

// Element `index` of fixed-size values of integer `type`; empty when it is above INT64_MAX. `type` must be an
// integer or bool.
std::optional<int64_t> IntegerAt(GgufType type, const std::byte* bytes, uint64_t index);
bool IsInteger(GgufType type);

// Empty when `value` is null; kModelCorrupt naming file and key when it is no integer in [low, high].
Result<std::optional<int64_t>> IntOf(const GgufValue* value, const std::string& file, std::string_view key, int64_t low,
                                     int64_t high);
inline Result<std::optional<int64_t>> IntOf(const GgufHeader& header, const std::string& file, std::string_view key,
                                            int64_t low, int64_t high) {
  return IntOf(header.Find(key), file, key, low, high);
}

}  // namespace shoal
