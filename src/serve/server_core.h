// What: what all connections of one server share.
// Threads: connections, per_peer and body_bytes_held belong to the thread of `io`; handlers run there or on `workers` and use
// `service` and `metrics` from both; the counts have their mutex.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#include "serve/metrics.h"
#include "serve/router.h"
#include "serve/routes.h"
#include "serve/server.h"

namespace shoal::serve {

class Connection;

struct ServerCore {
  ServerCore(Engine& engine, const ServerOptions& options, ModelContext model, int64_t created, bool loopback_only)
      : limits(options.limits),
        metrics(engine, options.model_name),
        service{engine, metrics, std::move(model), created, false},
        router(MakeRoutes(service), options.api_keys, loopback_only) {}

  const ServerLimits limits;
  Metrics metrics;
  Service service;
  const Router router;
  boost::asio::io_context io{1};
  boost::asio::thread_pool workers{2};  // parsing and tokenizing: a long prompt must not hold up anybody's stream

  std::unordered_map<Connection*, std::weak_ptr<Connection>> connections;
  std::map<std::string, int> per_peer;
  size_t body_bytes_held = 0;

  // Read by Stop, from its own thread.
  std::mutex mutex;
  std::condition_variable changed;
  int open_connections = 0;
  int busy_connections = 0;  // an answer is being made

  void Count(int open, int busy) {
    std::lock_guard lock(mutex);
    open_connections += open;
    busy_connections += busy;
    if (open != 0) metrics.SetConnections(open_connections);
    changed.notify_all();
  }
};

}  // namespace shoal::serve
