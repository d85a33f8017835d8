// What: the commands that need a running engine. Each returns an exit code and has reported its errors on stderr.
#pragma once

#include "app/options.h"

namespace shoal {

int RunCommand(const RunFlags& flags);
int ServeCommand(const ServeFlags& flags);
int WorkerCommand(const WorkerFlags& flags);

}  // namespace shoal
