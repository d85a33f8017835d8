// `shoal worker`: lends this machine to a head.
#include "engine/worker.h"

#include <csignal>

#include "app/cluster_head.h"
#include "app/commands.h"
#include "app/exit_codes.h"
#include "base/log.h"
#include "base/machine.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "net/handshake.h"
#include "net/socket.h"

namespace shoal {
namespace {

Result<std::string> Token(const WorkerFlags& flags) {
  if (!flags.token.empty()) return flags.token;
  if (flags.token_file.empty())
    return Fail(Code::kInvalidArgument, reasons::kUsage,
                "a worker needs the head's join token: --token-file F, --token T or SHOAL_TOKEN");
  return ReadToken(flags.token_file);
}

Status Work(const WorkerFlags& flags) {
  SHOAL_ASSIGN(const Address address, ParseAddress(flags.join));
  SHOAL_ASSIGN(const std::string token, Token(flags));
  SHOAL_ASSIGN(Link link, Link::Dial(address.host, address.port, Deadline::After(limits::kHandshakeTimeout)));
  const Claim ours{.role = Role::kWorker, .rank = 0, .epoch = 0, .cluster = {}};
  if (auto claim = ShakeHandsDialing(link, token, ours, Deadline::After(limits::kHandshakeTimeout)); !claim) {
    Error error = std::move(claim).error();
    error.message = flags.join + ": " + error.message;
    return std::unexpected(std::move(error));
  }
  WorkerOptions options;
  options.name = flags.name.empty() ? HostName() : flags.name;
  options.threads = flags.threads > 0 ? flags.threads : AvailableCores();
  options.memory = flags.memory > 0 ? flags.memory : AvailableMemory();
  Log().info("joined {} as {} with {} thread(s)", flags.join, options.name, options.threads);
  return ServeHead(link, options);
}

}  // namespace

int WorkerCommand(const WorkerFlags& flags) {
  std::signal(SIGPIPE, SIG_IGN);
  auto done = Work(flags);
  if (done) return kExitOk;
  const int code = ReportError(done.error());
  return done.error().reason == reasons::kIo ? kExitCluster
                                             : code;  // a name that does not resolve is a head out of reach
}

}  // namespace shoal
