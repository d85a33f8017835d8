#include "comm/local.h"

#include "comm/collective_suite.h"

namespace shoal::testing {

struct LocalBackEnd {
  static Ranks Make(int size) { return MakeLocalGroup(size); }
};
INSTANTIATE_TYPED_TEST_SUITE_P(Local, CollectiveSuite, LocalBackEnd);

}  // namespace shoal::testing
