// What: the body of GgufFile: one file or the parts of a split set, joined. The metadata is that of the first
// part; the tensor tables follow one another.
// Owns: the header bytes, and the files on disk when there are any.
// Threads: immutable after Join; Read from any thread.
// Limits: kMaxSplitFiles.
// Fails: kModelCorrupt naming the part that does not belong to the others, and how it shows.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/gguf.h"
#include "model/gguf_disk.h"
#include "model/gguf_parse.h"

namespace shoal {

// One file of a set. Views in `header` point into `bytes`.
struct GgufPart {
  std::string name;  // printable
  std::vector<std::byte> bytes;
  GgufHeader header;
  uint64_t file_size = 0;
  std::unique_ptr<DiskFile> disk;  // null: header only
};

class GgufSet final : public GgufFile {
 public:
  // Parts in order. Checks that they belong together (split.* keys, common metadata, tensor names).
  static Result<std::shared_ptr<const GgufFile>> Join(std::string name, std::vector<GgufPart> parts);

  const GgufValue* Find(std::string_view key) const override { return parts_[0].header.Find(key); }
  std::vector<std::string_view> Keys() const override;
  std::span<const TensorInfo> tensors() const override { return tensors_; }
  const TensorInfo* FindTensor(std::string_view name) const override;
  int version() const override { return parts_[0].header.version; }
  int file_count() const override { return static_cast<int>(parts_.size()); }
  const std::string& name() const override { return name_; }
  std::vector<std::string> warnings() const override { return warnings_; }
  Header header(int file) const override;
  Status Read(const TensorRange& range, std::span<std::byte> out) const override;

 private:
  GgufSet(std::string name, std::vector<GgufPart> parts) : name_(std::move(name)), parts_(std::move(parts)) {}
  Status CheckTogether();
  Status CheckCommonKeys(const GgufPart& part) const;
  Status JoinTensors();
  Status ReadPieces(const DiskFile& disk, uint64_t at, const TensorRange& range, std::span<std::byte> out) const;

  const std::string name_;
  std::vector<GgufPart> parts_;
  std::vector<TensorInfo> tensors_;
  std::vector<uint32_t> by_name_;  // indices of tensors_, sorted by name
  std::vector<std::string> warnings_;
};

}  // namespace shoal
