// What: runs a scenario script (tests/scenario/README.md) over the real scheduler and the pretend ranks.
// Fails: the text of the first line that did not come true, with its number; empty when all did.
#pragma once

#include <string>
#include <string_view>

namespace shoal::scenario {

std::string RunScript(std::string_view text);

}  // namespace shoal::scenario
