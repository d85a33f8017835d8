// Everything that can change a choice is done in one fixed order: sums run over ids in rising order, in
// double precision, and e^x is computed here by basic operations, because the library's may differ from
// machine to machine.
#include "model/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "core/reasons.h"

namespace shoal {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// A token that may be drawn. `weight` = e^((logit - best) / temperature), so 1 for the most likely.
struct Candidate {
  float logit = 0;
  TokenId token = 0;
  double weight = 0;
};

bool MoreLikely(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

struct Scratch {
  std::vector<float> logits;
  std::vector<int32_t> counts;  // all 0 between uses
  std::vector<Candidate> candidates;
};

// e^-x for x >= 0. Below e^-64 a token is beyond what a random number of 53 bits can reach: 0.
double ExpMinus(double x) {
  if (!(x < 64.0)) return 0.0;
  const double t = x * -1.4426950408889634 + 0x1.8p52;  // rounds to an integer, held in the low bits
  const double n = t - 0x1.8p52;
  const double r = (n * -6.93145751953125e-1 - x) - n * 1.42860682030941723212e-6;  // |r| <= ln2 / 2
  const double r2 = r * r;
  const double r4 = r2 * r2;
  // Taylor series to r^12 (error below 2e-16), summed in an order that lets operations overlap.
  const double low = (1.0 + r) + r2 * (0.5 + r * (1.0 / 6));
  const double middle = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
  const double high = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
  const double e = low + r4 * (middle + r4 * (high + r4 * (1.0 / 479001600)));
  return e * std::bit_cast<double>((std::bit_cast<uint64_t>(t) + 1023) << 52);
}

// The highest value; 16 running maxima so that they need not wait for each other (the maximum has no order).
float Highest(std::span<const float> x) {
  constexpr size_t kWays = 16;
  float best[kWays];
  std::fill_n(best, kWays, kNever);
  size_t i = 0;
  for (; i + kWays <= x.size(); i += kWays) {
    for (size_t j = 0; j < kWays; ++j) best[j] = x[i + j] > best[j] ? x[i + j] : best[j];
  }
  for (; i < x.size(); ++i) best[0] = x[i] > best[0] ? x[i] : best[0];
  return *std::max_element(best, best + kWays);
}

// The id of the highest value, lowest id on a tie.
TokenId MostLikely(std::span<const float> x) {
  return static_cast<TokenId>(std::find(x.begin(), x.end(), Highest(x)) - x.begin());
}

bool InRange(TokenId token, size_t n) { return token >= 0 && static_cast<size_t>(token) < n; }

// Changes each distinct token of `tokens` once: logit = change(logit, how often it occurs).
template <class Change>
void ForEachDistinct(std::span<const TokenId> tokens, Scratch& scratch, Change&& change) {
  std::span<float> logits = scratch.logits;
  if (scratch.counts.size() < logits.size()) scratch.counts.resize(logits.size());
  for (const TokenId token : tokens) {
    if (InRange(token, logits.size())) ++scratch.counts[static_cast<size_t>(token)];
  }
  for (const TokenId token : tokens) {
    if (!InRange(token, logits.size())) continue;
    const size_t i = static_cast<size_t>(token);
    if (scratch.counts[i] == 0) continue;
    logits[i] = change(logits[i], scratch.counts[i]);
    scratch.counts[i] = 0;
  }
}

bool ChangesLogits(const SamplingParams& p, std::span<const TokenId> forbidden) {
  return !p.logit_bias.empty() || !forbidden.empty() || p.presence_penalty != 0 || p.frequency_penalty != 0 ||
         p.repeat_penalty != 1;
}

// scratch.logits after bias, penalties and forbidden tokens. None is NaN or +inf.
void ChangeLogits(const SamplingParams& p, std::span<const TokenId> history, int prompt_length,
                  std::span<const TokenId> forbidden, Scratch& scratch) {
  std::vector<float>& logits = scratch.logits;
  const auto limited = [](float x) {  // hostile parameters overflow; the order of tokens stays defined
    return x >= kNever ? std::min(x, std::numeric_limits<float>::max()) : kNever;
  };
  for (const auto& [token, bias] : p.logit_bias) {
    if (InRange(token, logits.size())) {
      float& logit = logits[static_cast<size_t>(token)];
      logit = limited(logit + bias);
    }
  }
  if (p.repeat_penalty != 1 && p.repeat_penalty > 0 && p.repeat_last_n != 0) {
    const size_t n =
        p.repeat_last_n < 0 ? history.size() : std::min(history.size(), static_cast<size_t>(p.repeat_last_n));
    ForEachDistinct(history.last(n), scratch, [&](float logit, int32_t) {
      return limited(logit > 0 ? logit / p.repeat_penalty : logit * p.repeat_penalty);
    });
  }
  if (p.presence_penalty != 0 || p.frequency_penalty != 0) {
    const size_t prompt = std::min(history.size(), static_cast<size_t>(std::max(prompt_length, 0)));
    ForEachDistinct(history.subspan(prompt), scratch, [&](float logit, int32_t count) {
      return limited(logit - p.presence_penalty - p.frequency_penalty * static_cast<float>(count));
    });
  }
  for (const TokenId token : forbidden) {
    if (InRange(token, logits.size())) logits[static_cast<size_t>(token)] = kNever;
  }
}

// The k most likely (all when k <= 0), by rising id.
void Gather(std::span<const float> logits, int top_k, std::vector<Candidate>& out) {
  out.clear();
  const size_t k = top_k <= 0 ? logits.size() : std::min(logits.size(), static_cast<size_t>(top_k));
  if (k == logits.size()) {
    for (size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] != kNever) out.push_back({logits[i], static_cast<TokenId>(i), 0});
    }
    return;
  }
  // Ids rise, so of equal logits the first stay: later ones must be higher than the k-th best so far.
  const size_t room = k + std::max<size_t>(k, 256);
  const auto cut = [&] {
    std::nth_element(out.begin(), out.begin() + static_cast<ptrdiff_t>(k) - 1, out.end(), MoreLikely);
    out.resize(k);
  };
  float floor = kNever;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > floor)) continue;
    out.push_back({logits[i], static_cast<TokenId>(i), 0});
    if (out.size() < room) continue;
    cut();
    floor = out.back().logit;
  }
  if (out.size() > k) cut();
  std::sort(out.begin(), out.end(), [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
}

// Sets the weight of what lies outside the nucleus to 0. The nucleus is found without sorting all: weights
// are counted in buckets of falling likelihood, and only the bucket in which the share is reached is sorted.
void KeepTopP(double top_p, float best, double temperature, std::vector<Candidate>& candidates) {
  constexpr size_t kBuckets = 2048;
  constexpr double kPerBucket = 32;  // buckets per factor of e: 64 * 32 = kBuckets
  const auto bucket_of = [&](const Candidate& c) {
    const double x = (static_cast<double>(best) - static_cast<double>(c.logit)) / temperature * kPerBucket;
    return x < static_cast<double>(kBuckets - 1) ? static_cast<size_t>(x) : kBuckets - 1;
  };
  double mass[kBuckets] = {};
  double total = 0;
  for (const Candidate& c : candidates) {
    mass[bucket_of(c)] += c.weight;
    total += c.weight;
  }
  const double wanted = std::max(top_p, 0.0) * total;
  double reached = 0;
  size_t edge = 0;
  while (edge + 1 < kBuckets && reached + mass[edge] < wanted) reached += mass[edge++];
  std::vector<Candidate> at_edge;
  for (const Candidate& c : candidates) {
    if (c.weight > 0 && bucket_of(c) == edge) at_edge.push_back(c);
  }
  if (at_edge.empty()) return;  // rounding: all of it together does not reach the share
  std::sort(at_edge.begin(), at_edge.end(), MoreLikely);
  size_t kept = 0;
  while (kept < at_edge.size()) {
    reached += at_edge[kept++].weight;
    if (reached >= wanted) break;
  }
  const Candidate& cut = at_edge[kept - 1];
  for (Candidate& c : candidates) {
    if (MoreLikely(cut, c)) c.weight = 0;
  }
}

// Draws among scratch.candidates, which is not empty.
TokenId Draw(const SamplingParams& p, uint64_t position, std::vector<Candidate>& candidates) {
  const double temperature = static_cast<double>(p.temperature);
  float best = candidates.front().logit;
  for (const Candidate& c : candidates) best = std::max(best, c.logit);
  for (Candidate& c : candidates) {
    c.weight = ExpMinus((static_cast<double>(best) - static_cast<double>(c.logit)) / temperature);
  }
  if (p.top_p < 1) KeepTopP(static_cast<double>(p.top_p), best, temperature, candidates);
  double total = 0;
  for (Candidate& c : candidates) {
    if (p.min_p > 0 && c.weight < std::min(1.0, static_cast<double>(p.min_p))) c.weight = 0;
    total += c.weight;
  }
  const double target = UniformAt(p.seed, position) * total;
  double reached = 0;
  TokenId last = candidates.front().token;
  for (const Candidate& c : candidates) {
    if (c.weight == 0) continue;
    reached += c.weight;
    last = c.token;
    if (reached > target) break;
  }
  return last;
}

}  // namespace

