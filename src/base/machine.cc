#include "base/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace shoal {
namespace {

uint64_t MemAvailable() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  for (uint64_t kib = 0; file >> key >> kib;) {
    if (key == "MemAvailable:") return kib << 10;
    std::getline(file, unit);
  }
  return 1ull << 30;  // no /proc: a cautious guess
}

uint64_t ReadNumber(const char* path, uint64_t otherwise) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : otherwise;  // "max" is no number
}

// Cores' worth of time that the control group may use; the file reads "QUOTA PERIOD" or "max PERIOD".
int QuotaCores() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  int64_t quota = 0, period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return 1 << 20;
  return static_cast<int>(std::max<int64_t>(1, (quota + period - 1) / period));
}

// File pages that the kernel would give back; they count as used in memory.current.
uint64_t ReclaimableBytes() {
  std::ifstream file("/sys/fs/cgroup/memory.stat");
  std::string key;
  for (uint64_t value = 0; file >> key >> value;)
    if (key == "inactive_file") return value;
  return 0;
}

}  // namespace

int AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::clamp(CPU_COUNT(&set), 1, QuotaCores());
}

uint64_t AvailableMemory() {
  const uint64_t limit = ReadNumber("/sys/fs/cgroup/memory.max", UINT64_MAX);
  const uint64_t current = ReadNumber("/sys/fs/cgroup/memory.current", 0);
  const uint64_t used = current - std::min(current, ReclaimableBytes());
  return std::min(MemAvailable(), limit > used ? limit - used : 0);
}

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "localhost";
  return name;
}

}  // namespace shoal
