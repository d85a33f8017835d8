// What: the one table from an Error to what an HTTP client sees: status, OpenAI's error object, retry headers.
// Threads: pure.
// Fails: never; an unknown reason falls back to its code's row.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "serve/http.h"

namespace shoal::serve {

struct ErrorClass {
  int status = 500;
  std::string_view type = "server_error";  // OpenAI's error.type
  int retry_after_s = 0;                   // 0 = no retry-after header
  std::optional<bool> should_retry;        // x-should-retry: the SDKs obey it before their own rules
};

ErrorClass Classify(const Error& error);

// {"error":{"message","type","param","code"}}: all four keys always, on one line.
std::string ErrorBody(const Error& error);

HttpResponse ErrorResponse(const Error& error);

}  // namespace shoal::serve
