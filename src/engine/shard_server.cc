#include "engine/shard_server.h"

#include <algorithm>
#include <string>
#include <vector>

#include "core/limits.h"
#include "core/reasons.h"
#include "engine/sent_error.h"
#include "net/codec.h"
#include "net/wire.pb.h"

namespace shoal {
namespace {

std::unexpected<Error> BadRead(const std::string& what) {
  return Fail(Code::kInvalidArgument, reasons::kBadFrame, "a worker asked for " + what);
}

// Sends `length` bytes in chunks; Fill(offset, out) puts them there.
template <class FillFn>
Status SendBytes(Link& link, uint64_t request, uint64_t length, const std::function<void(uint64_t)>& sent,
                 FillFn&& fill) {
  uint64_t at = 0;
  do {
    wire::Message message;
    auto& bytes = *message.mutable_bytes();
    const uint64_t size = std::min<uint64_t>(length - at, kMaxChunkBytes);
    bytes.mutable_data()->resize(size);
    SHOAL_RETURN_IF_ERROR(fill(at, std::as_writable_bytes(std::span(*bytes.mutable_data()))));
    bytes.set_request(request);
    bytes.set_offset(at);
    at += size;
    bytes.set_last(at == length);
    SHOAL_RETURN_IF_ERROR(link.Send(message, Deadline::After(limits::kLoadTimeout)));
    sent(size);
  } while (at < length);
  return {};
}

Status AnswerHeader(Link& link, const GgufFile& file, const wire::ReadHeader& read,
                    const std::function<void(uint64_t)>& sent) {
  SHOAL_RETURN_IF_ERROR(CheckReadHeader(read));  // from here on the sum below cannot overflow
  if (read.file() >= static_cast<uint32_t>(file.file_count())) return BadRead("a file that the model does not have");
  const auto header = file.header(static_cast<int>(read.file())).bytes;
  if (read.offset() + read.length() > header.size()) return BadRead("bytes beyond the header");
  return SendBytes(link, read.request(), read.length(), sent, [&](uint64_t at, std::span<std::byte> out) -> Status {
    std::ranges::copy(header.subspan(read.offset() + at, out.size()), out.begin());
    return {};
  });
}

// A strided read is answered piece by piece: chunk boundaries fall anywhere, so each chunk is gathered from whole or partial pieces.
Status AnswerTensor(Link& link, const GgufFile& file, const wire::ReadTensor& read,
                    const std::function<void(uint64_t)>& sent) {
  SHOAL_RETURN_IF_ERROR(CheckReadTensor(read));  // from here on the sums below cannot overflow
  if (read.tensor() >= file.tensors().size()) return BadRead("a tensor that the model does not have");
  const TensorInfo& tensor = file.tensors()[read.tensor()];
  const uint64_t length = read.length();
  if (read.offset() + (read.count() - 1) * read.stride() + length > tensor.bytes)
    return BadRead("bytes beyond tensor " + tensor.name);
  return SendBytes(
      link, read.request(), length * read.count(), sent, [&](uint64_t at, std::span<std::byte> out) -> Status {
        while (!out.empty()) {
          const uint64_t piece = at / length;
          const uint64_t within = at % length;
          TensorRange range{read.tensor(), read.offset() + piece * read.stride() + within, length - within, 0, 1};
          if (within == 0 && out.size() >= length) {  // as many whole pieces as fit, in one call
            range.count = out.size() / length;
            range.stride = read.stride();
          }
          range.length = std::min<uint64_t>(range.length, out.size());
          SHOAL_RETURN_IF_ERROR(file.Read(range, out.first(range.bytes())));
          at += range.bytes();
          out = out.subspan(range.bytes());
        }
        return {};
      });
}

Status RefuseRead(Link& link, uint64_t request, const Error& error) {
  wire::Message message;
  EncodeError(error, message.mutable_failed()->mutable_error());
  message.mutable_failed()->set_request(request);
  return link.Send(message, Deadline::After(limits::kLoadTimeout));
}

}  // namespace

Result<LoadedShard> ServeShard(Link& link, const GgufFile& file, const std::function<void(uint64_t)>& sent) {
  for (;;) {
    SHOAL_ASSIGN(const wire::Message message, link.Receive(Deadline::After(limits::kLoadTimeout)));
    Status answered;
    uint64_t request = 0;
    if (message.has_loaded()) return LoadedShard{message.loaded().weight_bytes(), message.loaded().kv_bytes()};
    if (message.has_failed()) return std::unexpected(SentError(message.failed()));
    if (message.has_read_header()) {
      request = message.read_header().request();
      answered = AnswerHeader(link, file, message.read_header(), sent);
    } else if (message.has_read_tensor()) {
      request = message.read_tensor().request();
      answered = AnswerTensor(link, file, message.read_tensor(), sent);
    } else {
      return Fail(Code::kCorrupt, reasons::kBadFrame, "a worker sent something that does not belong to a load");
    }
    if (!answered) {
      (void)RefuseRead(link, request,
                       answered.error());  // it may be gone already; the first error is the one that counts
      return std::unexpected(answered.error());
    }
  }
}

}  // namespace shoal
