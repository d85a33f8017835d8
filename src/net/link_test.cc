#include "net/link.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <thread>

#include "core/reasons.h"
#include "net/wire.pb.h"

namespace shoal {
namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(30)); }
Deadline InMillis(int n) { return Deadline::After(std::chrono::milliseconds(n)); }

// Two ends of a link, trusted as after a handshake.
std::pair<Link, Link> LinkPair(bool trusted = true) {
  auto listener = Listener::Open("127.0.0.1", 0);
  EXPECT_TRUE(listener.has_value());
  auto near = Link::Dial("127.0.0.1", listener->port(), Soon());
  EXPECT_TRUE(near.has_value());
  auto far = listener->Accept(Soon());
  EXPECT_TRUE(far.has_value());
  if (trusted) {
    near->Trust(42);
    far->Trust(42);
  }
  return {std::move(*near), std::move(*far)};
}

wire::Message Ping(uint64_t number) {
  wire::Message message;
  message.mutable_ping()->set_number(number);
  return message;
}

TEST(Link, MessagesArriveInOrder) {
  auto [near, far] = LinkPair();
  for (uint64_t i = 0; i < 100; ++i) ASSERT_TRUE(near.Send(Ping(i), Soon()).has_value());
  for (uint64_t i = 0; i < 100; ++i) {
    const auto message = far.Receive(Soon());
    ASSERT_TRUE(message.has_value()) << ToString(message.error());
    EXPECT_EQ(message->ping().number(), i);
    // What was read ahead is told, so that nobody sleeps in poll beside it.
    pollfd waiting{far.fd(), POLLIN, 0};
    EXPECT_TRUE(i + 1 == 100 || far.has_buffered() || ::poll(&waiting, 1, 0) == 1);
  }
  EXPECT_FALSE(far.has_buffered());
}

TEST(Link, LongMessagesBothWaysAtOnce) {
  auto [near, far] = LinkPair();
  wire::Message message;
  message.mutable_bytes()->set_data(std::string(20 << 20, 'x'));
  std::thread sender([&] { EXPECT_TRUE(near.Send(message, Soon()).has_value()); });
  std::thread other_sender([&] { EXPECT_TRUE(far.Send(message, Soon()).has_value()); });
  std::thread receiver([&] { EXPECT_EQ(near.Receive(Soon())->bytes().data().size(), size_t{20} << 20); });
  EXPECT_EQ(far.Receive(Soon())->bytes().data(), message.bytes().data());
  sender.join();
  other_sender.join();
  receiver.join();
}

TEST(Link, TooLongAMessageIsRefusedAndTheLinkLivesOn) {
  auto [near, far] = LinkPair();
  wire::Message message;
  message.mutable_bytes()->set_data(std::string(limits::kMaxFrameBytes, 'x'));
  EXPECT_EQ(near.Send(message, Soon()).error().code, Code::kResourceExhausted);
  EXPECT_TRUE(near.Send(Ping(1), Soon()).has_value());
  EXPECT_EQ(far.Receive(Soon())->ping().number(), 1u);
}

TEST(Link, ADeadlineLeavesTheLinkWhole) {
  auto [near, far] = LinkPair();
  EXPECT_EQ(far.Receive(InMillis(5)).error().reason, reasons::kPeerTimeout);
  far.SetSpin(std::chrono::microseconds(200));
  EXPECT_EQ(far.Receive(InMillis(5)).error().reason, reasons::kPeerTimeout);
  EXPECT_TRUE(near.Send(Ping(7), Soon()).has_value());
  EXPECT_EQ(far.Receive(Soon())->ping().number(), 7u);
}

TEST(Link, AReaderThatDoesNotReadEndsInADeadline) {
  auto [near, far] = LinkPair();
  wire::Message message;
  message.mutable_bytes()->set_data(std::string(60 << 20, 'x'));
  EXPECT_EQ(near.Send(message, InMillis(20)).error().reason, reasons::kPeerTimeout);
  EXPECT_TRUE(near.closed());
  EXPECT_EQ(near.Send(Ping(1), Soon()).error().reason, reasons::kGroupClosed);
  EXPECT_EQ(far.Receive(Soon()).error().reason, reasons::kPeerLost);  // half a frame, then the end
}

