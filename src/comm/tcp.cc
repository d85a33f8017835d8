#include "comm/tcp.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <optional>
#include <thread>

#include "base/check.h"
#include "base/machine.h"
#include "comm/meeting.h"
#include "comm/spin.h"
#include "comm/tree_sum.h"
#include "core/limits.h"
#include "core/reasons.h"

namespace shoal {
namespace {

static_assert(std::endian::native == std::endian::little, "headers and floats cross the wire as they lie in memory");

// While so much is left to move, a rank that has to wait sleeps at once: what is to come outlasts any polling, and whoever
// computes meanwhile needs the core.
constexpr size_t kLongBytes = size_t{1} << 20;

constexpr int kMaxPieces = 1 + kSlices;  // a header and the pieces of each subtree sum

// What is left to move in one direction.
struct Flow {
  std::array<iovec, kMaxPieces> pieces;
  size_t first = 0;
  size_t count = 0;
  size_t left = 0;  // bytes

  void Add(const void* data, size_t bytes) {
    if (bytes == 0) return;
    pieces[count++] = {const_cast<void*>(data), bytes};
    left += bytes;
  }
  void Took(size_t bytes) {
    left -= bytes;
    while (bytes > 0) {
      iovec& piece = pieces[first];
      const size_t step = std::min(bytes, piece.iov_len);
      piece.iov_base = static_cast<char*>(piece.iov_base) + step;
      piece.iov_len -= step;
      bytes -= step;
      if (piece.iov_len == 0) ++first;
    }
  }
  void Clear() { first = count = left = 0; }
};

struct Peer {
  Fd fd;
  Flow out;
  Flow in;
  Meeting sent;
  Meeting expected;
  Meeting received;
  size_t received_bytes = 0;  // of this message, header included
  bool checked = true;        // the header was compared
  uint32_t sends = 0;
  uint32_t receives = 0;
};

bool Fits(int threads) { return threads <= AvailableCores(); }

class TcpCollective final : public Collective {
 public:
  TcpCollective(int rank, std::vector<Fd> links, const TcpOptions& options);
  ~TcpCollective() override { Close(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Status AllReduce(const ReduceShares& shares, std::span<float> own, std::span<float> out) override;
  Status ReduceScatter(const ReduceShares& shares, std::span<const size_t> counts, std::span<float> own,
                       std::span<float> out) override;
  Status AllGather(std::span<const std::byte> own, std::span<const size_t> counts, std::span<std::byte> out) override;
  Status Gather(int root, std::span<const std::byte> own, std::span<const size_t> counts,
                std::span<std::byte> out) override;
  Status Broadcast(int root, std::span<std::byte> bytes) override;
  Status Send(int to, std::span<const std::byte> bytes) override;
  Status Receive(int from, std::span<std::byte> bytes) override;
  Status Barrier() override;

  void SetDeadline(Deadline deadline) override { deadline_ = deadline; }
  void Close() override {
    closed_ = true;
    // shutdown and not close: a thread may be asleep in poll on these, and their numbers must stay taken.
    for (const Peer& peer : peers_)
      if (peer.fd.valid()) ::shutdown(peer.fd.get(), SHUT_RDWR);
  }

 private:
  std::unexpected<Error> End(Error error) {
    ended_ = true;
    Close();
    return Fail(std::move(error));
  }
  Status Open() {
    if (ended_) return Fail(GroupClosed());
    if (closed_) return End(GroupClosed());
    return {};
  }
  std::unexpected<Error> Lost(int rank, const char* why) {
    if (closed_) return End(GroupClosed());
    return End(PeerLost(rank, why));
  }
  Peer& peer(int rank) { return peers_[static_cast<size_t>(rank)]; }

  // What the next Exchange sends to and expects from a rank; pieces are added to peer(rank).out and .in
  // afterwards.
  void Say(int to, MeetingOp op, int root, int phase, uint32_t tag, uint64_t bytes);
  void Expect(int from, MeetingOp op, int root, int phase, uint32_t tag, uint64_t bytes);
  // Moves all of it, both ways at once.
  Status Exchange();
  Status Push(int rank, bool& moved);
  Status Pull(int rank, bool& moved);
  Status Sleep(Deadline deadline);

  // parts[r]..parts[r + 1] are the elements that rank r sums. Every rank's part of every subtree sum goes to
  // it.
  Status SumParts(MeetingOp op, const TreeSum& sum, uint32_t tag, std::span<const size_t> parts,
                  std::span<const float> own, std::span<float> out);
  Status SumWhole(const TreeSum& sum, std::span<const float> own, std::span<float> out);
  Result<std::pair<const TreeSum*, size_t>> Prepare(const ReduceShares& shares, size_t vector_floats,
                                                    size_t own_floats);
  Status GatherTo(MeetingOp op, int root, int phase, uint32_t tag, std::span<const std::byte> own,
                  std::span<const size_t> offsets, std::span<std::byte> out);
  std::span<float> Scratch(size_t floats) {
    if (scratch_.size() < floats) scratch_.resize(floats);
    return std::span(scratch_.data(), floats);
  }

  const int rank_;
  const int size_;
  const TcpOptions options_;
  std::vector<Peer> peers_;
  TreeSumCache sums_;
  std::vector<float> scratch_;
  std::optional<Deadline> deadline_;
  SpinBudget spin_;
  std::atomic<bool> closed_{false};
  bool ended_ = false;
};

TcpCollective::TcpCollective(int rank, std::vector<Fd> links, const TcpOptions& options)
    : rank_(rank),
      size_(static_cast<int>(links.size())),
      options_(options),
      peers_(links.size()),
      sums_(size_),
      spin_(Fits(options.threads_here > 0 ? options.threads_here : size_) ? options.spin : Nanos(0)) {
  for (size_t p = 0; p < links.size(); ++p) peers_[p].fd = std::move(links[p]);
}

void TcpCollective::Say(int to, MeetingOp op, int root, int phase, uint32_t tag, uint64_t bytes) {
  Peer& p = peer(to);
  p.sent = {.op = op,
            .root = static_cast<uint8_t>(root),
            .phase = static_cast<uint8_t>(phase),
            .tag = tag,
            .sequence = p.sends++,
            .bytes = bytes};
  p.out.Clear();
  p.out.Add(&p.sent, sizeof p.sent);
}

void TcpCollective::Expect(int from, MeetingOp op, int root, int phase, uint32_t tag, uint64_t bytes) {
  Peer& p = peer(from);
  p.expected = {.op = op,
                .root = static_cast<uint8_t>(root),
                .phase = static_cast<uint8_t>(phase),
                .tag = tag,
                .sequence = p.receives++,
                .bytes = bytes};
  p.received_bytes = 0;
  p.checked = false;
  p.in.Clear();
  p.in.Add(&p.received, sizeof p.received);
}

Status TcpCollective::Push(int rank, bool& moved) {
  Peer& p = peer(rank);
  msghdr message{};
  message.msg_iov = &p.out.pieces[p.out.first];
  message.msg_iovlen = p.out.count - p.out.first;
  const ssize_t sent = ::sendmsg(p.fd.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return {};
    return Lost(rank, ::strerrordesc_np(errno));
  }
  p.out.Took(static_cast<size_t>(sent));
  moved = true;
  return {};
}

Status TcpCollective::Pull(int rank, bool& moved) {
  Peer& p = peer(rank);
  msghdr message{};
  message.msg_iov = &p.in.pieces[p.in.first];
  message.msg_iovlen = p.in.count - p.in.first;
  const ssize_t got = ::recvmsg(p.fd.get(), &message, MSG_DONTWAIT);
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return {};
    return Lost(rank, ::strerrordesc_np(errno));
  }
  if (got == 0) return Lost(rank, "it closed its link");
  p.in.Took(static_cast<size_t>(got));
  p.received_bytes += static_cast<size_t>(got);
  moved = true;
  if (!p.checked && p.received_bytes >= sizeof p.received) {
    if (p.received != p.expected) return End(Mismatch(rank, ToString(p.received), ToString(p.expected)));
    p.checked = true;
  }
  return {};
}

Status TcpCollective::Exchange() {
  const Deadline deadline = deadline_ ? *deadline_ : Deadline::After(limits::kStepTimeout);
  std::optional<Time> waiting_since;
  for (;;) {
    bool moved = false;
    size_t left = 0;
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      if (peer(r).out.left > 0) SHOAL_RETURN_IF_ERROR(Push(r, moved));
      if (peer(r).in.left > 0) SHOAL_RETURN_IF_ERROR(Pull(r, moved));
      left += peer(r).out.left + peer(r).in.left;
    }
    if (moved && waiting_since) {
      spin_.Learn(Now() - *waiting_since);
      waiting_since.reset();
    }
    if (left == 0) return {};
    if (moved) continue;
    if (left >= kLongBytes) {
      SHOAL_RETURN_IF_ERROR(Sleep(deadline));
      continue;
    }
    const Time now = Now();
    if (!waiting_since) waiting_since = now;
    if (now - *waiting_since < spin_.now() && now < deadline.at) {
      if (spin_.yields()) std::this_thread::yield();
      continue;
    }
    SHOAL_RETURN_IF_ERROR(Sleep(deadline));
  }
}

Status TcpCollective::Sleep(Deadline deadline) {
  std::array<pollfd, limits::kMaxRanks> fds;
  nfds_t count = 0;
  std::string missing;
  for (int r = 0; r < size_; ++r) {
    const Peer& p = peer(r);
    if (p.out.left == 0 && p.in.left == 0) continue;
    const int events = (p.out.left > 0 ? POLLOUT : 0) | (p.in.left > 0 ? POLLIN : 0);
    fds[count++] = {p.fd.get(), static_cast<short>(events), 0};
  }
  const int ready = ::poll(fds.data(), count, deadline.poll_ms());
  if (ready > 0 || (ready < 0 && errno == EINTR)) return {};
  if (ready < 0) return End(MakeError(Code::kInternal, reasons::kIo, "poll failed", ::strerrordesc_np(errno)));
  if (!deadline.passed()) return {};
  for (int r = 0; r < size_; ++r)
    if (peer(r).in.left > 0 || peer(r).out.left > 0) missing += (missing.empty() ? "rank " : ", ") + std::to_string(r);
  return End(MakeError(Code::kDeadlineExceeded, reasons::kPeerTimeout, "a rank did not come to the meeting in time",
                       "still waiting for " + missing));
}

Result<std::pair<const TreeSum*, size_t>> TcpCollective::Prepare(const ReduceShares& shares, size_t vector_floats,
                                                                 size_t own_floats) {
  SHOAL_RETURN_IF_ERROR(Open());
  const auto found = sums_.Find(shares);
  if (!found) return End(found.error());
  const TreeSum& sum = **found;
  const auto slots = static_cast<size_t>(sum.slots_of(rank_));
  if (vector_floats > limits::kMaxFrameBytes / sizeof(float) / static_cast<size_t>(sum.most_slots()) ||
      own_floats != vector_floats * slots)
    return End(Mismatch(rank_, std::to_string(own_floats) + " floats of its own",
                        std::to_string(slots) + " vectors of " + std::to_string(vector_floats) + " floats"));
  return std::pair(found.value(), slots);
}

Status TcpCollective::SumWhole(const TreeSum& sum, std::span<const float> own, std::span<float> out) {
  const size_t n = out.size();
  const std::span<float> theirs = Scratch(n * static_cast<size_t>(sum.slots() - sum.slots_of(rank_)));
  std::array<const float*, kSlices> inputs;
  size_t at = 0;
  for (int r = 0; r < size_; ++r) {
    const auto slots = static_cast<size_t>(sum.slots_of(r));
    const float* base = r == rank_ ? own.data() : theirs.data() + at;
    for (size_t k = 0; k < slots; ++k) inputs[static_cast<size_t>(sum.first_slot(r)) + k] = base + k * n;
    if (r == rank_) continue;
    Say(r, MeetingOp::kAllReduce, 0, 0, sum.tag(), own.size_bytes());
    peer(r).out.Add(own.data(), own.size_bytes());
    Expect(r, MeetingOp::kAllReduce, 0, 0, sum.tag(), slots * n * sizeof(float));
    peer(r).in.Add(base, slots * n * sizeof(float));
    at += slots * n;
  }
  SHOAL_RETURN_IF_ERROR(Exchange());
  sum.Combine(std::span(inputs.data(), static_cast<size_t>(sum.slots())), out);
  return {};
}

Status TcpCollective::SumParts(MeetingOp op, const TreeSum& sum, uint32_t tag, std::span<const size_t> parts,
                               std::span<const float> own, std::span<float> out) {
  const size_t n = parts[static_cast<size_t>(size_)];  // floats of a vector
  const auto me = static_cast<size_t>(rank_);
  const size_t mine = parts[me + 1] - parts[me];
  const std::span<float> theirs = Scratch(mine * static_cast<size_t>(sum.slots() - sum.slots_of(rank_)));
  const auto own_slots = static_cast<size_t>(sum.slots_of(rank_));
  std::array<const float*, kSlices> inputs;
  size_t at = 0;
  for (int r = 0; r < size_; ++r) {
    const auto slots = static_cast<size_t>(sum.slots_of(r));
    for (size_t k = 0; k < slots; ++k)
      inputs[static_cast<size_t>(sum.first_slot(r)) + k] =
          r == rank_ ? own.data() + k * n + parts[me] : theirs.data() + at + k * mine;
    if (r == rank_) continue;
    const size_t first = parts[static_cast<size_t>(r)];
    const size_t count = parts[static_cast<size_t>(r) + 1] - first;
    Say(r, op, 0, 0, tag, own_slots * count * sizeof(float));
    for (size_t k = 0; k < own_slots; ++k) peer(r).out.Add(own.data() + k * n + first, count * sizeof(float));
    Expect(r, op, 0, 0, tag, slots * mine * sizeof(float));
    peer(r).in.Add(theirs.data() + at, slots * mine * sizeof(float));
    at += slots * mine;
  }
  SHOAL_RETURN_IF_ERROR(Exchange());
  sum.Combine(std::span(inputs.data(), static_cast<size_t>(sum.slots())), out);
  return {};
}

Status TcpCollective::AllReduce(const ReduceShares& shares, std::span<float> own, std::span<float> out) {
  const size_t n = out.size();
  SHOAL_ASSIGN(const auto prepared, Prepare(shares, n, own.size()));
  const TreeSum& sum = *prepared.first;
  // Whole: a rank receives (on average) slots * (size - 1) / size vectors. In parts: a size-th of that, and
  // then the other ranks' parts of the result. The same arithmetic on every rank, so all choose alike.
  const auto ranks = static_cast<size_t>(size_);
  const size_t slots = static_cast<size_t>(sum.slots());
  const size_t whole = slots * n * sizeof(float) / ranks * (ranks - 1);
  const size_t divided = whole / ranks + n * sizeof(float) / ranks * (ranks - 1);
  const bool divide = size_ > 1 && (whole >= divided + options_.divide_at || n * sizeof(float) >= options_.divide_from);
  if (!divide) return SumWhole(sum, own, out);

  std::array<size_t, limits::kMaxRanks + 1> parts;    // in floats
  std::array<size_t, limits::kMaxRanks + 1> offsets;  // in bytes
  for (size_t r = 0; r <= ranks; ++r) {
    parts[r] = n * r / ranks;
    offsets[r] = parts[r] * sizeof(float);
  }
  const auto me = static_cast<size_t>(rank_);
  const std::span<float> part = out.subspan(parts[me], parts[me + 1] - parts[me]);
  SHOAL_RETURN_IF_ERROR(SumParts(MeetingOp::kAllReduce, sum, sum.tag(), parts, own, part));
  return GatherTo(MeetingOp::kAllReduce, 0, 1, sum.tag(), std::as_bytes(part), offsets, std::as_writable_bytes(out));
}

Status TcpCollective::ReduceScatter(const ReduceShares& shares, std::span<const size_t> counts, std::span<float> own,
                                    std::span<float> out) {
  SHOAL_RETURN_IF_ERROR(Open());
  const auto total = TotalOf(counts, size_, sizeof(float));
  if (!total) return End(total.error());
  SHOAL_ASSIGN(const auto prepared, Prepare(shares, *total, own.size()));
  if (out.size() != counts[static_cast<size_t>(rank_)])
    return End(Mismatch(rank_, std::to_string(out.size()) + " floats of room",
                        std::to_string(counts[static_cast<size_t>(rank_)]) + " floats"));
  std::array<size_t, limits::kMaxRanks + 1> parts{};
  for (size_t r = 0; r < counts.size(); ++r) parts[r + 1] = parts[r] + counts[r];
  const TreeSum& sum = *prepared.first;
  return SumParts(MeetingOp::kReduceScatter, sum, sum.tag() ^ TagOf(counts), parts, own, out);
}

// Rank r's bytes go to [offsets[r], offsets[r + 1]) of everyone's (kGather: the root's) out.
Status TcpCollective::GatherTo(MeetingOp op, int root, int phase, uint32_t tag, std::span<const std::byte> own,
                               std::span<const size_t> offsets, std::span<std::byte> out) {
  const bool rooted = op == MeetingOp::kGather;
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    if (!rooted || r == root) {
      Say(r, op, root, phase, tag, own.size());
      peer(r).out.Add(own.data(), own.size());
    }
    if (!rooted || rank_ == root) {
      const size_t first = offsets[static_cast<size_t>(r)];
      const size_t bytes = offsets[static_cast<size_t>(r) + 1] - first;
      Expect(r, op, root, phase, tag, bytes);
      peer(r).in.Add(out.data() + first, bytes);
    }
  }
  if ((!rooted || rank_ == root) && !own.empty())
    ::memmove(out.data() + offsets[static_cast<size_t>(rank_)], own.data(), own.size());
  return Exchange();
}

Status TcpCollective::AllGather(std::span<const std::byte> own, std::span<const size_t> counts,
                                std::span<std::byte> out) {
  SHOAL_RETURN_IF_ERROR(Open());
  const auto total = TotalOf(counts, size_, 1);
  if (!total) return End(total.error());
  if (own.size() != counts[static_cast<size_t>(rank_)] || out.size() != *total)
    return End(Mismatch(rank_, std::to_string(own.size()) + " bytes of its own", std::to_string(*total) + " bytes"));
  std::array<size_t, limits::kMaxRanks + 1> offsets{};
  for (size_t r = 0; r < counts.size(); ++r) offsets[r + 1] = offsets[r] + counts[r];
  return GatherTo(MeetingOp::kAllGather, 0, 0, TagOf(counts), own, offsets, out);
}

Status TcpCollective::Gather(int root, std::span<const std::byte> own, std::span<const size_t> counts,
                             std::span<std::byte> out) {
  SHOAL_RETURN_IF_ERROR(Open());
  if (auto sound = CheckRoot(root, size_); !sound) return End(sound.error());
  const auto total = TotalOf(counts, size_, 1);
  if (!total) return End(total.error());
  if (own.size() != counts[static_cast<size_t>(rank_)] || out.size() != (rank_ == root ? *total : 0))
    return End(Mismatch(rank_, std::to_string(own.size()) + " bytes of its own", std::to_string(*total) + " bytes"));
  std::array<size_t, limits::kMaxRanks + 1> offsets{};
  for (size_t r = 0; r < counts.size(); ++r) offsets[r + 1] = offsets[r] + counts[r];
  return GatherTo(MeetingOp::kGather, root, 0, TagOf(counts), own, offsets, out);
}

Status TcpCollective::Broadcast(int root, std::span<std::byte> bytes) {
  SHOAL_RETURN_IF_ERROR(Open());
  if (auto sound = CheckRoot(root, size_); !sound) return End(sound.error());
  if (auto sound = CheckSize(bytes.size()); !sound) return End(sound.error());
  if (rank_ != root) {
    Expect(root, MeetingOp::kBroadcast, root, 0, 0, bytes.size());
    peer(root).in.Add(bytes.data(), bytes.size());
    return Exchange();
  }
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    Say(r, MeetingOp::kBroadcast, root, 0, 0, bytes.size());
    peer(r).out.Add(bytes.data(), bytes.size());
  }
  return Exchange();
}

