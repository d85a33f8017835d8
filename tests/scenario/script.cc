#include "tests/scenario/script.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <memory>
#include <sstream>
#include <vector>

#include "tests/scenario/world.h"

namespace shoal::scenario {
namespace {

using Words = std::vector<std::string>;

struct Complaint {
  std::string text;
};

[[noreturn]] void Complain(std::string text) { throw Complaint{std::move(text)}; }

void Equal(const std::string& got, const std::string& expected) {
  if (got != expected) Complain("got: " + got);
}

int Number(std::string_view word) {
  int value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc{} || end != word.data() + word.size()) Complain("not a number: " + std::string(word));
  return value;
}

Words Split(std::string_view line, char separator = ' ') {
  Words words;
  std::istringstream in{std::string(line)};
  for (std::string word; std::getline(in, word, separator);)
    if (!word.empty()) words.push_back(word);
  return words;
}

constexpr const char* kReasons[] = {"stop", "length", "cancelled", "error"};
constexpr const char* kObstacles[] = {"nothing", "sequences", "rows", "blocks", "prefix"};

class Script {
 public:
  void Line(const Words& words);
  void End();

 private:
  void SetUp(const Words& words);
  void Add(const Words& words);
  void Crowd(const Words& words);
  void Expect(const Words& words);
  Request RequestFrom(const std::string& name, const Words& words, size_t first, uint64_t salt) const;
  World& world();
  SequenceId Id(const std::string& name) const;
  std::string Name(SequenceId id) const { return names_.at(id); }
  std::string Names(const std::vector<SequenceId>& ids) const;
  std::string Plan() const;
  void NoProblem() {
    if (world_ && !world_->problem().empty()) Complain(world_->problem());
  }

