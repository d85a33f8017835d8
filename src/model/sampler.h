// What: draws the next token from logits. Pure: the same logits, parameters, history and position give the
// same token, wherever and whenever it is computed. No call of the mathematics library takes part in a
// choice. Order: logit_bias; repeat penalty, then presence and frequency penalty; forbidden tokens out;
// temperature; top_k; top_p; min_p. "More likely" is a total order: higher logit first, lower id on a tie.
//   top_p  keeps the fewest most likely tokens whose share of what top_k left reaches top_p, at least one;
//   min_p  keeps what is at least min_p times as likely as the most likely token.
// Out-of-range parameters (requests are checked before) mean: temperature not > 0 greedy, top_k <= 0 all, top_p not
// < 1 all, min_p not > 0 all; ids outside the vocabulary are passed over.
// Threads: any; each thread keeps working memory of about 20 bytes per vocabulary entry.
// Fails: as a value, in SampledToken::error.
// Source: nucleus sampling (Holtzman et al. 2020), min-p (Nguyen et al. 2024), repetition penalty (Keskar et
// al. 2019).
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "core/request.h"
#include "core/step.h"

namespace shoal {

// history: all tokens of the sequence so far (prompt first); the token drawn sits at position history.size().
// Presence and frequency penalties count history[prompt_length..] only, repeat_penalty the last repeat_last_n
// of the whole history. Fills position, token, logprob and top (when params.logprobs >= 0; of the raw
// logits), logits (when want_logits); id of the result is left 0. Non-finite logits give the error
// kModelProducedNan, nothing left to choose kInvalidValue.
SampledToken Sample(std::span<const float> logits, const SamplingParams& params, std::span<const TokenId> history,
                    int prompt_length, std::span<const TokenId> forbidden);

// Log-probability of `token` and the `top` most likely ones (most likely first), from raw logits, which must
// be finite.
struct Logprobs {
  float chosen = 0;
  std::vector<TokenLogprob> top;
};
Logprobs ComputeLogprobs(std::span<const float> logits, TokenId token, int top);

// True when every logit is a finite number.
bool AllFinite(std::span<const float> logits);

// The uniform number in [0,1) for (seed, position): counter-based, so it needs no state. With mix = the
// finaliser of SplitMix64 (Steele, Lea, Flood 2014): the top 53 bits of mix(mix(seed + G) + (position + 1) *
// G), G = 0x9e3779b97f4a7c15.
double UniformAt(uint64_t seed, uint64_t position);

}  // namespace shoal
