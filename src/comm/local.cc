#include "comm/local.h"

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
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

constexpr Nanos kSpin = std::chrono::microseconds(50);
// From here on every rank sums its part and copies the others' parts; below, each sums everything itself.
constexpr size_t kDividedFloats = 16384;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// What a rank shows the others in a meeting.
struct Shown {
  Meeting meeting;
  const std::byte* data = nullptr;  // what it brings
  const float* result = nullptr;    // the buffer its part of a divided sum goes to
};

// One direction of a pair: the sender owns `bytes` while empty, the receiver while full.
struct Channel {
  std::atomic<bool> full{false};
  std::vector<std::byte> bytes;
};

struct Group {
  explicit Group(int ranks) : size(ranks), channels(static_cast<size_t>(ranks * ranks)) {}

  // Waits until ready() or the group is closed (false: neither happened before the deadline). Whatever makes ready() true
  // must be a sequentially consistent store followed by Wake().
  template <class Ready>
  bool Wait(Deadline deadline, SpinBudget& spin, Ready ready) {
    const auto over = [&] { return ready() || lost.load() >= 0; };
    if (over()) return true;
    const Time start = Now();
    for (const Time until = std::min(start + spin.now(), deadline.at); Now() < until;) {
      for (int i = 0; i < 64; ++i) {
        if (over()) {
          spin.Learn(Now() - start);
          return true;
        }
        Pause();
      }
      if (spin.yields()) std::this_thread::yield();
    }
    std::unique_lock lock(mutex);
    sleepers.fetch_add(1);
    const bool done = woken.wait_until(lock, deadline.at, over);
    sleepers.fetch_sub(1);
    spin.Learn(Now() - start);
    return done;
  }

  void Wake() {
    if (sleepers.load() == 0) return;
    {
      std::lock_guard lock(mutex);
    }  // a sleeper that has counted itself is inside wait_until now
    woken.notify_all();
  }

  void CloseBy(int rank) {
    int open = -1;
    lost.compare_exchange_strong(open, rank);
    Wake();
  }

  const int size;
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<int> readers{0};  // ranks that are reading what others showed
  std::atomic<int> lost{-1};                // the rank that closed the group
  std::atomic<int> sleepers{0};
  // Two of each: a fast rank shows the next meeting while a slow one still looks at this one.
  alignas(64) std::array<std::array<Shown, limits::kMaxRanks>, 2> shown;
  std::vector<Channel> channels;  // [from * size + to]
  std::mutex mutex;
  std::condition_variable woken;
};

class LocalCollective final : public Collective {
 public:
  LocalCollective(std::shared_ptr<Group> group, int rank)
      : group_(std::move(group)),
        rank_(rank),
        sums_(group_->size),
        spin_(group_->size <= AvailableCores() ? kSpin : Nanos(0)) {}
  ~LocalCollective() override { Close(); }

  int rank() const override { return rank_; }
  int size() const override { return group_->size; }

  Status AllReduce(const ReduceShares& shares, std::span<float> own, std::span<float> out) override;
  Status ReduceScatter(const ReduceShares& shares, std::span<const size_t> counts, std::span<float> own,
                       std::span<float> out) override;
  Status AllGather(std::span<const std::byte> own, std::span<const size_t> counts, std::span<std::byte> out) override {
    return GatherTo(MeetingOp::kAllGather, 0, own, counts, out);
  }
  Status Gather(int root, std::span<const std::byte> own, std::span<const size_t> counts,
                std::span<std::byte> out) override {
    return GatherTo(MeetingOp::kGather, root, own, counts, out);
  }
  Status Broadcast(int root, std::span<std::byte> bytes) override;
  Status Send(int to, std::span<const std::byte> bytes) override;
  Status Receive(int from, std::span<std::byte> bytes) override;
  Status Barrier() override;

  void SetDeadline(Deadline deadline) override { deadline_ = deadline; }
  void Close() override { group_->CloseBy(rank_); }

