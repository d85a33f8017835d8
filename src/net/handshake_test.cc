#include "net/handshake.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <thread>

#include "core/reasons.h"
#include "net/wire.pb.h"

namespace shoal {
namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(30)); }

struct Ends {
  Link dialer;
  Link listener;
};
Ends Connect() {
  auto listener = Listener::Open("127.0.0.1", 0);
  auto near = Link::Dial("127.0.0.1", listener->port(), Soon());
  auto far = listener->Accept(Soon());
  EXPECT_TRUE(near.has_value() && far.has_value());
  return {std::move(*near), std::move(*far)};
}

const Claim kHeadClaim{.role = Role::kHead, .cluster = "c1"};
const Claim kWorkerClaim{.role = Role::kWorker};

struct Outcome {
  Result<Claim> dialer;
  Result<Claim> listener;
};
Outcome Shake(Ends& ends, const std::string& dialer_secret, const Claim& dialer, const std::string& listener_secret,
              const Claim& listener) {
  Result<Claim> dialed = Fail(Error{});
  std::thread thread([&] { dialed = ShakeHandsDialing(ends.dialer, dialer_secret, dialer, Soon()); });
  auto accepted = ShakeHandsAccepting(ends.listener, listener_secret, listener, Soon());
  thread.join();
  return {std::move(dialed), std::move(accepted)};
}

void ExpectReason(const Outcome& outcome, Reason reason) {
  ASSERT_FALSE(outcome.dialer.has_value());
  ASSERT_FALSE(outcome.listener.has_value());
  EXPECT_EQ(outcome.dialer.error().reason, reason) << ToString(outcome.dialer.error());
  EXPECT_EQ(outcome.listener.error().reason, reason) << ToString(outcome.listener.error());
}

