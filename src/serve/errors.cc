#include "serve/errors.h"

#include <nlohmann/json.hpp>

#include "core/reasons.h"

namespace shoal::serve {
namespace {

constexpr std::string_view kInvalid = "invalid_request_error";
constexpr std::string_view kServer = "server_error";

struct ReasonRow {
  Reason reason;
  ErrorClass answer;
};

// Reasons whose answer differs from their code's.
constexpr ReasonRow kByReason[] = {
    {reasons::kInvalidJson, {400, kInvalid, 0, {}}},
    {reasons::kInvalidValue, {400, kInvalid, 0, {}}},
    {reasons::kUnsupportedValue, {400, kInvalid, 0, {}}},
    {reasons::kContextLengthExceeded, {400, kInvalid, 0, {}}},
    {reasons::kResponseTooLarge, {400, kInvalid, 0, {}}},
    {reasons::kBadRequest, {400, kInvalid, 0, {}}},
    {reasons::kInvalidApiKey, {401, "authentication_error", 0, {}}},
    {reasons::kForbiddenHost, {403, "permission_error", 0, {}}},
    {reasons::kRouteNotFound, {404, kInvalid, 0, {}}},
    {reasons::kMethodNotAllowed, {405, kInvalid, 0, {}}},
    {reasons::kRequestTimeout, {408, kInvalid, 0, {}}},
    {reasons::kBodyTooLarge, {413, kInvalid, 0, {}}},
    {reasons::kUrlTooLong, {414, kInvalid, 0, {}}},
    {reasons::kUnsupportedMediaType, {415, kInvalid, 0, {}}},
    {reasons::kExpectationFailed, {417, kInvalid, 0, {}}},
    {reasons::kHeadersTooLarge, {431, kInvalid, 0, {}}},
    {reasons::kQueueFull, {429, "rate_limit_error", 1, true}},
    {reasons::kOverloaded, {503, kServer, 1, true}},
    {reasons::kTooManyConnections, {503, kServer, 1, true}},
    {reasons::kShuttingDown, {503, kServer, 5, true}},
    {reasons::kCancelled, {503, kServer, 5, true}},          // seen by a client only when the engine ends its request
    {reasons::kModelProducedNan, {500, kServer, 0, false}},  // the same request gives the same NaN
};

ErrorClass ByCode(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
    case Code::kUnsupported:
      return {400, kInvalid, 0, {}};
    case Code::kNotFound:
      return {404, kInvalid, 0, {}};
    case Code::kUnauthenticated:
      return {401, "authentication_error", 0, {}};
    case Code::kResourceExhausted:
      return {429, "rate_limit_error", 1, true};
    case Code::kUnavailable:
    case Code::kCancelled:
      return {503, kServer, 5, true};
    case Code::kDeadlineExceeded:
      return {504, kServer, 5, true};
    case Code::kConfig:
    case Code::kCorrupt:
    case Code::kInternal:
      return {500, kServer, 0, false};
  }
  return {};
}

}  // namespace

ErrorClass Classify(const Error& error) {
  for (const ReasonRow& row : kByReason)
    if (row.reason == error.reason) return row.answer;
  return ByCode(error.code);
}

std::string ErrorBody(const Error& error) {
  nlohmann::ordered_json body;
  auto& object = body["error"];
  object["message"] = error.message;
  object["type"] = Classify(error).type;
  object["param"] = error.param.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(error.param);
  object["code"] = error.reason.name();
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

HttpResponse ErrorResponse(const Error& error) {
  const ErrorClass answer = Classify(error);
  HttpResponse response;
  response.status = answer.status;
  response.body = ErrorBody(error);
  if (answer.retry_after_s > 0) response.headers.emplace_back("retry-after", std::to_string(answer.retry_after_s));
  if (answer.should_retry) response.headers.emplace_back("x-should-retry", *answer.should_retry ? "true" : "false");
  if (answer.status == 401) response.headers.emplace_back("www-authenticate", "Bearer realm=\"shoal\"");
  return response;
}

}  // namespace shoal::serve
