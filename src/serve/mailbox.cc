#include "serve/mailbox.h"

#include "base/check.h"

namespace shoal::serve {
namespace {

size_t Weight(const std::vector<TokenOutput>& tokens) {
  size_t bytes = 0;
  for (const TokenOutput& token : tokens)
    bytes += sizeof(TokenOutput) + token.text.size() + token.top.size() * sizeof(TokenLogprob) +
             token.logits.size() * sizeof(float);
  return bytes;
}

}  // namespace

Mailbox::Mailbox(size_t choices, size_t max_bytes, bool keep_tokens, std::function<void()> wake)
    : max_bytes_(max_bytes), keep_tokens_(keep_tokens), wake_(std::move(wake)), letter_of_choice_(choices, -1) {}

void Mailbox::SetWake(std::function<void()> wake) {
  std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
}

void Mailbox::Push(size_t choice, Delta delta) {
  SHOAL_CHECK(choice < letter_of_choice_.size());
  const int token_count = static_cast<int>(delta.tokens.size());
  if (!keep_tokens_) {
    delta.tokens.clear();
    delta.prompt.clear();
  }
  std::lock_guard lock(mutex_);
  if (closed_) return;
  // A prompt's log-probabilities come once, at most as many as the context is long: they are not a reader's backlog.
  const size_t weight = delta.text.size() + Weight(delta.tokens);
  if (bytes_ + weight > max_bytes_ && !letters_.empty()) overflowed_ = true;
  const bool was_empty = letters_.empty();
  if (!overflowed_ || delta.finish) {
    bytes_ += weight;
    int& index = letter_of_choice_[choice];
    if (index < 0) {
      index = static_cast<int>(letters_.size());
      letters_.push_back({choice, std::move(delta), token_count, Now()});
    } else {
      Letter& letter = letters_[static_cast<size_t>(index)];
      letter.token_count += token_count;
      letter.delta.text += delta.text;
      for (TokenOutput& token : delta.tokens) letter.delta.tokens.push_back(std::move(token));
      for (TokenOutput& token : delta.prompt) letter.delta.prompt.push_back(std::move(token));
      letter.delta.finish = delta.finish;
      letter.delta.error = std::move(delta.error);
      letter.delta.usage = delta.usage;
    }
  }
  if (was_empty || overflowed_) wake_();
}

std::vector<Mailbox::Letter> Mailbox::Take() {
  std::vector<Letter> taken;
  std::lock_guard lock(mutex_);
  taken.swap(letters_);
  letter_of_choice_.assign(letter_of_choice_.size(), -1);
  bytes_ = 0;
  return taken;
}

bool Mailbox::overflowed() const {
  std::lock_guard lock(mutex_);
  return overflowed_;
}

void Mailbox::Close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  wake_ = [] {};
  letters_.clear();
  letter_of_choice_.assign(letter_of_choice_.size(), -1);
}

}  // namespace shoal::serve
