// `shoal run`: one prompt, one completion; or a prompt on a terminal.
#include <openssl/evp.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>

#include "app/commands.h"
#include "app/complete.h"
#include "app/exit_codes.h"
#include "app/session.h"
#include "app/terminal.h"
#include "base/hex.h"
#include "core/limits.h"
#include "core/reasons.h"

namespace shoal {
namespace {

volatile sig_atomic_t interrupted = 0;

// Until the model is loaded Ctrl-C ends the program; then it cancels the completion, or ends the wait for a prompt.
void CatchInterrupt() {
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupted = 1; };
  sigaction(SIGINT, &action, nullptr);  // no SA_RESTART: a read of the prompt ends
}

// SHA-256 over the raw f32 logits of every generated step, in order: equal hashes mean equal bits.
class LogitHash {
 public:
  LogitHash() { EVP_DigestInit_ex(context_, EVP_sha256(), nullptr); }
  ~LogitHash() { EVP_MD_CTX_free(context_); }
  LogitHash(const LogitHash&) = delete;
  LogitHash& operator=(const LogitHash&) = delete;
  void Add(const std::vector<float>& logits) {
    EVP_DigestUpdate(context_, logits.data(), logits.size() * sizeof(float));
  }
  std::string Finish() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    EVP_DigestFinal_ex(context_, digest, &size);
    return Hex(std::as_bytes(std::span(digest, size)));
  }

 private:
  EVP_MD_CTX* context_ = EVP_MD_CTX_new();
};

std::string_view Name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

Request MakeRequest(const RunFlags& flags) {
  Request request;
  request.id = "run";
  request.max_tokens = flags.tokens;
  request.ignore_eos = flags.ignore_eos;
  request.sampling.temperature = flags.temperature;
  request.sampling.top_k = flags.top_k;
  request.sampling.top_p = flags.top_p;
  request.sampling.min_p = flags.min_p;
  request.sampling.repeat_penalty = flags.repeat_penalty;
  request.sampling.want_logits = flags.json;
  request.sampling.seed = flags.seed ? *flags.seed : std::random_device{}();
  return request;
}

void PrintJson(const Session& session, const Completion& done, uint64_t seed, const std::string& logits_sha256) {
  const double decode_ms = done.total_ms - done.first_token_ms;
  const auto rate = [](double count, double ms) { return ms > 0 ? count * 1000 / ms : 0.0; };
  const GroupInfo& group = session.engine->group();
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  for (const auto& rank : group.ranks)
    ranks.push_back({{"node", rank.node},
                     {"threads", rank.threads},
                     {"weight_bytes", rank.weight_bytes},
                     {"kv_bytes", rank.kv_bytes}});
  const EngineStats stats = session.engine->Stats();
  nlohmann::ordered_json json = {
      {"ids", done.ids},
      {"text", done.text},
      {"prompt_ids", done.prompt_ids},
      {"logits_sha256", logits_sha256},
      {"finish_reason", Name(done.finish)},
      {"seed", seed},
      {"kernel", group.kernel},
      {"kv_type", ToString(group.plan.kv_type)},
      {"ranks", ranks},
      {"speculation",
       {{"proposed", stats.proposed_tokens},
        {"accepted", stats.accepted_tokens},
        {"acceptance_rate", stats.proposed_tokens == 0 ? 0
                                                       : static_cast<double>(stats.accepted_tokens) /
                                                             static_cast<double>(stats.proposed_tokens)}}},
      {"timings",
       {{"load_ms", std::chrono::duration<double, std::milli>(session.load_time).count()},
        {"prompt_tokens", done.prompt_ids.size()},
        {"time_to_first_token_ms", done.first_token_ms},
        {"prefill_tokens_per_s", rate(static_cast<double>(done.prompt_ids.size()), done.first_token_ms)},
        {"generated_tokens", done.ids.size()},
        {"decode_ms", decode_ms},
        {"decode_tokens_per_s", done.ids.empty() ? 0 : rate(static_cast<double>(done.ids.size() - 1), decode_ms)}}}};
  std::cout << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
}

int OnePrompt(const RunFlags& flags, Session& session, const std::string& prompt) {
  TerminalText out(stdout);
  LogitHash hash;
  Request request = MakeRequest(flags);
  const uint64_t seed = request.sampling.seed;
  CompletionHooks hooks;
  if (!flags.json) hooks.text = [&](const std::string& text) { out.Write(text); };
  hooks.logits = [&](const std::vector<float>& logits) { hash.Add(logits); };
  hooks.interrupted = [] { return interrupted != 0; };
  auto done = Complete(session, prompt, std::move(request), hooks);
  if (!done) return ReportError(done.error());
  if (flags.json)
    PrintJson(session, *done, seed, hash.Finish());
  else
    out.Write("\n");
  return done->finish == FinishReason::kCancelled ? kExitInterrupted : kExitOk;
}

// Reads prompts from the terminal until its end or "/bye".
int PromptLoop(const RunFlags& flags, Session& session) {
  std::fputs("Type a text to be continued; /bye or Ctrl-D ends.\n", stderr);
  for (std::string line; std::fputs(">>> ", stderr), std::getline(std::cin, line) && line != "/bye";) {
    if (line.empty()) continue;
    if (const int code = OnePrompt(flags, session, line); code == kExitInterrupted) interrupted = 0;
  }
  std::fputs("\n", stderr);
  return kExitOk;
}

}  // namespace

int RunCommand(const RunFlags& flags) {
  setenv("SHOAL_LOG", "warn", 0);  // for the worker processes too
  auto session = StartSession(flags.engine);
  if (!session) return ReportError(session.error());
  CatchInterrupt();
  if (flags.prompt) return OnePrompt(flags, **session, *flags.prompt);
  if (isatty(STDIN_FILENO) != 0 && !flags.json) return PromptLoop(flags, **session);
  std::string prompt;
  for (char buffer[1 << 16]; std::cin.read(buffer, sizeof(buffer)) || std::cin.gcount() > 0;) {
    prompt.append(buffer, static_cast<size_t>(std::cin.gcount()));
    if (prompt.size() > limits::kMaxBodyBytes)
      return ReportError(
          MakeError(Code::kInvalidArgument, reasons::kUsage, "the prompt on standard input is longer than 8 MiB"));
  }
  return OnePrompt(flags, **session, prompt);
}

}  // namespace shoal
