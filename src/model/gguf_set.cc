#include "model/gguf_set.h"

#include <algorithm>
#include <cstring>
#include <format>
#include <numeric>
#include <optional>

#include "base/check.h"
#include "base/checked.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/gguf_values.h"
#include "model/printable.h"

namespace shoal {
namespace {

std::unexpected<Error> Corrupt(const std::string& name, const std::string& what) {
  return Fail(Code::kCorrupt, reasons::kModelCorrupt, name + ": " + what);
}

// Keys in which the parts of one set may differ.
bool DiffersByPart(std::string_view key) { return key == "split.no" || key == "general.alignment"; }

bool SameValue(const GgufValue& a, const GgufValue& b) {
  return a.type == b.type && a.element == b.element && a.count == b.count && std::ranges::equal(a.bytes, b.bytes);
}

}  // namespace

Result<std::shared_ptr<const GgufFile>> GgufSet::Join(std::string name, std::vector<GgufPart> parts) {
  SHOAL_CHECK(!parts.empty());
  std::shared_ptr<GgufSet> set(new GgufSet(std::move(name), std::move(parts)));
  for (const GgufPart& part : set->parts_) {
    set->warnings_.insert(set->warnings_.end(), part.header.warnings.begin(), part.header.warnings.end());
  }
  SHOAL_RETURN_IF_ERROR(set->CheckTogether());
  SHOAL_RETURN_IF_ERROR(set->JoinTensors());
  return set;
}

Status GgufSet::CheckTogether() {
  const auto count = static_cast<int64_t>(parts_.size());
  int64_t held = 0;
  for (const GgufPart& part : parts_) held += static_cast<int64_t>(part.header.tensors.size());
  for (int64_t i = 0; i < count; ++i) {
    const GgufPart& part = parts_[static_cast<size_t>(i)];
    SHOAL_ASSIGN(const auto number, IntOf(part.header, part.name, "split.no", 0, limits::kMaxSplitFiles));
    SHOAL_ASSIGN(const auto total, IntOf(part.header, part.name, "split.count", 0, limits::kMaxSplitFiles));
    SHOAL_ASSIGN(const auto tensors, IntOf(part.header, part.name, "split.tensors.count", 0, INT64_MAX));
    if (count == 1 && total.value_or(0) <= 1) return {};  // a file by itself; merging tools leave a count of 0
    if (number != i) {
      return Corrupt(part.name,
                     number
                         ? std::format("key split.no: {}, but this is part {} of the set (counted from 0)", *number, i)
                         : "the key split.no is missing");
    }
    if (total != count)
      return Corrupt(part.name, std::format("key split.count: {}, but the set has {} files", total.value_or(0), count));
    if (tensors && *tensors != held) {
      return Corrupt(part.name, std::format("key split.tensors.count: {}, but the {} files of the set hold {} tensors",
                                            *tensors, count, held));
    }
    if (i > 0) SHOAL_RETURN_IF_ERROR(CheckCommonKeys(part));
  }
  return {};
}

// Later parts usually repeat nothing but split.*; what they do repeat must be what the first says, or they
// are of another model.
Status GgufSet::CheckCommonKeys(const GgufPart& part) const {
  for (const auto& [key, value] : part.header.values) {
    const GgufValue* first = Find(key);
    if (first != nullptr && !DiffersByPart(key) && !SameValue(*first, value)) {
      return Corrupt(part.name, std::format("key {}: differs from that of {}; the files are not of one set",
                                            Printable(key, 80), parts_[0].name));
    }
  }
  return {};
}

Status GgufSet::JoinTensors() {
  size_t total = 0;
  for (const GgufPart& part : parts_) total += part.header.tensors.size();
  tensors_.reserve(total);
  for (size_t i = 0; i < parts_.size(); ++i) {
    for (TensorInfo& tensor : parts_[i].header.tensors) {
      tensor.file = static_cast<uint32_t>(i);
      tensors_.push_back(std::move(tensor));
    }
    parts_[i].header.tensors = {};
  }
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  const auto name_of = [&](uint32_t i) -> std::string_view { return tensors_[i].name; };
  std::ranges::sort(by_name_, {}, name_of);
  const auto twin = std::ranges::adjacent_find(by_name_, {}, name_of);
  if (twin == by_name_.end()) return {};
  return Corrupt(name_, std::format("the tensor {} is in two files of the set", Printable(tensors_[*twin].name)));
}

std::vector<std::string_view> GgufSet::Keys() const {
  std::vector<std::string_view> keys;
  keys.reserve(parts_[0].header.values.size());
  for (const auto& [key, value] : parts_[0].header.values) keys.push_back(key);
  return keys;
}

const TensorInfo* GgufSet::FindTensor(std::string_view name) const {
  const auto found =
      std::ranges::lower_bound(by_name_, name, {}, [&](uint32_t i) -> std::string_view { return tensors_[i].name; });
  return found != by_name_.end() && tensors_[*found].name == name ? &tensors_[*found] : nullptr;
}

GgufFile::Header GgufSet::header(int file) const {
  const GgufPart& part = parts_.at(static_cast<size_t>(file));
  return {part.bytes, part.file_size};
}

Status GgufSet::Read(const TensorRange& range, std::span<std::byte> out) const {
  const auto wrong = [&](const std::string& what) {
    return Fail(Code::kInvalidArgument, reasons::kInvalidValue, name_ + ": " + what);
  };
  if (range.tensor >= tensors_.size()) return wrong(std::format("there is no tensor {}", range.tensor));
  const TensorInfo& tensor = tensors_[range.tensor];
  const GgufPart& part = parts_[tensor.file];
  SHOAL_CHECK(part.disk != nullptr);
  const auto total = CheckedMul(range.length, range.count);
  if (!total || *total != out.size()) return wrong("the range and the place for it differ in size");
  if (*total == 0) return {};
  const auto reach = CheckedMul(range.stride, range.count - 1);
  const auto last = reach ? CheckedAdd(*reach, range.offset) : std::nullopt;
  const auto end = last ? CheckedAdd(*last, range.length) : std::nullopt;
  if (!end || *end > tensor.bytes)
    return wrong(std::format("the range does not lie in tensor {}", Printable(tensor.name)));
  SHOAL_RETURN_IF_ERROR(ReadPieces(*part.disk, tensor.offset + range.offset, range, out));
  return part.disk->CheckUnchanged();
}

// Pieces that lie close together are read as one stretch and picked from it, to save system calls.
Status GgufSet::ReadPieces(const DiskFile& disk, uint64_t at, const TensorRange& range,
                           std::span<std::byte> out) const {
  constexpr uint64_t kStretchBytes = 1 << 20;
  if (range.count == 1 || range.stride == range.length) return disk.ReadAt(at, out);
  if (range.stride < range.length || range.stride / 4 > range.length || range.stride > kStretchBytes / 2) {
    for (uint64_t i = 0; i < range.count; ++i) {
      SHOAL_RETURN_IF_ERROR(disk.ReadAt(at + i * range.stride, out.subspan(i * range.length, range.length)));
    }
    return {};
  }
  std::vector<std::byte> stretch(kStretchBytes);
  const uint64_t most = kStretchBytes / range.stride;
  for (uint64_t done = 0; done < range.count;) {
    const uint64_t pieces = std::min(most, range.count - done);
    const auto place = std::span(stretch).first((pieces - 1) * range.stride + range.length);
    SHOAL_RETURN_IF_ERROR(disk.ReadAt(at + done * range.stride, place));
    for (uint64_t i = 0; i < pieces; ++i, ++done) {
      std::memcpy(out.data() + done * range.length, place.data() + i * range.stride, range.length);
    }
  }
  return {};
}

}  // namespace shoal
