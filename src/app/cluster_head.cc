#include "app/cluster_head.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <mutex>
#include <numeric>

#include "app/planning.h"
#include "app/progress.h"
#include "base/hex.h"
#include "base/line_limit.h"
#include "base/log.h"
#include "base/machine.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "engine/remote_group.h"
#include "net/doorkeeper.h"
#include "net/handshake.h"

namespace shoal {
namespace {

constexpr int kDefaultClusterPort = 7463;
constexpr Epoch kFirstEpoch = 1;
constexpr std::chrono::seconds kLocalPatience{30};
constexpr std::chrono::hours kPatience{24};

// A name of its own for everyone: the second "host" is "host-2".
std::string UniqueName(const std::vector<Member>& members, const std::string& name) {
  const auto taken = [&](const std::string& wanted) {
    return std::ranges::any_of(members, [&](const Member& member) { return member.name == wanted; });
  };
  std::string unique = name;
  for (int i = 2; taken(unique); ++i) unique = name + "-" + std::to_string(i);
  return unique;
}

// The workers that have joined and wait for the others.
class Lobby {
 public:
  Lobby(Listener& listener, const std::string& token, size_t count)
      : count_(count), door_(listener, [this, &token](Link& link) { return Greet(link, token); }) {}

  // Lets in whoever comes before the deadline, and lets go of those that left.
  Status Wait(Deadline deadline) {
    SHOAL_RETURN_IF_ERROR(door_.Wait(deadline));
    std::erase_if(members_, [](Member& member) { return HasLeft(member); });
    return {};
  }

  const std::vector<Member>& members() const { return members_; }
  bool full() const { return members_.size() >= count_; }

  // Ranks by name, not by who was quicker: the same command gives the same plan.
  std::vector<Member> Take() {
    std::ranges::sort(members_, [](const Member& a, const Member& b) {
      return a.name.size() != b.name.size() ? a.name.size() < b.name.size() : a.name < b.name;
    });
    return std::move(members_);
  }

 private:
  // On the connection's own thread.
  Result<Doorkeeper::Welcome> Greet(Link& link, const std::string& token) {
    const auto refuse = [this](const Error& error) {
      TellRefusal(error);
      return Fail(error);
    };
    const Claim ours{.role = Role::kHead, .rank = 0, .epoch = 0, .cluster = {}};
    const Deadline deadline = Deadline::After(limits::kHandshakeTimeout);
    if (auto claim = ShakeHandsAccepting(link, token, ours, deadline); !claim) return refuse(claim.error());
    auto offer = Introduce(link, "127.0.0.1");
    if (!offer) return refuse(offer.error());
    return [this, offer = *std::move(offer)](Link joined) mutable { Admit(std::move(offer), std::move(joined)); };
  }

  // Strangers must not fill the log.
  void TellRefusal(const Error& error) {
    std::lock_guard lock(refusals_mutex_);
    const auto left_out = refusals_.Ask(Now());
    if (!left_out) return;
    if (*left_out == 0) return Log().warn("a connection was refused: {}", ToString(error));
    Log().warn("a connection was refused: {} (and {} more since the last such line)", ToString(error), *left_out);
  }

  void Admit(Offer offer, Link link) {
    if (full()) return;  // one too many: its link closes
    offer.name = UniqueName(members_, offer.name);
    Log().info("worker {} joined ({} of {})", offer.name, members_.size() + 1, count_);
    members_.push_back({std::move(offer), std::move(link)});
  }

  static bool HasLeft(Member& member) {
    if (StillWaits(member)) return false;
    Log().warn("worker {} left before all had joined", member.name);
    return true;
  }

