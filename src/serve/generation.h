// What: one API request of some dialect on its way through the engine: what to compute, and how its results look in the
// dialect's words. The seam for dialects: completions.h is the first; chat and others add their own.
// Threads: made on a worker thread, then used by one connection at a time.
// Limits: bounded by its requests; the connection bounds what it holds unsent.
// Fails: making one, by value. Afterwards nothing here fails.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/request.h"
#include "engine/engine.h"

namespace shoal::serve {

class Generation {
 public:
  virtual ~Generation() = default;

  // One engine request per choice; taken by the caller.
  std::vector<Request> requests;
  bool streaming = false;
  // The dialect reads token by token (logprobs), not text alone; otherwise tokens need not be kept.
  bool wants_tokens = false;

  virtual std::string_view content_type() const = 0;
  // Fields of the body that mean nothing here.
  int unknown_fields = 0;

  // Appends to `out` what to send for this delta of choice `choice`, if anything; without streaming it is only collected.
  // One call does a bounded part of the work (the socket thread serves everybody): false asks to be called again with the
  // same delta.
  virtual bool OnDelta(size_t choice, Delta& delta, std::string& out) = 0;
  // All choices are finished: the rest of the stream, or the whole body.
  virtual std::string OnEnd() = 0;
  // The last words of a stream that fails after its head was sent. The connection is then broken.
  virtual std::string OnFailure(const Error& error) = 0;
  // What keeps a silent stream open.
  virtual std::string Ping() = 0;
  // Bytes collected so far for a body that is sent at the end.
  virtual size_t collected_bytes() const = 0;
};

}  // namespace shoal::serve