double UniformAt(uint64_t seed, uint64_t position) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
  const auto mix = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  };
  return static_cast<double>(mix(mix(seed + kGolden) + (position + 1) * kGolden) >> 11) * 0x1p-53;
}

bool AllFinite(std::span<const float> logits) {
  bool bad = false;
  for (const float x : logits) bad |= (std::bit_cast<uint32_t>(x) & 0x7f800000u) == 0x7f800000u;
  return !bad;
}

Logprobs ComputeLogprobs(std::span<const float> logits, TokenId token, int top) {
  Logprobs result;
  if (logits.empty()) return result;
  const double best = static_cast<double>(Highest(logits));
  constexpr size_t kWays = 8;  // partial sums by id mod 8, added in order at the end
  double sums[kWays] = {};
  for (size_t i = 0; i < logits.size(); ++i) {
    sums[i % kWays] += ExpMinus(best - static_cast<double>(logits[i]));
  }
  double sum = 0;
  for (const double x : sums) sum += x;
  const double all = best + std::log(sum);
  const auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - all); };
  result.chosen = InRange(token, logits.size()) ? logprob(logits[static_cast<size_t>(token)]) : kNever;
  if (top <= 0) return result;
  std::vector<Candidate> most;
  Gather(logits, top, most);
  std::sort(most.begin(), most.end(), MoreLikely);
  for (const Candidate& c : most) result.top.push_back({c.token, logprob(c.logit)});
  return result;
}

