#include "net/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "net/codec.h"
#include "net/wire.pb.h"

namespace shoal {
namespace {

constexpr size_t kNonceBytes = 32;
constexpr size_t kMacBytes = 32;

std::string Random(size_t bytes) {
  std::string random(bytes, '\0');
  // Without a source of randomness no handshake is safe; OpenSSL seeds itself from the system.
  SHOAL_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(random.data()), static_cast<int>(bytes)) == 1);
  return random;
}

std::string Mac(const std::string& secret, const std::string& text) {
  std::string mac(kMacBytes, '\0');
  unsigned int length = 0;
  SHOAL_CHECK(HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
                   reinterpret_cast<const unsigned char*>(text.data()), text.size(),
                   reinterpret_cast<unsigned char*>(mac.data()), &length) != nullptr &&
              length == kMacBytes);
  return mac;
}

void AppendNumber(std::string& text, uint64_t number) {
  for (int i = 0; i < 8; ++i) text.push_back(static_cast<char>(number >> (8 * i)));
}

void AppendClaim(std::string& text, const Claim& claim) {
  AppendNumber(text, claim.protocol);
  AppendNumber(text, static_cast<uint64_t>(claim.role));
  AppendNumber(text, static_cast<uint64_t>(claim.rank));
  AppendNumber(text, claim.epoch);
  AppendNumber(text, claim.cluster.size());
  text += claim.cluster;
}

wire::Message HelloOf(const Claim& claim, const std::string& nonce, bool challenge) {
  wire::Message message;
  auto fill = [&](auto* part) {
    part->set_nonce(nonce);
    auto* said = part->mutable_claim();
    said->set_protocol(claim.protocol);
    said->set_role(static_cast<uint32_t>(claim.role));
    said->set_rank(static_cast<uint32_t>(claim.rank));
    said->set_epoch(claim.epoch);
    said->set_cluster(claim.cluster);
  };
  if (challenge) {
    fill(message.mutable_challenge());
  } else {
    fill(message.mutable_hello());
  }
  return message;
}

Error BadHandshake(std::string detail) {
  return MakeError(Code::kUnauthenticated, reasons::kBadHandshake, "a peer did not shake hands as it should",
                   std::move(detail));
}

// One side of a handshake.
class Shaker {
 public:
  Shaker(Link& link, const std::string& secret, const Claim& ours, Deadline deadline, bool dialing)
      : link_(link),
        secret_(secret),
        ours_(ours),
        deadline_{std::min(deadline.at, Now() + Nanos(limits::kHandshakeTimeout))},
        dialing_(dialing) {
    SHOAL_CHECK(!secret.empty() && ours.cluster.size() <= kMaxClusterBytes);
  }

  Result<Claim> Run() {
    auto claim = dialing_ ? Dial() : Accept();
    if (!claim) link_.Shutdown();
    return claim;
  }

 private:
  Result<Claim> Dial() {
    const std::string nonce = Random(kNonceBytes);
    SHOAL_RETURN_IF_ERROR(link_.Send(HelloOf(ours_, nonce, false), deadline_));
    SHOAL_ASSIGN(const wire::Message answer, Receive());
    if (!answer.has_challenge()) return Fail(BadHandshake("no challenge came"));
    SHOAL_ASSIGN(Claim theirs, Read(answer.challenge().claim(), answer.challenge().nonce()));
    const std::string said = Said(ours_, nonce, theirs, answer.challenge().nonce());
    SHOAL_RETURN_IF_ERROR(SendProof("dialer", said));
    SHOAL_RETURN_IF_ERROR(CheckProof("listener", said));
    return Done(std::move(theirs), said);
  }

  Result<Claim> Accept() {
    // Until a whole frame with a Hello in it has come, nothing is answered: a stranger learns nothing.
    SHOAL_ASSIGN(const wire::Message hello, Receive());
    if (!hello.has_hello()) return Fail(BadHandshake("no hello came"));
    auto read = Read(hello.hello().claim(), hello.hello().nonce());
    if (!read) return Refuse(read.error());
    Claim theirs = std::move(*read);
    const std::string nonce = Random(kNonceBytes);
    SHOAL_RETURN_IF_ERROR(link_.Send(HelloOf(ours_, nonce, true), deadline_));
    const std::string said = Said(theirs, hello.hello().nonce(), ours_, nonce);
    if (auto proved = CheckProof("dialer", said); !proved) {
      if (proved.error().reason == reasons::kBadToken) return Refuse(proved.error());
      return Fail(proved.error());
    }
    SHOAL_RETURN_IF_ERROR(SendProof("listener", said));
    return Done(std::move(theirs), said);
  }

