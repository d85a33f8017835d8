// What: who answers which path, and the filters that stand before all of them: Host and Origin, API key.
// Threads: immutable after construction.
// Limits: kMaxUrlBytes.
// Fails: Admit by value (Refusal), before a byte of the body is read.
#pragma once

#include <expected>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "serve/api_keys.h"
#include "serve/generation.h"
#include "serve/http.h"

namespace shoal::serve {

using Answer = std::variant<HttpResponse, std::unique_ptr<Generation>>;

struct Route {
  std::string_view method;  // GET answers HEAD too
  std::string_view path;    // a path that ends in '/' stands for everything below it
  bool open = false;        // needs no API key
  // `rest` is what follows a path that ends in '/', percent-decoded. A POST handler runs on a worker thread and may take
  // its time; the others run on the connection's and may not.
  std::function<Result<Answer>(const HttpRequest& request, std::string_view rest)> handler;
};

struct Refusal {
  Error error;
  std::string allow;  // of a 405
};

struct Admission {
  const Route* route = nullptr;
  std::string rest;
  std::string tenant;  // who asks: the hash of the key; empty where none is needed
};

class Router {
 public:
  // With no keys every route is open. `loopback_only`: only a browser page of this machine may call (DNS rebinding).
  Router(std::vector<Route> routes, std::vector<KeyHash> keys, bool loopback_only);

  std::expected<Admission, Refusal> Admit(const HttpRequest& head) const;
  const std::vector<Route>& routes() const { return routes_; }

 private:
  Status CheckHost(const HttpRequest& head) const;
  Result<std::string> TenantOf(const HttpRequest& head) const;
  const std::vector<Route> routes_;
  const std::vector<KeyHash> keys_;
  const bool loopback_only_;
};

// "localhost", "127.0.0.1", "[::1]", each with any port.
bool IsLoopbackHost(std::string_view host);

}  // namespace shoal::serve
