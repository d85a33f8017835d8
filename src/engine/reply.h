// What: what one request has been answered so far: tokens become text here (whole UTF-8 characters, cut before a
// stop string), and each step's news becomes one Delta.
// Owns: the request's sink and its text stream.
// Threads: the engine's.
// Fails: never; a request's own failure is its last Delta.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "engine/engine.h"
#include "model/text_stream.h"

namespace shoal {

class Reply {
 public:
  // Shares the tokenizer with the engine, which outlives it.
  Reply(const Request& request, const Tokenizer& tokenizer, Sink sink);

  // So many tokens of the prompt were found in the prefix cache.
  void TakeCached(int tokens) { usage_.cached_tokens = tokens; }
  // A prompt token's log-probability; one that is known already (it was computed again) is dropped.
  void TakePromptLogprob(PromptLogprob logprob);
  // A drawn token. `ends`: it is an end or stop token, which closes the text without being part of it.
  // True when the text now holds a stop string: the request is answered.
  bool TakeToken(SampledToken token, bool ends);

  // What is new since the last call, ready for the sink; with `finish` also what the text had held back.
  Delta News();
  Delta LastNews(FinishReason finish, std::optional<Error> error);

  const Sink& sink() const { return sink_; }
  bool admitted = false;  // has left the waiting line at least once
  bool ended = false;     // its last Delta is made

 private:
  std::string_view Piece(TokenId token) const;

  const Tokenizer& tokenizer_;
  Sink sink_;
  TextStream text_;
  bool stopped_ = false;
  std::vector<TokenOutput> prompt_;  // with prompt_logprobs, until it is sent
  int prompt_known_ = 0;             // its first entries that are filled in
  Delta news_;
  Usage usage_;
};

}  // namespace shoal
