// What: where the engine's thread leaves the deltas of one API request for its connection. A reader that is behind gets what
// has come meanwhile merged into one delta per choice, so what waits here is text, not messages.
// Owns: the waiting deltas and the call that wakes the reader.
// Threads: Push from the engine's thread, the rest from the connection's. No call blocks; the lock is held for appends only.
// Limits: max_bytes of waiting text and tokens; beyond it the mailbox is `overflowed`, and takes nothing but ends.
#pragma once

#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "engine/engine.h"

namespace shoal::serve {

class Mailbox {
 public:
  // `wake` is called (on the pusher's thread, under the lock) when something came into an empty mailbox.
  Mailbox(size_t choices, size_t max_bytes, bool keep_tokens, std::function<void()> wake);
  void SetWake(std::function<void()> wake);

  void Push(size_t choice, Delta delta);

  struct Letter {
    size_t choice = 0;
    Delta delta;
    int token_count = 0;  // in this delta, also when the tokens themselves were not kept
    Time at;              // when the first part of it came
  };
  // All that waits, in order of first arrival.
  std::vector<Letter> Take();
  bool overflowed() const;

  // Nobody reads any more: later pushes are dropped, `wake` is never called again once this has returned.
  void Close();

 private:
  const size_t max_bytes_;
  const bool keep_tokens_;
  mutable std::mutex mutex_;
  std::function<void()> wake_;
  std::vector<Letter> letters_;
  std::vector<int> letter_of_choice_;  // index into letters_, or -1
  size_t bytes_ = 0;
  bool overflowed_ = false;
  bool closed_ = false;
};

}  // namespace shoal::serve
