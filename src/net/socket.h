// What: TCP sockets with deadlines: listen, dial, send all, wait. The only socket calls besides comm/tcp and
// serve/.
// Threads: any; a descriptor is the caller's.
// Limits: loopback is numbers or "localhost", without a resolver; names are looked up only for kInsecure, by the system and
// in its own time. Addresses other than loopback are refused unless kInsecure is said: these sockets are not
// encrypted.
// Fails: kBadConfig (address not allowed), kIo, kPeerLost (refused, closed), kPeerTimeout.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "net/fd.h"

namespace shoal {

// Who may reach a plain-text socket.
enum class Exposure {
  kLoopback,  // this machine only
  kInsecure,  // anyone: the user asked for it
};

struct Address {
  std::string host;
  uint16_t port = 0;
};
// "127.0.0.1:7463", "[::1]:7463".
std::string ToString(const Address& address);
// HOST:PORT, [IPV6]:PORT.
Result<Address> ParseAddress(std::string_view text);

// A non-blocking, listening socket; port 0 lets the system choose.
Result<Fd> ListenOn(const Address& address, Exposure exposure);
// The address that a socket is bound to.
Result<Address> LocalAddress(int fd);

// A connected, non-blocking socket without Nagle's delay.
Result<Fd> DialTo(const Address& address, Deadline deadline, Exposure exposure);
// The next connection to a listening socket, non-blocking and without delay.
Result<Fd> AcceptFrom(int listener, Deadline deadline);

// Waits until poll(2) reports one of `events` (or an error or hang-up). kPeerTimeout at the deadline.
Status WaitFor(int fd, short events, Deadline deadline);
// Sends everything, waiting where the socket is full.
Status SendAll(int fd, std::span<const std::byte> bytes, Deadline deadline);

}  // namespace shoal