 private:
  // A failure ends this rank's part in the group. Nobody may be reading our buffers when we return: readers
  // enter only while the group is open, so it is enough to close and let those inside finish (they only copy
  // and add).
  std::unexpected<Error> End(Error error) {
    group_->CloseBy(rank_);
    while (group_->readers.load() != 0) std::this_thread::yield();
    ended_ = true;
    return Fail(std::move(error));
  }
  std::unexpected<Error> EndLost() {
    const int lost = group_->lost.load();
    return End(lost == rank_ ? GroupClosed() : PeerLost(lost, "it closed the group"));
  }
  Status Open() {
    if (ended_) return Fail(GroupClosed());
    if (group_->lost.load() >= 0) return EndLost();
    return {};
  }
  Deadline MeetingDeadline() const { return deadline_ ? *deadline_ : Deadline::After(limits::kStepTimeout); }

  // All ranks have come this far.
  Status Sync(Deadline deadline);
  // Shows the others what this rank brings, waits for all of them, and compares.
  Status Show(MeetingOp op, int root, uint32_t tag, uint64_t bytes, const void* data, const float* result,
              Deadline deadline);
  const Shown& ShownBy(int rank) const { return group_->shown[parity_][static_cast<size_t>(rank)]; }
  // Runs `body`, which reads what others showed.
  template <class Body>
  Status Read(Body body) {
    group_->readers.fetch_add(1);
    if (group_->lost.load() >= 0) {
      group_->readers.fetch_sub(1);
      return EndLost();
    }
    body();
    group_->readers.fetch_sub(1);
    return {};
  }
  // Elements [first, first + out.size()) of the root.
  void Combine(const TreeSum& sum, size_t first, std::span<float> out, size_t vector_floats) const;
  Status GatherTo(MeetingOp op, int root, std::span<const std::byte> own, std::span<const size_t> counts,
                  std::span<std::byte> out);

  const std::shared_ptr<Group> group_;
  const int rank_;
  TreeSumCache sums_;
  SpinBudget spin_;
  std::optional<Deadline> deadline_;
  uint32_t meetings_ = 0;
  size_t parity_ = 0;
  bool ended_ = false;
};

Status LocalCollective::Sync(Deadline deadline) {
  Group& group = *group_;
  const uint32_t generation = group.generation.load();
  if (group.arrived.fetch_add(1) + 1 == group.size) {
    group.arrived.store(0);
    group.generation.store(generation + 1);
    group.Wake();
    return {};
  }
  const bool over = group.Wait(deadline, spin_, [&] { return group.generation.load() != generation; });
  if (group.generation.load() != generation) return {};
  if (over) return EndLost();
  return End(MakeError(
      Code::kDeadlineExceeded, reasons::kPeerTimeout, "a rank did not come to the meeting in time",
      std::to_string(group.size - group.arrived.load()) + " of " + std::to_string(group.size) + " ranks are missing"));
}

Status LocalCollective::Show(MeetingOp op, int root, uint32_t tag, uint64_t bytes, const void* data,
                             const float* result, Deadline deadline) {
  SHOAL_RETURN_IF_ERROR(Open());
  parity_ = ++meetings_ & 1;
  Meeting ours;
  ours.op = op;
  ours.root = static_cast<uint8_t>(root);
  ours.tag = tag;
  ours.sequence = meetings_;
  ours.bytes = bytes;
  group_->shown[parity_][static_cast<size_t>(rank_)] = {ours, static_cast<const std::byte*>(data), result};
  SHOAL_RETURN_IF_ERROR(Sync(deadline));
  for (int r = 0; r < size(); ++r)
    if (ShownBy(r).meeting != ours) return End(Mismatch(r, ToString(ShownBy(r).meeting), ToString(ours)));
  return {};
}

