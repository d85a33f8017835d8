#include "net/frame.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "core/reasons.h"

namespace shoal {
namespace {

using Payload = std::vector<std::byte>;

Payload MakePayload(size_t bytes, int salt) {
  Payload payload(bytes);
  for (size_t i = 0; i < bytes; ++i) payload[i] = static_cast<std::byte>(i * 7 + static_cast<size_t>(salt));
  return payload;
}

Payload Framed(const Payload& payload, uint32_t sequence, uint64_t seed) {
  Payload frame(kFrameHeaderBytes);
  frame.insert(frame.end(), payload.begin(), payload.end());
  SealFrame(frame, sequence, seed);
  return frame;
}

// Feeds `stream` in pieces of at most `piece` bytes; the payloads that come out, or the error.
Result<std::vector<Payload>> Feed(FrameReader& reader, std::span<const std::byte> stream, size_t piece) {
  std::vector<Payload> payloads;
  while (true) {
    SHOAL_ASSIGN(const auto next, reader.Next());
    if (next) {
      payloads.emplace_back(next->begin(), next->end());
      continue;
    }
    if (stream.empty()) return payloads;
    SHOAL_ASSIGN(const auto space, reader.Space());
    EXPECT_FALSE(space.empty());
    const size_t step = std::min({piece, space.size(), stream.size()});
    std::memcpy(space.data(), stream.data(), step);
    reader.Took(step);
    stream = stream.subspan(step);
  }
}

TEST(Frame, RoundTripsInPiecesOfAnySize) {
  for (size_t piece : {1u, 2u, 23u, 24u, 25u, 1000u, 1u << 20}) {
    FrameReader reader;
    reader.Trust(77);
    Payload stream;
    std::vector<Payload> wanted;
    for (uint32_t i = 0; i < 6; ++i) {
      wanted.push_back(MakePayload(i == 4 ? 200'000 : 1 + i * 13, static_cast<int>(i)));
      const Payload frame = Framed(wanted.back(), i, 77);
      stream.insert(stream.end(), frame.begin(), frame.end());
    }
    const auto got = Feed(reader, stream, piece);
    ASSERT_TRUE(got.has_value()) << ToString(got.error());
    EXPECT_EQ(*got, wanted) << piece;
    EXPECT_EQ(reader.buffered(), 0u);
    EXPECT_FALSE(reader.has_frame());
  }
}

TEST(Frame, BeforeTrustNothingAfterTheFrameIsTaken) {
  FrameReader reader;
  const Payload frame = Framed(MakePayload(100, 1), 0, 0);
  size_t at = 0;
  while (true) {
    const auto next = reader.Next();
    ASSERT_TRUE(next.has_value());
    if (*next) break;
    const auto space = reader.Space();
    ASSERT_TRUE(space.has_value());
    ASSERT_LE(at + space->size(), frame.size());
    std::memcpy(space->data(), frame.data() + at, space->size());
    reader.Took(space->size());
    at += space->size();
  }
  EXPECT_EQ(at, frame.size());
}

TEST(Frame, EveryFlippedBitIsSeen) {
  const Payload frame = Framed(MakePayload(40, 3), 0, 5);
  for (size_t bit = 0; bit < frame.size() * 8; ++bit) {
    Payload flipped = frame;
    flipped[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    FrameReader reader;
    reader.Trust(5);
    const auto got = Feed(reader, flipped, 1 << 20);
    // A longer length makes the reader wait for more; everything else is an error at once.
    if (got) {
      EXPECT_TRUE(bit / 8 >= 4 && bit / 8 < 8 && got->empty()) << bit;
    } else {
      EXPECT_EQ(got.error().reason, reasons::kBadFrame);
    }
  }
}

TEST(Frame, LengthsAreCheckedBeforeRoomIsMade) {
  for (const bool trusted : {false, true}) {
    for (const uint32_t length : {0u, 0xffffffffu, trusted ? limits::kMaxFrameBytes + 1 : kMaxHandshakeBytes + 1}) {
      Payload frame = Framed(MakePayload(8, 1), 0, 9);
      std::memcpy(frame.data() + 4, &length, sizeof length);
      FrameReader reader;
      if (trusted) reader.Trust(9);
      const auto got = Feed(reader, frame, 1 << 20);
      ASSERT_FALSE(got.has_value());
      EXPECT_EQ(got.error().reason, reasons::kBadFrame);
      EXPECT_FALSE(reader.Space().has_value());  // and it stays failed
      EXPECT_TRUE(reader.has_frame());
    }
  }
  // A length that is allowed but not sent makes only as much room as what came.
  Payload frame = Framed(MakePayload(8, 1), 0, 9);
  std::memcpy(frame.data() + 4, &limits::kMaxFrameBytes, sizeof(uint32_t));
  FrameReader reader;
  reader.Trust(9);
  ASSERT_TRUE(Feed(reader, frame, 1 << 20).has_value());
  const auto space = reader.Space();
  ASSERT_TRUE(space.has_value());
  EXPECT_LT(space->size(), 1u << 20);
}

TEST(Frame, SequenceSeedAndOrderMatter) {
  const Payload payload = MakePayload(10, 1);
  const auto fails = [](std::initializer_list<Payload> frames) {
    FrameReader reader;
    reader.Trust(1);
    Payload stream;
    for (const Payload& frame : frames) stream.insert(stream.end(), frame.begin(), frame.end());
    return !Feed(reader, stream, 1 << 20).has_value();
  };
  EXPECT_FALSE(fails({Framed(payload, 0, 1), Framed(payload, 1, 1)}));
  EXPECT_TRUE(fails({Framed(payload, 0, 1), Framed(payload, 0, 1)}));  // played again
  EXPECT_TRUE(fails({Framed(payload, 0, 1), Framed(payload, 2, 1)}));  // one is missing
  EXPECT_TRUE(fails({Framed(payload, 0, 2)}));                         // of another session
}

TEST(Frame, ForeignProtocolsAreSeenAtTheFirstBytes) {
  for (const std::string_view text : {"GET / HTTP/1.1\r\n", "\x16\x03\x01\x02", "S", "\xff\xff\xff\xff", "SSH-2.0"}) {
    FrameReader reader;
    const auto got = Feed(reader, std::as_bytes(std::span(text.data(), text.size())), 1);
    EXPECT_EQ(got.has_value(), text == "S");  // our own first letter may yet become a frame
  }
}

TEST(Frame, RandomBytesNeverBreakTheReader) {
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    Payload stream = Framed(MakePayload(1 + random() % 60, 1), 0, 0);
    const Payload second = Framed(MakePayload(1 + random() % 60, 2), 1, 0);
    stream.insert(stream.end(), second.begin(), second.end());
    for (int flips = static_cast<int>(random() % 4); flips > 0; --flips)
      stream[random() % stream.size()] = static_cast<std::byte>(random());
    stream.resize(random() % (stream.size() + 1));
    FrameReader reader;
    if (random() % 2 == 0) reader.Trust(0);
    (void)Feed(reader, stream, 1 + random() % 50);
  }
}

}  // namespace
}  // namespace shoal
