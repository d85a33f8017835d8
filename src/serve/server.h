// What: the HTTP server. Start it over an engine; it answers until Stop.
// Owns: its listening socket, one thread for all sockets, a few for parsing; not the engine, which must outlive it.
// Threads: Start, Stop, port from any thread.
// Limits: ServerOptions, core/limits.h; docs/api.md states them for users.
// Fails: Start by value: kBadConfig (host, or one that needs `insecure`), kIo (the port is taken). Afterwards failures are HTTP answers.
// Reads next: serve/router.h, serve/routes.h (what is answered), serve/connection.h (how).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "core/limits.h"
#include "engine/engine.h"
#include "serve/api_keys.h"

namespace shoal::serve {

// Tests make these small; everybody else leaves them.
struct ServerLimits {
  Nanos header_timeout = limits::kHeaderTimeout;
  Nanos idle_timeout = limits::kIdleConnectionTimeout;
  Nanos body_stall_timeout = limits::kBodyStallTimeout;
  Nanos body_timeout = limits::kBodyTimeout;
  Nanos stalled_reader_timeout = limits::kStalledReaderTimeout;
  Nanos ping_interval = limits::kStreamPingInterval;
  size_t max_body_bytes = limits::kMaxBodyBytes;
  size_t max_body_bytes_held = limits::kMaxBodyBytesHeld;
  size_t max_unsent_bytes = limits::kMaxUnsentBytes;
  size_t max_response_bytes = limits::kMaxResponseBytes;
  int max_connections = limits::kMaxConnections;
  int max_connections_per_peer = limits::kMaxConnectionsPerPeer;
  int max_requests_per_connection = limits::kMaxRequestsPerConnection;
};

struct ServerOptions {
  std::string host = "127.0.0.1";  // an address, or "localhost"
  uint16_t port = 7462;            // 0: any free one
  bool insecure = false;  // plain text on an address that other machines reach: keys and prompts can be read on the way
  std::string model_name;         // what clients call the model
  std::vector<KeyHash> api_keys;  // empty: no key needed
  ServerLimits limits;
};

class Server {
 public:
  static Result<std::unique_ptr<Server>> Start(Engine& engine, ServerOptions options);
  // Stops at once.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  uint16_t port() const;
  // "http://127.0.0.1:7462"
  std::string url() const;

  // No new connections, /health says draining, new generations get 503; what runs may finish until the deadline and is then
  // cancelled and broken off. Returns when nothing is left: within a second after the deadline, whatever clients do.
  void Stop(Deadline deadline);

 private:
  struct State;
  explicit Server(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace shoal::serve
