// What: one completion from the engine, awaited: what `run`, the prompt loop and the sample of `serve --demo` share.
// Threads: the caller's waits; text is shown on it as it comes.
// Fails: with the engine's or the request's error.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "app/session.h"
#include "base/result.h"
#include "core/request.h"

namespace shoal {

struct Completion {
  std::vector<TokenId> prompt_ids;
  std::vector<TokenId> ids;
  std::string text;
  FinishReason finish = FinishReason::kStop;
  double first_token_ms = 0;  // from the request to the first token
  double total_ms = 0;
};

struct CompletionHooks {
  std::function<void(const std::string&)> text = [](const std::string&) {};
  std::function<void(const std::vector<float>&)> logits = [](const std::vector<float>&) {};  // when want_logits
  std::function<bool()> interrupted = [] { return false; };                                  // asked ten times a second
};

// `prompt` is encoded; request.prompt is filled in and max_tokens bounded by the context.
Result<Completion> Complete(Session& session, const std::string& prompt, Request request, const CompletionHooks& hooks);

}  // namespace shoal