  const size_t count_;
  std::vector<Member> members_;
  std::mutex refusals_mutex_;
  LineLimit refusals_{std::chrono::seconds(1)};
  Doorkeeper door_;  // last: its threads use the others
};

Result<std::vector<Member>> Await(Listener& listener, const std::string& token, int count, LocalWorkers& children,
                                  bool local_only) {
  const Deadline patience = local_only ? Deadline::After(kLocalPatience) : Deadline::After(kPatience);
  Lobby lobby(listener, token, static_cast<size_t>(count));
  while (!lobby.full()) {
    // Looks up now and then: a local worker that could not start must not be waited for.
    SHOAL_RETURN_IF_ERROR(lobby.Wait(Deadline::After(std::chrono::milliseconds(200))));
    if (!children.AllAlive())
      return Fail(Code::kUnavailable, reasons::kPeerLost, "a local worker process ended before all had joined");
    if (patience.passed())
      return Fail(Code::kUnavailable, reasons::kPeerTimeout,
                  std::to_string(lobby.members().size()) + " of " + std::to_string(count) + " workers joined in time");
  }
  return lobby.Take();
}

// All workers are on this machine in this first form: they share its memory, as they share the model.
std::vector<NodeFacts> FactsOf(const std::vector<Member>& members, const std::vector<double>& shares) {
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<NodeFacts> nodes;
  for (size_t r = 0; r < members.size(); ++r) {
    const double part = shares.empty() ? 1.0 / static_cast<double>(members.size()) : shares[r] / total;
    const auto here = static_cast<uint64_t>(static_cast<double>(AvailableMemory()) * part);
    nodes.push_back({members[r].name, std::min(members[r].memory, here)});
  }
  return nodes;
}

// Listens until all have come: nobody is to join a group that is complete.
Result<std::vector<Member>> Assemble(const EngineFlags& flags, const std::string& token, LocalWorkers& children) {
  const int port = flags.cluster_port >= 0 ? flags.cluster_port : flags.wait_for > 0 ? kDefaultClusterPort : 0;
  SHOAL_ASSIGN(Listener listener, Listener::Open(flags.cluster_host, static_cast<uint16_t>(port)));
  if (flags.wait_for > 0)
    Log().info("waiting for {} worker(s): shoal worker --join {} --token-file {}", flags.wait_for,
               ToString(listener.address()), flags.token_file);
  const int threads = flags.threads > 0 ? flags.threads : std::max(1, AvailableCores() / std::max(1, flags.workers));
  SHOAL_RETURN_IF_ERROR(children.Start(flags.workers, listener.port(), token, threads));
  return Await(listener, token, flags.workers + flags.wait_for, children, flags.wait_for == 0);
}

}  // namespace

Result<std::string> ReadToken(const std::string& path) {
  std::ifstream file(path);
  std::string token;
  std::getline(file, token);
  while (!token.empty() && (token.back() == '\r' || token.back() == ' ')) token.pop_back();
  if (!file)
    return Fail(Code::kConfig, reasons::kBadConfig, "cannot read the join token from " + path, std::strerror(errno));
  if (token.size() < 8)
    return Fail(Code::kConfig, reasons::kBadConfig, path + " holds no join token (at least 8 characters)");
  return token;
}

Result<std::string> ReadOrMakeToken(const std::string& path) {
  if (access(path.c_str(), F_OK) == 0) return ReadToken(path);
  const std::string token = Hex(NewSecret());
  const std::string line = token + "\n";
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  const bool written = fd >= 0 && write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  if (fd >= 0) close(fd);
  if (!written)
    return Fail(Code::kConfig, reasons::kBadConfig, "cannot write the join token to " + path, std::strerror(errno));
  return token;
}

Result<std::unique_ptr<Group>> GatherWorkers(const ModelSpec& spec, std::shared_ptr<const GgufFile> file,
                                             const EngineFlags& flags, LocalWorkers& children) {
  std::string token = Hex(NewSecret());
  if (!flags.token_file.empty()) {
    SHOAL_ASSIGN(token, ReadOrMakeToken(flags.token_file));
  } else if (flags.wait_for > 0) {
    return Fail(Code::kInvalidArgument, reasons::kUsage,
                "--wait-for needs --token-file: the workers prove themselves with it");
  }
  SHOAL_ASSIGN(auto members, Assemble(flags, token, children));
  SHOAL_ASSIGN(const ShardPlan plan, MakePlan(spec, FactsOf(members, flags.shares), flags));
  ProgressBar bar("loading", spec.tensor_bytes);
  return LoadRemoteGroup(std::move(file), std::move(members), plan, kFirstEpoch,
                         [&bar](uint64_t bytes) { bar.Add(bytes); });
}

}  // namespace shoal
