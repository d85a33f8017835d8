#include "sched/admission.h"

#include <cmath>
#include <string>

#include "core/reasons.h"

namespace shoal {
namespace {

std::unexpected<Error> Invalid(std::string param, std::string message) {
  Error error = MakeError(Code::kInvalidArgument, reasons::kInvalidValue, std::move(message));
  error.param = std::move(param);
  return Fail(std::move(error));
}

// NaN fails every comparison, so the test is written as "inside".
bool Inside(float value, float low, float high) { return value >= low && value <= high; }

Status CheckSampling(const SamplingParams& sampling, const SchedulerOptions& options) {
  if (!Inside(sampling.temperature, 0, 2)) return Invalid("temperature", "temperature must be between 0 and 2");
  if (sampling.top_k < 0) return Invalid("top_k", "top_k must not be negative");
  if (!Inside(sampling.top_p, 0, 1)) return Invalid("top_p", "top_p must be between 0 and 1");
  if (!Inside(sampling.min_p, 0, 1)) return Invalid("min_p", "min_p must be between 0 and 1");
  if (!Inside(sampling.presence_penalty, -2, 2))
    return Invalid("presence_penalty", "presence_penalty must be between -2 and 2");
  if (!Inside(sampling.frequency_penalty, -2, 2))
    return Invalid("frequency_penalty", "frequency_penalty must be between -2 and 2");
  if (!(sampling.repeat_penalty > 0) || !std::isfinite(sampling.repeat_penalty))
    return Invalid("repeat_penalty", "repeat_penalty must be greater than 0");
  if (sampling.repeat_last_n < -1) return Invalid("repeat_last_n", "repeat_last_n must be -1 or more");
  if (sampling.logprobs < -1 || sampling.logprobs > limits::kMaxLogprobs)
    return Invalid("logprobs", "logprobs must be at most " + std::to_string(limits::kMaxLogprobs));
  if (sampling.logit_bias.size() > static_cast<size_t>(limits::kMaxLogitBias))
    return Invalid("logit_bias", "logit_bias has more than " + std::to_string(limits::kMaxLogitBias) + " entries");
  for (const auto& [token, bias] : sampling.logit_bias) {
    if (token < 0 || token >= options.vocabulary)
      return Invalid("logit_bias", "logit_bias names token " + std::to_string(token) + "; this model has tokens 0 to " +
                                       std::to_string(options.vocabulary - 1));
    if (!std::isfinite(bias)) return Invalid("logit_bias", "logit_bias values must be finite");
  }
  return {};
}

Status CheckStops(const Request& request, const SchedulerOptions& options) {
  if (request.stop.size() > static_cast<size_t>(limits::kMaxStops) ||
      request.stop_tokens.size() > static_cast<size_t>(limits::kMaxStops))
    return Invalid("stop", "at most " + std::to_string(limits::kMaxStops) + " stop sequences are allowed");
  for (const auto& stop : request.stop) {
    if (stop.empty()) return Invalid("stop", "a stop sequence must not be empty");
    if (stop.size() > limits::kMaxStopBytes)
      return Invalid("stop", "a stop sequence is longer than " + std::to_string(limits::kMaxStopBytes) + " bytes");
  }
  for (const TokenId token : request.stop_tokens)
    if (token < 0 || token >= options.vocabulary)
      return Invalid("stop_token_ids", "stop token " + std::to_string(token) + " is not in the vocabulary");
  return {};
}

}  // namespace

Status CheckRequest(const Request& request, const SchedulerOptions& options) {
  if (request.prompt.empty()) return Invalid("prompt", "the prompt holds no token");
  if (request.max_tokens < 0) return Invalid("max_tokens", "max_tokens must not be negative");
  if (request.max_tokens == 0 && !request.sampling.prompt_logprobs)
    return Invalid("max_tokens", "max_tokens must be at least 1 (0 only together with the prompt's log-probabilities)");
  // The size first: the tokens of a hostile prompt are not even looked at.
  const size_t least = request.prompt.size() + (request.max_tokens > 0 ? 1 : 0);
  if (least > static_cast<size_t>(options.context)) {
    Error error =
        MakeError(Code::kInvalidArgument, reasons::kContextLengthExceeded,
                  "the prompt has " + std::to_string(request.prompt.size()) + " tokens, this model's context is " +
                      std::to_string(options.context) + " (prompt and output together)");
    error.param = "prompt";
    return Fail(std::move(error));
  }
  if (least > static_cast<size_t>(options.sequence_limit())) {
    Error error = MakeError(Code::kInvalidArgument, reasons::kOutOfBlocks,
                            "the prompt has " + std::to_string(request.prompt.size()) +
                                " tokens, the memory for keys and values holds " +
                                std::to_string(options.sequence_limit()) + "; give the server more memory");
    error.param = "prompt";
    return Fail(std::move(error));
  }
  for (const TokenId token : request.prompt)
    if (token < 0 || token >= options.vocabulary)
      return Invalid("prompt", "token " + std::to_string(token) + " is not in the vocabulary of " +
                                   std::to_string(options.vocabulary) + " tokens");
  SHOAL_RETURN_IF_ERROR(CheckSampling(request.sampling, options));
  return CheckStops(request, options);
}

}  // namespace shoal
