// What: what /metrics shows: counts and times of the HTTP side, and the engine's figures read when asked.
// Threads: every method may be called from any thread.
// Limits: label values come from fixed sets (status codes, reasons); never from a client.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "engine/engine.h"

namespace shoal::serve {

class Metrics {
 public:
  Metrics(const Engine& engine, std::string model_name);
  ~Metrics();

  // An exchange has ended; `status` is what its client saw.
  void OnRequest(int status, Nanos duration);
  void OnRejection(Reason reason);
  // A request had so many fields that mean nothing here; their names are its client's affair.
  void OnUnknownFields(int count);
  // A stream ended without its end: the client left, was too slow, or the engine failed.
  void OnBrokenStream(std::string_view why);
  void OnFirstToken(Nanos since_arrival);
  void OnNextTokens(Nanos since_last, int tokens);  // `tokens` came after that time together
  void SetConnections(int open);

  // Prometheus' text format.
  std::string Text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace shoal::serve
