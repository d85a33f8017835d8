// What: `shoal bench`: how fast this machine runs a model, with the machine's own bounds beside the figures.
// Prompts are random tokens; every request generates exactly --generate tokens, greedily.
#pragma once

#include "app/options.h"

namespace shoal {

int BenchCommand(const BenchFlags& flags);

}  // namespace shoal
