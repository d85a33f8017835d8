#include "app/inspect.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <format>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "app/exit_codes.h"
#include "model/gguf.h"
#include "model/gguf_parse.h"
#include "model/gguf_types.h"
#include "model/gguf_values.h"
#include "model/printable.h"

namespace shoal {
namespace {

constexpr uint64_t kShownElements = 6;
constexpr size_t kShownCharacters = 120;

std::string_view Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// What is counted over tensors, per layer and per type.
struct Tally {
  uint64_t tensors = 0;
  uint64_t bytes = 0;
  uint64_t parameters =
      0;  // a sum over up to a million tensors of up to 2^63 values would need a hostile file of that size
  void Add(const TensorInfo& tensor) {
    ++tensors;
    bytes += tensor.bytes;
    parameters += static_cast<uint64_t>(tensor.columns()) * static_cast<uint64_t>(tensor.rows());
  }
};

struct Sizes {
  Tally all;
  Tally other;                  // in no layer: embedding, output, their norms
  std::map<int, Tally> layers;  // by number
  std::map<uint32_t, Tally> types;
};

// "blk.12.attn_q.weight" -> 12
std::optional<int> LayerOf(std::string_view name) {
  for (const std::string_view prefix : {"blk.", "v.blk.", "a.blk.", "enc.blk.", "dec.blk."}) {
    if (!name.starts_with(prefix)) continue;
    int layer = 0;
    const char* end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, layer);
    if (error == std::errc() && stop != end && *stop == '.' && layer >= 0) return layer;
  }
  return std::nullopt;
}

Sizes Measure(const GgufFile& file) {
  Sizes sizes;
  for (const TensorInfo& tensor : file.tensors()) {
    sizes.all.Add(tensor);
    sizes.types[tensor.type].Add(tensor);
    const auto layer = LayerOf(tensor.name);
    (layer ? sizes.layers[*layer] : sizes.other).Add(tensor);
  }
  return sizes;
}

uint64_t FileBytes(const GgufFile& file) {
  uint64_t bytes = 0;
  for (int i = 0; i < file.file_count(); ++i) bytes += file.header(i).file_size;
  return bytes;
}

std::string Shape(const TensorInfo& tensor) {
  std::string out = "[";
  for (const int64_t size : tensor.dims)
    std::format_to(std::back_inserter(out), "{}{}", out.size() > 1 ? ", " : "", size);
  return out + "]";
}

// ASCII only: whatever bytes the file holds, they reach the reader as escapes; broken UTF-8 becomes U+FFFD.
std::string Quoted(std::string_view text) {
  return nlohmann::json(std::string(text)).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

// One element of fixed size, as JSON.
void AppendNumber(std::string& out, GgufType type, const std::byte* bytes, uint64_t index) {
  const auto append = [&](auto value) {
    if constexpr (std::is_floating_point_v<decltype(value)>) {
      if (!std::isfinite(value)) {
        out += "null";
        return;
      }
    }
    char digits[40];
    out.append(digits, std::to_chars(digits, digits + sizeof(digits), value).ptr);
  };
  const auto load = [&]<class T>(T value) {
    std::memcpy(&value, bytes + index * sizeof(T), sizeof(T));
    return value;
  };
  switch (type) {
    case GgufType::kBool:
      out += bytes[index] != std::byte{0} ? "true" : "false";
      return;
    case GgufType::kFloat32:
      return append(load(0.0f));
    case GgufType::kFloat64:
      return append(load(0.0));
    case GgufType::kUint64:
      return append(load(uint64_t{0}));
    default:
      return append(*IntegerAt(type, bytes, index));
  }
}

// The array at the start of `bytes`, which is moved behind it. At most `most` elements are shown.
void AppendArray(std::string& out, GgufType element, uint64_t count, std::span<const std::byte>& bytes, uint64_t most) {
  const uint32_t fixed = GgufTypeSize(element);
  out += '[';
  for (uint64_t i = 0; i < count; ++i) {
    const bool shown = i < most;
    if (shown && i > 0) out += ", ";
    if (fixed != 0) {
      if (!shown) break;
      AppendNumber(out, element, bytes.data(), i);
    } else if (element == GgufType::kString) {
      const std::string_view text = NextGgufString(bytes);
      if (!shown && most != UINT64_MAX) continue;
      out += most == UINT64_MAX ? Quoted(text) : std::format("\"{}\"", Printable(text, kShownCharacters / 4));
    } else {
      uint32_t inner = 0;
      uint64_t inner_count = 0;
      std::memcpy(&inner, bytes.data(), sizeof(inner));
      std::memcpy(&inner_count, bytes.data() + sizeof(inner), sizeof(inner_count));
      bytes = bytes.subspan(sizeof(inner) + sizeof(inner_count));
      std::string ignored;
      AppendArray(shown ? out : ignored, static_cast<GgufType>(inner), inner_count, bytes, most);
    }
  }
  if (fixed != 0) bytes = bytes.subspan(fixed * count);
  if (count > most) out += ", ...";
  out += ']';
}

std::string ValueJson(const GgufValue& value) {
  if (value.type == GgufType::kString) return Quoted(Text(value.bytes));
  std::string out;
  auto bytes = value.bytes;
  if (value.type == GgufType::kArray) {
    AppendArray(out, value.element, value.count, bytes, UINT64_MAX);
  } else {
    AppendNumber(out, value.type, bytes.data(), 0);
  }
  return out;
}

std::string ValueText(const GgufValue& value) {
  if (value.type == GgufType::kString) return std::format("\"{}\"", Printable(Text(value.bytes), kShownCharacters));
  if (value.type != GgufType::kArray) return ValueJson(value);
  std::string out = std::format("{} x {}: ", value.count, GgufTypeName(value.element));
  auto bytes = value.bytes;
  AppendArray(out, value.element, value.count, bytes, kShownElements);
  return out;
}

// 1234567 -> "1 234 567"
std::string Grouped(uint64_t number) {
  std::string digits = std::to_string(number);
  for (size_t at = digits.size(); at > 3;) digits.insert(at -= 3, " ");
  return digits;
}

std::optional<std::string_view> Architecture(const GgufFile& file) {
  const GgufValue* value = file.Find("general.architecture");
  return value != nullptr && value->type == GgufType::kString ? std::optional(Text(value->bytes)) : std::nullopt;
}

}  // namespace

std::string InspectText(const GgufFile& file) {
  const Sizes sizes = Measure(file);
  std::string out;
  const auto line = [&]<class... A>(std::format_string<A...> format, A&&... values) {
    std::format_to(std::back_inserter(out), format, std::forward<A>(values)...);
    out += '\n';
  };
  line("file          {}", file.name());
  line("format        GGUF {}, {} {}, {} bytes", file.version(), file.file_count(),
       file.file_count() == 1 ? "file" : "files", Grouped(FileBytes(file)));
  line("architecture  {}", Printable(Architecture(file).value_or("(not said)"), 64));
  line("parameters    {} in {} tensors, {} bytes", Grouped(sizes.all.parameters), sizes.all.tensors,
       Grouped(sizes.all.bytes));
  const auto keys = file.Keys();
  line("\nmetadata ({} keys)", keys.size());
  for (const std::string_view key : keys) {
    const GgufValue& value = *file.Find(key);
    line("  {:<44} {:<8} {}", Printable(key), GgufTypeName(value.type), ValueText(value));
  }
  if (file.tensors().empty()) {
    out += "\nno tensors (a vocabulary-only file)\n";
    return out;
  }
  line("\n{:<48} {:<8} {:<24} {:>16}", "tensor", "type", "shape", "bytes");
  for (const TensorInfo& tensor : file.tensors()) {
    line("  {:<46} {:<8} {:<24} {:>16}", Printable(tensor.name), TensorTypeOf(tensor.type).name, Shape(tensor),
         Grouped(tensor.bytes));
  }
  line("\n{:<16} {:>8} {:>20}", "layer", "tensors", "bytes");
  for (const auto& [layer, tally] : sizes.layers)
    line("  {:<14} {:>8} {:>20}", layer, tally.tensors, Grouped(tally.bytes));
  line("  {:<14} {:>8} {:>20}", "in no layer", sizes.other.tensors, Grouped(sizes.other.bytes));
  line("\n{:<16} {:>8} {:>20} {:>20}", "type", "tensors", "parameters", "bytes");
  for (const auto& [type, tally] : sizes.types) {
    line("  {:<14} {:>8} {:>20} {:>20}", TensorTypeOf(type).name, tally.tensors, Grouped(tally.parameters),
         Grouped(tally.bytes));
  }
  return out;
}

std::string InspectJson(const GgufFile& file) {
  const Sizes sizes = Measure(file);
  std::string out;
  const auto add = [&]<class... A>(std::format_string<A...> format, A&&... values) {
    std::format_to(std::back_inserter(out), format, std::forward<A>(values)...);
  };
  const auto list = [&](std::string_view key, const auto& items, auto&& item) {
    add(",\n\"{}\": [", key);
    const char* separator = "\n  ";
    for (const auto& each : items) {
      out += separator;
      item(each);
      separator = ",\n  ";
    }
    out += ']';
  };
  const auto architecture = Architecture(file);
  add("{{\"file\": {},\n\"version\": {},\n\"files\": {},\n\"file_bytes\": {}", Quoted(file.name()), file.version(),
      file.file_count(), FileBytes(file));
  add(",\n\"architecture\": {}", architecture ? Quoted(*architecture) : "null");
  add(",\n\"parameters\": {},\n\"bytes\": {},\n\"metadata\": {{", sizes.all.parameters, sizes.all.bytes);
  const char* separator = "\n  ";
  for (const std::string_view key : file.Keys()) {
    add("{}{}: {}", separator, Quoted(key), ValueJson(*file.Find(key)));
    separator = ",\n  ";
  }
  out += '}';
  list("tensors", file.tensors(), [&](const TensorInfo& tensor) {
    add("{{\"name\": {}, \"type\": \"{}\", \"shape\": {}, \"bytes\": {}, \"offset\": {}, \"file\": {}}}",
        Quoted(tensor.name), TensorTypeOf(tensor.type).name, Shape(tensor), tensor.bytes, tensor.offset, tensor.file);
  });
  list("layers", sizes.layers, [&](const auto& entry) {
    add("{{\"layer\": {}, \"tensors\": {}, \"bytes\": {}}}", entry.first, entry.second.tensors, entry.second.bytes);
  });
  add(",\n\"other\": {{\"tensors\": {}, \"bytes\": {}}}", sizes.other.tensors, sizes.other.bytes);
  list("types", sizes.types, [&](const auto& entry) {
    add("{{\"type\": \"{}\", \"tensors\": {}, \"parameters\": {}, \"bytes\": {}}}", TensorTypeOf(entry.first).name,
        entry.second.tensors, entry.second.parameters, entry.second.bytes);
  });
  list("warnings", file.warnings(), [&](const std::string& warning) { out += Quoted(warning); });
  return out + "}\n";
}

int InspectCommand(const std::filesystem::path& path, bool json) {
  const auto file = GgufFile::Open(path);
  if (!file) return ReportError(file.error());
  for (const std::string& warning : (*file)->warnings()) std::fprintf(stderr, "shoal: warning: %s\n", warning.c_str());
  const std::string out = json ? InspectJson(**file) : InspectText(**file);
  if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size() || std::fflush(stdout) != 0) {
    std::fprintf(stderr, "shoal: writing to stdout failed\n");
    return kExitRunTime;
  }
  return kExitOk;
}

}  // namespace shoal
