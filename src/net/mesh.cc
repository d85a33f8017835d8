#include "net/mesh.h"

#include "base/check.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "net/doorkeeper.h"
#include "net/handshake.h"

namespace shoal {
namespace {

Claim OurClaim(const MeshOptions& options) {
  // The size of the group is part of what must agree.
  return {Role::kRank, options.rank, options.epoch, "group of " + std::to_string(options.peers.size())};
}

std::string Missing(const MeshOptions& options, const std::vector<Fd>& links) {
  std::string missing;
  for (size_t r = static_cast<size_t>(options.rank) + 1; r < links.size(); ++r)
    if (!links[r].valid()) missing += (missing.empty() ? "rank " : ", ") + std::to_string(r);
  return missing;
}

// Lets in the ranks above ours.
Status AcceptRanks(Listener& listener, const MeshOptions& options, Deadline deadline, std::vector<Fd>& links) {
  Doorkeeper door(listener, [&](Link& link) -> Result<Doorkeeper::Welcome> {
    SHOAL_ASSIGN(const Claim claim, ShakeHandsAccepting(link, options.group_key, OurClaim(options), deadline));
    const auto rank = static_cast<size_t>(claim.rank);
    if (claim.rank <= options.rank || rank >= links.size())
      return Fail(Code::kUnauthenticated, reasons::kBadHandshake, "a rank came that is not awaited");
    return [&links, rank](Link joined) {
      if (!links[rank].valid()) links[rank] = joined.Release();
    };
  });
  for (;;) {
    const std::string missing = Missing(options, links);
    if (missing.empty()) return {};
    if (deadline.passed())
      return Fail(Code::kDeadlineExceeded, reasons::kPeerTimeout, "not all ranks joined the group in time",
                  "missing: " + missing);
    SHOAL_RETURN_IF_ERROR(door.Wait(deadline));
  }
}

}  // namespace

Result<std::vector<Fd>> JoinMesh(Listener& listener, const MeshOptions& options, Deadline deadline) {
  const int size = static_cast<int>(options.peers.size());
  SHOAL_CHECK(size >= 1 && size <= limits::kMaxRanks && options.rank >= 0 && options.rank < size);
  std::vector<Fd> links(options.peers.size());
  // Rank 0 dials nobody and accepts at once; rank i accepts as soon as those below it have let it in: no
  // circle.
  for (int r = 0; r < options.rank; ++r) {
    const Address& address = options.peers[static_cast<size_t>(r)];
    const auto name = [&](Error error) {
      error.detail = "joining rank " + std::to_string(r) + " at " + ToString(address) +
                     (error.detail.empty() ? "" : ": " + error.detail);
      return Fail(std::move(error));
    };
    auto link = Link::Dial(address.host, address.port, deadline, options.exposure);
    if (!link) return name(link.error());
    const auto claim = ShakeHandsDialing(*link, options.group_key, OurClaim(options), deadline);
    if (!claim) return name(claim.error());
    if (claim->rank != r)
      return name(
          MakeError(Code::kInternal, reasons::kBadHandshake, "another rank answered: " + std::to_string(claim->rank)));
    links[static_cast<size_t>(r)] = link->Release();
  }
  SHOAL_RETURN_IF_ERROR(AcceptRanks(listener, options, deadline, links));
  return links;
}

}  // namespace shoal
