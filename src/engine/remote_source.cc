#include "engine/remote_source.h"

#include <cstring>

#include "core/limits.h"
#include "core/reasons.h"
#include "engine/sent_error.h"
#include "net/codec.h"
#include "net/wire.pb.h"

namespace shoal {

Status RemoteSource::Read(const TensorRange& range, std::span<std::byte> out) {
  if (out.empty()) return {};
  std::lock_guard lock(mutex_);
  wire::Message message;
  auto& read = *message.mutable_read_tensor();
  read.set_request(next_request_++);
  read.set_tensor(range.tensor);
  read.set_offset(range.offset);
  read.set_length(range.length);
  read.set_stride(range.stride);
  read.set_count(range.count);
  SHOAL_RETURN_IF_ERROR(link_.Send(message, Deadline::After(limits::kLoadTimeout)));
  return ReceiveBytes(read.request(), out);
}

Status RemoteSource::ReadHeader(uint32_t file, uint64_t offset, std::span<std::byte> out) {
  if (out.empty()) return {};
  std::lock_guard lock(mutex_);
  wire::Message message;
  auto& read = *message.mutable_read_header();
  read.set_request(next_request_++);
  read.set_file(file);
  read.set_offset(offset);
  read.set_length(out.size());
  SHOAL_RETURN_IF_ERROR(link_.Send(message, Deadline::After(limits::kLoadTimeout)));
  return ReceiveBytes(read.request(), out);
}

Status RemoteSource::ReceiveBytes(uint64_t request, std::span<std::byte> out) {
  uint64_t have = 0;
  for (;;) {
    SHOAL_ASSIGN(const wire::Message message, link_.Receive(Deadline::After(limits::kLoadTimeout)));
    if (message.has_failed()) return std::unexpected(SentError(message.failed()));
    if (message.has_goodbye())
      return Fail(Code::kCancelled, reasons::kCancelled, "the head ended while this worker was loading");
    const auto& bytes = message.bytes();
    // A piece is never empty, so that every one brings the answer nearer to its end.
    const bool sound = message.has_bytes() && CheckBytes(bytes) && bytes.request() == request &&
                       bytes.offset() == have && bytes.data().size() <= out.size() - have &&
                       bytes.last() == (have + bytes.data().size() == out.size());
    if (!sound) return Fail(Code::kCorrupt, reasons::kBadFrame, "the head answered a read with something else");
    std::memcpy(out.data() + have, bytes.data().data(), bytes.data().size());
    have += bytes.data().size();
    if (bytes.last()) break;
  }
  bytes_read_ += out.size();
  return {};
}

}  // namespace shoal
