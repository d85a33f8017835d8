#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "core/limits.h"
#include "core/reasons.h"
#include "sim/pretend_group.h"

namespace shoal {
namespace {

using sim::PretendOptions;

constexpr int kVocabulary = 400;
constexpr TokenId kEnd = 2;

Deadline Soon() { return Deadline::After(std::chrono::seconds(60)); }

// Token 2 ends; tokens 3..255 are their byte; the others are words with a space before.
class WordTokenizer : public Tokenizer {
 public:
  WordTokenizer() {
    for (TokenId token = 0; token < vocabulary_size(); ++token)
      pieces_.push_back(token <= kEnd ? ""
                        : token < 256 ? std::string(1, static_cast<char>(token))
                                      : " w" + std::to_string(token));
  }
  Result<std::vector<TokenId>> Encode(std::string_view, EncodeOptions) const override { return std::vector<TokenId>{}; }
  std::string Decode(std::span<const TokenId> tokens, bool) const override {
    std::string text;
    for (const TokenId token : tokens) text += Piece(token);
    return text;
  }
  std::string_view Piece(TokenId token) const override { return pieces_.at(static_cast<size_t>(token)); }
  std::string_view Text(TokenId token) const override { return Piece(token); }
  int vocabulary_size() const override { return kVocabulary - 10; }  // the model's rows are padded
  TokenId bos() const override { return 1; }
  TokenId eos() const override { return kEnd; }
  bool adds_bos() const override { return true; }
  bool IsControl(TokenId token) const override { return token <= kEnd; }
  std::span<const TokenId> end_tokens() const override { return ends_; }

 private:
  std::vector<std::string> pieces_;
  std::vector<TokenId> ends_{kEnd};
};

// A gate that a test closes and opens; whoever passes waits while it is closed.
class Gate {
 public:
  void Close() {
    std::lock_guard lock(mutex_);
    open_ = false;
  }
  void Open() {
    {
      std::lock_guard lock(mutex_);
      open_ = true;
    }
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait_until(lock, Soon().at, [&] { return open_; });
  }
  bool SomebodyArrived(int times = 1) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, Soon().at, [&] { return arrived_ >= times; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int arrived_ = 0;
};

// Collects what a sink receives, and checks that it is well-formed.
class Answer {
 public:
  Sink MakeSink() {
    return [this](Delta delta) { Take(std::move(delta)); };
  }
  bool WaitFinished() {
    return WaitFor([&] { return finish.has_value(); });
  }
  bool WaitTokens(size_t count) {
    return WaitFor([&] { return tokens.size() >= count || finish; });
  }
  std::vector<TokenId> ids() {
    std::lock_guard lock(mutex_);
    std::vector<TokenId> all;
    for (const auto& token : tokens) all.push_back(token.token);
    return all;
  }

  std::string text;
  std::vector<TokenOutput> prompt;
  std::vector<TokenOutput> tokens;
  std::optional<FinishReason> finish;
  std::optional<Error> error;
  Usage usage;
  int deltas = 0;

