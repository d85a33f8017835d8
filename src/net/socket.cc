#include "net/socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include <charconv>
#include <memory>

#include "core/reasons.h"

namespace shoal {
namespace {

std::string Errno() { return ::strerrordesc_np(errno); }

struct FreeInfo {
  void operator()(addrinfo* info) const { ::freeaddrinfo(info); }
};
using Info = std::unique_ptr<addrinfo, FreeInfo>;

bool IsLoopback(const sockaddr* address) {
  if (address->sa_family == AF_INET)
    return (ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 24) == 127;
  if (address->sa_family == AF_INET6)
    return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
  return false;
}

// All addresses of a host, each of them allowed. Numbers and "localhost" are understood here; any other name is looked up by
// the system, whose patience is its own (resolv.conf) and not our deadline.
Result<Info> Resolve(const Address& address, int flags, Exposure exposure) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV | AI_NUMERICHOST;
  addrinfo* found = nullptr;
  const std::string port = std::to_string(address.port);
  const std::string host = address.host == "localhost" ? "127.0.0.1" : address.host;
  const char* name = host.empty() ? nullptr : host.c_str();
  int error = ::getaddrinfo(name, port.c_str(), &hints, &found);
  if (error == EAI_NONAME && exposure == Exposure::kLoopback)
    return Fail(Code::kConfig, reasons::kBadConfig,
                address.host + " is not an address of this machine's loopback: say 127.0.0.1, [::1] or localhost");
  if (error == EAI_NONAME) {
    hints.ai_flags = flags | AI_NUMERICSERV;
    error = ::getaddrinfo(name, port.c_str(), &hints, &found);
  }
  if (error != 0)
    return Fail(Code::kUnavailable, reasons::kIo, "cannot find the host " + address.host, ::gai_strerror(error));
  Info info(found);
  for (const addrinfo* at = info.get(); at != nullptr; at = at->ai_next)
    if (exposure == Exposure::kLoopback && !IsLoopback(at->ai_addr))
      return Fail(Code::kConfig, reasons::kBadConfig,
                  address.host +
                      " is not this machine's loopback: links are not encrypted yet, so other addresses are "
                      "refused unless insecure links are allowed");
  return info;
}

void MakePrompt(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // a socket that cannot is slower, not wrong
}

}  // namespace

std::string ToString(const Address& address) {
  const bool six = address.host.find(':') != std::string::npos;
  return (six ? "[" + address.host + "]" : address.host) + ":" + std::to_string(address.port);
}

Result<Address> ParseAddress(std::string_view text) {
  const auto bad = [&] {
    return Fail(Code::kInvalidArgument, reasons::kUsage, "\"" + std::string(text) + "\" is not HOST:PORT");
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return bad();
  std::string_view host = text.substr(0, colon), digits = text.substr(colon + 1);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return bad();
  }
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (host.empty() || host.size() > 253 || digits.empty() || error != std::errc() ||
      end != digits.data() + digits.size())
    return bad();
  return Address{std::string(host), port};
}

Result<Fd> ListenOn(const Address& address, Exposure exposure) {
  SHOAL_ASSIGN(const Info info, Resolve(address, AI_PASSIVE, exposure));
  std::string why;
  for (const addrinfo* at = info.get(); at != nullptr; at = at->ai_next) {
    Fd fd(::socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int on = 1;
    if (fd.valid() && ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
        ::bind(fd.get(), at->ai_addr, at->ai_addrlen) == 0 && ::listen(fd.get(), 128) == 0)
      return fd;
    why = Errno();
  }
  return Fail(Code::kUnavailable, reasons::kIo, "cannot listen on " + ToString(address), why);
}

Result<Address> LocalAddress(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0 ||
      ::getnameinfo(reinterpret_cast<sockaddr*>(&storage), length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return Fail(Code::kInternal, reasons::kIo, "cannot tell a socket's address", Errno());
  uint16_t number = 0;
  std::from_chars(port, port + ::strlen(port), number);
  return Address{host, number};
}

Result<Fd> DialTo(const Address& address, Deadline deadline, Exposure exposure) {
  SHOAL_ASSIGN(const Info info, Resolve(address, 0, exposure));
  Error last = MakeError(Code::kUnavailable, reasons::kPeerLost, "cannot reach " + ToString(address));
  for (const addrinfo* at = info.get(); at != nullptr; at = at->ai_next) {
    Fd fd(::socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd.valid()) {
      last.detail = Errno();
      continue;
    }
    if (::connect(fd.get(), at->ai_addr, at->ai_addrlen) != 0) {
      if (errno != EINPROGRESS) {
        last.detail = Errno();
        continue;
      }
      if (auto waited = WaitFor(fd.get(), POLLOUT, deadline); !waited)
        return Fail(waited.error().code, waited.error().reason, "cannot reach " + ToString(address) + " in time");
      int error = 0;
      socklen_t length = sizeof error;
      ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
      if (error != 0) {
        last.detail = ::strerrordesc_np(error);
        continue;
      }
    }
    MakePrompt(fd.get());
    return fd;
  }
  return Fail(std::move(last));
}

Result<Fd> AcceptFrom(int listener, Deadline deadline) {
  for (;;) {
    Fd fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd.valid()) {
      MakePrompt(fd.get());
      return fd;
    }
    // A connection that ended before it was taken is not the listener's failure.
    if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
    if (errno == EINVAL) return Fail(Code::kCancelled, reasons::kShuttingDown, "the listener was shut down");
    if (errno != EAGAIN && errno != EWOULDBLOCK)
      return Fail(Code::kResourceExhausted, reasons::kIo, "cannot take a connection", Errno());
    SHOAL_RETURN_IF_ERROR(WaitFor(listener, POLLIN, deadline));
  }
}

Status WaitFor(int fd, short events, Deadline deadline) {
  for (;;) {
    pollfd waiting{fd, events, 0};
    const int ready = ::poll(&waiting, 1, deadline.poll_ms());
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return Fail(Code::kInternal, reasons::kIo, "poll failed", Errno());
    if (deadline.passed()) return Fail(Code::kDeadlineExceeded, reasons::kPeerTimeout, "a peer did not answer in time");
  }
}

Status SendAll(int fd, std::span<const std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      SHOAL_RETURN_IF_ERROR(WaitFor(fd, POLLOUT, deadline));
    } else if (errno != EINTR) {
      return Fail(Code::kUnavailable, reasons::kPeerLost, "a peer closed its link", Errno());
    }
  }
  return {};
}

}  // namespace shoal
