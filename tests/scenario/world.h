// What: a small world around the real scheduler: the pretend ranks, names for sequences, and a record of what became
// of each. Every call checks what must hold always: the scheduler's invariants, that the ranks accept each plan,
// that first admissions come in arrival order, and that each sequence's tokens are those it gets alone.
// Fails: Problem() says what went wrong first.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sched/scheduler.h"
#include "sim/pretend_group.h"

namespace shoal::scenario {

struct Record {
  Request request;
  std::vector<TokenId> generated;
  std::optional<Finished> end;
};

class World {
 public:
  World(SchedulerOptions scheduler, sim::PretendOptions ranks);

  Result<SequenceId> Add(Request request);
  // The token to draw at a sequence's generated index (from 1) instead of the hash.
  void Force(SequenceId id, int index, TokenId token) { forced_[{id, index}] = token; }

  // Schedules and starts one step; false when there is nothing to compute.
  bool Schedule();
  // Takes the result of the oldest step in flight.
  void Apply();
  // The ranks are lost and others take their place, with nothing in their memory.
  void Reset();
  // Until all is finished; a step limit stands for "never".
  void Run(int most_steps);

  Scheduler& scheduler() { return scheduler_; }
  const Decision& decision() const { return decision_; }
  const Record& record(SequenceId id) const { return records_.at(id); }
  const std::vector<SequenceId>& finish_order() const { return finish_order_; }
  // Turns the order of the tokens in each result around: the scheduler must not rely on it.
  void reverse_results(bool on) { reverse_ = on; }
  const std::string& problem() const { return problem_; }

 private:
  std::unique_ptr<sim::PretendGroup> NewGroup();
  void Note(std::string problem);
  void CheckAlways();
  void CheckPasses(bool alone);
  void TakeFinished(const std::vector<Finished>& finished);
  void CheckAgainstAlone(SequenceId id);

  const sim::PretendOptions ranks_;
  Scheduler scheduler_;
  std::unique_ptr<sim::PretendGroup> group_;
  Decision decision_;
  std::map<SequenceId, Record> records_;
  std::map<std::pair<SequenceId, int>, TokenId> forced_;
  std::vector<SequenceId> finish_order_;
  SequenceId last_admitted_ = 0;
  bool reverse_ = false;
  std::string problem_;
};

}  // namespace shoal::scenario
