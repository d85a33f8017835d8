#include "net/link.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include <utility>

#include "base/check.h"
#include "core/reasons.h"
#include "net/wire.pb.h"

namespace shoal {

struct Link::State {
  explicit State(Fd socket) : fd(std::move(socket)) {}
  Fd fd;
  std::atomic<bool> closed{false};
  // Of the sending thread.
  std::vector<std::byte> out;
  uint32_t sent = 0;
  uint64_t out_seed = 0;
  // Of the receiving thread.
  FrameReader in;
  Nanos spin{0};

  void Shutdown() {
    closed = true;
    if (fd.valid()) ::shutdown(fd.get(), SHUT_RDWR);
  }
  std::unexpected<Error> Closed() const {
    return Fail(Code::kUnavailable, reasons::kGroupClosed, "the link is closed");
  }
  Status Fill(Deadline deadline);
};

Link::Link(Fd fd) : state_(std::make_unique<State>(std::move(fd))) {}
Link::Link(Link&&) noexcept = default;
Link& Link::operator=(Link&&) noexcept = default;
Link::~Link() = default;

Result<Link> Link::Dial(const std::string& host, uint16_t port, Deadline deadline, Exposure exposure) {
  SHOAL_ASSIGN(Fd fd, DialTo({host, port}, deadline, exposure));
  return Link(std::move(fd));
}

Status Link::Send(const wire::Message& message, Deadline deadline) {
  State& state = *state_;
  if (state.closed) return state.Closed();
  const size_t bytes = message.ByteSizeLong();
  // An empty message says nothing and its frame would have no payload.
  SHOAL_CHECK(bytes > 0);
  if (bytes > limits::kMaxFrameBytes)
    return Fail(Code::kResourceExhausted, reasons::kBadFrame, "a message is too large to send",
                std::to_string(bytes) + " bytes of at most " + std::to_string(limits::kMaxFrameBytes));
  state.out.resize(kFrameHeaderBytes + bytes);
  if (!message.SerializeToArray(state.out.data() + kFrameHeaderBytes, static_cast<int>(bytes)))
    return Fail(Code::kInternal, reasons::kInternal, "a message cannot be written");
  SealFrame(state.out, state.sent++, state.out_seed);
  Status status = SendAll(state.fd.get(), state.out, deadline);
  if (!status) {
    if (state.closed) return state.Closed();
    state.Shutdown();
  }
  return status;
}

// Waits for some bytes and takes them.
Status Link::State::Fill(Deadline deadline) {
  SHOAL_ASSIGN(const std::span<std::byte> space, in.Space());
  const Time start = spin > Nanos(0) ? Now() : Time{};
  for (;;) {
    const ssize_t got = ::recv(fd.get(), space.data(), space.size(), MSG_DONTWAIT);
    if (got > 0) {
      in.Took(static_cast<size_t>(got));
      return {};
    }
    if (got == 0)
      return Fail(Code::kUnavailable, reasons::kPeerLost, "a peer closed its link",
                  in.buffered() > 0 ? "in the middle of a frame" : "");
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK)
      return Fail(Code::kUnavailable, reasons::kPeerLost, "the link to a peer broke", ::strerrordesc_np(errno));
    if (spin > Nanos(0)) {
      const Time now = Now();
      if (now - start < spin && now < deadline.at) continue;
    }
    SHOAL_RETURN_IF_ERROR(WaitFor(fd.get(), POLLIN, deadline));
  }
}

Result<wire::Message> Link::Receive(Deadline deadline) {
  State& state = *state_;
  if (state.closed) return state.Closed();
  const auto end = [&](Error error) -> std::unexpected<Error> {
    if (state.closed) return state.Closed();
    state.Shutdown();
    return Fail(std::move(error));
  };
  for (;;) {
    const auto payload = state.in.Next();
    if (!payload) return end(payload.error());
    if (!*payload) {
      const Status filled = state.Fill(deadline);
      if (!filled && filled.error().reason == reasons::kPeerTimeout && !state.closed) return Fail(filled.error());
      if (!filled) return end(filled.error());
      continue;
    }
    wire::Message message;
    if (!message.ParseFromArray((*payload)->data(), static_cast<int>((*payload)->size())))
      return end(MakeError(Code::kCorrupt, reasons::kBadFrame, "a peer sent a message that cannot be read"));
    return message;
  }
}

void Link::SetSpin(Nanos spin) { state_->spin = spin; }
bool Link::has_buffered() const { return state_->in.has_frame(); }
int Link::fd() const { return state_->fd.get(); }
void Link::Shutdown() { state_->Shutdown(); }
bool Link::closed() const { return state_->closed; }

void Link::Trust(uint64_t seed) {
  state_->in.Trust(seed);
  state_->out_seed = seed;
}

Fd Link::Release() {
  SHOAL_CHECK(state_->in.buffered() == 0);
  return std::move(state_->fd);
}

Result<Listener> Listener::Open(const std::string& host, uint16_t port, Exposure exposure) {
  SHOAL_ASSIGN(Fd fd, ListenOn({host, port}, exposure));
  SHOAL_ASSIGN(Address address, LocalAddress(fd.get()));
  return Listener(std::move(fd), std::move(address));
}

Result<Link> Listener::Accept(Deadline deadline) {
  SHOAL_ASSIGN(Fd fd, AcceptFrom(fd_.get(), deadline));
  return Link(std::move(fd));
}

void Listener::Shutdown() { ::shutdown(fd_.get(), SHUT_RDWR); }

}  // namespace shoal
