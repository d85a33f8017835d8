#include "model/gguf_parse.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <format>
#include <numeric>
#include <optional>

#include "base/checked.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/gguf_lookalike.h"
#include "model/gguf_types.h"
#include "model/printable.h"

static_assert(std::endian::native == std::endian::little,
              "GGUF files are read as they lie; a big-endian host needs swaps");

namespace shoal {
namespace {

constexpr uint64_t kFixedBytes = 24;      // magic, version, two counts
constexpr uint64_t kMinKeyBytes = 14;     // length, one character, type, one byte of value
constexpr uint64_t kMinTensorBytes = 33;  // length, one character, one dimension, type, offset

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, uint64_t file_size, const std::string& name, GgufHeader& out)
      : bytes_(bytes), file_size_(file_size), name_(name), out_(out) {}

  Result<uint64_t> Run() {
    if (auto status = ParseAll(); !status) {
      if (need_ != 0) return need_;
      return Fail(std::move(status).error());
    }
    return 0;
  }

 private:
  Status ParseAll() {
    SHOAL_RETURN_IF_ERROR(ParseStart());
    for (uint64_t i = 0; i < keys_; ++i) SHOAL_RETURN_IF_ERROR(ParseKeyAndValue());
    place_.clear();
    SHOAL_RETURN_IF_ERROR(IndexKeys());
    SHOAL_RETURN_IF_ERROR(TakeAlignment());
    for (uint64_t i = 0; i < tensors_; ++i) SHOAL_RETURN_IF_ERROR(ParseTensor());
    out_.header_bytes = at_;
    SHOAL_RETURN_IF_ERROR(CheckTensorNames());
    return PlaceTensors();
  }

  std::unexpected<Error> Corrupt(std::string_view what, uint64_t offset) const {
    std::string message = std::format("{}: {}{}", name_, place_, what);
    return Fail(Code::kCorrupt, reasons::kModelCorrupt, std::move(message), std::format("offset {}", offset));
  }
  std::unexpected<Error> Corrupt(std::string_view what) const { return Corrupt(what, at_); }

  uint64_t left() const { return file_size_ - at_; }

  // The next `count` bytes. Running out of the file is corrupt; running out of the bytes at hand asks for
  // more of them.
  Result<std::span<const std::byte>> Take(uint64_t count, std::string_view what) {
    if (count > left()) {
      return Corrupt(std::format("{} needs {} bytes, the file has {} left", what, count, left()));
    }
    const uint64_t end = at_ + count;
    if (end > limits::kMaxMetadataBytes) {
      return Corrupt(std::format("the metadata is larger than the limit of {} MiB", limits::kMaxMetadataBytes >> 20));
    }
    if (end > bytes_.size()) {
      need_ = end;
      return Fail(Code::kCorrupt, reasons::kModelCorrupt, "more bytes needed");
    }
    const auto taken = bytes_.subspan(at_, count);
    at_ = end;
    return taken;
  }

  template <class T>
  Result<T> Number(std::string_view what) {
    SHOAL_ASSIGN(const auto raw, Take(sizeof(T), what));
    T value;
    std::memcpy(&value, raw.data(), sizeof(T));
    return value;
  }

  Result<std::span<const std::byte>> String(std::string_view what) {
    SHOAL_ASSIGN(const auto length, Number<uint64_t>(what));
    return Take(length, what);
  }

  Status ParseStart();
  Status ParseKeyAndValue();
  Result<GgufValue> ParseValue(GgufType type, int depth);
  Result<GgufValue> ParseArray(int depth);
  Result<GgufType> ParseType(std::string_view what);
  Status IndexKeys();
  Status TakeAlignment();
  Status ParseTensor();
  Status SizeTensor(TensorInfo& tensor, uint64_t offset_at) const;
  Status CheckTensorNames();
  Status PlaceTensors();

