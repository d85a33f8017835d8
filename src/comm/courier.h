// What: goes to meetings for a rank that computes meanwhile. Errands are done one after the other, in the order in which they
// were given, so that every rank comes to the meetings in the same order.
// Owns: one thread, which sleeps while there is no errand. Where the system gives no thread, whoever gives an errand does it.
// Threads: one calls Start and Await. Meanwhile nobody else uses what an errand uses: a collective has one user at a time.
// Limits: kMost errands given and not awaited.
// Fails: as the errand does. One that fails does not keep the next from being tried: a collective that has failed refuses.
// One that throws has failed, with kOutOfMemory and no more words.
// Reads next: comm/collective.h, compute/program.h.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

#include "base/result.h"

namespace shoal {

class Courier {
 public:
  using Errand = std::function<Status()>;
  static constexpr int kMost = 4;

  Courier();
  ~Courier();  // waits for the errands given
  Courier(const Courier&) = delete;
  Courier& operator=(const Courier&) = delete;

  // The errand stays where it is until it was awaited.
  void Start(const Errand& errand);
  // What became of the oldest errand that was not awaited yet.
  Status Await();

 private:
  void Work();

  std::mutex mutex_;
  std::condition_variable given_, done_;
  // Errands are numbered; number n lies in place n % kMost.
  std::array<const Errand*, kMost> errands_{};
  std::array<Status, kMost> outcomes_;
  uint64_t started_ = 0, finished_ = 0, awaited_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace shoal
