#include "engine/reply.h"

#include <utility>

namespace shoal {

Reply::Reply(const Request& request, const Tokenizer& tokenizer, Sink sink)
    : tokenizer_(tokenizer), sink_(std::move(sink)), text_(request.stop) {
  usage_.prompt_tokens = static_cast<int>(request.prompt.size());
  if (!request.sampling.prompt_logprobs) return;
  prompt_.resize(request.prompt.size());
  for (size_t i = 0; i < prompt_.size(); ++i) {
    prompt_[i].token = request.prompt[i];
    prompt_[i].text = Piece(request.prompt[i]);
  }
  prompt_known_ = 1;  // nothing comes before the first token, so it has no probability
}

std::string_view Reply::Piece(TokenId token) const {
  // A model may have more rows than its tokenizer has tokens (padding).
  return token < tokenizer_.vocabulary_size() ? tokenizer_.Piece(token) : std::string_view{};
}

void Reply::TakePromptLogprob(PromptLogprob logprob) {
  if (logprob.position != prompt_known_ || logprob.position >= static_cast<int>(prompt_.size())) return;
  TokenOutput& token = prompt_[static_cast<size_t>(prompt_known_++)];
  token.logprob = logprob.chosen.logprob;
  token.top = std::move(logprob.top);
}

bool Reply::TakeToken(SampledToken token, bool ends) {
  const std::string_view piece = Piece(token.token);
  ++usage_.completion_tokens;
  news_.tokens.push_back({.token = token.token,
                          .text = std::string(piece),
                          .logprob = token.logprob,
                          .top = std::move(token.top),
                          .logits = std::move(token.logits)});
  if (ends || stopped_) return stopped_;
  auto step = text_.Append(piece);
  news_.text += step.text;
  stopped_ = step.stopped;
  return stopped_;
}

Delta Reply::News() {
  Delta delta = std::exchange(news_, {});
  // A request that ends before its prompt is computed has no prompt to show.
  if (!prompt_.empty() && prompt_known_ == static_cast<int>(prompt_.size())) {
    delta.prompt = std::move(prompt_);
    prompt_.clear();
    prompt_known_ = 0;
  }
  delta.usage = usage_;
  return delta;
}

Delta Reply::LastNews(FinishReason finish, std::optional<Error> error) {
  if (!stopped_) news_.text += text_.Finish();
  if (finish == FinishReason::kLength && text_.stopped()) finish = FinishReason::kStop;  // by the very last character
  Delta delta = News();
  delta.finish = finish;
  delta.error = std::move(error);
  return delta;
}

}  // namespace shoal