  const std::span<const std::byte> bytes_;
  const uint64_t file_size_;
  const std::string& name_;
  GgufHeader& out_;
  uint64_t at_ = 0;
  uint64_t need_ = 0;
  uint64_t keys_ = 0;
  uint64_t tensors_ = 0;
  std::string place_;  // "key x: " or "tensor x: ", put before messages
};

Status Parser::ParseStart() {
  const auto start = bytes_.first(std::min<size_t>(bytes_.size(), 512));
  const std::string_view text(reinterpret_cast<const char*>(start.data()), start.size());
  if (!text.starts_with("GGUF") && start.size() < std::min<uint64_t>(file_size_, 512)) {
    need_ = std::min<uint64_t>(file_size_, 512);  // to say what it is instead
    return Corrupt("more bytes needed");
  }
  if (!text.starts_with("GGUF")) {
    if (text.starts_with("FUGG")) {
      return Fail(Code::kUnsupported, reasons::kUnsupportedEndianness,
                  name_ + ": a byte-swapped GGUF file; convert it for little-endian machines", "offset 0");
    }
    if (const auto like = LookAlike(start, file_size_); !like.empty()) {
      return Fail(Code::kUnsupported, reasons::kUnsupportedFormat,
                  std::format("{}: not a GGUF file: it looks like {}", name_, like), "offset 0");
    }
  }
  if (file_size_ < kFixedBytes) {
    return Corrupt(std::format("the file has {} bytes, shorter than a GGUF header of {}", file_size_, kFixedBytes), 0);
  }
  if (!text.starts_with("GGUF")) {
    return Fail(Code::kUnsupported, reasons::kUnsupportedFormat,
                std::format("{}: not a GGUF file: it begins with \"{}\"", name_, Printable(text.substr(0, 4))),
                "offset 0");
  }
  at_ = 4;
  SHOAL_ASSIGN(const auto version, Number<uint32_t>("the version"));
  if (version != 0 && (version & 0xffff) == 0) {
    return Fail(Code::kUnsupported, reasons::kUnsupportedEndianness,
                std::format("{}: a big-endian GGUF file (version {}); convert it for little-endian machines", name_,
                            std::byteswap(version)),
                "offset 4");
  }
  if (version != 2 && version != 3) {
    return Fail(Code::kUnsupported, reasons::kUnsupportedVersion,
                std::format("{}: GGUF version {} is not supported, only 2 and 3{}", name_, version,
                            version == 1 ? "; convert the model again with a current converter" : ""),
                "offset 4");
  }
  out_.version = static_cast<int>(version);
  SHOAL_ASSIGN(tensors_, Number<uint64_t>("the number of tensors"));
  SHOAL_ASSIGN(keys_, Number<uint64_t>("the number of keys"));
  if (tensors_ > left() / kMinTensorBytes || tensors_ > limits::kMaxTensors) {
    return Corrupt(std::format("{} tensors cannot be in the {} bytes that follow (at most {} are allowed)", tensors_,
                               left(), limits::kMaxTensors),
                   8);
  }
  if (keys_ > left() / kMinKeyBytes || keys_ > limits::kMaxKeys) {
    return Corrupt(std::format("{} keys cannot be in the {} bytes that follow (at most {} are allowed)", keys_, left(),
                               limits::kMaxKeys),
                   16);
  }
  return {};
}

// Keys: the specification asks for snake_case segments with dots, but real files hold upper case, dashes and
// more. Accepted is every printable ASCII character but the space.
Status Parser::ParseKeyAndValue() {
  place_.clear();
  const uint64_t key_at = at_;
  SHOAL_ASSIGN(const auto length, Number<uint64_t>("a key"));
  if (length == 0 || length > limits::kMaxKeyBytes) {
    return Corrupt(std::format("a key of {} bytes (1 to {} are allowed)", length, limits::kMaxKeyBytes), key_at);
  }
  SHOAL_ASSIGN(const auto raw, Take(length, "a key"));
  const std::string_view key(reinterpret_cast<const char*>(raw.data()), raw.size());
  if (std::any_of(key.begin(), key.end(), [](char c) { return c <= 0x20 || c >= 0x7f; })) {
    return Corrupt(std::format("the key \"{}\" has characters other than printable ASCII", Printable(key, 80)), key_at);
  }
  place_ = std::format("key {}: ", Printable(key, 80));
  SHOAL_ASSIGN(const auto type, ParseType("value type"));
  SHOAL_ASSIGN(const auto value, ParseValue(type, 0));
  out_.values.emplace_back(key, value);
  return {};
}