  Result<wire::Message> Receive() {
    auto message = link_.Receive(deadline_);
    if (!message && message.error().reason == reasons::kBadFrame)
      return Fail(BadHandshake("its bytes are not our protocol: " + message.error().detail));
    if (!message) return message;
    if (message->has_reject()) return Fail(DecodeRejection(message->reject().error()));
    return message;
  }

  // Their refusal, with our own side's numbers where they matter.
  Error DecodeRejection(const wire::Error& rejection) {
    auto error = DecodeError(rejection);
    if (!error) return BadHandshake("it refused without a reason");
    if (error->reason == reasons::kBadToken)
      return MakeError(Code::kUnauthenticated, reasons::kBadToken, "the other side holds another token");
    return std::move(*error);
  }

  Result<Claim> Read(const wire::Claim& said, const std::string& nonce) {
    if (said.protocol() != ours_.protocol)
      return Fail(Code::kUnsupported, reasons::kVersionMismatch,
                  "the two sides speak different versions of the protocol: " + std::to_string(ours_.protocol) +
                      " and " + std::to_string(said.protocol()) + "; use the same release on all machines",
                  std::string("dialer ") + std::to_string(dialing_ ? ours_.protocol : said.protocol()) + ", listener " +
                      std::to_string(dialing_ ? said.protocol() : ours_.protocol));
    if (nonce.size() != kNonceBytes)
      return Fail(BadHandshake("its nonce has " + std::to_string(nonce.size()) + " bytes"));
    if (said.cluster().size() > kMaxClusterBytes) return Fail(BadHandshake("its cluster name is too long"));
    const auto role = static_cast<Role>(said.role());
    const Role dialer = dialing_ ? ours_.role : role, listener = dialing_ ? role : ours_.role;
    if (said.role() > 255 ||
        !((dialer == Role::kWorker && listener == Role::kHead) || (dialer == Role::kRank && listener == Role::kRank)))
      return Fail(BadHandshake("its role is " + std::to_string(said.role())));
    if (said.rank() >= static_cast<uint32_t>(limits::kMaxRanks)) return Fail(BadHandshake("it is no rank"));
    if (!said.cluster().empty() && !ours_.cluster.empty() && said.cluster() != ours_.cluster)
      return Fail(BadHandshake("it belongs to another cluster"));
    if (said.epoch() != ours_.epoch && role == Role::kRank)
      return Fail(Code::kUnavailable, reasons::kStaleEpoch, "a peer belongs to another epoch",
                  "ours " + std::to_string(ours_.epoch) + ", its " + std::to_string(said.epoch()));
    return Claim{role, static_cast<int>(said.rank()), said.epoch(), said.cluster(), said.protocol()};
  }

  static std::string Said(const Claim& dialer, const std::string& dialer_nonce, const Claim& listener,
                          const std::string& listener_nonce) {
    std::string said = "shoal handshake 1";
    AppendClaim(said, dialer);
    said += dialer_nonce;
    AppendClaim(said, listener);
    said += listener_nonce;
    return said;
  }

  Status SendProof(const char* who, const std::string& said) {
    wire::Message message;
    message.mutable_proof()->set_mac(Mac(secret_, who + said));
    return link_.Send(message, deadline_);
  }

  Status CheckProof(const char* who, const std::string& said) {
    SHOAL_ASSIGN(const wire::Message message, Receive());
    if (!message.has_proof()) return Fail(BadHandshake("no proof came"));
    if (!SameBytes(message.proof().mac(), Mac(secret_, who + said)))
      return Fail(Code::kUnauthenticated, reasons::kBadToken, "a peer holds another token");
    return {};
  }

  std::unexpected<Error> Refuse(const Error& error) {
    wire::Message message;
    EncodeError(error, message.mutable_reject()->mutable_error());
    (void)link_.Send(message, deadline_);  // it may be gone already; our own error is what counts
    return Fail(error);
  }

  Result<Claim> Done(Claim theirs, const std::string& said) {
    const std::string key = Mac(secret_, "session" + said);
    uint64_t seed = 0;
    std::memcpy(&seed, key.data(), sizeof seed);
    link_.Trust(seed);
    return theirs;
  }

  Link& link_;
  const std::string& secret_;
  const Claim& ours_;
  const Deadline deadline_;
  const bool dialing_;
};

}  // namespace

Result<Claim> ShakeHandsDialing(Link& link, const std::string& secret, const Claim& ours, Deadline deadline) {
  return Shaker(link, secret, ours, deadline, true).Run();
}

Result<Claim> ShakeHandsAccepting(Link& link, const std::string& secret, const Claim& ours, Deadline deadline) {
  return Shaker(link, secret, ours, deadline, false).Run();
}

std::string NewSecret() { return Random(kSecretBytes); }

bool SameBytes(const std::string& a, const std::string& b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace shoal
