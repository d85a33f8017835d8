#include "net/doorkeeper.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>

#include <system_error>

#include "core/reasons.h"

namespace shoal {

Doorkeeper::Doorkeeper(Listener& listener, Greet greet)
    : listener_(listener), greet_(std::move(greet)), bell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Doorkeeper::~Doorkeeper() {
  {
    std::lock_guard lock(mutex_);
    for (Visitor& visitor : visitors_) visitor.link.Shutdown();
  }
  visitors_.clear();  // joins the threads
}

Status Doorkeeper::Wait(Deadline deadline) {
  if (!bell_.valid())
    return Fail(Code::kResourceExhausted, reasons::kIo, "cannot make an eventfd", ::strerrordesc_np(errno));
  for (;;) {
    const bool full = visitors_.size() >= kPendingHandshakes;  // only this thread adds and removes
    pollfd fds[] = {{bell_.get(), POLLIN, 0}, {full ? -1 : listener_.fd(), POLLIN, 0}};
    const int ready = ::poll(fds, 2, deadline.poll_ms());
    if (ready < 0 && errno != EINTR)
      return Fail(Code::kInternal, reasons::kIo, "poll failed", ::strerrordesc_np(errno));
    if (ready <= 0) {
      if (deadline.passed()) return {};
      continue;
    }
    if (fds[1].revents != 0) {
      auto link = listener_.Accept(Deadline{Now()});
      if (link) {
        Receive(std::move(*link));
      } else if (link.error().reason != reasons::kPeerTimeout) {  // else it was gone before we took it
        return Fail(link.error());
      }
    }
    if (fds[0].revents != 0 && HandOver()) return {};
  }
}

void Doorkeeper::Receive(Link link) {
  std::lock_guard lock(mutex_);
  Visitor& visitor = visitors_.emplace_back(std::move(link));
  try {
    visitor.thread = std::jthread([this, &visitor] { Meet(visitor); });
  } catch (const std::system_error&) {  // no thread is to be had: the peer may come again
    visitors_.pop_back();
    return;
  }
  if (visitors_.size() >= kPendingHandshakes) visitors_.front().link.Shutdown();
}

void Doorkeeper::Meet(Visitor& visitor) {
  auto welcome = greet_(visitor.link);
  std::lock_guard lock(mutex_);
  if (welcome) visitor.welcome = std::move(*welcome);
  visitor.over = true;
  const uint64_t ring = 1;
  (void)!::write(bell_.get(), &ring, sizeof ring);
}

// Whether there was anybody.
bool Doorkeeper::HandOver() {
  uint64_t rings;
  (void)!::read(bell_.get(), &rings, sizeof rings);
  std::list<Visitor> gone;  // joined outside the lock
  {
    std::lock_guard lock(mutex_);
    for (auto at = visitors_.begin(); at != visitors_.end();) {
      const auto next = std::next(at);
      if (at->over) gone.splice(gone.end(), visitors_, at);
      at = next;
    }
  }
  for (Visitor& visitor : gone) {
    visitor.thread.join();
    if (visitor.welcome) (*visitor.welcome)(std::move(visitor.link));
  }
  return !gone.empty();
}

}  // namespace shoal