Result<GgufType> Parser::ParseType(std::string_view what) {
  const uint64_t type_at = at_;
  SHOAL_ASSIGN(const auto number, Number<uint32_t>(what));
  if (number > static_cast<uint32_t>(GgufType::kFloat64))
    return Corrupt(std::format("unknown {} {}", what, number), type_at);
  return static_cast<GgufType>(number);
}

Result<GgufValue> Parser::ParseValue(GgufType type, int depth) {
  GgufValue value;
  value.type = type;
  if (type == GgufType::kString) {
    SHOAL_ASSIGN(value.bytes, String("the string"));
    return value;
  }
  if (type == GgufType::kArray) return ParseArray(depth + 1);
  const uint64_t value_at = at_;
  SHOAL_ASSIGN(value.bytes, Take(GgufTypeSize(type), "the value"));
  if (type == GgufType::kBool && static_cast<uint8_t>(value.bytes[0]) > 1) {
    return Corrupt(std::format("a truth value of {}", static_cast<int>(value.bytes[0])), value_at);
  }
  return value;
}

Result<GgufValue> Parser::ParseArray(int depth) {
  if (depth > limits::kMaxArrayDepth)
    return Corrupt(std::format("arrays nested deeper than {}", limits::kMaxArrayDepth));
  GgufValue value;
  value.type = GgufType::kArray;
  SHOAL_ASSIGN(value.element, ParseType("array element type"));
  const uint64_t count_at = at_;
  SHOAL_ASSIGN(value.count, Number<uint64_t>("the array's length"));
  const uint64_t begin = at_;
  const uint32_t fixed = GgufTypeSize(value.element);
  const uint64_t smallest = fixed != 0 ? fixed : value.element == GgufType::kString ? 8 : 12;
  if (value.count > left() / smallest) {
    return Corrupt(std::format("an array of {} elements cannot be in the {} bytes that follow", value.count, left()),
                   count_at);
  }
  if (fixed != 0) {
    SHOAL_ASSIGN(value.bytes, Take(value.count * fixed, "the array"));  // no overflow: checked just above
    if (value.element == GgufType::kBool) {
      const auto bad = std::ranges::find_if(value.bytes, [](std::byte b) { return static_cast<uint8_t>(b) > 1; });
      if (bad != value.bytes.end()) return Corrupt(std::format("a truth value of {}", static_cast<int>(*bad)), begin);
    }
    return value;
  }
  for (uint64_t i = 0; i < value.count; ++i) {
    if (value.element == GgufType::kString) {
      SHOAL_RETURN_IF_ERROR(String("a string of the array"));
    } else {
      SHOAL_RETURN_IF_ERROR(ParseArray(depth + 1));
    }
  }
  value.bytes = bytes_.subspan(begin, at_ - begin);
  return value;
}

// Sorted, not hashed: a hostile file cannot make a sort slow.
Status Parser::IndexKeys() {
  auto& order = out_.by_key;
  order.resize(out_.values.size());
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::sort(order, {}, [&](uint32_t i) { return out_.values[i].first; });
  const auto twin = std::ranges::adjacent_find(order, {}, [&](uint32_t i) { return out_.values[i].first; });
  if (twin == order.end()) return {};
  return Corrupt(std::format("the key {} is there twice", Printable(out_.values[*twin].first, 80)));
}

