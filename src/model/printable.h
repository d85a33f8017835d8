// What: makes foreign text safe to show: control characters, broken UTF-8 and direction overrides become escapes,
// and a long text is cut, so that a model file can neither drive the terminal nor flood the log.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace shoal {

// At most about `max_bytes` bytes of `text`, escaped; "..." marks a cut. Newlines and tabs are escaped too.
std::string Printable(std::string_view text, size_t max_bytes = 200);

}  // namespace shoal