  SchedulerOptions scheduler_{
      .max_step_rows = 64, .max_sequences = 8, .kv_blocks = 64, .context = 512, .vocabulary = 997, .end_tokens = {}};
  sim::PretendOptions ranks_;
  std::unique_ptr<World> world_;
  std::map<std::string, SequenceId> ids_;
  std::map<SequenceId, std::string> names_;
};

World& Script::world() {
  if (!world_) {
    ranks_.kv_blocks = scheduler_.kv_blocks;
    ranks_.vocabulary = scheduler_.vocabulary;
    world_ = std::make_unique<World>(scheduler_, ranks_);
  }
  return *world_;
}

SequenceId Script::Id(const std::string& name) const {
  const auto found = ids_.find(name);
  if (found == ids_.end()) Complain("nobody is called " + name);
  return found->second;
}

std::string Script::Names(const std::vector<SequenceId>& ids) const {
  std::string text;
  for (const SequenceId id : ids) text += (text.empty() ? "" : " ") + Name(id);
  return text.empty() ? "none" : text;
}

// "-c +a(40) a[0,32)+2 b[5,6)*": forgotten, told about, and rows with the number of new blocks; * draws a
// token.
std::string Script::Plan() const {
  const StepPlan& plan = world_->decision().plan;
  std::string text;
  const auto word = [&](const std::string& w) { text += (text.empty() ? "" : " ") + w; };
  for (const SequenceId id : plan.removed) word("-" + Name(id));
  for (const auto& start : plan.added) word("+" + Name(start.id) + "(" + std::to_string(start.tokens.size()) + ")");
  for (const auto& chunk : plan.chunks)
    word(Name(chunk.id) + "[" + std::to_string(chunk.first) + "," + std::to_string(chunk.first + chunk.count) + ")" +
         (chunk.new_blocks.empty() ? "" : "+" + std::to_string(chunk.new_blocks.size())) + (chunk.sample ? "*" : "") +
         (chunk.draft.empty() ? "" : "?" + std::to_string(chunk.draft.size())));
  return text.empty() ? "nothing" : text;
}

void Script::SetUp(const Words& words) {
  if (world_) Complain("the world is set up before the first action");
  const std::string& what = words[0];
  const int value = Number(words.at(1));
  if (what == "pool") scheduler_.kv_blocks = value;
  if (what == "budget") scheduler_.max_step_rows = value;
  if (what == "sequences") scheduler_.max_sequences = value;
  if (what == "context") scheduler_.context = value;
  if (what == "vocabulary") scheduler_.vocabulary = value;
  if (what == "cache") scheduler_.prefix_cache = value != 0;
  if (what == "draft") scheduler_.max_draft = value;
  if (what == "mixed") scheduler_.mixed_rows = value;
  if (what == "stages") scheduler_.steps_at_once = ranks_.stages = value;
  if (what == "repeat") ranks_.repeat = value;
  if (what == "base") ranks_.base = Nanos(value);
  if (what == "row") ranks_.row = Nanos(value);
  if (what == "seed") ranks_.seed = static_cast<uint64_t>(value);
  if (what == "errors") ranks_.error_one_in = value;
  if (what == "end") {
    scheduler_.end_tokens.push_back(value);
    ranks_.end_token = value;
    if (words.size() > 2) ranks_.end_one_in = Number(words[2]);
  }
}

// "8" or "4..12": a range is drawn from `salt`.
int Drawn(const std::string& text, uint64_t& salt) {
  const size_t dots = text.find("..");
  if (dots == std::string::npos) return Number(text);
  const int low = Number(text.substr(0, dots));
  const int high = Number(text.substr(dots + 2));
  salt = salt * 6364136223846793005ull + 1442695040888963407ull;
  return low + static_cast<int>((salt >> 33) % static_cast<uint64_t>(high - low + 1));
}

Request Script::RequestFrom(const std::string& name, const Words& words, size_t first, uint64_t salt) const {
  Request request;
  request.id = name;
  int prompt = 1;
  for (size_t i = first; i < words.size() && words[i] != "because"; ++i) {
    const size_t equal = words[i].find('=');
    const std::string key = words[i].substr(0, equal);
    const std::string value = equal == std::string::npos ? "" : words[i].substr(equal + 1);
    if (key == "prompt") {
      prompt = Drawn(value, salt);
    } else if (key == "max") {
      request.max_tokens = Drawn(value, salt);
    } else if (key == "stop") {
      for (const auto& token : Split(value, ',')) request.stop_tokens.push_back(Number(token));
    } else if (key == "ignore_eos") {
      request.ignore_eos = true;
    } else if (key == "tenant") {
      request.tenant = value;
    } else if (key == "like") {  // like=NAME:N
      const Words parts = Split(value, ':');
      const Record& model = world_->record(Id(parts.at(0)));
      request.prompt = model.request.prompt;
      request.prompt.insert(request.prompt.end(), model.generated.begin(), model.generated.end());
      const auto length = static_cast<size_t>(Number(parts.at(1)));
      if (length > request.prompt.size()) Complain(parts[0] + " is not so long");
      request.prompt.resize(length);
    } else if (key == "prompt_logprobs") {
      request.sampling.prompt_logprobs = true;
    } else {
      Complain("unknown field " + key);
    }
  }
  uint64_t state = 17;
  for (const char c : name) state = state * 31 + static_cast<unsigned char>(c);
  while (static_cast<int>(request.prompt.size()) < prompt) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    request.prompt.push_back(static_cast<TokenId>((state >> 33) % static_cast<uint64_t>(scheduler_.vocabulary)));
  }
  return request;
}

void Script::Add(const Words& words) {
  const std::string& name = words.at(1);
  const auto id = world().Add(RequestFrom(name, words, 2, 0));
  if (words[0] == "refuse") {
    if (id) Complain("it was accepted");
    if (words.size() < 2 || words[words.size() - 2] != "because") Complain("refuse ... because REASON");
    return Equal(std::string(id.error().reason.name()), words.back());
  }
  if (!id) Complain(ToString(id.error()));
  if (!ids_.emplace(name, *id).second) Complain("the name is taken");
  names_[*id] = name;
}

void Script::Crowd(const Words& words) {
  const int count = Number(words.at(2));
  for (int i = 1; i <= count; ++i) {
    const std::string name = words[1] + std::to_string(i);
    const auto id = world().Add(RequestFrom(name, words, 3, static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15ull));
    if (!id) Complain(ToString(id.error()));
    ids_[name] = *id;
    names_[*id] = name;
  }
}

