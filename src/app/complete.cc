#include "app/complete.h"

#include <algorithm>

#include "base/bounded_queue.h"
#include "core/reasons.h"

namespace shoal {
namespace {

double Milliseconds(Nanos time) { return std::chrono::duration<double, std::milli>(time).count(); }

Status FitPrompt(const Session& session, const std::string& prompt, Request& request) {
  SHOAL_ASSIGN(request.prompt, session.tokenizer->Encode(prompt, {.add_special = true, .parse_special = false}));
  if (request.prompt.empty())
    return Fail(Code::kInvalidArgument, reasons::kUsage,
                "the prompt is empty and the model has no token to begin a text with");
  const int context = session.engine->spec().context_length;
  const int room = context - static_cast<int>(request.prompt.size());
  if (room < 1)
    return Fail(Code::kInvalidArgument, reasons::kContextLengthExceeded,
                "the prompt has " + std::to_string(request.prompt.size()) + " tokens; the context holds " +
                    std::to_string(context));
  request.max_tokens = std::min(request.max_tokens, room);
  return {};
}

}  // namespace

Result<Completion> Complete(Session& session, const std::string& prompt, Request request,
                            const CompletionHooks& hooks) {
  SHOAL_RETURN_IF_ERROR(FitPrompt(session, prompt, request));
  Completion done;
  done.prompt_ids = request.prompt;
  // Each delta brings a token or is the last: this many always find room. Shared, so that a late delta finds it alive.
  auto deltas = std::make_shared<BoundedQueue<std::pair<Time, Delta>>>(static_cast<size_t>(request.max_tokens) + 8);
  const Time begin = Now();
  SHOAL_ASSIGN(const RequestHandle handle, session.engine->Submit(std::move(request), [deltas](Delta delta) {
    (void)deltas->TryPush({Now(), std::move(delta)});
  }));
  for (bool cancelled = false;;) {
    auto arrival = deltas->PopBefore(Deadline::After(std::chrono::milliseconds(100)));
    if (!cancelled && hooks.interrupted()) {
      session.engine->Cancel(handle);
      cancelled = true;
    }
    if (!arrival) continue;
    auto& [at, delta] = *arrival;
    if (done.ids.empty() && !delta.tokens.empty()) done.first_token_ms = Milliseconds(at - begin);
    for (const auto& token : delta.tokens) {
      done.ids.push_back(token.token);
      if (!token.logits.empty()) hooks.logits(token.logits);
    }
    done.text += delta.text;
    hooks.text(delta.text);
    if (!delta.finish) continue;
    if (delta.error) return std::unexpected(std::move(*delta.error));
    done.finish = *delta.finish;
    done.total_ms = Milliseconds(at - begin);
    return done;
  }
}

}  // namespace shoal
