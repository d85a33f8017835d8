#include "serve/router.h"

#include <algorithm>
#include <format>

#include "core/limits.h"
#include "core/reasons.h"

namespace shoal::serve {
namespace {

Error BadRequest(std::string message) {
  return MakeError(Code::kInvalidArgument, reasons::kBadRequest, std::move(message));
}

bool Matches(const Route& route, std::string_view path) {
  return route.path.ends_with('/') && route.path.size() > 1
             ? path.size() > route.path.size() && path.starts_with(route.path)
             : path == route.path;
}

bool HasMethod(const Route& route, std::string_view method) {
  return route.method == method || (route.method == "GET" && method == "HEAD");
}

// JSON only. A page elsewhere can make a browser post a form or plain text without asking; it cannot post JSON.
Status CheckContent(const HttpRequest& head) {
  const auto encoding = head.Header("content-encoding");
  if (encoding && Lower(*encoding) != "identity")
    return Fail(Code::kInvalidArgument, reasons::kUnsupportedMediaType,
                "compressed bodies are not accepted: send without content-encoding");
  const auto type = head.Header("content-type");
  if (!type || type->empty()) return {};
  std::string media = Lower(type->substr(0, type->find(';')));
  media.erase(media.find_last_not_of(" \t") + 1);
  if (media == "application/json" || media == "text/json" || media.ends_with("+json")) return {};
  return Fail(Code::kInvalidArgument, reasons::kUnsupportedMediaType,
              std::format("the body's type is {}; send content-type: application/json", media.substr(0, 64)));
}

}  // namespace

bool IsLoopbackHost(std::string_view host) {
  const std::string name = Lower(host);
  std::string_view rest = name;
  for (const std::string_view known : {"localhost", "127.0.0.1", "[::1]"}) {
    if (!rest.starts_with(known)) continue;
    rest.remove_prefix(known.size());
    if (rest.empty()) return true;
    return rest.size() <= 6 && rest[0] == ':' &&
           std::ranges::all_of(rest.substr(1), [](char c) { return c >= '0' && c <= '9'; });
  }
  return false;
}

Router::Router(std::vector<Route> routes, std::vector<KeyHash> keys, bool loopback_only)
    : routes_(std::move(routes)), keys_(std::move(keys)), loopback_only_(loopback_only) {}

Status Router::CheckHost(const HttpRequest& head) const {
  if (head.CountHeader("host") > 1) return Fail(BadRequest("the request has two Host headers"));
  const auto forbidden = [](std::string message) {
    return Fail(Code::kUnauthenticated, reasons::kForbiddenHost, std::move(message));
  };
  if (!loopback_only_) return {};
  const auto host = head.Header("host");  // HTTP/1.0 may have none
  if ((host && !IsLoopbackHost(*host)) || (!head.authority.empty() && !IsLoopbackHost(head.authority)))
    return forbidden("this server listens on this machine only; call it as localhost, 127.0.0.1 or [::1]");
  if (const auto origin = head.Header("origin")) {
    const size_t scheme = origin->find("://");
    if (scheme == std::string_view::npos || !IsLoopbackHost(origin->substr(scheme + 3)))
      return forbidden("pages of other sites may not call this server");
  }
  return {};
}

Result<std::string> Router::TenantOf(const HttpRequest& head) const {
  if (keys_.empty()) return std::string();
  const auto refused = [](std::string message) {
    return Fail(Code::kUnauthenticated, reasons::kInvalidApiKey, std::move(message));
  };
  if (head.CountHeader("authorization") != 1)
    return refused("this server needs an API key: send one header \"Authorization: Bearer KEY\"");
  const std::string_view value = *head.Header("authorization");
  constexpr std::string_view kScheme = "bearer ";
  if (Lower(value.substr(0, kScheme.size())) != kScheme) return refused("the API key is not known here");
  const KeyHash key = HashKey(value.substr(kScheme.size()));
  if (!IsKnownKey(key, keys_)) return refused("the API key is not known here");
  return std::string(key.begin(), key.end());
}

std::expected<Admission, Refusal> Router::Admit(const HttpRequest& head) const {
  const auto refuse = [](Error error, std::string allow = {}) {
    return std::unexpected(Refusal{std::move(error), std::move(allow)});
  };
  if (head.path.size() > limits::kMaxUrlBytes)
    return refuse(MakeError(Code::kInvalidArgument, reasons::kUrlTooLong,
                            std::format("the address is longer than {} bytes", limits::kMaxUrlBytes)));
  if (Status status = CheckHost(head); !status) return refuse(std::move(status).error());

  const Route* route = nullptr;
  std::string allow;
  bool open = false;
  for (const Route& one : routes_) {
    if (!Matches(one, head.path)) continue;
    allow += (allow.empty() ? "" : ", ") + std::string(one.method) + (one.method == "GET" ? ", HEAD" : "");
    open = open || one.open;
    if (HasMethod(one, head.method)) route = &one;
  }
  // Also an unknown path needs the key: nobody without one learns what is here.
  Admission admission;
  if (!open) {
    auto tenant = TenantOf(head);
    if (!tenant) return refuse(std::move(tenant).error());
    admission.tenant = std::move(*tenant);
  }
  if (allow.empty())
    return refuse(MakeError(Code::kNotFound, reasons::kRouteNotFound,
                            std::format("there is no {} here", head.path.substr(0, 256))));
  if (route == nullptr)
    return refuse(MakeError(Code::kInvalidArgument, reasons::kMethodNotAllowed,
                            std::format("{} takes {}", head.path.substr(0, 256), allow)),
                  allow);
  admission.route = route;
  if (route->path.ends_with('/')) {
    auto rest = PercentDecode(std::string_view(head.path).substr(route->path.size()));
    if (!rest) return refuse(BadRequest("the address has a broken percent escape"));
    admission.rest = std::move(*rest);
  }
  if (route->method == "POST")
    if (Status status = CheckContent(head); !status) return refuse(std::move(status).error());
  return admission;
}

}  // namespace shoal::serve
