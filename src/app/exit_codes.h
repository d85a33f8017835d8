// What: the program's exit codes, a contract with scripts (README, `shoal --help`).
#pragma once

#include "base/error.h"

namespace shoal {

enum ExitCode : int {
  kExitOk = 0,
  kExitRunTime = 1,
  kExitUsage = 2,
  kExitConfig = 3,
  kExitModel = 4,
  kExitCluster = 5,
  kExitAuth = 6,
  kExitInterrupted = 130,  // by SIGINT, as shells have it
};

int ExitCodeOf(const Error& error);

// Prints "shoal: message" (and the detail, dimmed on a terminal) on stderr; returns the exit code.
int ReportError(const Error& error);

}  // namespace shoal
