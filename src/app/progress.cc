#include "app/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace shoal {

ProgressBar::ProgressBar(std::string what, uint64_t total_bytes)
    : what_(std::move(what)),
      total_(std::max<uint64_t>(1, total_bytes)),
      terminal_(isatty(STDERR_FILENO) != 0),
      begin_(Now()) {}

ProgressBar::~ProgressBar() {
  if (terminal_ && last_ != Time{}) std::fputs("\r\033[K", stderr);
}

void ProgressBar::Add(uint64_t bytes) {
  const uint64_t done = done_.fetch_add(bytes) + bytes;
  if (!terminal_) return;
  std::lock_guard lock(mutex_);
  const Time now = Now();
  if (now - last_ < std::chrono::milliseconds(100) || now - begin_ < std::chrono::milliseconds(300)) return;
  last_ = now;
  Draw(done);
}

void ProgressBar::Draw(uint64_t done) {
  constexpr int kWidth = 30;
  const double part = std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
  const double seconds = std::chrono::duration<double>(Now() - begin_).count();
  const int filled = static_cast<int>(part * kWidth);
  char bar[kWidth + 1];
  for (int i = 0; i < kWidth; ++i) bar[i] = i < filled ? '#' : '.';
  bar[kWidth] = '\0';
  std::fprintf(stderr, "\r%s [%s] %3.0f %%  %.2f GB/s  %.0f s left\033[K", what_.c_str(), bar, part * 100,
               static_cast<double>(done) / seconds / 1e9, part > 0 ? seconds * (1 - part) / part : 0);
  std::fflush(stderr);
}

}  // namespace shoal