void LocalCollective::Combine(const TreeSum& sum, size_t first, std::span<float> out, size_t vector_floats) const {
  std::array<const float*, kSlices> inputs;
  for (int r = 0; r < size(); ++r)
    for (int k = 0; k < sum.slots_of(r); ++k)
      inputs[static_cast<size_t>(sum.first_slot(r) + k)] =
          reinterpret_cast<const float*>(ShownBy(r).data) + static_cast<size_t>(k) * vector_floats + first;
  sum.Combine(std::span(inputs.data(), static_cast<size_t>(sum.slots())), out);
}

Status LocalCollective::AllReduce(const ReduceShares& shares, std::span<float> own, std::span<float> out) {
  SHOAL_RETURN_IF_ERROR(Open());
  const auto found = sums_.Find(shares);
  if (!found) return End(found.error());
  const TreeSum& sum = **found;
  const size_t n = out.size();
  if (own.size() != n * static_cast<size_t>(sum.slots_of(rank_)))
    return End(
        Mismatch(rank_, std::to_string(own.size()) + " floats of its own", std::to_string(n) + " floats a vector"));
  const Deadline deadline = MeetingDeadline();
  SHOAL_RETURN_IF_ERROR(Show(MeetingOp::kAllReduce, 0, sum.tag(), n * sizeof(float), own.data(), out.data(), deadline));
  if (size() <= 2 || n < kDividedFloats) {
    SHOAL_RETURN_IF_ERROR(Read([&] { Combine(sum, 0, out, n); }));
    return Sync(deadline);
  }
  const auto part = [&](int r) { return n * static_cast<size_t>(r) / static_cast<size_t>(size()); };
  SHOAL_RETURN_IF_ERROR(
      Read([&] { Combine(sum, part(rank_), out.subspan(part(rank_), part(rank_ + 1) - part(rank_)), n); }));
  SHOAL_RETURN_IF_ERROR(Sync(deadline));
  SHOAL_RETURN_IF_ERROR(Read([&] {
    for (int r = 0; r < size(); ++r)
      if (r != rank_)
        std::memcpy(out.data() + part(r), ShownBy(r).result + part(r), (part(r + 1) - part(r)) * sizeof(float));
  }));
  return Sync(deadline);
}

Status LocalCollective::ReduceScatter(const ReduceShares& shares, std::span<const size_t> counts, std::span<float> own,
                                      std::span<float> out) {
  SHOAL_RETURN_IF_ERROR(Open());
  const auto found = sums_.Find(shares);
  if (!found) return End(found.error());
  const TreeSum& sum = **found;
  const auto total = TotalOf(counts, size(), sizeof(float));
  if (!total) return End(total.error());
  if (own.size() != *total * static_cast<size_t>(sum.slots_of(rank_)) ||
      out.size() != counts[static_cast<size_t>(rank_)])
    return End(Mismatch(rank_, std::to_string(own.size()) + " floats of its own",
                        std::to_string(*total) + " floats a vector"));
  const Deadline deadline = MeetingDeadline();
  SHOAL_RETURN_IF_ERROR(Show(MeetingOp::kReduceScatter, 0, sum.tag() ^ TagOf(counts), *total * sizeof(float),
                             own.data(), nullptr, deadline));
  size_t first = 0;
  for (int r = 0; r < rank_; ++r) first += counts[static_cast<size_t>(r)];
  SHOAL_RETURN_IF_ERROR(Read([&] { Combine(sum, first, out, *total); }));
  return Sync(deadline);
}

