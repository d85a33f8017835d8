// What: what a user asks for, after the API dialect is gone: token ids, how to sample, when to stop.
// Reads next: core/step.h (how it is computed), engine/engine.h (who takes it).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/ids.h"

namespace shoal {

// How the next token is drawn from the logits. Applied in this order: logit_bias, penalties, then
// temperature (0 = greedy), top_k, top_p, min_p. The random number of a token is keyed by (seed, position): a
// re-computed or moved sequence draws the same one.
struct SamplingParams {
  float temperature = 1.0f;        // 0..2; 0 = the most likely token, lowest id on a tie
  int top_k = 0;                   // 0 = all
  float top_p = 1.0f;              // 0..1
  float min_p = 0.0f;              // 0..1, relative to the most likely
  float presence_penalty = 0.0f;   // -2..2, subtracted once for a token that was generated before
  float frequency_penalty = 0.0f;  // -2..2, subtracted per earlier generation
  float repeat_penalty =
      1.0f;  // > 0; divides positive, multiplies negative logits of tokens seen in the last `repeat_last_n`
  int repeat_last_n = 64;  // prompt and output tokens looked at by repeat_penalty; -1 = all
  uint64_t seed = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;
  int logprobs = -1;             // -1 = none; else the chosen token's and the n most likely ones' are returned
  bool prompt_logprobs = false;  // also those of the prompt's tokens (echo)
  bool want_logits = false;      // return the raw f32 logits of every generated step (run --json)
};

struct Request {
  std::string id;               // for logs and clients, e.g. "cmpl-..."
  std::vector<TokenId> prompt;  // at least one token
  SamplingParams sampling;
  int max_tokens = 16;  // >= 1, or 0 with prompt_logprobs
  bool ignore_eos = false;
  std::vector<std::string> stop;  // cut before the first of these
  std::vector<TokenId> stop_tokens;
  std::string tenant;  // whose it is: none finds what another put into the prefix cache
};

enum class FinishReason { kStop, kLength, kCancelled, kError };

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};

}  // namespace shoal