 private:
  template <class Condition>
  bool WaitFor(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, Soon().at, condition);
  }
  void Take(Delta delta) {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(finish) << "nothing follows the last delta";
    EXPECT_TRUE(deltas == 0 || delta.prompt.empty()) << "the prompt comes with the first delta";
    ++deltas;
    text += delta.text;
    for (auto& token : delta.prompt) prompt.push_back(std::move(token));
    for (auto& token : delta.tokens) tokens.push_back(std::move(token));
    usage = delta.usage;
    EXPECT_EQ(usage.completion_tokens, static_cast<int>(tokens.size()));
    error = std::move(delta.error);
    finish = delta.finish;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
};

PretendOptions Ranks() {
  PretendOptions options;
  options.vocabulary = kVocabulary;
  options.kv_blocks = 64;
  return options;
}

std::unique_ptr<Engine> StartEngine(PretendOptions ranks, EngineOptions options = {}) {
  ModelSpec spec;
  spec.n_vocab = kVocabulary;
  spec.context_length = 512;
  return Engine::Start(spec, std::make_shared<WordTokenizer>(), std::make_unique<sim::PretendGroup>(std::move(ranks)),
                       options);
}

Request Ask(std::vector<TokenId> prompt, int max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

std::vector<TokenId> Alone(const PretendOptions& ranks, const Request& request) {
  std::vector<TokenId> history = request.prompt;
  std::vector<TokenId> drawn;
  while (static_cast<int>(drawn.size()) < request.max_tokens) {
    drawn.push_back(sim::DrawPretend(ranks, history, {}).token);
    history.push_back(drawn.back());
    if (drawn.back() == kEnd) break;
  }
  return drawn;
}

// Draws these tokens, then goes on by hash.
PretendOptions Scripted(int prompt, std::vector<TokenId> script) {
  PretendOptions options = Ranks();
  options.force = [=](SequenceId, int position) -> std::optional<TokenId> {
    const auto index = static_cast<size_t>(position - prompt);
    return index < script.size() ? std::optional(script[index]) : std::nullopt;
  };
  return options;
}

bool WaitStats(const Engine& engine, auto condition) {
  const Deadline deadline = Soon();
  while (!condition(engine.Stats())) {
    if (deadline.passed()) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST(Engine, AnswersWithTheModelsTokens) {
  const auto ranks = Ranks();
  auto engine = StartEngine(ranks);
  Answer answer;
  const Request request = Ask({10, 11, 12}, 20);
  ASSERT_TRUE(engine->Submit(request, answer.MakeSink()));
  ASSERT_TRUE(answer.WaitFinished());
  EXPECT_EQ(answer.ids(), Alone(ranks, request));
  EXPECT_EQ(answer.finish, FinishReason::kLength);
  EXPECT_EQ(answer.usage.prompt_tokens, 3);
  EXPECT_EQ(answer.usage.completion_tokens, 20);
  EXPECT_EQ(answer.deltas, 20) << "each token is sent when it is there";
  ASSERT_TRUE(engine->Drain(Soon()));
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.prompt_tokens, 3u);
  EXPECT_EQ(stats.generated_tokens, 20u);
  EXPECT_EQ(stats.finished[static_cast<size_t>(FinishReason::kLength)], 1u);
  EXPECT_EQ(stats.waiting, 0);
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.kv_blocks_free, 64);
}

TEST(Engine, AnEndTokenEndsAndIsNotText) {
  auto engine = StartEngine(Scripted(1, {300, 301, kEnd}));
  Answer answer;
  ASSERT_TRUE(engine->Submit(Ask({10}, 20), answer.MakeSink()));
  ASSERT_TRUE(answer.WaitFinished());
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  EXPECT_EQ(answer.text, " w300 w301");
  EXPECT_EQ(answer.ids(), (std::vector<TokenId>{300, 301, kEnd}));
}

TEST(Engine, AStopTokenEndsAndIsNotText) {
  auto engine = StartEngine(Scripted(1, {300, 301, 302}));
  Answer answer;
  Request request = Ask({10}, 20);
  request.stop_tokens = {302};
  ASSERT_TRUE(engine->Submit(request, answer.MakeSink()));
  ASSERT_TRUE(answer.WaitFinished());
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  EXPECT_EQ(answer.text, " w300 w301");
  EXPECT_EQ(answer.usage.completion_tokens, 3);
}

TEST(Engine, AStopStringAcrossTokensCutsTheTextAndDropsWhatWasOnItsWay) {
  auto engine = StartEngine(Scripted(1, {'a', 'b', 'c', 'd', 'e', 'f', 'g'}));
  Answer answer;
  Request request = Ask({10}, 50);
  request.stop = {"zzz", "cde"};
  ASSERT_TRUE(engine->Submit(request, answer.MakeSink()));
  ASSERT_TRUE(answer.WaitFinished());
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  EXPECT_EQ(answer.text, "ab");
  EXPECT_EQ(answer.ids(), (std::vector<TokenId>{'a', 'b', 'c', 'd', 'e'}));
  ASSERT_TRUE(WaitStats(*engine, [](const EngineStats& stats) { return stats.running == 0; }));
  EXPECT_EQ(engine->Stats().generated_tokens, 5u) << "the token of the step after is nobody's";
  EXPECT_EQ(engine->Stats().kv_blocks_free, 64);
}

TEST(Engine, TextThatWasHeldBackForAStopStringComesInTheEnd) {
  auto engine = StartEngine(Scripted(1, {'a', 'b', 'c'}));
  Answer answer;
  Request request = Ask({10}, 3);
  request.stop = {"cde"};
  ASSERT_TRUE(engine->Submit(request, answer.MakeSink()));
  ASSERT_TRUE(answer.WaitFinished());
  EXPECT_EQ(answer.finish, FinishReason::kLength);
  EXPECT_EQ(answer.text, "abc");
}

TEST(Engine, OnlyWholeCharactersAreSent) {
  auto engine = StartEngine(Scripted(1, {0xe2, 0x82, 0xac, 'x', 0xc3}));
  Answer answer;
  std::vector<std::string> texts;
  Request request = Ask({10}, 5);
  ASSERT_TRUE(engine->Submit(request, [&, sink = answer.MakeSink()](Delta delta) {
    texts.push_back(delta.text);
    sink(std::move(delta));
  }));
  ASSERT_TRUE(answer.WaitFinished());
  ASSERT_TRUE(engine->Drain(Soon()));
  EXPECT_EQ(texts, (std::vector<std::string>{"", "", "\xe2\x82\xac", "x", "\xef\xbf\xbd"}));
  EXPECT_EQ(answer.tokens[1].text, "\x82");
}

TEST(Engine, PromptLogprobsComeWithTheFirstDelta) {
  auto engine = StartEngine(Ranks(), {.max_step_rows = 7});
  std::vector<TokenId> prompt;
  for (TokenId token = 20; token < 60; ++token) prompt.push_back(token);
  for (const int max_tokens : {0, 4}) {
    Answer answer;
    Request request = Ask(prompt, max_tokens);
    request.sampling.prompt_logprobs = true;
    request.sampling.logprobs = 2;
    ASSERT_TRUE(engine->Submit(request, answer.MakeSink()));
    ASSERT_TRUE(answer.WaitFinished());
    EXPECT_EQ(answer.finish, FinishReason::kLength);
    ASSERT_EQ(answer.prompt.size(), prompt.size());
    for (int i = 0; i < static_cast<int>(prompt.size()); ++i) {
      const TokenOutput& token = answer.prompt[static_cast<size_t>(i)];
      EXPECT_EQ(token.token, prompt[static_cast<size_t>(i)]);
      EXPECT_EQ(token.logprob, i == 0 ? 0 : sim::PretendLogprob(token.token, i));
    }
    ASSERT_EQ(static_cast<int>(answer.tokens.size()), max_tokens);
    for (const auto& token : answer.tokens) EXPECT_EQ(token.top.size(), 2u);
  }
}

TEST(Engine, GuessesSaveStepsAndChangeNothing) {
  PretendOptions ranks = Ranks();
  ranks.repeat = 3;
  const Request request = Ask({10, 11, 12}, 200);
  for (const bool speculate : {false, true}) {
    auto engine = StartEngine(ranks, {.speculate = speculate});
    Answer answer;
    ASSERT_TRUE(engine->Submit(request, answer.MakeSink()));
    ASSERT_TRUE(answer.WaitFinished());
    EXPECT_EQ(answer.ids(), Alone(ranks, request));
    ASSERT_TRUE(engine->Drain(Soon()));
    const EngineStats stats = engine->Stats();
    EXPECT_EQ(stats.generated_tokens, answer.tokens.size());
    EXPECT_EQ(stats.steps + stats.accepted_tokens, answer.tokens.size());
    EXPECT_EQ(stats.accepted_tokens > 30, speculate);
    EXPECT_LE(stats.accepted_tokens, stats.proposed_tokens);
  }
}

TEST(Engine, AStopStringAmongGuessesThatCameTrueCutsThere) {
  PretendOptions ranks =
      Scripted(4, {'b', 'a', 'b', 'a', 'b', 'a', 'b', 'a', 'b', 'a', 'c', 'd', 'a', 'b', 'a', 'c', 'd', 'x'});
  auto engine = StartEngine(ranks, {.speculate = true});
  Answer answer;
  Request request = Ask({'b', 'a', 'b', 'a'}, 100);
  request.stop = {"acda"};
  ASSERT_TRUE(engine->Submit(request, answer.MakeSink()));
  ASSERT_TRUE(answer.WaitFinished());
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  EXPECT_EQ(answer.text, "babababab");
  EXPECT_EQ(answer.tokens.size(), 13u);
}

TEST(Engine, SaysHowMuchOfAPromptWasKnown) {
  auto engine = StartEngine(Ranks());
  std::vector<TokenId> prompt;
  for (TokenId token = 20; token < 60; ++token) prompt.push_back(token);
  for (const int known : {0, 32}) {
    Answer answer;
    ASSERT_TRUE(engine->Submit(Ask(prompt, 3), answer.MakeSink()));
    ASSERT_TRUE(answer.WaitFinished());
    EXPECT_EQ(answer.ids(), Alone(Ranks(), Ask(prompt, 3)));
    EXPECT_EQ(answer.usage.cached_tokens, known);
  }
  ASSERT_TRUE(engine->Drain(Soon()));
  EXPECT_EQ(engine->Stats().cached_tokens, 32u);
  EXPECT_EQ(engine->Stats().kv_blocks_cached, 2);
}

TEST(Engine, LogitsComeWhenAsked) {
  auto engine = StartEngine(Ranks());
  Answer answer;
  Request request = Ask({10}, 2);
  request.sampling.want_logits = true;
  ASSERT_TRUE(engine->Submit(request, answer.MakeSink()));
  ASSERT_TRUE(answer.WaitFinished());
  for (const auto& token : answer.tokens) EXPECT_EQ(token.logits.size(), static_cast<size_t>(kVocabulary));
}

TEST(Engine, RefusesWhatCanNeverWork) {
  auto engine = StartEngine(Ranks());
  const auto reason = [&](Request request) {
    const auto refused = engine->Submit(std::move(request), [](Delta) { ADD_FAILURE(); });
    return refused ? std::string("accepted") : std::string(refused.error().reason.name());
  };
  EXPECT_EQ(reason(Ask({}, 5)), "invalid_value");
  EXPECT_EQ(reason(Ask({kVocabulary}, 5)), "invalid_value");
  EXPECT_EQ(reason(Ask({1}, 0)), "invalid_value");
  EXPECT_EQ(reason(Ask(std::vector<TokenId>(512, 7), 5)), "context_length_exceeded");
}

TEST(Engine, ACancelledRequestEndsWithWhatItHas) {
  Gate gate;
  PretendOptions ranks = Ranks();
  ranks.on_wait = [&](const StepPlan& plan) {
    if (plan.step == 6) gate.Pass();
  };
  gate.Close();
  auto engine = StartEngine(ranks);
  Answer answer;
  const auto handle = engine->Submit(Ask({10, 11}, 100), answer.MakeSink());
  ASSERT_TRUE(handle);
  ASSERT_TRUE(gate.SomebodyArrived());
  engine->Cancel(*handle);
  engine->Cancel(*handle);
  engine->Cancel(12345);
  gate.Open();
  ASSERT_TRUE(answer.WaitFinished());
  EXPECT_EQ(answer.finish, FinishReason::kCancelled);
  EXPECT_FALSE(answer.error);
  EXPECT_GE(answer.tokens.size(), 5u);
  EXPECT_LE(answer.tokens.size(), 6u);
  ASSERT_TRUE(engine->Drain(Soon()));
  engine->Cancel(*handle);
  EXPECT_EQ(engine->Stats().kv_blocks_free, 64);
}

// The deltas of a step are given out while the ranks compute the next one.
TEST(Engine, DeliversWhileTheRanksCompute) {
  Answer answer;
  PretendOptions ranks = Ranks();
  std::atomic<bool> in_time = true;
  ranks.on_wait = [&](const StepPlan& plan) {
    if (plan.step > 1 && !answer.WaitTokens(static_cast<size_t>(plan.step - 1))) in_time = false;
  };
  auto engine = StartEngine(ranks);
  ASSERT_TRUE(engine->Submit(Ask({10, 11}, 10), answer.MakeSink()));
  ASSERT_TRUE(answer.WaitFinished());
  EXPECT_TRUE(in_time);
}

TEST(Engine, AFullQueueRefuses) {
  Gate gate;
  gate.Close();
  PretendOptions ranks = Ranks();
  ranks.on_wait = [&](const StepPlan&) { gate.Pass(); };
  auto engine = StartEngine(ranks, {.max_step_rows = 4, .max_sequences = 2});
  Answer first;
  ASSERT_TRUE(engine->Submit(Ask({10}, 1), first.MakeSink()));
  ASSERT_TRUE(gate.SomebodyArrived());  // it runs; it is the engine that has left its line
  std::vector<std::unique_ptr<Answer>> answers;
  for (size_t i = 0; i < limits::kMaxQueuedRequests; ++i) {
    answers.push_back(std::make_unique<Answer>());
    ASSERT_TRUE(engine->Submit(Ask({10}, 1), answers.back()->MakeSink())) << i;
  }
  EXPECT_EQ(engine->Stats().waiting, static_cast<int>(limits::kMaxQueuedRequests));
  const auto refused = engine->Submit(Ask({10}, 1), [](Delta) { ADD_FAILURE(); });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().reason, reasons::kQueueFull);
  EXPECT_EQ(refused.error().code, Code::kResourceExhausted);
  gate.Open();
  for (auto& answer : answers) ASSERT_TRUE(answer->WaitFinished());
  Answer last;
  EXPECT_TRUE(engine->Submit(Ask({10}, 1), last.MakeSink())) << "there is room again";
  EXPECT_TRUE(last.WaitFinished());
}

TEST(Engine, DrainFinishesWhatRunsAndRefusesTheRest) {
  Gate gate;
  gate.Close();
  PretendOptions ranks = Ranks();
  ranks.on_wait = [&](const StepPlan&) { gate.Pass(); };
  auto engine = StartEngine(ranks);
  Answer answer;
  ASSERT_TRUE(engine->Submit(Ask({10}, 5), answer.MakeSink()));
  ASSERT_TRUE(gate.SomebodyArrived());
  EXPECT_FALSE(engine->Drain(Deadline::After(std::chrono::milliseconds(1))));
  const auto refused = engine->Submit(Ask({10}, 5), [](Delta) { ADD_FAILURE(); });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().reason, reasons::kShuttingDown);
  gate.Open();
  EXPECT_TRUE(engine->Drain(Soon()));
  EXPECT_EQ(answer.finish, FinishReason::kLength);
  EXPECT_EQ(answer.tokens.size(), 5u);
}

TEST(Engine, ItsEndCancelsAll) {
  std::vector<std::unique_ptr<Answer>> answers;
  {
    Gate gate;
    gate.Close();
    PretendOptions ranks = Ranks();
    ranks.on_wait = [&](const StepPlan&) { gate.Pass(); };
    auto engine = StartEngine(ranks, {.max_step_rows = 16, .max_sequences = 3});
    for (int i = 0; i < 10; ++i) {
      answers.push_back(std::make_unique<Answer>());
      Request request = Ask({10}, 400);
      request.ignore_eos = true;  // none may end by itself before the engine does
      ASSERT_TRUE(engine->Submit(std::move(request), answers.back()->MakeSink()));
    }
    ASSERT_TRUE(gate.SomebodyArrived());
    gate.Open();
  }
  for (auto& answer : answers) EXPECT_EQ(answer->finish, FinishReason::kCancelled);
}

class LostGroup : public ::testing::TestWithParam<bool> {};

TEST_P(LostGroup, EndsEveryRequestWithItsErrorAndTheEngineWithIt) {
  PretendOptions ranks = Ranks();
  (GetParam() ? ranks.fail_start_at : ranks.fail_wait_at) = 4;
  auto engine = StartEngine(ranks, {.max_step_rows = 16, .max_sequences = 2});
  std::vector<std::unique_ptr<Answer>> answers;
  int accepted = 0;
  for (int i = 0; i < 6; ++i) {
    answers.push_back(std::make_unique<Answer>());
    const auto handle = engine->Submit(Ask({10}, 100), answers.back()->MakeSink());
    if (!handle) break;  // lost meanwhile
    ++accepted;
  }
  ASSERT_GE(accepted, 1);
  for (int i = 0; i < accepted; ++i) {
    Answer& answer = *answers[static_cast<size_t>(i)];
    ASSERT_TRUE(answer.WaitFinished());
    EXPECT_EQ(answer.finish, FinishReason::kError);
    ASSERT_TRUE(answer.error);
    EXPECT_EQ(answer.error->reason, reasons::kPeerLost);
  }
  EXPECT_EQ(answers[0]->tokens.size(), 3u) << "what was computed is delivered";
  ASSERT_TRUE(engine->failure());
  EXPECT_EQ(engine->failure()->reason, reasons::kPeerLost);
  const auto refused = engine->Submit(Ask({10}, 5), [](Delta) { ADD_FAILURE(); });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kUnavailable);
  EXPECT_TRUE(engine->Drain(Soon()));
  EXPECT_EQ(engine->Stats().finished[static_cast<size_t>(FinishReason::kError)], static_cast<uint64_t>(accepted));
}

INSTANTIATE_TEST_SUITE_P(AtStartOrWait, LostGroup, ::testing::Bool());

TEST(Engine, OneBrokenSequenceHurtsNoOther) {
  PretendOptions ranks = Ranks();
  ranks.error_one_in = 30;
  auto engine = StartEngine(ranks);
  std::vector<std::unique_ptr<Answer>> answers;
  for (TokenId i = 0; i < 40; ++i) {
    answers.push_back(std::make_unique<Answer>());
    ASSERT_TRUE(engine->Submit(Ask({10, i}, 10), answers.back()->MakeSink()));
  }
  int broken = 0;
  for (auto& answer : answers) {
    ASSERT_TRUE(answer->WaitFinished());
    if (answer->finish == FinishReason::kError) {
      ++broken;
      EXPECT_EQ(answer->error->reason, reasons::kModelProducedNan);
    } else {
      EXPECT_EQ(answer->tokens.size(), 10u);
    }
  }
  EXPECT_GT(broken, 0);
  EXPECT_LT(broken, 40);
  EXPECT_FALSE(engine->failure());
}

TEST(Engine, ASinkMaySubmitAndCancel) {
  auto engine = StartEngine(Ranks());
  Answer second;
  Answer first;
  RequestHandle handle = 0;
  std::atomic<bool> submitted = false;
  ASSERT_TRUE(engine->Submit(Ask({10}, 3), [&, sink = first.MakeSink()](Delta delta) {
    if (!submitted.exchange(true)) {
      auto next = engine->Submit(Ask({11}, 400), second.MakeSink());
      ASSERT_TRUE(next);
      handle = *next;
    }
    if (delta.finish) engine->Cancel(handle);
    sink(std::move(delta));
  }));
  ASSERT_TRUE(first.WaitFinished());
  ASSERT_TRUE(second.WaitFinished());
  EXPECT_EQ(second.finish, FinishReason::kCancelled);
}

TEST(Engine, ALostPipelineEndsEveryRequest) {
  for (const StepId step : {1, 2, 5, 6}) {
    PretendOptions ranks = Ranks();
    ranks.stages = 2;
    ranks.fail_wait_at = step;
    auto engine = StartEngine(ranks, {.max_sequences = 4});
    std::vector<std::unique_ptr<Answer>> answers;
    for (TokenId i = 0; i < 6; ++i) {
      auto answer = std::make_unique<Answer>();
      if (!engine->Submit(Ask({10, i}, 100), answer->MakeSink())) break;  // lost meanwhile
      answers.push_back(std::move(answer));
    }
    ASSERT_GE(answers.size(), 1u);
    for (auto& answer : answers) {
      ASSERT_TRUE(answer->WaitFinished());
      ASSERT_TRUE(answer->error);
      EXPECT_EQ(answer->error->reason, reasons::kPeerLost);
    }
    EXPECT_TRUE(engine->Drain(Soon()));
  }
}

// The parameter is the number of stages: so many steps are under way at once.
class ManyThreads : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Stages, ManyThreads, ::testing::Values(1, 2, 3));

