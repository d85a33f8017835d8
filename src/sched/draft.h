// What: speculation without a second model. What a sequence says next it has often said before: the last tokens are looked up
// in its own history, and what followed there is proposed. The ranks verify a proposal in the step that computes the last
// known token anyway, and keep what they would have drawn without it: output never depends on proposals.
//
// A proposal pays when its rows cost less than the tokens they save. DraftLength says how long it may be:
//   a token costs now    worth = time of the step / sequences that draw in it
//   the j-th row         becomes a token with a chance of chance^j, and costs `row`
//   it is proposed       while chance^j · worth > 1.25 · row
// Alone, a token costs a whole step and nearly every guess pays; in a large batch it costs little more than a row, and only
// near certainty does. Where a sequence's guesses fail, its chance falls until nothing is proposed; from then on it creeps back
// towards one half, so that now and then one row probes whether times have changed.
// Threads: none. Pure.
// Limits: looks at the last kHistory tokens; proposes at most kMaxDraft (core/step.h).
// Fails: never; an empty proposal is a proposal.
#pragma once

#include <span>
#include <vector>

#include "core/ids.h"
#include "sched/step_cost.h"

namespace shoal {

// How likely the next proposed token of one sequence is the one that is drawn.
class DraftChance {
 public:
  double value() const { return chance_; }
  // `proposed` tokens were verified, the first `accepted` of them were drawn.
  void Verified(int proposed, int accepted);
  void NotTried();

 private:
  double chance_ = 0.5;
};

// Tokens worth proposing for one of `sequences` that draw in the step, at most `most`.
int DraftLength(double chance, const StepCost& cost, int sequences, int most);

// What followed the latest earlier occurrence of the last three (else two) tokens; at most `most` tokens, all from history.
std::vector<TokenId> LookUp(std::span<const TokenId> history, int most);

}  // namespace shoal
