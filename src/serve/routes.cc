#include "serve/routes.h"

#include <format>
#include <nlohmann/json.hpp>

#include "core/reasons.h"
#include "serve/errors.h"

namespace shoal::serve {
namespace {

using Json = nlohmann::ordered_json;

HttpResponse JsonResponse(const Json& json) {
  HttpResponse response;
  response.body = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return response;
}

// Why this server takes no work now; nothing when it does.
std::optional<Error> Unready(const Service& service) {
  if (service.draining)
    return MakeError(Code::kUnavailable, reasons::kShuttingDown,
                     "the server is shutting down; it takes no new requests");
  if (auto failure = service.engine.failure()) {
    failure->code = Code::kUnavailable;  // the cause may be anything; for a client the service is away
    return failure;
  }
  return std::nullopt;
}

HttpResponse Health(const Service& service) {
  const auto error = Unready(service);
  if (!error) return JsonResponse({{"status", "ok"}});
  HttpResponse response = ErrorResponse(*error);
  response.status = 503;
  Json body = Json::parse(response.body);
  body["status"] = "unavailable";
  body["reason"] = error->reason.name();
  response.body = body.dump(-1, ' ', false, Json::error_handler_t::replace);
  return response;
}

Json ModelObject(const Service& service) {
  const ModelSpec& spec = service.engine.spec();
  return {{"id", service.model.model_name},
          {"object", "model"},
          {"created", service.created},
          {"owned_by", "shoal"},
          {"max_model_len", service.model.context_length},
          {"meta",
           {{"architecture", spec.arch},
            {"name", spec.name},
            {"n_vocab", spec.n_vocab},
            {"n_embd", spec.n_embd},
            {"n_layers", spec.n_layers},
            {"n_ctx_train", spec.context_length}}}};
}

}  // namespace

std::vector<Route> MakeRoutes(Service& service) {
  const auto health = [&service](const HttpRequest&, std::string_view) -> Result<Answer> { return Health(service); };
  return {
      {"GET", "/health", true, health},
      {"GET", "/healthz", true, health},
      {"GET", "/livez", true,
       [](const HttpRequest&, std::string_view) -> Result<Answer> { return JsonResponse({{"status", "ok"}}); }},
      {"GET", "/metrics", false,
       [&service](const HttpRequest&, std::string_view) -> Result<Answer> {
         HttpResponse response;
         response.content_type = "text/plain; version=0.0.4; charset=utf-8";
         response.body = service.metrics.Text();
         return response;
       }},
      {"GET", "/version", false,
       [](const HttpRequest&, std::string_view) -> Result<Answer> {
         return JsonResponse({{"name", "shoal"}, {"version", SHOAL_VERSION}});
       }},
      {"GET", "/v1/models", false,
       [&service](const HttpRequest&, std::string_view) -> Result<Answer> {
         return JsonResponse({{"object", "list"}, {"data", Json::array({ModelObject(service)})}});
       }},
      {"GET", "/v1/models/", false,
       [&service](const HttpRequest&, std::string_view id) -> Result<Answer> {
         if (id == service.model.model_name) return JsonResponse(ModelObject(service));
         Error error = MakeError(Code::kNotFound, reasons::kModelNotFound,
                                 std::format("the model \"{}\" does not exist here", id.substr(0, 128)));
         error.param = "model";
         return Fail(std::move(error));
       }},
      {"POST", "/v1/completions", false,
       [&service](const HttpRequest& request, std::string_view) -> Result<Answer> {
         if (auto error = Unready(service)) return Fail(std::move(*error));
         SHOAL_ASSIGN(auto generation, ParseCompletion(request.body, service.model));
         return generation;
       }},
  };
}

}  // namespace shoal::serve
