// What: the dialect of POST /v1/completions: a body becomes engine requests, deltas become OpenAI's text_completion objects.
// Threads: ParseCompletion may run on any thread; the tokenizer is immutable.
// Limits: core/limits.h (prompts, choices, stops, logit_bias, logprobs, JSON); docs/api.md lists each field's range.
// Fails: ParseCompletion by value, with `param`.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "model/tokenizer.h"
#include "serve/generation.h"

namespace shoal::serve {

// What a dialect must know of the server.
struct ModelContext {
  std::string model_name;
  const Tokenizer* tokenizer = nullptr;
  int context_length = 0;  // prompt and answer together
};

Result<std::unique_ptr<Generation>> ParseCompletion(std::string_view body, const ModelContext& context);

}  // namespace shoal::serve
