// What: an HTTP request and response as plain values, without the library that reads them from a socket.
// Threads: values.
// Reads next: serve/router.h (who answers), serve/connection.h (who reads and writes them).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace shoal::serve {

struct HttpRequest {
  std::string method;
  std::string authority;                                     // of a target that names one ("http://host/path")
  std::string path;                                          // as sent, still percent-encoded, without the query
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;
  std::string request_id;

  // The value of a header that must not come twice: nothing when it is missing.
  std::optional<std::string_view> Header(std::string_view lower_name) const;
  int CountHeader(std::string_view lower_name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
};

// "Not Found" for 404.
std::string_view StatusText(int status);

// %41 -> 'A', once. Nothing when an escape is broken.
std::optional<std::string> PercentDecode(std::string_view text);

// Lower case of ASCII.
std::string Lower(std::string_view text);

// A name for a request that nobody else has: `prefix` and 32 hex digits.
std::string NewId(std::string_view prefix);

// What a client may call its request: 1..128 of [A-Za-z0-9._-].
bool IsSaneRequestId(std::string_view id);

}  // namespace shoal::serve
