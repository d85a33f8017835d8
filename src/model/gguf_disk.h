// What: one model file on disk, opened once and read with pread: a file that shrinks is an error, where a mapping would end
// the process with SIGBUS.
// Owns: the descriptor.
// Threads: immutable after opening; ReadAt from any thread.
// Fails: kModelNotFound, kUnsupportedFormat (not a regular file), kIo.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"

namespace shoal {

class DiskFile {
 public:
  // A symbolic link is followed (download caches are made of them), but what is opened must be a regular
  // file: a directory, device, pipe or socket is refused, without waiting on it.
  static Result<std::unique_ptr<DiskFile>> Open(const std::filesystem::path& path);
  ~DiskFile();
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;

  uint64_t size() const { return static_cast<uint64_t>(stat_.st_size); }
  const std::string& name() const { return name_; }  // printable
  Status ReadAt(uint64_t offset, std::span<std::byte> out) const;
  // kIo when the file is not what it was when it was opened (size or time of change).
  Status CheckUnchanged() const;

 private:
  DiskFile(std::string name, int descriptor, const struct stat& stat)
      : name_(std::move(name)), descriptor_(descriptor), stat_(stat) {}
  std::unexpected<Error> IoError(std::string_view what, int number) const;

  const std::string name_;
  const int descriptor_;
  const struct stat stat_;
};

}  // namespace shoal
