// What: what this machine offers to the process: cores and memory, with the limits that a container or taskset puts on them.
#pragma once

#include <cstdint>
#include <string>

namespace shoal {

int AvailableCores();        // at least 1
uint64_t AvailableMemory();  // bytes that could be taken now without swapping
std::string HostName();

}  // namespace shoal