Status LocalCollective::GatherTo(MeetingOp op, int root, std::span<const std::byte> own, std::span<const size_t> counts,
                                 std::span<std::byte> out) {
  SHOAL_RETURN_IF_ERROR(Open());
  if (auto sound = CheckRoot(root, size()); !sound) return End(sound.error());
  const auto total = TotalOf(counts, size(), 1);
  if (!total) return End(total.error());
  const bool receives = op == MeetingOp::kAllGather || rank_ == root;
  if (own.size() != counts[static_cast<size_t>(rank_)] || out.size() != (receives ? *total : 0))
    return End(Mismatch(rank_, std::to_string(own.size()) + " bytes of its own", std::to_string(*total) + " bytes"));
  const Deadline deadline = MeetingDeadline();
  SHOAL_RETURN_IF_ERROR(Show(op, root, TagOf(counts), *total, own.data(), nullptr, deadline));
  if (receives) {
    SHOAL_RETURN_IF_ERROR(Read([&] {
      size_t at = 0;
      for (int r = 0; r < size(); ++r) {
        const size_t count = counts[static_cast<size_t>(r)];
        if (count > 0) std::memmove(out.data() + at, ShownBy(r).data, count);
        at += count;
      }
    }));
  }
  return Sync(deadline);
}

Status LocalCollective::Broadcast(int root, std::span<std::byte> bytes) {
  SHOAL_RETURN_IF_ERROR(Open());
  if (auto sound = CheckRoot(root, size()); !sound) return End(sound.error());
  if (auto sound = CheckSize(bytes.size()); !sound) return End(sound.error());
  const Deadline deadline = MeetingDeadline();
  SHOAL_RETURN_IF_ERROR(Show(MeetingOp::kBroadcast, root, 0, bytes.size(), bytes.data(), nullptr, deadline));
  if (rank_ != root && !bytes.empty())
    SHOAL_RETURN_IF_ERROR(Read([&] { std::memcpy(bytes.data(), ShownBy(root).data, bytes.size()); }));
  return Sync(deadline);
}

Status LocalCollective::Barrier() { return Show(MeetingOp::kBarrier, 0, 0, 0, nullptr, nullptr, MeetingDeadline()); }

Status LocalCollective::Send(int to, std::span<const std::byte> bytes) {
  SHOAL_RETURN_IF_ERROR(Open());
  SHOAL_CHECK(to >= 0 && to < size() && to != rank_);
  if (auto sound = CheckSize(bytes.size()); !sound) return End(sound.error());
  Channel& channel = group_->channels[static_cast<size_t>(rank_ * size() + to)];
  if (!group_->Wait(MeetingDeadline(), spin_, [&] { return !channel.full.load(); }))
    return End(MakeError(Code::kDeadlineExceeded, reasons::kPeerTimeout,
                         "rank " + std::to_string(to) + " did not take a message in time"));
  if (channel.full.load()) return EndLost();
  channel.bytes.assign(bytes.begin(), bytes.end());
  channel.full.store(true);
  group_->Wake();
  return {};
}

Status LocalCollective::Receive(int from, std::span<std::byte> bytes) {
  SHOAL_RETURN_IF_ERROR(Open());
  SHOAL_CHECK(from >= 0 && from < size() && from != rank_);
  Channel& channel = group_->channels[static_cast<size_t>(from * size() + rank_)];
  if (!group_->Wait(MeetingDeadline(), spin_, [&] { return channel.full.load(); }))
    return End(MakeError(Code::kDeadlineExceeded, reasons::kPeerTimeout,
                         "rank " + std::to_string(from) + " did not send a message in time"));
  if (!channel.full.load()) return EndLost();
  if (channel.bytes.size() != bytes.size())
    return End(
        Mismatch(from, std::to_string(channel.bytes.size()) + " bytes", std::to_string(bytes.size()) + " bytes"));
  if (!bytes.empty()) std::memcpy(bytes.data(), channel.bytes.data(), bytes.size());
  channel.full.store(false);
  group_->Wake();
  return {};
}

}  // namespace

std::vector<std::unique_ptr<Collective>> MakeLocalGroup(int size) {
  SHOAL_CHECK(size >= 1 && size <= limits::kMaxRanks);
  auto group = std::make_shared<Group>(size);
  std::vector<std::unique_ptr<Collective>> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<LocalCollective>(group, r));
  return ranks;
}

}  // namespace shoal