TEST(Link, AHalfFrameAndThenSilence) {
  auto [near, far] = LinkPair();
  std::vector<std::byte> frame(kFrameHeaderBytes + 10);
  SealFrame(frame, 0, 42);
  ASSERT_EQ(::send(near.fd(), frame.data(), 30, 0), 30);
  EXPECT_EQ(far.Receive(InMillis(5)).error().reason, reasons::kPeerTimeout);
}

TEST(Link, TheEndOfThePeerIsSeenAtOnce) {
  auto [near, far] = LinkPair();
  {
    const Link gone = std::move(near);
  }
  EXPECT_EQ(far.Receive(Soon()).error().reason, reasons::kPeerLost);
  EXPECT_EQ(far.Receive(Soon()).error().reason, reasons::kGroupClosed);
}

TEST(Link, ShutdownWakesTheReceiver) {
  auto [near, far] = LinkPair();
  std::thread closer([&far = far] { far.Shutdown(); });
  EXPECT_EQ(far.Receive(Soon()).error().reason, reasons::kGroupClosed);
  closer.join();
  EXPECT_EQ(near.Receive(Soon()).error().reason, reasons::kPeerLost);
}

TEST(Link, BytesThatAreNoMessageEndTheLink) {
  auto [near, far] = LinkPair();
  std::vector<std::byte> frame(kFrameHeaderBytes + 10, std::byte{0xff});  // a sealed frame around no protobuf
  SealFrame(frame, 0, 42);
  ASSERT_EQ(::send(near.fd(), frame.data(), frame.size(), 0), static_cast<ssize_t>(frame.size()));
  EXPECT_EQ(far.Receive(Soon()).error().reason, reasons::kBadFrame);
  EXPECT_TRUE(far.closed());
}

TEST(Link, PlainTextStaysOnThisMachine) {
  EXPECT_EQ(Listener::Open("0.0.0.0", 0).error().reason, reasons::kBadConfig);
  EXPECT_EQ(Listener::Open("", 0).error().reason, reasons::kBadConfig);
  EXPECT_EQ(Link::Dial("192.0.2.1", 9, Soon()).error().reason, reasons::kBadConfig);
  EXPECT_TRUE(Listener::Open("0.0.0.0", 0, Exposure::kInsecure).has_value());
  EXPECT_TRUE(Listener::Open("localhost", 0).has_value());
}

TEST(Link, NobodyListening) {
  uint16_t port = 0;
  {
    auto listener = Listener::Open("127.0.0.1", 0);
    port = listener->port();
  }
  const auto link = Link::Dial("127.0.0.1", port, Soon());
  EXPECT_EQ(link.error().reason, reasons::kPeerLost);
  EXPECT_NE(link.error().message.find(std::to_string(port)), std::string::npos);
}

TEST(Listener, ShutdownWakesAccept) {
  auto listener = Listener::Open("127.0.0.1", 0);
  std::thread closer([&] { listener->Shutdown(); });
  EXPECT_EQ(listener->Accept(Soon()).error().reason, reasons::kShuttingDown);
  closer.join();
  EXPECT_EQ(listener->Accept(InMillis(1)).error().reason, reasons::kShuttingDown);
}

TEST(Address, Parsing) {
  EXPECT_EQ(ParseAddress("127.0.0.1:7463")->port, 7463);
  EXPECT_EQ(ParseAddress("[::1]:80")->host, "::1");
  EXPECT_EQ(ToString(*ParseAddress("[::1]:80")), "[::1]:80");
  EXPECT_EQ(ParseAddress("head.example:1")->host, "head.example");
  for (const char* bad : {"", "host", ":1", "host:", "host:65536", "host:-1", "host:1x", "::1:80", "a:b:1"})
    EXPECT_FALSE(ParseAddress(bad).has_value()) << bad;
}

}  // namespace
}  // namespace shoal
