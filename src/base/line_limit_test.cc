#include "base/line_limit.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(LineLimit, OneLineATimeAndTheRestCounted) {
  using namespace std::chrono_literals;
  const Time begin{5s};
  LineLimit limit(1s);
  EXPECT_EQ(limit.Ask(begin), 0u);
  EXPECT_EQ(limit.Ask(begin), std::nullopt);
  EXPECT_EQ(limit.Ask(begin + 999ms), std::nullopt);
  EXPECT_EQ(limit.Ask(begin + 1s), 2u);
  EXPECT_EQ(limit.Ask(begin + 1999ms), std::nullopt);
  EXPECT_EQ(limit.Ask(begin + 10s), 1u);
  EXPECT_EQ(limit.Ask(begin + 20s), 0u);  // nothing is saved up
  EXPECT_EQ(limit.Ask(begin + 20s), std::nullopt);
}

}  // namespace
}  // namespace shoal
