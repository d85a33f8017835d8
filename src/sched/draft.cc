#include "sched/draft.h"

#include <algorithm>

namespace shoal {
namespace {

constexpr double kLearn = 0.2;         // weight of one verified token
constexpr double kForget = 1.0 / 128;  // of one step without a proposal
constexpr double kMargin = 1.25;       // a proposal must save more than it costs
constexpr int kHistory = 8192;

}  // namespace

void DraftChance::Verified(int proposed, int accepted) {
  for (int i = 0; i < accepted; ++i) chance_ += kLearn * (1 - chance_);
  if (accepted < proposed) chance_ -= kLearn * chance_;
}

void DraftChance::NotTried() { chance_ += kForget * (0.5 - chance_); }

int DraftLength(double chance, const StepCost& cost, int sequences, int most) {
  const double worth = cost.Of(sequences) / sequences;
  const double least = kMargin * cost.row() / worth;
  int length = 0;
  for (double becomes = chance; length < most && becomes > least; becomes *= chance) ++length;
  return length;
}

std::vector<TokenId> LookUp(std::span<const TokenId> history, int most) {
  const auto size = static_cast<int>(history.size());
  if (most < 1) return {};
  for (const int n : {3, 2}) {
    const int oldest = std::max(0, size - kHistory);
    const auto last = history.last(static_cast<size_t>(std::min(n, size)));
    for (int at = size - n - 1; at >= oldest; --at) {
      if (history[static_cast<size_t>(at)] != last[0] || !std::equal(last.begin(), last.end(), history.begin() + at))
        continue;
      // Where the occurrence reaches into the end itself (a loop), what follows is short; a loop goes on as it went.
      std::vector<TokenId> draft;
      const int period = size - n - at;
      for (int i = 0; i < most; ++i) {
        const int from = at + n + i;
        draft.push_back(from < size ? history[static_cast<size_t>(from)] : draft[static_cast<size_t>(i - period)]);
      }
      return draft;
    }
  }
  return {};
}

}  // namespace shoal
