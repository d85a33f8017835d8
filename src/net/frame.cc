#include "net/frame.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "core/reasons.h"

namespace shoal {
namespace {

static_assert(std::endian::native == std::endian::little, "frame headers are written as they lie in memory");

constexpr uint32_t kMagic = 0x314c4853;  // "SHL1"
constexpr size_t kReadAhead = 64 << 10;

struct Header {
  uint32_t magic = kMagic;
  uint32_t bytes = 0;
  uint32_t sequence = 0;
  uint32_t reserved = 0;
  uint64_t checksum = 0;
};
static_assert(sizeof(Header) == kFrameHeaderBytes);

uint64_t ChecksumOf(const Header& header, std::span<const std::byte> payload, uint64_t seed) {
  const uint64_t inner = XXH3_64bits_withSeed(&header, offsetof(Header, checksum), seed);
  return XXH3_64bits_withSeed(payload.data(), payload.size(), inner);
}

std::unexpected<Error> Bad(std::string detail) {
  return Fail(Code::kCorrupt, reasons::kBadFrame, "a peer sent bytes that are no frame of ours", std::move(detail));
}

}  // namespace

void SealFrame(std::span<std::byte> frame, uint32_t sequence, uint64_t seed) {
  SHOAL_CHECK(frame.size() > kFrameHeaderBytes && frame.size() - kFrameHeaderBytes <= limits::kMaxFrameBytes);
  Header header;
  header.bytes = static_cast<uint32_t>(frame.size() - kFrameHeaderBytes);
  header.sequence = sequence;
  header.checksum = ChecksumOf(header, frame.subspan(kFrameHeaderBytes), seed);
  std::memcpy(frame.data(), &header, sizeof header);
}

void FrameReader::Trust(uint64_t seed) {
  SHOAL_CHECK(buffered() == 0);
  most_payload_ = limits::kMaxFrameBytes;
  seed_ = seed;
  trusted_ = true;
}

Result<std::optional<uint32_t>> FrameReader::PayloadBytes() {
  if (failure_) return Fail(*failure_);
  // The first bytes are enough to see that this is not our protocol: no need to wait for a whole header.
  const size_t seen = std::min(buffered(), sizeof(uint32_t));
  if (seen > 0 && std::memcmp(buffer_.data() + used_, &kMagic, seen) != 0) {
    failure_ = Bad("wrong first bytes").error();
    return Fail(*failure_);
  }
  if (buffered() < kFrameHeaderBytes) return std::nullopt;
  Header header;
  std::memcpy(&header, buffer_.data() + used_, sizeof header);
  if (header.reserved != 0 || header.bytes == 0 || header.bytes > most_payload_ || header.sequence != sequence_) {
    failure_ =
        Bad("length " + std::to_string(header.bytes) + " of at most " + std::to_string(most_payload_) +
            ", sequence number " + std::to_string(header.sequence) + " where " + std::to_string(sequence_) + " is due")
            .error();
    return Fail(*failure_);
  }
  return header.bytes;
}

Result<std::span<std::byte>> FrameReader::Space() {
  SHOAL_ASSIGN(const auto payload, PayloadBytes());
  if (used_ > 0) {  // frames given out make room; what is left of the next one is small or just began
    std::memmove(buffer_.data(), buffer_.data() + used_, buffered());
    have_ -= used_;
    used_ = 0;
  }
  const size_t frame = kFrameHeaderBytes + (payload ? *payload : 0);
  size_t room = trusted_ ? std::max(frame, kReadAhead) : frame;
  // Grow by what has come: twice that, at least the read-ahead.
  if (room > buffer_.size()) room = std::min(room, std::max(kReadAhead, 2 * have_));
  if (room > buffer_.size()) {
    buffer_.resize(room);
  } else if (trusted_) {
    room = buffer_.size();
  }
  SHOAL_CHECK(room > have_);  // a whole frame was there: the caller should have taken it
  return std::span(buffer_).subspan(have_, room - have_);
}

Result<std::optional<std::span<const std::byte>>> FrameReader::Next() {
  SHOAL_ASSIGN(const auto bytes, PayloadBytes());
  if (!bytes || buffered() < kFrameHeaderBytes + *bytes) return std::nullopt;
  Header header;
  std::memcpy(&header, buffer_.data() + used_, sizeof header);
  const std::span<const std::byte> payload = std::span(buffer_).subspan(used_ + kFrameHeaderBytes, *bytes);
  if (ChecksumOf(header, payload, seed_) != header.checksum) {
    failure_ = Bad("the checksum of frame " + std::to_string(sequence_) + " is wrong").error();
    return Fail(*failure_);
  }
  used_ += kFrameHeaderBytes + *bytes;
  ++sequence_;
  return payload;
}

bool FrameReader::has_frame() const {
  if (failure_) return true;
  if (buffered() < kFrameHeaderBytes) return false;
  Header header;
  std::memcpy(&header, buffer_.data() + used_, sizeof header);
  return header.magic != kMagic || header.bytes > most_payload_ || buffered() - kFrameHeaderBytes >= header.bytes;
}

}  // namespace shoal
