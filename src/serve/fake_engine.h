// What: for tests: a tokenizer of bytes and an engine that says the alphabet. Header only; no product code includes it.
// The token after a text of n tokens is the letter 'a' + (sum of its prompt + n) % 26; a script may replace that.
// Threads: any may call the engine, as the real one; it has a thread that talks to the sinks.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "core/reasons.h"
#include "engine/engine.h"
#include "serve/text.h"

namespace shoal::serve {

// Ids 0..255 are bytes, 256 is <s> (put before every text), 257 is </s>.
class FakeTokenizer : public Tokenizer {
 public:
  static constexpr TokenId kBos = 256, kEos = 257;
  FakeTokenizer() {
    for (size_t i = 0; i < bytes_.size(); ++i) bytes_[i] = static_cast<char>(i);
  }
  Result<std::vector<TokenId>> Encode(std::string_view text, EncodeOptions options) const override {
    std::vector<TokenId> ids;
    if (options.add_special && add_bos) ids.push_back(kBos);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string Decode(std::span<const TokenId> tokens, bool) const override {
    std::string text;
    for (const TokenId token : tokens) text += Piece(token);
    return text;
  }
  std::string_view Piece(TokenId token) const override {
    return token < 256 ? std::string_view(&bytes_[static_cast<size_t>(token)], 1) : std::string_view();
  }
  std::string_view Text(TokenId token) const override {
    return token == kBos ? "<s>" : token == kEos ? "</s>" : Piece(token);
  }
  int vocabulary_size() const override { return 258; }
  TokenId bos() const override { return kBos; }
  TokenId eos() const override { return kEos; }
  bool adds_bos() const override { return add_bos; }
  bool IsControl(TokenId token) const override { return token >= 256; }
  std::span<const TokenId> end_tokens() const override { return end_; }

  bool add_bos = true;

 private:
  std::array<char, 256> bytes_{};
  std::array<TokenId, 1> end_{kEos};
};

class FakeEngine : public Engine {
 public:
  FakeEngine() : thread_([this] { Loop(); }) {
    spec_.arch = "fake";
    spec_.name = "Fake";
    spec_.n_vocab = 258;
    spec_.context_length = 100'000;
    group_.kernel = "none";
    group_.ranks.resize(1);
  }
  ~FakeEngine() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // What a prompt is answered with (bytes, one token each).
  static std::string Alphabet(const std::vector<TokenId>& prompt, size_t length) {
    size_t sum = 0;
    for (const TokenId token : prompt) sum += static_cast<size_t>(token);
    std::string text;
    for (size_t i = 0; i < length; ++i) text.push_back(static_cast<char>('a' + (sum + i) % 26));
    return text;
  }
  static std::string AlphabetAfter(std::string_view prompt, size_t length) {
    return Alphabet(*FakeTokenizer().Encode(prompt, {}), length);
  }

  // Settings; take effect on what is submitted later (hold_at: at once).
  void SetScript(std::string bytes) {
    Set([&] { script_ = std::move(bytes); });
  }  // then </s>
  void SetTokenText(std::string text) {
    Set([&] { token_text_ = std::move(text); });
  }  // every token says this
  void HoldAt(int tokens) {
    Set([&] { hold_at_ = tokens; });
  }  // no sequence goes beyond; -1: none is held
  void FailAt(int tokens, Error error) {
    Set([&] { fail_at_ = tokens, fail_ = std::move(error); });
  }
  void RefuseFrom(int submit, Error error) {
    Set([&] { refuse_from_ = submit, refuse_ = std::move(error); });
  }
  void SetFailure(std::optional<Error> error) {
    Set([&] { failure_ = std::move(error); });
  }
  void OmitFirstPromptToken(bool omit) {
    Set([&] { omit_first_ = omit; });
  }

  // Waits (10 s at most) until `condition` of the figures holds.
  bool WaitFor(const std::function<bool(const FakeEngine&)>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return condition(*this); });
  }
  // Figures: read them inside WaitFor, or when nothing runs.
  int submitted = 0, cancelled = 0, finished = 0;
  uint64_t generated = 0;
  int running() const { return static_cast<int>(sequences_.size()); }
  std::vector<Request> requests;  // all that were taken
  FakeTokenizer tokenizer_;

