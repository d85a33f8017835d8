// Any bytes as the body of POST /v1/completions: an error or a request within the limits, and whatever comes out of it can be
// rendered as JSON again.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/check.h"
#include "core/limits.h"
#include "serve/completions.h"
#include "serve/completions_parse.h"
#include "serve/errors.h"
#include "serve/fake_engine.h"
#include "serve/json_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace shoal;
  using namespace shoal::serve;
  static const FakeTokenizer tokenizer;
  const ModelContext context{"model", &tokenizer, 4096};
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto body = ReadCompletionBody(text, context);
  if (!body) {
    const int status = Classify(body.error()).status;
    SHOAL_CHECK(status == 400 || status == 404);
    SHOAL_CHECK(nlohmann::json::accept(ErrorBody(body.error())));
    return 0;
  }
  SHOAL_CHECK(!body->prompts.empty() && body->n >= 1 && body->n <= limits::kMaxChoices);
  SHOAL_CHECK(body->prompts.size() * static_cast<size_t>(body->n) <= limits::kMaxChoicesPerRequest);
  const SamplingParams& sampling = body->common.sampling;
  SHOAL_CHECK(sampling.temperature >= 0 && sampling.temperature <= 2 && sampling.top_p > 0 && sampling.top_p <= 1);
  SHOAL_CHECK(sampling.logprobs <= limits::kMaxLogprobs && sampling.logit_bias.size() <= limits::kMaxLogitBias);
  for (const CompletionPrompt& prompt : body->prompts) {
    SHOAL_CHECK(!prompt.tokens.empty() && prompt.max_tokens >= 0);
    SHOAL_CHECK(prompt.tokens.size() + static_cast<size_t>(prompt.max_tokens) <= 4096);
    for (const TokenId token : prompt.tokens) SHOAL_CHECK(token >= 0 && token < tokenizer.vocabulary_size());
  }

  const auto generation = ParseCompletion(text, context);
  SHOAL_CHECK(generation.has_value());
  const size_t choices = (*generation)->requests.size();
  std::string out;
  for (size_t i = 0; i < choices; ++i) {
    Delta delta;
    delta.text = std::string(text.substr(0, 16));
    delta.tokens.push_back(
        {.token = 65, .text = std::string(text.substr(0, 1)), .logprob = -1, .top = {{66, -2.0f}}, .logits = {}});
    delta.finish = FinishReason::kStop;
    while (!(*generation)->OnDelta(i, delta, out)) {
    }
  }
  out += (*generation)->OnEnd();
  if (!(*generation)->streaming)
    SHOAL_CHECK(nlohmann::json::accept(out));
  else
    SHOAL_CHECK(out.ends_with("data: [DONE]\n\n"));
  return 0;
}
