// What: the table of everything the server answers.
// Threads: handlers run on the server's thread and on its workers, several at once; `draining` may be set by any.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "serve/completions.h"
#include "serve/metrics.h"
#include "serve/router.h"

namespace shoal::serve {

// What handlers may look at. All of it outlives them.
struct Service {
  Engine& engine;
  Metrics& metrics;
  ModelContext model;
  int64_t created = 0;  // unix time
  std::atomic<bool> draining = false;
};

std::vector<Route> MakeRoutes(Service& service);

}  // namespace shoal::serve
