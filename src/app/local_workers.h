// What: local worker processes: `shoal worker` started by the head itself for --workers N.
// Owns: the child processes; they end with the head (their link closes, and the kernel ends them if the head dies).
// Threads: the one that started them: the kernel ends them with that thread, not with the process.
// Fails: kIo when a process cannot be started; those that were end with this object.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace shoal {

class LocalWorkers {
 public:
  LocalWorkers() = default;
  ~LocalWorkers();  // waits for them a moment, then ends them
  LocalWorkers(LocalWorkers&&) noexcept = default;
  LocalWorkers& operator=(LocalWorkers&&) noexcept = default;

  // The token travels in the environment of the child, not on its command line.
  Status Start(int count, uint16_t port, const std::string& token, int threads);
  // True while every child is running; a child that ended early is named in the log.
  bool AllAlive();

 private:
  std::vector<pid_t> pids_;
};

}  // namespace shoal