void Script::Expect(const Words& words) {
  const std::string& what = words.at(1);
  std::string rest;
  for (size_t i = 2; i < words.size(); ++i) rest += (rest.empty() ? "" : " ") + words[i];
  const Decision& decision = world().decision();
  const SchedulerStats stats = world().scheduler().stats();
  if (what == "plan") return Equal(Plan(), rest);
  if (what == "admitted") return Equal(Names(decision.admitted), rest);
  if (what == "preempted") return Equal(Names(decision.preempted), rest);
  if (what == "stalled") return Equal(Names(decision.stalled), rest);
  if (what == "waiting") return Equal(Names(world().scheduler().waiting()), rest);
  if (what == "running") return Equal(Names(world().scheduler().running()), rest);
  if (what == "order") return Equal(Names(world().finish_order()), rest);
  if (what == "free") return Equal(std::to_string(stats.blocks_free), rest);
  if (what == "kept") return Equal(std::to_string(stats.blocks_kept), rest);
  if (what == "cached") return Equal(std::to_string(stats.cached_tokens), rest);
  if (what == "proposed") return Equal(std::to_string(stats.proposed_tokens), rest);
  if (what == "accepted") return Equal(std::to_string(stats.accepted_tokens), rest);
  if (what == "preemptions") return Equal(std::to_string(stats.preemptions), rest);
  if (what == "recomputed") return Equal(std::to_string(stats.recomputed_rows), rest);
  if (what == "steps") return Equal(std::to_string(stats.steps), rest);
  if (what == "tokens") return Equal(std::to_string(world().record(Id(words.at(2))).generated.size()), words.at(3));
  if (what == "held") {  // expect held NAME by OBSTACLE
    if (decision.held_back == 0) return Equal("none", rest);
    return Equal(Name(decision.held_back) + " by " + kObstacles[static_cast<int>(decision.obstacle)], rest);
  }
  if (what == "finished") {  // expect finished NAME REASON TOKENS
    const Record& record = world().record(Id(words.at(2)));
    if (!record.end) Complain("it is not finished");
    return Equal(
        words[2] + " " + kReasons[static_cast<int>(record.end->reason)] + " " + std::to_string(record.generated.size()),
        rest);
  }
  if (what == "idle") {
    if (!world().scheduler().empty()) Complain("not idle");
    return;
  }
  Complain("unknown expectation " + what);
}

void Script::Line(const Words& words) {
  static const std::vector<std::string> kSetUp{"pool",  "budget", "sequences", "context", "vocabulary",
                                               "seed",  "end",    "errors",    "cache",   "draft",
                                               "mixed", "repeat", "base",      "row",     "stages"};
  const std::string& verb = words[0];
  if (std::find(kSetUp.begin(), kSetUp.end(), verb) != kSetUp.end()) return SetUp(words);
  if (verb == "expect") return Expect(words);
  if (verb == "add" || verb == "refuse") {
    Add(words);
  } else if (verb == "crowd") {
    Crowd(words);
  } else if (verb == "cancel" || verb == "stop") {
    world().scheduler().Finish(Id(words.at(1)), verb == "stop" ? FinishReason::kStop : FinishReason::kCancelled);
  } else if (verb == "draw") {  // draw NAME INDEX TOKEN
    world().Force(Id(words.at(1)), Number(words.at(2)), Number(words.at(3)));
  } else if (verb == "schedule") {
    world().Schedule();
  } else if (verb == "apply") {
    world().Apply();
  } else if (verb == "step") {
    for (int i = words.size() > 1 ? Number(words[1]) : 1; i > 0; --i)
      if (world().Schedule()) world().Apply();
  } else if (verb == "run") {
    world().Run(100'000);
  } else {
    Complain("unknown verb " + verb);
  }
  NoProblem();
}

// Whatever a scenario looked at, its sequences must all be able to end, and the pool to be whole again.
void Script::End() {
  while (world().scheduler().steps_in_flight() > 0 && world().problem().empty()) world().Apply();
  world().Run(100'000);
  NoProblem();
}

}  // namespace

std::string RunScript(std::string_view text) {
  Script script;
  int number = 0;
  std::string line = "the end";
  try {
    std::istringstream in{std::string(text)};
    while (std::getline(in, line)) {
      ++number;
      const Words words = Split(line.substr(0, line.find('#')));
      if (!words.empty()) script.Line(words);
    }
    line = "the end";
    script.End();
    return {};
  } catch (const Complaint& complaint) {
    return "line " + std::to_string(number) + ": " + line + "\n  " + complaint.text;
  } catch (const std::out_of_range&) {
    return "line " + std::to_string(number) + ": " + line + "\n  a word is missing";
  }
}

}  // namespace shoal::scenario
