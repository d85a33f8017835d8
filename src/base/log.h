// What: the process log, on stderr (stdout is data only). Levels by SHOAL_LOG = trace|debug|info|warn|error|off.
// Use: Log().info("loaded {} tensors", n). Pure folders (plan, sched, cluster state machines) do not log: they return.
#pragma once

#include <spdlog/logger.h>

namespace shoal {
spdlog::logger& Log();
}
