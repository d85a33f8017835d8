#include "model/gguf_disk.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <format>
#include <system_error>

#include "core/reasons.h"
#include "model/printable.h"

namespace shoal {
namespace {

std::string_view KindOf(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  if (S_ISSOCK(mode)) return "a socket";
  return "something else";
}

std::string Words(int number) { return std::generic_category().message(number); }

}  // namespace

Result<std::unique_ptr<DiskFile>> DiskFile::Open(const std::filesystem::path& path) {
  const std::string name = Printable(path.string(), 4096);
  // O_NONBLOCK: opening a pipe must not wait for its writer. It means nothing for regular files.
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor < 0) {
    const int number = errno;
    if (number == ENOENT || number == ENOTDIR) {
      return Fail(Code::kNotFound, reasons::kModelNotFound, std::format("{}: there is no such file", name),
                  Words(number));
    }
    if (number == ENXIO || number == ENODEV) {
      return Fail(Code::kUnsupported, reasons::kUnsupportedFormat, std::format("{}: not a regular file", name),
                  Words(number));
    }
    return Fail(Code::kNotFound, reasons::kModelNotFound, std::format("{}: cannot be opened: {}", name, Words(number)),
                std::format("errno {}", number));
  }
  struct stat stat = {};
  if (fstat(descriptor, &stat) != 0) {
    const int number = errno;
    close(descriptor);
    return Fail(Code::kInternal, reasons::kIo, std::format("{}: fstat failed: {}", name, Words(number)));
  }
  if (!S_ISREG(stat.st_mode)) {
    close(descriptor);
    return Fail(Code::kUnsupported, reasons::kUnsupportedFormat,
                std::format("{}: {}, not a file", name, KindOf(stat.st_mode)));
  }
  return std::unique_ptr<DiskFile>(new DiskFile(name, descriptor, stat));
}

DiskFile::~DiskFile() { close(descriptor_); }

std::unexpected<Error> DiskFile::IoError(std::string_view what, int number) const {
  return Fail(Code::kUnavailable, reasons::kIo, std::format("{}: {}", name_, what),
              number == 0 ? std::string() : Words(number));
}

Status DiskFile::ReadAt(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t got =
        pread(descriptor_, out.data(), std::min<size_t>(out.size(), 1u << 30), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return IoError("reading failed", errno);
    if (got == 0) return IoError("the file became shorter while it was read", 0);
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return {};
}

Status DiskFile::CheckUnchanged() const {
  struct stat now = {};
  if (fstat(descriptor_, &now) != 0) return IoError("fstat failed", errno);
  if (now.st_size < stat_.st_size) return IoError("the file became shorter while it was in use", 0);
  if (now.st_size != stat_.st_size || now.st_mtim.tv_sec != stat_.st_mtim.tv_sec ||
      now.st_mtim.tv_nsec != stat_.st_mtim.tv_nsec) {
    return IoError("the file was changed while it was in use; start again to load it anew", 0);
  }
  return {};
}

}  // namespace shoal
