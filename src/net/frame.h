// What: frames, the envelopes of messages on a link: 24 bytes of header, then the payload.
//
//     offset  0  "SHL1"                        12  reserved, 0
//             4  payload bytes, u32            16  checksum, u64: xxh3 of the payload, seeded with the xxh3
//             of the 16 8  sequence number, u32              bytes before it, seeded with the session's seed
//
// Numbers are little-endian. Pure: bytes in, payloads out; no socket.
// Threads: a reader belongs to one; SealFrame is pure.
// Limits: a payload is 1..kMaxFrameBytes bytes, kMaxHandshakeBytes until the peer has proved who it is. A
// length is checked before anything is allocated for it, and the buffer grows with the bytes that have come,
// not with those announced.
// Fails: kBadFrame, and the reader stays failed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "core/limits.h"

namespace shoal {

inline constexpr size_t kFrameHeaderBytes = 24;
inline constexpr uint32_t kMaxHandshakeBytes = 4096;

// Writes the header of a frame whose payload follows it in `frame` (frame.size() >= kFrameHeaderBytes + 1).
void SealFrame(std::span<std::byte> frame, uint32_t sequence, uint64_t seed);

class FrameReader {
 public:
  // From now on: larger payloads, the session's checksums, and reading ahead.
  void Trust(uint64_t seed);

  // Where the next bytes of the stream go; never empty. Before Trust it ends with the frame under way, so
  // that no byte of what follows the handshake is swallowed.
  Result<std::span<std::byte>> Space();
  void Took(size_t bytes) { have_ += bytes; }

  // The next whole frame's payload, valid until the next call of Space or Next; empty when there is none yet.
  Result<std::optional<std::span<const std::byte>>> Next();

  bool has_frame() const;  // Next would give one (or an error)
  size_t buffered() const { return have_ - used_; }

 private:
  // The payload size of the frame at `used_`, once its header is there.
  Result<std::optional<uint32_t>> PayloadBytes();

  std::vector<std::byte> buffer_;
  size_t used_ = 0;  // bytes of frames already given out
  size_t have_ = 0;
  uint32_t most_payload_ = kMaxHandshakeBytes;
  uint32_t sequence_ = 0;
  uint64_t seed_ = 0;
  bool trusted_ = false;
  std::optional<Error> failure_;
};

}  // namespace shoal