// Clients on many threads, some of them leaving in the middle, through a pool that is too small for all.
TEST_P(ManyThreads, EachGetsWhatItGetsAlone) {
  PretendOptions ranks = Ranks();
  ranks.stages = GetParam();
  ranks.kv_blocks = 20;
  ranks.end_token = kEnd;
  ranks.end_one_in = 60;
  auto engine = StartEngine(ranks, {.max_step_rows = 40, .max_sequences = 12});
  std::atomic<uint64_t> tokens = 0;
  std::atomic<int> cancelled = 0;
  const auto client = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int round = 0; round < 15; ++round) {
      std::vector<TokenId> prompt(random() % 60 + 1);
      for (auto& token : prompt) token = static_cast<TokenId>(random() % kVocabulary);
      const Request request = Ask(std::move(prompt), static_cast<int>(random() % 40) + 1);
      Answer answer;
      const auto handle = engine->Submit(request, answer.MakeSink());
      ASSERT_TRUE(handle);
      if (random() % 4 == 0) {
        ASSERT_TRUE(answer.WaitTokens(random() % 10));
        engine->Cancel(*handle);
      }
      ASSERT_TRUE(answer.WaitFinished());
      auto expected = Alone(ranks, request);
      const auto got = answer.ids();
      if (answer.finish == FinishReason::kCancelled) {
        ++cancelled;
        ASSERT_LE(got.size(), expected.size());
        expected.resize(got.size());
      }
      EXPECT_EQ(got, expected);
      EXPECT_EQ(answer.usage.prompt_tokens, static_cast<int>(request.prompt.size()));
      tokens += got.size();
      (void)engine->Stats();
    }
  };
  {
    std::vector<std::jthread> clients;
    for (uint64_t i = 0; i < 10; ++i) clients.emplace_back(client, i);
  }
  ASSERT_TRUE(engine->Drain(Soon()));
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.kv_blocks_free, 20);
  EXPECT_EQ(stats.finished[0] + stats.finished[1] + stats.finished[2], 150u);
  EXPECT_EQ(stats.finished[2], static_cast<uint64_t>(cancelled.load()));
  EXPECT_EQ(stats.generated_tokens, tokens.load()) << "every token that was counted was given to its client";
}

}  // namespace
}  // namespace shoal