Status Parser::TakeAlignment() {
  const GgufValue* value = out_.Find("general.alignment");
  if (value == nullptr) return {};
  if (value->type != GgufType::kUint32) {
    return Corrupt(std::format("key general.alignment: is {}, must be uint32", GgufTypeName(value->type)));
  }
  uint32_t alignment = 0;
  std::memcpy(&alignment, value->bytes.data(), sizeof(alignment));
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > limits::kMaxAlignment) {
    return Corrupt(
        std::format("key general.alignment: {} is not a power of two from 8 to {}", alignment, limits::kMaxAlignment));
  }
  out_.alignment = alignment;
  return {};
}

Status Parser::ParseTensor() {
  place_.clear();
  const uint64_t name_at = at_;
  SHOAL_ASSIGN(const auto length, Number<uint64_t>("a tensor's name"));
  if (length == 0 || length > limits::kMaxTensorNameBytes) {
    return Corrupt(std::format("a tensor name of {} bytes (1 to {} are allowed)", length, limits::kMaxTensorNameBytes),
                   name_at);
  }
  SHOAL_ASSIGN(const auto raw, Take(length, "a tensor's name"));
  TensorInfo tensor;
  tensor.name.assign(reinterpret_cast<const char*>(raw.data()), raw.size());
  if (std::ranges::any_of(tensor.name, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; })) {
    return Corrupt(std::format("the tensor name \"{}\" has control characters", Printable(tensor.name)), name_at);
  }
  place_ = std::format("tensor {}: ", Printable(tensor.name));
  SHOAL_ASSIGN(const auto dimensions, Number<uint32_t>("the number of dimensions"));
  if (dimensions == 0 || dimensions > limits::kMaxDimensions) {
    return Corrupt(std::format("{} dimensions (1 to {} are allowed)", dimensions, limits::kMaxDimensions), at_ - 4);
  }
  for (uint32_t i = 0; i < dimensions; ++i) {
    SHOAL_ASSIGN(const auto size, Number<uint64_t>("a dimension"));
    if (size == 0 || size > static_cast<uint64_t>(INT64_MAX)) {
      return Corrupt(std::format("dimension {} is {}", i, static_cast<int64_t>(size)), at_ - 8);
    }
    tensor.dims.push_back(static_cast<int64_t>(size));
  }
  const uint64_t type_at = at_;
  SHOAL_ASSIGN(tensor.type, Number<uint32_t>("the type"));
  SHOAL_ASSIGN(tensor.offset, Number<uint64_t>("the offset"));
  SHOAL_RETURN_IF_ERROR(SizeTensor(tensor, type_at));
  if (tensor.offset % out_.alignment != 0) {
    return Corrupt(
        std::format("its data offset {} is not a multiple of the alignment {}", tensor.offset, out_.alignment),
        type_at + 4);
  }
  out_.tensors.push_back(std::move(tensor));
  return {};
}

// Bytes of the data, from the type and the dimensions.
Status Parser::SizeTensor(TensorInfo& tensor, uint64_t type_at) const {
  const GgufTensorType type = TensorTypeOf(tensor.type);
  if (type.block_values == 0) {
    const std::string what = type.name.empty()
                                 ? std::format("unknown weight type {}", tensor.type)
                                 : std::format("weight type {} ({}) was removed from GGUF", type.name, tensor.type);
    return Fail(Code::kUnsupported, reasons::kUnsupportedType,
                std::format("{}: {}{}; convert the model again with a current converter", name_, place_, what),
                std::format("offset {}", type_at));
  }
  int64_t elements = 1;
  for (const int64_t size : tensor.dims) {
    const auto product = CheckedMul(elements, size);
    if (!product) return Corrupt("the number of its values overflows", type_at);
    elements = *product;
  }
  if (tensor.dims[0] % type.block_values != 0) {
    return Corrupt(
        std::format("rows of {} values are not whole blocks of {} ({})", tensor.dims[0], type.block_values, type.name),
        type_at);
  }
  const auto bytes = CheckedMul<uint64_t>(static_cast<uint64_t>(elements) / type.block_values, type.block_bytes);
  if (!bytes || *bytes > static_cast<uint64_t>(INT64_MAX)) return Corrupt("the number of its bytes overflows", type_at);
  tensor.bytes = *bytes;
  return {};
}