SampledToken Sample(std::span<const float> logits, const SamplingParams& params, std::span<const TokenId> history,
                    int prompt_length, std::span<const TokenId> forbidden) {
  SampledToken result;
  result.position = static_cast<int>(history.size());
  if (params.want_logits) result.logits.assign(logits.begin(), logits.end());
  if (!AllFinite(logits)) {
    result.error = MakeError(Code::kInternal, reasons::kModelProducedNan,
                             "the model produced a value that is not a number; its weights may be damaged",
                             "non-finite logits at position " + std::to_string(history.size()));
    return result;
  }
  thread_local Scratch scratch;
  std::span<const float> changed = logits;
  if (ChangesLogits(params, forbidden)) {
    scratch.logits.assign(logits.begin(), logits.end());
    ChangeLogits(params, history, prompt_length, forbidden, scratch);
    changed = scratch.logits;
  }
  const bool greedy = !(params.temperature > 0);
  bool none = changed.empty();
  if (!none && (greedy || params.top_k == 1)) {
    result.token = MostLikely(changed);
    none = changed[static_cast<size_t>(result.token)] == kNever;
  } else if (!none) {
    Gather(changed, params.top_k, scratch.candidates);
    none = scratch.candidates.empty();
    if (!none) result.token = Draw(params, static_cast<uint64_t>(history.size()), scratch.candidates);
  }
  if (none) {
    result.token = 0;
    result.error = MakeError(Code::kInvalidArgument, reasons::kInvalidValue,
                             "no token is left to choose from: all are forbidden or biased away");
    result.error->param = "logit_bias";
    return result;
  }
  if (params.logprobs >= 0) {
    Logprobs logprobs = ComputeLogprobs(logits, result.token, params.logprobs);
    result.logprob = logprobs.chosen;
    result.top = std::move(logprobs.top);
  }
  return result;
}

}  // namespace shoal
