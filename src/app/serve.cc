// `shoal serve`: the engine behind HTTP until a signal ends it.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <thread>

#include "app/commands.h"
#include "app/complete.h"
#include "app/exit_codes.h"
#include "app/session.h"
#include "app/terminal.h"
#include "base/log.h"
#include "serve/server.h"

namespace shoal {
namespace {

// SIGINT and SIGTERM: before the server is up they end the process as ever (workers follow their head); then the first one
// wakes the main thread, which drains, and the second one ends at once.
int wake_pipe[2] = {-1, -1};

void CatchSignals() {
  if (pipe2(wake_pipe, O_CLOEXEC) != 0) return;
  struct sigaction action = {};
  action.sa_handler = [](int) {
    static volatile sig_atomic_t seen = 0;
    if (seen != 0) _exit(kExitInterrupted);
    seen = 1;
    [[maybe_unused]] const ssize_t written = write(wake_pipe[1], "x", 1);
  };
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

void AwaitSignal() {
  char byte = 0;
  while (read(wake_pipe[0], &byte, 1) < 0 && errno == EINTR) {
  }
}

Result<std::unique_ptr<serve::Server>> StartServer(const ServeFlags& flags, Session& session) {
  serve::ServerOptions options;
  options.host = flags.host;
  options.insecure = flags.insecure;
  options.port = static_cast<uint16_t>(flags.port);
  options.model_name =
      flags.model_name.empty() ? std::filesystem::path(flags.engine.model).stem().string() : flags.model_name;
  if (!flags.api_key_file.empty()) {
    SHOAL_ASSIGN(options.api_keys, serve::LoadApiKeys(flags.api_key_file));
  }
  return serve::Server::Start(*session.engine, std::move(options));
}

void PrintPlan(const Session& session, const serve::Server& server) {
  const GroupInfo& group = session.engine->group();
  std::fprintf(stderr, "model   %s\n", Summary(session.engine->spec()).c_str());
  for (size_t r = 0; r < group.ranks.size(); ++r) {
    const auto& rank = group.ranks[r];
    const auto& share = group.plan.ranks[r];
    std::fprintf(stderr, "rank %zu  %s: layers %d..%d, slices %d..%d of 16, %.1f MB of weights, %d thread%s\n", r,
                 rank.node.c_str(), share.first_layer, share.last_layer, share.slices.begin, share.slices.end,
                 static_cast<double>(rank.weight_bytes) / 1e6, rank.threads, rank.threads == 1 ? "" : "s");
  }
  for (const auto& reason : group.plan.reasons) std::fprintf(stderr, "plan    %s\n", reason.c_str());
  std::fprintf(stderr, "ready   %s/v1  (loaded in %.2f s; Ctrl-C ends)\n", server.url().c_str(),
               std::chrono::duration<double>(session.load_time).count());
}

Request DemoRequest() {
  Request request;
  request.id = "demo";
  request.max_tokens = 64;
  request.sampling.temperature = 0;
  return request;
}

void ShowSample(Session& session, const serve::Server& server) {
  const std::string prompt = "Once upon a time";
  TerminalText out(stdout);
  out.Write(prompt);
  CompletionHooks hooks;
  hooks.text = [&](const std::string& text) { out.Write(text); };
  if (auto done = Complete(session, prompt, DemoRequest(), hooks); !done) ReportError(done.error());
  out.Write("\n");
  std::fprintf(stderr,
               "try     curl %s/v1/completions --json '{\"prompt\": \"Once upon a time\", \"max_tokens\": 64}'\n",
               server.url().c_str());
}

// On a terminal: a prompt beside the server. Its end (Ctrl-D, /bye) ends the server too.
void OpenPrompt(Session& session, std::stop_token stop) {
  std::fputs("Type a text to be continued; /bye or Ctrl-D ends.\n>>> ", stderr);
  TerminalText out(stdout);
  CompletionHooks hooks;
  hooks.text = [&](const std::string& text) { out.Write(text); };
  hooks.interrupted = [&] { return stop.stop_requested(); };
  while (!stop.stop_requested()) {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    if (poll(&input, 1, 100) <= 0) continue;
    std::string line;
    if (!std::getline(std::cin, line) || line == "/bye") {
      kill(getpid(), SIGTERM);
      return;
    }
    if (!line.empty()) {
      if (auto done = Complete(session, line, DemoRequest(), hooks); !done) ReportError(done.error());
      out.Write("\n");
    }
    std::fputs(">>> ", stderr);
  }
}

}  // namespace

int ServeCommand(const ServeFlags& flags) {
  signal(SIGPIPE, SIG_IGN);
  auto session = StartSession(flags.engine);
  if (!session) return ReportError(session.error());
  auto server = StartServer(flags, **session);
  if (!server) return ReportError(server.error());
  CatchSignals();
  PrintPlan(**session, **server);
  std::jthread prompt;
  if (flags.demo) {
    if (isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0)
      prompt = std::jthread([&session](std::stop_token stop) { OpenPrompt(**session, stop); });
    else
      ShowSample(**session, **server);
  }
  AwaitSignal();
  Log().info("ending: requests have {} s to finish (once more ends at once)", flags.drain_seconds);
  const Deadline deadline = Deadline::After(std::chrono::seconds(flags.drain_seconds));
  prompt.request_stop();
  (*server)->Stop(deadline);
  const bool lost = (*session)->engine->failure().has_value();
  return lost ? kExitRunTime : kExitOk;
}

}  // namespace shoal
