// Opening: from a path or from header bytes to a joined GgufSet; which files make a split set.
#include <algorithm>
#include <format>
#include <optional>
#include <utility>

#include "base/check.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/gguf_disk.h"
#include "model/gguf_set.h"
#include "model/gguf_values.h"
#include "model/printable.h"

namespace shoal {
namespace {

constexpr uint64_t kFirstRead = 1 << 20;

// "dir/model-00002-of-00005.gguf"
struct PartName {
  std::string stem;  // "model"
  int number = 0;    // from 1, as written
  int count = 0;
};

std::optional<int> Digits(std::string_view text) {
  int value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + (c - '0');
  }
  return value;
}

std::optional<PartName> SplitName(const std::string& file) {
  constexpr size_t kTail = std::string_view("-00001-of-00002.gguf").size();
  if (file.size() <= kTail) return std::nullopt;
  const std::string_view tail = std::string_view(file).substr(file.size() - kTail);
  if (tail[0] != '-' || tail.substr(6, 4) != "-of-" || tail.substr(15) != ".gguf") return std::nullopt;
  const auto number = Digits(tail.substr(1, 5));
  const auto count = Digits(tail.substr(10, 5));
  if (!number || !count) return std::nullopt;
  return PartName{file.substr(0, file.size() - kTail), *number, *count};
}

std::string NameOfPart(const std::string& stem, int number, int count) {
  return std::format("{}-{:05}-of-{:05}.gguf", stem, number, count);
}

// Reads the header into own memory, as much as it turns out to need.
Result<GgufPart> OpenPart(const std::filesystem::path& path) {
  GgufPart part;
  SHOAL_ASSIGN(part.disk, DiskFile::Open(path));
  part.name = part.disk->name();
  part.file_size = part.disk->size();
  uint64_t want = std::min(part.file_size, kFirstRead);
  while (true) {
    const size_t had = part.bytes.size();
    part.bytes.resize(want);
    SHOAL_RETURN_IF_ERROR(part.disk->ReadAt(had, std::span(part.bytes).subspan(had)));
    SHOAL_ASSIGN(const uint64_t need, ParseGgufHeader(part.bytes, part.file_size, part.name, part.header));
    if (need == 0) break;
    want = std::min({std::max(need, want * 4), part.file_size, limits::kMaxMetadataBytes});
    SHOAL_CHECK(want > part.bytes.size());
  }
  // Keep the header alone, and parse what is kept, so that its views point there.
  part.bytes = std::vector(part.bytes.begin(), part.bytes.begin() + static_cast<ptrdiff_t>(part.header.header_bytes));
  SHOAL_ASSIGN(const uint64_t rest, ParseGgufHeader(part.bytes, part.file_size, part.name, part.header));
  SHOAL_CHECK(rest == 0);
  return part;
}

std::unexpected<Error> Incomplete(const GgufPart& part, const std::string& what) {
  return Fail(Code::kNotFound, reasons::kModelIncomplete, part.name + ": " + what);
}

// The parts beside `opened`, which is one of `count`.
Result<std::vector<GgufPart>> OpenSet(const std::filesystem::path& path, GgufPart opened, int count) {
  const auto here = SplitName(path.filename().string());
  if (!here) {
    return Incomplete(opened,
                      std::format("one part of {}, but its name does not end in -00001-of-{:05}.gguf or the like, so "
                                  "the others cannot be found; give the parts back their names",
                                  count, count));
  }
  const std::filesystem::path folder = path.parent_path();
  const auto path_of = [&](int number) {
    return folder / NameOfPart(here->stem, number, std::max(count, here->count));
  };
  const int files = std::max(count, here->count);
  if (files > limits::kMaxSplitFiles) {
    return Incomplete(opened,
                      std::format("a set of {} files; at most {} are supported", files, limits::kMaxSplitFiles));
  }
  for (int number = 1; number <= files; ++number) {
    std::error_code ignored;
    const auto candidate = folder / NameOfPart(here->stem, number, number <= here->count ? here->count : count);
    if (!std::filesystem::exists(candidate, ignored)) {
      return Incomplete(opened, std::format("part {} of {}, {} is missing", here->number, files,
                                            Printable(candidate.string(), 4096)));
    }
  }
  if (here->count != count) {
    return Fail(Code::kCorrupt, reasons::kModelCorrupt,
                std::format("{}: key split.count: {}, but its name says {} files", opened.name, count, here->count));
  }
  if (here->number < 1 || here->number > count) {
    return Fail(Code::kCorrupt, reasons::kModelCorrupt,
                std::format("{}: named part {} of {}; parts are counted from 1", opened.name, here->number, count));
  }
  std::vector<GgufPart> parts;
  for (int number = 1; number <= count; ++number) {
    if (number == here->number) {
      parts.push_back(std::move(opened));
    } else {
      SHOAL_ASSIGN(GgufPart part, OpenPart(path_of(number)));
      parts.push_back(std::move(part));
    }
  }
  return parts;
}

}  // namespace

Result<std::shared_ptr<const GgufFile>> GgufFile::Open(const std::filesystem::path& path) {
  SHOAL_ASSIGN(GgufPart opened, OpenPart(path));
  std::string name = opened.name;
  SHOAL_ASSIGN(const auto count, IntOf(opened.header, name, "split.count", 0, INT32_MAX));
  std::vector<GgufPart> parts;
  if (count.value_or(1) > 1) {
    SHOAL_ASSIGN(parts, OpenSet(path, std::move(opened), static_cast<int>(*count)));
  } else {
    const auto written = SplitName(path.filename().string());
    if (written && written->count > 1) {
      opened.header.warnings.push_back(std::format("{}: named as part {} of {}, but says of itself that it is whole",
                                                   name, written->number, written->count));
    }
    parts.push_back(std::move(opened));
  }
  return GgufSet::Join(std::move(name), std::move(parts));
}

Result<std::shared_ptr<const GgufFile>> GgufFile::ParseHeaders(std::span<const Header> headers) {
  if (headers.empty() || headers.size() > static_cast<size_t>(limits::kMaxSplitFiles)) {
    return Fail(Code::kCorrupt, reasons::kModelCorrupt, std::format("a model of {} files", headers.size()));
  }
  std::vector<GgufPart> parts;
  for (size_t i = 0; i < headers.size(); ++i) {
    GgufPart part;
    part.name = std::format("header {}", i);
    part.file_size = headers[i].file_size;
    if (headers[i].bytes.size() > part.file_size) {
      return Fail(Code::kCorrupt, reasons::kModelCorrupt, part.name + ": longer than its file");
    }
    SHOAL_ASSIGN(const uint64_t need, ParseGgufHeader(headers[i].bytes, part.file_size, part.name, part.header));
    if (need != 0) {
      return Fail(
          Code::kCorrupt, reasons::kModelCorrupt,
          std::format("{}: at least {} bytes are needed, {} are here", part.name, need, headers[i].bytes.size()));
    }
    const auto kept = headers[i].bytes.first(part.header.header_bytes);
    part.bytes.assign(kept.begin(), kept.end());
    SHOAL_ASSIGN(const uint64_t rest, ParseGgufHeader(part.bytes, part.file_size, part.name, part.header));
    SHOAL_CHECK(rest == 0);
    parts.push_back(std::move(part));
  }
  return GgufSet::Join(headers.size() == 1 ? "header" : std::format("headers of {} files", headers.size()),
                       std::move(parts));
}

}  // namespace shoal
