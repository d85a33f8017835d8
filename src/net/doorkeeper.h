// What: lets peers in at a listener: every connection proves itself on its own thread, so that a silent stranger holds up
// nobody; those that did are handed over on the caller's.
// Owns: the connections that have not proved themselves yet; ends them with itself.
// Threads: one calls Wait; `greet` runs on the connections' own threads.
// Limits: kPendingHandshakes connections at once. While that many are pending none is accepted, and the oldest is sent away.
// Fails: Wait fails when the listener does; a stranger's failure is its own.
// Reads next: net/mesh.h, net/handshake.h.
#pragma once

#include <functional>
#include <list>
#include <mutex>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/result.h"
#include "net/fd.h"
#include "net/link.h"

namespace shoal {

inline constexpr size_t kPendingHandshakes = 32;

class Doorkeeper {
 public:
  // Takes the connection of a peer that was let in; called by Wait.
  using Welcome = std::move_only_function<void(Link)>;
  // Shakes hands; must end by itself (every handshake has its deadline) or when the link is shut down.
  using Greet = std::function<Result<Welcome>(Link&)>;

  Doorkeeper(Listener& listener, Greet greet);
  ~Doorkeeper();
  Doorkeeper(const Doorkeeper&) = delete;
  Doorkeeper& operator=(const Doorkeeper&) = delete;

  // Returns when peers were let in or sent away, or at the deadline; the caller knows whom it still awaits.
  Status Wait(Deadline deadline);

 private:
  struct Visitor {
    explicit Visitor(Link connection) : link(std::move(connection)) {}
    Link link;
    bool over = false;
    std::optional<Welcome> welcome;
    std::jthread thread;  // joined before the link is destroyed
  };

  void Receive(Link link);
  void Meet(Visitor& visitor);
  bool HandOver();

  Listener& listener_;
  const Greet greet_;
  Fd bell_;  // rung when a handshake is over
  std::mutex mutex_;
  std::list<Visitor> visitors_;
};

}  // namespace shoal
