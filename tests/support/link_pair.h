// What: two ends of a link inside one process, for tests that play the other side themselves.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <chrono>
#include <utility>

#include "base/clock.h"
#include "net/link.h"

namespace shoal::testing {

// Ample for a loaded machine: no test waits for it unless it fails.
inline Deadline Soon() { return Deadline::After(std::chrono::seconds(60)); }

// As after the handshake: both sides trust each other.
inline std::pair<Link, Link> LinkPair() {
  int fds[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
  std::pair<Link, Link> links{Link(Fd(fds[0])), Link(Fd(fds[1]))};
  links.first.Trust(1);
  links.second.Trust(1);
  return links;
}

}  // namespace shoal::testing
