// What: how two processes prove to each other that they hold the same secret, which never crosses the wire.
//
//     dialer                                     listener
//     Hello{claim, nonce}             ->         (bytes that are no such frame: dropped, no answer)
//                                     <-         Challenge{claim, nonce}
//     Proof{HMAC(secret, dialer...)}  ->
//                                     <-         Proof{HMAC(secret, listener...)}
//
// Both MACs cover everything both sides said: protocol, roles, ranks, epochs, cluster, both nonces, and who
// of the two is speaking, so a recorded session cannot be played again nor a message be reflected. Either
// side may answer Reject with a typed error instead. After it the link carries full-sized frames whose
// checksums are seeded by the session.
// Threads: the link's; each handshake blocks its caller until it is over.
// Limits: kHandshakeTimeout and kMaxHandshakeBytes a frame.
// Fails: kBadHandshake (not our protocol, wrong role or cluster), kVersionMismatch (both sides name both
// versions), kStaleEpoch, kBadToken (another secret), kPeerLost, kPeerTimeout. The link is shut down on
// every failure.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "core/ids.h"
#include "net/link.h"

namespace shoal {

inline constexpr uint32_t kWireProtocol = 1;
inline constexpr size_t kMaxClusterBytes = 256;
inline constexpr size_t kSecretBytes = 32;

enum class Role : uint8_t { kHead = 1, kWorker = 2, kRank = 3 };

// Who a side says it is.
struct Claim {
  Role role = Role::kWorker;
  int rank = 0;              // of a kRank
  Epoch epoch = 0;           // of a kRank; must be the same on both sides
  std::string cluster = {};  // must be the same on both sides, unless one does not know it yet (empty)
  uint32_t protocol = kWireProtocol;
};

// The peer's claim, proved. A worker dials the head, a rank dials a rank; every other pair of roles is
// refused. `secret` is not empty.
Result<Claim> ShakeHandsDialing(Link& link, const std::string& secret, const Claim& ours, Deadline deadline);
Result<Claim> ShakeHandsAccepting(Link& link, const std::string& secret, const Claim& ours, Deadline deadline);

// kSecretBytes random bytes.
std::string NewSecret();
// Compares in a time that depends on the lengths alone.
bool SameBytes(const std::string& a, const std::string& b);

}  // namespace shoal
