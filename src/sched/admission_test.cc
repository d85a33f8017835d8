#include "sched/admission.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/reasons.h"

namespace shoal {
namespace {

SchedulerOptions Options() { return {.kv_blocks = 4, .context = 100, .vocabulary = 50, .end_tokens = {2}}; }

Request Good() {
  Request request;
  request.prompt = {1, 2, 3};
  return request;
}

TEST(Admission, AGoodRequestPasses) { EXPECT_TRUE(CheckRequest(Good(), Options())); }

TEST(Admission, APromptMustLeaveRoomForOneToken) {
  Request request = Good();
  request.prompt.assign(63, 1);
  EXPECT_TRUE(CheckRequest(request, Options()));
  request.prompt.assign(64, 1);  // the pool holds 64 positions
  auto refused = CheckRequest(request, Options());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().reason, reasons::kOutOfBlocks);
  request.prompt.assign(100, 1);  // the context holds 100
  refused = CheckRequest(request, Options());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().reason, reasons::kContextLengthExceeded);
  EXPECT_EQ(refused.error().param, "prompt");

  request.prompt.assign(64, 1);  // only the prompt is wanted: no room for more is needed
  request.max_tokens = 0;
  request.sampling.prompt_logprobs = true;
  EXPECT_TRUE(CheckRequest(request, Options()));
}

TEST(Admission, EachWrongFieldIsNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    const char* param;
    void (*spoil)(Request&, float nan);
  };
  const Case cases[] = {
      {"prompt", [](Request& r, float) { r.prompt.clear(); }},
      {"prompt", [](Request& r, float) { r.prompt[1] = -1; }},
      {"prompt", [](Request& r, float) { r.prompt[1] = 50; }},
      {"max_tokens", [](Request& r, float) { r.max_tokens = -1; }},
      {"max_tokens", [](Request& r, float) { r.max_tokens = 0; }},
      {"temperature", [](Request& r, float x) { r.sampling.temperature = x; }},
      {"temperature", [](Request& r, float) { r.sampling.temperature = 2.5f; }},
      {"top_k", [](Request& r, float) { r.sampling.top_k = -1; }},
      {"top_p", [](Request& r, float x) { r.sampling.top_p = x; }},
      {"min_p", [](Request& r, float) { r.sampling.min_p = 1.5f; }},
      {"presence_penalty", [](Request& r, float) { r.sampling.presence_penalty = 3; }},
      {"frequency_penalty", [](Request& r, float) { r.sampling.frequency_penalty = -3; }},
      {"repeat_penalty", [](Request& r, float) { r.sampling.repeat_penalty = 0; }},
      {"repeat_penalty", [](Request& r, float x) { r.sampling.repeat_penalty = x; }},
      {"repeat_last_n", [](Request& r, float) { r.sampling.repeat_last_n = -2; }},
      {"logprobs", [](Request& r, float) { r.sampling.logprobs = 21; }},
      {"logit_bias", [](Request& r, float) { r.sampling.logit_bias = {{50, 1.0f}}; }},
      {"logit_bias", [](Request& r, float x) { r.sampling.logit_bias = {{5, x}}; }},
      {"logit_bias", [](Request& r, float) { r.sampling.logit_bias.assign(1025, {1, 1.0f}); }},
      {"stop", [](Request& r, float) { r.stop = {""}; }},
      {"stop", [](Request& r, float) { r.stop.assign(17, "x"); }},
      {"stop", [](Request& r, float) { r.stop = {std::string(1025, 'x')}; }},
      {"stop_token_ids", [](Request& r, float) { r.stop_tokens = {50}; }},
  };
  for (const auto& test : cases) {
    Request request = Good();
    test.spoil(request, nan);
    const auto refused = CheckRequest(request, Options());
    ASSERT_FALSE(refused) << test.param;
    EXPECT_EQ(refused.error().reason, reasons::kInvalidValue);
    EXPECT_EQ(refused.error().param, test.param);
  }
}

}  // namespace
}  // namespace shoal
