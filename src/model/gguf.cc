// The typed accessors of GgufFile. Opening is in gguf_open.cc, the parser in gguf_parse.cc, the joined set in
// gguf_set.cc.
#include "model/gguf.h"

#include <cmath>
#include <cstring>
#include <format>

#include "core/reasons.h"
#include "model/gguf_values.h"
#include "model/printable.h"

namespace shoal {
namespace {

template <class T>
T Load(const std::byte* bytes, uint64_t index) {
  T value;
  std::memcpy(&value, bytes + index * sizeof(T), sizeof(T));
  return value;
}

std::unexpected<Error> BadKey(const std::string& file, std::string_view key, const std::string& what) {
  return Fail(Code::kCorrupt, reasons::kModelCorrupt, std::format("{}: key {}: {}", file, Printable(key, 80), what));
}

std::string TypeWords(const GgufValue& value) {
  if (value.type != GgufType::kArray) return std::string(GgufTypeName(value.type));
  return std::format("array of {}", GgufTypeName(value.element));
}

std::unexpected<Error> WrongType(const std::string& file, std::string_view key, const GgufValue& value,
                                 std::string_view want) {
  return BadKey(file, key, std::format("is {}, must be {}", TypeWords(value), want));
}

std::unexpected<Error> OutOfRange(const std::string& file, std::string_view key, std::optional<int64_t> value,
                                  uint64_t raw, int64_t low, int64_t high) {
  const std::string shown = value ? std::to_string(*value) : std::to_string(raw);
  return BadKey(file, key, std::format("{} is not in the range from {} to {}", shown, low, high));
}

bool IsFloat(GgufType type) { return type == GgufType::kFloat32 || type == GgufType::kFloat64; }

}  // namespace

int64_t TensorInfo::rows() const {
  int64_t product = 1;
  for (size_t i = 1; i < dims.size(); ++i) product *= dims[i];  // checked when the file was opened
  return product;
}

bool IsInteger(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kUint16:
    case GgufType::kInt16:
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kUint64:
    case GgufType::kInt64:
      return true;
    default:
      return false;
  }
}

std::optional<int64_t> IntegerAt(GgufType type, const std::byte* bytes, uint64_t index) {
  switch (type) {
    case GgufType::kBool:
    case GgufType::kUint8:
      return Load<uint8_t>(bytes, index);
    case GgufType::kInt8:
      return Load<int8_t>(bytes, index);
    case GgufType::kUint16:
      return Load<uint16_t>(bytes, index);
    case GgufType::kInt16:
      return Load<int16_t>(bytes, index);
    case GgufType::kUint32:
      return Load<uint32_t>(bytes, index);
    case GgufType::kInt32:
      return Load<int32_t>(bytes, index);
    case GgufType::kInt64:
      return Load<int64_t>(bytes, index);
    default:
      break;
  }
  const auto value = Load<uint64_t>(bytes, index);
  return value <= static_cast<uint64_t>(INT64_MAX) ? std::optional(static_cast<int64_t>(value)) : std::nullopt;
}

Result<std::optional<int64_t>> IntOf(const GgufValue* value, const std::string& file, std::string_view key, int64_t low,
                                     int64_t high) {
  if (value == nullptr) return std::nullopt;
  if (!IsInteger(value->type)) return WrongType(file, key, *value, "an integer");
  const auto number = IntegerAt(value->type, value->bytes.data(), 0);
  if (!number || *number < low || *number > high) {
    return OutOfRange(file, key, number, number ? 0 : Load<uint64_t>(value->bytes.data(), 0), low, high);
  }
  return number;
}

Result<std::optional<std::string_view>> GgufFile::GetString(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kString) return WrongType(name(), key, *value, "a string");
  return std::string_view(reinterpret_cast<const char*>(value->bytes.data()), value->bytes.size());
}

Result<std::optional<int64_t>> GgufFile::GetInt(std::string_view key, int64_t low, int64_t high) const {
  return IntOf(Find(key), name(), key, low, high);
}

Result<std::optional<double>> GgufFile::GetFloat(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!IsFloat(value->type)) return WrongType(name(), key, *value, "a floating-point number");
  const double number = value->type == GgufType::kFloat32 ? static_cast<double>(Load<float>(value->bytes.data(), 0))
                                                          : Load<double>(value->bytes.data(), 0);
  if (!std::isfinite(number)) return BadKey(name(), key, std::format("{} is not a finite number", number));
  return number;
}

Result<std::optional<bool>> GgufFile::GetBool(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kBool) return WrongType(name(), key, *value, "a truth value");
  return value->bytes[0] != std::byte{0};
}

Result<std::optional<std::vector<std::string_view>>> GgufFile::GetStrings(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kArray || value->element != GgufType::kString) {
    return WrongType(name(), key, *value, "an array of strings");
  }
  std::vector<std::string_view> strings(value->count);
  auto bytes = value->bytes;
  for (std::string_view& text : strings) text = NextGgufString(bytes);
  return strings;
}

// Arrays of truth values count as integers 0 and 1 (per-layer patterns are written so).
Result<std::optional<std::vector<int64_t>>> GgufFile::GetInts(std::string_view key, int64_t low, int64_t high) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kArray || !(IsInteger(value->element) || value->element == GgufType::kBool)) {
    return WrongType(name(), key, *value, "an array of integers");
  }
  std::vector<int64_t> numbers(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto number = IntegerAt(value->element, value->bytes.data(), i);
    if (!number || *number < low || *number > high) {
      return OutOfRange(name(), std::format("{}[{}]", key, i), number,
                        number ? 0 : Load<uint64_t>(value->bytes.data(), i), low, high);
    }
    numbers[i] = *number;
  }
  return numbers;
}

Result<std::optional<std::vector<float>>> GgufFile::GetFloats(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kArray || !IsFloat(value->element)) {
    return WrongType(name(), key, *value, "an array of floating-point numbers");
  }
  std::vector<float> numbers(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    numbers[i] = value->element == GgufType::kFloat32 ? Load<float>(value->bytes.data(), i)
                                                      : static_cast<float>(Load<double>(value->bytes.data(), i));
  }
  return numbers;
}

}  // namespace shoal