Status TcpCollective::Send(int to, std::span<const std::byte> bytes) {
  SHOAL_RETURN_IF_ERROR(Open());
  SHOAL_CHECK(to >= 0 && to < size_ && peer(to).fd.valid());
  if (auto sound = CheckSize(bytes.size()); !sound) return End(sound.error());
  Say(to, MeetingOp::kMessage, 0, 0, 0, bytes.size());
  peer(to).out.Add(bytes.data(), bytes.size());
  return Exchange();
}

Status TcpCollective::Receive(int from, std::span<std::byte> bytes) {
  SHOAL_RETURN_IF_ERROR(Open());
  SHOAL_CHECK(from >= 0 && from < size_ && peer(from).fd.valid());
  Expect(from, MeetingOp::kMessage, 0, 0, 0, bytes.size());
  peer(from).in.Add(bytes.data(), bytes.size());
  return Exchange();
}

Status TcpCollective::Barrier() {
  SHOAL_RETURN_IF_ERROR(Open());
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    Say(r, MeetingOp::kBarrier, 0, 0, 0, 0);
    Expect(r, MeetingOp::kBarrier, 0, 0, 0, 0);
  }
  return Exchange();
}

}  // namespace

Result<std::unique_ptr<Collective>> MakeTcpRank(int rank, std::vector<Fd> links, const TcpOptions& options) {
  SHOAL_CHECK(!links.empty() && links.size() <= static_cast<size_t>(limits::kMaxRanks));
  SHOAL_CHECK(rank >= 0 && static_cast<size_t>(rank) < links.size());
  for (size_t p = 0; p < links.size(); ++p) {
    if (p == static_cast<size_t>(rank)) continue;
    if (!links[p].valid()) continue;
    const int on = 1;
    if (::setsockopt(links[p].get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
      return Fail(Code::kInternal, reasons::kIo, "cannot make a link prompt", ::strerrordesc_np(errno));
  }
  return std::make_unique<TcpCollective>(rank, std::move(links), options);
}

}  // namespace shoal
