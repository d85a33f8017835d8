#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace shoal {

void CheckFailed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "shoal: CHECK failed: %s at %s:%d (this is a bug in Shoal)\n", condition, file, line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace shoal
