// What: sends a plan's requests to a server, open or closed loop, and says what became of each.
// Owns: while Drive runs, one socket a request in flight.
// Threads: one; Drive returns when all is done.
// Limits: kMaxInFlight requests at once; an arrival beyond it has failed ("in_flight_limit").
// Fails: a host that cannot be resolved is an Error; whatever becomes of a request is its Outcome. Every wait has a deadline
//   (Plan), so Drive ends by itself, whatever the server does.
// Reads next: bench/load_plan.h, bench/load_events.h.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "load_figures.h"
#include "load_plan.h"

namespace shoal::load {

inline constexpr int kMaxInFlight = 4096;

struct Report {
  std::vector<Outcome> outcomes;                // of request i
  Samples gap_seconds;                          // between events with text, of requests that went well
  std::map<std::string, std::string> examples;  // for each cause of failure, what was said the first time
};

Result<Report> Drive(const Plan& plan);

}  // namespace shoal::load
