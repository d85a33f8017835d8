// What: a control link: typed messages (net/wire.proto) in frames over one TCP connection, each call with a
// deadline.
// Owns: the socket and what was read ahead.
// Threads: one thread may send while another receives; Shutdown may be called from any thread.
// Limits: frames (net/frame.h); plain text, so loopback only unless kInsecure (TLS comes later).
// Fails: kPeerLost when the peer is gone, kPeerTimeout at a deadline (Receive may be called again; after
// Send the link is shut down, as the peer has half a frame), kBadFrame (the link is shut down), kGroupClosed
// after Shutdown.
// Reads next: net/handshake.h (who is at the other end), docs/wire.md.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "net/fd.h"
#include "net/frame.h"
#include "net/socket.h"

namespace shoal {

namespace wire {
class Message;  // net/wire.pb.h
}

class Link {
 public:
  static Result<Link> Dial(const std::string& host, uint16_t port, Deadline deadline,
                           Exposure exposure = Exposure::kLoopback);
  explicit Link(Fd fd);
  Link(Link&&) noexcept;
  Link& operator=(Link&&) noexcept;
  ~Link();

  Status Send(const wire::Message& message, Deadline deadline);
  Result<wire::Message> Receive(Deadline deadline);

  // Receive polls without sleeping for this long before it sleeps: for links on which a step waits.
  void SetSpin(Nanos spin);
  // True when Receive would not wait for the socket: ask before sleeping in poll(2) on fd().
  bool has_buffered() const;
  int fd() const;
  void Shutdown();
  // Whether a failure or Shutdown has ended it.
  bool closed() const;

  // After the handshake: full-sized frames with the session's checksums. Called by net/handshake.
  void Trust(uint64_t seed);
  // Gives the socket away (to comm/tcp). Nothing may have been read ahead.
  Fd Release();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Listener {
 public:
  // port 0: the system chooses one.
  static Result<Listener> Open(const std::string& host, uint16_t port, Exposure exposure = Exposure::kLoopback);

  uint16_t port() const { return address_.port; }
  const Address& address() const { return address_; }
  int fd() const { return fd_.get(); }
  // The next connection; who it is must still be proved. kShuttingDown after Shutdown.
  Result<Link> Accept(Deadline deadline);
  // From any thread: wakes Accept.
  void Shutdown();

 private:
  Listener(Fd fd, Address address) : fd_(std::move(fd)), address_(std::move(address)) {}
  Fd fd_;
  Address address_;
};

}  // namespace shoal