Status Parser::CheckTensorNames() {
  place_.clear();
  std::vector<std::string_view> names;
  names.reserve(out_.tensors.size());
  for (const TensorInfo& tensor : out_.tensors) names.push_back(tensor.name);
  std::ranges::sort(names);
  const auto twin = std::ranges::adjacent_find(names);
  if (twin == names.end()) return {};
  return Corrupt(std::format("the tensor {} is there twice", Printable(*twin)));
}

// Turns offsets into offsets from the start of the file and checks that the data lies inside it, one tensor
// after the other.
Status Parser::PlaceTensors() {
  if (out_.tensors.empty()) return {};
  const auto start = CheckedRoundUp<uint64_t>(out_.header_bytes, out_.alignment);
  if (!start || *start > file_size_) return Corrupt("the file ends before the tensor data");
  for (TensorInfo& tensor : out_.tensors) {
    const auto begin = CheckedAdd(tensor.offset, *start);
    const auto end = begin ? CheckedAdd(*begin, tensor.bytes) : std::nullopt;
    if (!end || *end > file_size_) {
      return Corrupt(
          std::format("tensor {}: its {} bytes at data offset {} do not fit in the file of {} bytes (cut short?)",
                      Printable(tensor.name), tensor.bytes, tensor.offset, file_size_),
          tensor.offset);
    }
    tensor.offset = *begin;
  }
  std::vector<uint32_t> order(out_.tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::sort(order, {}, [&](uint32_t i) { return out_.tensors[i].offset; });
  uint64_t end = *start;
  const TensorInfo* before = nullptr;
  uint64_t gaps = 0;
  for (const uint32_t i : order) {
    const TensorInfo& tensor = out_.tensors[i];
    if (tensor.offset < end) {
      return Corrupt(
          std::format("tensor {}: its data overlaps that of {}", Printable(tensor.name), Printable(before->name)),
          tensor.offset);
    }
    if (tensor.offset - end >= out_.alignment) gaps += tensor.offset - end;
    end = tensor.offset + tensor.bytes;
    before = &tensor;
  }
  if (gaps != 0) out_.warnings.push_back(std::format("{}: {} bytes between tensors belong to none", name_, gaps));
  if (file_size_ - end >= out_.alignment) {
    out_.warnings.push_back(std::format("{}: {} bytes after the last tensor", name_, file_size_ - end));
  }
  return {};
}

constexpr std::array<std::string_view, 13> kTypeNames = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                                         "int32",  "float32", "bool",   "string", "array",
                                                         "uint64", "int64",   "float64"};
constexpr std::array<uint32_t, 13> kTypeSizes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

}  // namespace

const GgufValue* GgufHeader::Find(std::string_view key) const {
  const auto found = std::ranges::lower_bound(by_key, key, {}, [&](uint32_t i) { return values[i].first; });
  return found != by_key.end() && values[*found].first == key ? &values[*found].second : nullptr;
}

Result<uint64_t> ParseGgufHeader(std::span<const std::byte> bytes, uint64_t file_size, const std::string& name,
                                 GgufHeader& out) {
  out = {};
  if (bytes.size() > file_size) bytes = bytes.first(file_size);
  return Parser(bytes, file_size, name, out).Run();
}

uint32_t GgufTypeSize(GgufType type) { return kTypeSizes[static_cast<uint32_t>(type)]; }
std::string_view GgufTypeName(GgufType type) { return kTypeNames[static_cast<uint32_t>(type)]; }

std::string_view NextGgufString(std::span<const std::byte>& bytes) {
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data() + sizeof(length)), length);
  bytes = bytes.subspan(sizeof(length) + length);
  return text;
}

}  // namespace shoal