  Result<RequestHandle> Submit(Request request, Sink sink) override {
    std::lock_guard lock(mutex_);
    if (failure_) return Fail(*failure_);
    if (refuse_from_ >= 0 && submitted >= refuse_from_) return Fail(refuse_);
    ++submitted;
    requests.push_back(request);
    const RequestHandle handle = ++last_handle_;
    sequences_.push_back({handle, std::move(request), std::move(sink), {}, {}, 0, false, false});
    changed_.notify_all();
    return handle;
  }
  void Cancel(RequestHandle handle) override {
    std::lock_guard lock(mutex_);
    for (Sequence& sequence : sequences_)
      if (sequence.handle == handle) sequence.cancelled = true;
    changed_.notify_all();
  }
  bool Drain(Deadline) override { return true; }
  EngineStats Stats() const override {
    std::lock_guard lock(mutex_);
    EngineStats stats;
    stats.running = running();
    stats.kv_blocks = 100;
    stats.kv_blocks_free = 90;
    stats.generated_tokens = generated;
    stats.finished[0] = static_cast<uint64_t>(finished);
    return stats;
  }
  std::optional<Error> failure() const override {
    std::lock_guard lock(mutex_);
    return failure_;
  }
  const ModelSpec& spec() const override { return spec_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  const GroupInfo& group() const override { return group_; }
  ModelSpec spec_;

 private:
  struct Sequence {
    RequestHandle handle;
    Request request;
    Sink sink;
    std::string out;   // all bytes generated
    std::string held;  // not given yet: half a character, or what may become a stop string
    int count = 0;
    bool cancelled = false;
    bool started = false;
  };

  template <class Fn>
  void Set(Fn fn) {
    std::lock_guard lock(mutex_);
    fn();
    changed_.notify_all();
  }

  bool Ready(const Sequence& sequence) const { return sequence.cancelled || hold_at_ < 0 || sequence.count < hold_at_; }

  void Loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] {
        return stop_ || std::ranges::any_of(sequences_, [&](const Sequence& one) { return Ready(one); });
      });
      for (auto it = sequences_.begin(); it != sequences_.end();) {
        const bool over = stop_ || (Ready(*it) && Advance(*it));
        if (stop_) End(*it, FinishReason::kCancelled);
        it = over ? sequences_.erase(it) : std::next(it);
      }
      changed_.notify_all();
      if (stop_) return;
      lock.unlock();  // let others in between two steps
      std::this_thread::yield();
      lock.lock();
    }
  }

  static float LogprobOf(char byte) { return -static_cast<float>(static_cast<unsigned char>(byte)) / 256.0f; }

  TokenOutput Output(const Sequence& sequence, char byte) const {
    TokenOutput token;
    token.token = static_cast<unsigned char>(byte);
    token.text = std::string(1, byte);
    token.logprob = LogprobOf(byte);
    for (int i = 0; i < sequence.request.sampling.logprobs; ++i)
      token.top.push_back({(token.token + i) % 256, token.logprob - static_cast<float>(i)});
    return token;
  }

  bool End(Sequence& sequence, FinishReason reason, Delta delta = {}) {
    delta.finish = reason;
    delta.usage.prompt_tokens = static_cast<int>(sequence.request.prompt.size());
    delta.usage.completion_tokens = sequence.count;
    (reason == FinishReason::kCancelled ? cancelled : finished)++;
    sequence.sink(std::move(delta));
    return true;
  }

  // One token of one sequence. True when that was its end.
  bool Advance(Sequence& sequence) {
    if (sequence.cancelled) return End(sequence, FinishReason::kCancelled);
    const Request& request = sequence.request;
    Delta delta;
    if (!sequence.started && request.sampling.prompt_logprobs)
      for (size_t i = omit_first_ ? 1 : 0; i < request.prompt.size(); ++i) {
        TokenOutput token = Output(sequence, static_cast<char>(request.prompt[i]));
        token.token = request.prompt[i];
        token.text = tokenizer_.Piece(token.token);
        delta.prompt.push_back(std::move(token));
      }
    sequence.started = true;
    if (fail_at_ == sequence.count) {
      delta.error = fail_;
      return End(sequence, FinishReason::kError, std::move(delta));
    }
    if (request.max_tokens == 0) return End(sequence, FinishReason::kLength, std::move(delta));
    const auto index = static_cast<size_t>(sequence.count);
    if (!script_.empty() && index >= script_.size()) {
      delta.text = std::exchange(sequence.held, {});
      return End(sequence, FinishReason::kStop, std::move(delta));
    }
    const char byte = script_.empty() ? Alphabet(request.prompt, index + 1).back() : script_[index];
    ++sequence.count;
    ++generated;
    delta.tokens.push_back(Output(sequence, byte));
    delta.usage.prompt_tokens = static_cast<int>(request.prompt.size());
    delta.usage.completion_tokens = sequence.count;
    sequence.held += token_text_.empty() ? std::string(1, byte) : token_text_;
    size_t longest = 1;
    for (const std::string& stop : request.stop) {
      longest = std::max(longest, stop.size());
      if (const size_t at = sequence.held.find(stop); at != std::string::npos) {
        delta.text = sequence.held.substr(0, at);
        return End(sequence, FinishReason::kStop, std::move(delta));
      }
    }
    const bool last = sequence.count == request.max_tokens;
    size_t give = last ? sequence.held.size() : sequence.held.size() - std::min(sequence.held.size(), longest - 1);
    while (!last && give > 0 && !IsUtf8(std::string_view(sequence.held).substr(0, give))) --give;
    delta.text = sequence.held.substr(0, give);
    sequence.held.erase(0, give);
    if (last) return End(sequence, FinishReason::kLength, std::move(delta));
    sequence.sink(std::move(delta));
    return false;
  }

  GroupInfo group_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Sequence> sequences_;
  RequestHandle last_handle_ = 0;
  std::string script_, token_text_;
  int hold_at_ = -1, fail_at_ = -1, refuse_from_ = -1;
  Error fail_, refuse_;
  std::optional<Error> failure_;
  bool omit_first_ = false;
  bool stop_ = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace shoal::serve
