// What: the body of POST /v1/completions as plain values, checked. Used by completions.cc and its tests.
// Threads: pure.
// Fails: by value, with `param`.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "core/request.h"
#include "serve/completions.h"

namespace shoal::serve {

struct CompletionPrompt {
  std::string text;  // of a text prompt; empty for one of token ids (decoded when it is echoed)
  bool is_text = false;
  std::vector<TokenId> tokens;
  int max_tokens = 0;  // what fits the context
};

struct CompletionBody {
  std::vector<CompletionPrompt> prompts;
  int n = 1;
  bool stream = false;
  bool include_usage = false;
  bool echo = false;
  int logprobs = -1;  // -1: none
  bool has_seed = false;
  int unknown_fields = 0;
  Request common;  // all but prompt, max_tokens and seed of each choice
};

Result<CompletionBody> ReadCompletionBody(std::string_view body, const ModelContext& context);

}  // namespace shoal::serve
