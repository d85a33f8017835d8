// What: CHECK for programmer errors. It stays on in release: a broken invariant ends the process with the place and the
// condition. Never used on foreign bytes; those get an Error.
#pragma once

namespace shoal {
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);
}

#define SHOAL_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::shoal::CheckFailed(#condition, __FILE__, __LINE__))