TEST(Handshake, BothSidesLearnWhoTheOtherIs) {
  auto ends = Connect();
  const auto outcome = Shake(ends, "token", kWorkerClaim, "token", kHeadClaim);
  ASSERT_TRUE(outcome.dialer.has_value()) << ToString(outcome.dialer.error());
  ASSERT_TRUE(outcome.listener.has_value()) << ToString(outcome.listener.error());
  EXPECT_EQ(outcome.dialer->cluster, "c1");
  EXPECT_EQ(outcome.listener->role, Role::kWorker);
  // Long frames are fine from now on, both ways.
  wire::Message message;
  message.mutable_bytes()->set_data(std::string(100'000, 'x'));
  std::thread sender([&] { EXPECT_TRUE(ends.dialer.Send(message, Soon()).has_value()); });
  EXPECT_EQ(ends.listener.Receive(Soon())->bytes().data().size(), 100'000u);
  sender.join();
}

TEST(Handshake, AnotherTokenIsBadTokenOnBothSides) {
  auto ends = Connect();
  ExpectReason(Shake(ends, "token", kWorkerClaim, "tokem", kHeadClaim), reasons::kBadToken);
}

TEST(Handshake, BothSidesNameBothVersions) {
  auto ends = Connect();
  const auto outcome =
      Shake(ends, "token", {.role = Role::kWorker, .protocol = 7}, "token", {.role = Role::kHead, .protocol = 8});
  ExpectReason(outcome, reasons::kVersionMismatch);
  for (const auto* side : {&outcome.dialer, &outcome.listener}) {
    EXPECT_NE(side->error().detail.find("dialer 7"), std::string::npos) << side->error().detail;
    EXPECT_NE(side->error().detail.find("listener 8"), std::string::npos);
  }
}

TEST(Handshake, OtherClustersRolesAndEpochsAreRefused) {
  {
    auto ends = Connect();
    ExpectReason(Shake(ends, "t", {.role = Role::kWorker, .cluster = "c2"}, "t", kHeadClaim), reasons::kBadHandshake);
  }
  {
    auto ends = Connect();
    ExpectReason(Shake(ends, "t", kHeadClaim, "t", kHeadClaim), reasons::kBadHandshake);
  }
  {
    auto ends = Connect();
    ExpectReason(Shake(ends, "t", {.role = Role::kRank, .rank = 1, .epoch = 4}, "t", {.role = Role::kRank, .epoch = 5}),
                 reasons::kStaleEpoch);
  }
  {
    auto ends = Connect();
    ExpectReason(Shake(ends, "t", {.role = Role::kRank, .rank = limits::kMaxRanks}, "t", {.role = Role::kRank}),
                 reasons::kBadHandshake);
  }
}

// Everything the listener sends until it hangs up.
std::string AnswersTo(const std::string& bytes, bool then_close = false) {
  auto ends = Connect();
  EXPECT_EQ(::send(ends.dialer.fd(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  if (then_close) ::shutdown(ends.dialer.fd(), SHUT_WR);
  const auto claim =
      ShakeHandsAccepting(ends.listener, "token", kHeadClaim, Deadline::After(std::chrono::milliseconds(50)));
  EXPECT_FALSE(claim.has_value());
  std::string got(100'000, '\0');
  size_t have = 0;
  while (WaitFor(ends.dialer.fd(), 1 /* POLLIN */, Soon())) {
    const ssize_t n = ::recv(ends.dialer.fd(), got.data() + have, got.size() - have, 0);
    if (n <= 0) break;
    have += static_cast<size_t>(n);
  }
  got.resize(have);
  return got;
}

TEST(Handshake, StrangersGetNoAnswer) {
  EXPECT_EQ(AnswersTo("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), "");
  EXPECT_EQ(AnswersTo(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + std::string(200, 'r')), "");
  EXPECT_EQ(AnswersTo(std::string(1000, '\0')), "");
  EXPECT_EQ(AnswersTo(""), "");                   // silence until the deadline
  EXPECT_EQ(AnswersTo("", true), "");             // connect and close
  EXPECT_EQ(AnswersTo("SHL1"), "");               // the right beginning and no more
  std::string frame(kFrameHeaderBytes + 5, 'z');  // a sealed frame that holds no message
  SealFrame(std::as_writable_bytes(std::span(frame.data(), frame.size())), 0, 0);
  EXPECT_EQ(AnswersTo(frame), "");
  wire::Message ping;  // a message, but not the first one of a handshake
  ping.mutable_ping()->set_number(1);
  frame = std::string(kFrameHeaderBytes, '\0') + ping.SerializeAsString();
  SealFrame(std::as_writable_bytes(std::span(frame.data(), frame.size())), 0, 0);
  EXPECT_EQ(AnswersTo(frame), "");
}

// Carries bytes between two sockets until one side ends, and keeps what the first one said.
std::string Relay(int a, int b) {
  std::string recorded;
  char buffer[4096];
  for (bool open = true; open;) {
    open = false;
    for (const auto& [from, to] : {std::pair(a, b), std::pair(b, a)}) {
      const ssize_t n = ::recv(from, buffer, sizeof buffer, MSG_DONTWAIT);
      if (n > 0) {
        if (from == a) recorded.append(buffer, static_cast<size_t>(n));
        // One byte at a time: frames must not depend on how they are cut.
        for (ssize_t i = 0; i < n; ++i) EXPECT_EQ(::send(to, buffer + i, 1, MSG_NOSIGNAL), 1);
      }
      if (n > 0 || (n < 0 && errno == EAGAIN)) open = true;
    }
  }
  return recorded;
}

TEST(Handshake, ARecordedDialerCannotBePlayedAgain) {
  std::string recorded;
  {
    auto left = Connect();   // dialer to relay
    auto right = Connect();  // relay to listener
    std::thread dialer([&] {
      EXPECT_TRUE(ShakeHandsDialing(left.dialer, "token", kWorkerClaim, Soon()).has_value());
      left.dialer.Shutdown();
    });
    std::thread listener([&] {
      EXPECT_TRUE(ShakeHandsAccepting(right.listener, "token", kHeadClaim, Soon()).has_value());
      right.listener.Shutdown();
    });
    recorded = Relay(left.listener.fd(), right.dialer.fd());
    dialer.join();
    listener.join();
  }
  auto ends = Connect();
  ASSERT_EQ(::send(ends.dialer.fd(), recorded.data(), recorded.size(), 0), static_cast<ssize_t>(recorded.size()));
  EXPECT_EQ(ShakeHandsAccepting(ends.listener, "token", kHeadClaim, Soon()).error().reason, reasons::kBadToken);
}

TEST(Handshake, ADialerCannotBeMadeToTalkToItself) {
  auto left = Connect();
  // Whatever it says comes back to it.
  std::thread mirror([&] {
    char buffer[4096];
    while (WaitFor(left.listener.fd(), 1 /* POLLIN */, Soon())) {
      const ssize_t n = ::recv(left.listener.fd(), buffer, sizeof buffer, 0);
      if (n <= 0) break;
      (void)::send(left.listener.fd(), buffer, static_cast<size_t>(n), MSG_NOSIGNAL);
    }
  });
  const auto claim = ShakeHandsDialing(left.dialer, "token", {.role = Role::kRank}, Soon());
  EXPECT_EQ(claim.error().reason, reasons::kBadHandshake);
  mirror.join();
}

TEST(Handshake, AListenerWithoutTheTokenIsNotTrusted) {
  // It answers the challenge with a proof of its own making.
  auto ends = Connect();
  std::thread impostor([&] {
    EXPECT_TRUE(ends.listener.Receive(Soon())->has_hello());
    wire::Message challenge;
    challenge.mutable_challenge()->set_nonce(std::string(32, 'n'));
    challenge.mutable_challenge()->mutable_claim()->set_protocol(kWireProtocol);
    challenge.mutable_challenge()->mutable_claim()->set_role(static_cast<uint32_t>(Role::kHead));
    EXPECT_TRUE(ends.listener.Send(challenge, Soon()).has_value());
    auto proof = ends.listener.Receive(Soon());
    ASSERT_TRUE(proof.has_value() && proof->has_proof());
    EXPECT_TRUE(ends.listener.Send(*proof, Soon()).has_value());  // reflected: the dialer's own proof
  });
  EXPECT_EQ(ShakeHandsDialing(ends.dialer, "token", kWorkerClaim, Soon()).error().reason, reasons::kBadToken);
  impostor.join();
}

TEST(Handshake, SecretsAreFreshAndComparedWhole) {
  EXPECT_EQ(NewSecret().size(), kSecretBytes);
  EXPECT_NE(NewSecret(), NewSecret());
  EXPECT_TRUE(SameBytes("abc", "abc"));
  EXPECT_FALSE(SameBytes("abc", "abd"));
  EXPECT_FALSE(SameBytes("abc", "ab"));
}

}  // namespace
}  // namespace shoal
