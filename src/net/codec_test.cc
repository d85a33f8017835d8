#include "net/codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "core/limits.h"
#include "core/reasons.h"
#include "net/wire.pb.h"
#include "tests/support/shared.h"

namespace shoal {
namespace {

SamplingParams SomeSampling() {
  SamplingParams sampling;
  sampling.temperature = 0.7f;
  sampling.top_k = 40;
  sampling.top_p = 0.9f;
  sampling.min_p = 0.05f;
  sampling.presence_penalty = -1.5f;
  sampling.frequency_penalty = 0.25f;
  sampling.repeat_penalty = 1.1f;
  sampling.repeat_last_n = -1;
  sampling.seed = 0xfedcba9876543210;
  sampling.logit_bias = {{5, -100.0f}, {0, 2.5f}};
  sampling.logprobs = 20;
  sampling.prompt_logprobs = true;
  sampling.want_logits = true;
  return sampling;
}

StepPlan SomePlan() {
  StepPlan plan;
  plan.step = 1ull << 40;
  plan.removed = {7, 1ull << 63};
  plan.added.push_back({9, {1, 2, 3, limits::kMaxVocabulary - 1}, 3, SomeSampling(), {2, 11}});
  plan.chunks.push_back({9, 0, 4, {3}, true});
  plan.chunks.push_back({10, 100, 17, {4, 1 << 30}, false});
  plan.chunks.push_back(
      {.id = 11, .first = 7, .count = 1, .new_blocks = {}, .sample = true, .draft = {5, 6}, .new_tokens = {1, 2, 3}});
  return plan;
}

StepResult SomeResult() {
  StepResult result;
  result.step = 12;
  result.tokens.push_back({9, 4, 77, -0.5f, {{77, -0.5f}, {3, -INFINITY}}, {1.0f, -0.0f, NAN, INFINITY}, std::nullopt});
  result.tokens.push_back(
      {10, 8, 0, 0, {}, {}, MakeError(Code::kInternal, reasons::kModelProducedNan, "NaN", "row 3")});
  result.prompt.push_back({9, 2, {4, -3.25f}, {{5, -1.0f}}});
  result.compute_ns = 123456789;
  result.meeting_ns = 23456789;
  return result;
}

wire::Step Encoded(const StepPlan& plan) {
  wire::Step step;
  EncodeStep(plan, &step);
  return step;
}
wire::StepResult Encoded(const StepResult& result) {
  wire::StepResult made;
  EncodeStepResult(result, &made);
  return made;
}

// Through bytes, as on a link.
template <class Message>
Message ThroughBytes(const Message& message) {
  Message copy;
  EXPECT_TRUE(copy.ParseFromString(message.SerializeAsString()));
  return copy;
}

TEST(Codec, StepsRoundTrip) {
  StepPlan plan = SomePlan();
  EXPECT_FALSE(DecodeStep(ThroughBytes(Encoded(plan)))->overlap);
  plan.overlap = true;
  const auto back = DecodeStep(ThroughBytes(Encoded(plan)));
  ASSERT_TRUE(back.has_value()) << ToString(back.error());
  EXPECT_EQ(ToString(*back), ToString(plan));
  EXPECT_TRUE(back->overlap);
  EXPECT_EQ(back->removed, plan.removed);
  EXPECT_EQ(back->added[0].tokens, plan.added[0].tokens);
  EXPECT_EQ(back->added[0].prompt_length, 3);
  EXPECT_EQ(back->added[0].forbidden, plan.added[0].forbidden);
  EXPECT_EQ(back->chunks[2].draft, plan.chunks[2].draft);
  EXPECT_EQ(back->chunks[2].new_tokens, plan.chunks[2].new_tokens);
  const SamplingParams &a = back->added[0].sampling, b = SomeSampling();
  EXPECT_EQ(
      std::tie(a.temperature, a.top_k, a.top_p, a.min_p, a.presence_penalty, a.frequency_penalty, a.repeat_penalty,
               a.repeat_last_n, a.seed, a.logit_bias, a.logprobs, a.prompt_logprobs, a.want_logits),
      std::tie(b.temperature, b.top_k, b.top_p, b.min_p, b.presence_penalty, b.frequency_penalty, b.repeat_penalty,
               b.repeat_last_n, b.seed, b.logit_bias, b.logprobs, b.prompt_logprobs, b.want_logits));
}

TEST(Codec, ResultsRoundTripBitForBit) {
  const StepResult result = SomeResult();
  const auto back = DecodeStepResult(ThroughBytes(Encoded(result)));
  ASSERT_TRUE(back.has_value()) << ToString(back.error());
  EXPECT_EQ(ToString(*back), ToString(result));
  EXPECT_EQ(back->tokens[0].top, result.tokens[0].top);
  ASSERT_EQ(back->tokens[0].logits.size(), 4u);
  EXPECT_EQ(std::memcmp(back->tokens[0].logits.data(), result.tokens[0].logits.data(), 4 * sizeof(float)), 0);
  EXPECT_FALSE(back->tokens[0].error.has_value());
  ASSERT_TRUE(back->tokens[1].error.has_value());
  EXPECT_EQ(ToString(*back->tokens[1].error), ToString(*result.tokens[1].error));
  EXPECT_EQ(back->prompt[0].chosen, result.prompt[0].chosen);
  EXPECT_EQ(back->compute_ns, result.compute_ns);
  EXPECT_EQ(back->meeting_ns, result.meeting_ns);
}

TEST(Codec, ShardPlansRoundTrip) {
  for (const KvType type : {KvType::kF16, KvType::kQ8_0, KvType::kF32}) {
    const ShardPlan plan{{{{0, 5}, 0, 32}, {{5, 16}, 0, 32}}, 1000, {"because", "5 + 11 \xff"}, type};
    wire::ShardPlan encoded;
    EncodeShardPlan(plan, &encoded);
    const auto back = DecodeShardPlan(ThroughBytes(encoded));
    ASSERT_TRUE(back.has_value());
    EXPECT_EQ(back->ranks, plan.ranks);
    EXPECT_EQ(back->kv_blocks, 1000);
    EXPECT_EQ(back->reasons, plan.reasons);
    EXPECT_EQ(back->kv_type, type);
  }
}

TEST(Codec, ErrorsKeepTheirReason) {
  Error error = MakeError(Code::kUnavailable, reasons::kPeerLost, "gone \xff", "rank 3");
  error.param = "model";
  wire::Error encoded;
  EncodeError(error, &encoded);
  const auto back = DecodeError(ThroughBytes(encoded));
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(ToString(*back), ToString(error));
  EXPECT_EQ(back->param, "model");
  EXPECT_EQ(back->code, Code::kUnavailable);
  encoded.set_reason("from_the_future");
  const auto unknown = DecodeError(encoded);
  EXPECT_EQ(unknown->reason, reasons::kInternal);
  EXPECT_NE(unknown->detail.find("from_the_future"), std::string::npos);
  encoded.set_code(99);
  EXPECT_EQ(DecodeError(encoded).error().reason, reasons::kBadFrame);
  error.message = std::string(1 << 20, 'x');  // cut, so that what we encode can be decoded
  EncodeError(error, &encoded);
  EXPECT_TRUE(DecodeError(encoded).has_value());
}

// Every reason of the catalogue survives the wire: net/reason_list_inl.h is complete.
TEST(Codec, TheListOfReasonsIsComplete) {
  const std::string header = testing::ReadFile(std::string(SHOAL_SOURCE_DIR) + "/src/core/reasons.h");
  int count = 0;
  for (size_t at = header.find("Reason k"); at != std::string::npos; at = header.find("Reason k", at + 1)) {
    const size_t open = header.find("{\"", at), close = header.find("\"}", open);
    const std::string name = header.substr(open + 2, close - open - 2);
    wire::Error error;
    error.set_reason(name);
    const auto decoded = DecodeError(error);
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ(decoded->reason.name(), name) << "add it to net/reason_list_inl.h";
    ++count;
  }
  EXPECT_GT(count, 30);
}

TEST(Codec, HostileStepsAreRefused) {
  const std::vector<std::pair<const char*, std::function<void(wire::Step&)>>> changes = {
      {"token below 0", [](auto& s) { s.mutable_added(0)->set_tokens(0, -1); }},
      {"token above all", [](auto& s) { s.mutable_added(0)->set_tokens(0, limits::kMaxVocabulary); }},
      {"no tokens", [](auto& s) { s.mutable_added(0)->clear_tokens(); }},
      {"no sampling", [](auto& s) { s.mutable_added(0)->clear_sampling(); }},
      {"prompt longer than tokens", [](auto& s) { s.mutable_added(0)->set_prompt_length(5); }},
      {"no prompt", [](auto& s) { s.mutable_added(0)->set_prompt_length(0); }},
      {"huge prompt", [](auto& s) { s.mutable_added(0)->set_prompt_length(0xffffffff); }},
      {"forbidden", [](auto& s) { s.mutable_added(0)->set_forbidden(0, -5); }},
      {"first", [](auto& s) { s.mutable_chunks(0)->set_first(0xffffffff); }},
      {"first + count", [](auto& s) { s.mutable_chunks(0)->set_first(limits::kMaxContext); }},
      {"no rows", [](auto& s) { s.mutable_chunks(0)->set_count(0); }},
      {"too many rows", [](auto& s) { s.mutable_chunks(0)->set_count(limits::kMaxStepRows + 1); }},
      {"too many rows together",
       [](auto& s) {
         s.mutable_chunks(0)->set_count(limits::kMaxStepRows);
         s.mutable_chunks(1)->set_count(1);
       }},
      {"draft below 0", [](auto& s) { s.mutable_chunks(2)->set_draft(0, -1); }},
      {"a long draft",
       [](auto& s) {
         for (int i = 0; i < kMaxDraft; ++i) s.mutable_chunks(2)->add_draft(1);
       }},
      {"a draft that is not drawn", [](auto& s) { s.mutable_chunks(2)->set_sample(false); }},
      {"new token above all", [](auto& s) { s.mutable_chunks(2)->set_new_tokens(0, limits::kMaxVocabulary); }},
      {"too many new tokens",
       [](auto& s) {
         for (int i = 0; i < kMaxDraft; ++i) s.mutable_chunks(2)->add_new_tokens(1);
       }},
      {"block below 0", [](auto& s) { s.mutable_chunks(0)->set_new_blocks(0, -1); }},
      {"too many blocks", [](auto& s) { s.mutable_chunks(0)->add_new_blocks(1); }},
      {"too many chunks",
       [](auto& s) {
         for (int i = 0; i < 256; ++i) *s.add_chunks() = s.chunks(0);
       }},
      {"too many removed",
       [](auto& s) {
         for (int i = 0; i < 5000; ++i) s.add_removed(1);
       }},
      {"too many added",
       [](auto& s) {
         for (int i = 0; i < 5000; ++i) s.add_added();
       }},
  };
  for (const auto& [name, change] : changes) {
    wire::Step step = Encoded(SomePlan());
    change(step);
    const auto decoded = DecodeStep(step);
    ASSERT_FALSE(decoded.has_value()) << name;
    EXPECT_EQ(decoded.error().reason, reasons::kBadFrame) << name;
  }
}

TEST(Codec, HostileSamplingIsRefused) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const std::vector<std::function<void(wire::SamplingParams&)>> changes = {
      [&](auto& s) { s.set_temperature(nan); },
      [&](auto& s) { s.set_temperature(-0.1f); },
      [&](auto& s) { s.set_temperature(inf); },
      [&](auto& s) { s.set_top_k(-1); },
      [&](auto& s) { s.set_top_p(1.5f); },
      [&](auto& s) { s.set_top_p(nan); },
      [&](auto& s) { s.set_min_p(-1); },
      [&](auto& s) { s.set_presence_penalty(nan); },
      [&](auto& s) { s.set_frequency_penalty(inf); },
      [&](auto& s) { s.set_repeat_penalty(0); },
      [&](auto& s) { s.set_repeat_penalty(nan); },
      [&](auto& s) { s.set_repeat_last_n(-2); },
      [&](auto& s) { s.set_logprobs(-2); },
      [&](auto& s) { s.set_logprobs(21); },
      [&](auto& s) { s.mutable_logit_bias(0)->set_token(0xffffffff); },
      [&](auto& s) { s.mutable_logit_bias(0)->set_bias(nan); },
      [&](auto& s) {
        for (int i = 0; i < limits::kMaxLogitBias; ++i) s.add_logit_bias();
      },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    wire::SamplingParams sampling;
    EncodeSampling(SomeSampling(), &sampling);
    ASSERT_TRUE(DecodeSampling(sampling).has_value());
    changes[i](sampling);
    EXPECT_FALSE(DecodeSampling(sampling).has_value()) << i;
  }
}

TEST(Codec, HostileResultsAreRefused) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::function<void(wire::StepResult&)>> changes = {
      [](auto& r) { r.mutable_tokens(0)->set_token(-1); },
      [](auto& r) { r.mutable_tokens(0)->set_position(0xffffffff); },
      [&](auto& r) { r.mutable_tokens(0)->set_logprob(nan); },
      [](auto& r) { r.mutable_tokens(0)->mutable_top(0)->set_token(-1); },
      [](auto& r) {
        for (int i = 0; i < 21; ++i) r.mutable_tokens(0)->add_top();
      },
      [](auto& r) { r.mutable_tokens(1)->mutable_error()->set_code(1000); },
      [](auto& r) {
        for (int i = 0; i < 600; ++i) r.add_tokens();
      },
      [](auto& r) {
        for (int i = 0; i < 600; ++i) r.add_prompt();
      },
      [&](auto& r) { r.mutable_prompt(0)->mutable_chosen()->set_logprob(nan); },
      [](auto& r) { r.set_compute_ns(1ull << 63); },
      [](auto& r) { r.set_meeting_ns(r.compute_ns() + 1); },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    wire::StepResult result = Encoded(SomeResult());
    changes[i](result);
    EXPECT_FALSE(DecodeStepResult(result).has_value()) << i;
  }
}

TEST(Codec, HostilePlansAndLoadsAreRefused) {
  const ShardPlan plan{{{{0, 8}, 0, 4}, {{8, 16}, 0, 4}}, 10, {}};
  wire::LoadShard good;
  EncodeShardPlan(plan, good.mutable_plan());
  good.set_rank(1);
  for (int r = 0; r < 2; ++r) {
    auto* peer = good.add_peers();
    peer->set_host("127.0.0.1");
    peer->set_port(1000);
  }
  good.set_group_key(std::string(32, 'k'));
  good.set_threads(2);
  auto* header = good.add_headers();
  header->set_header_bytes(100);
  header->set_file_bytes(1000);
  ASSERT_TRUE(CheckLoadShard(good).has_value());
  const std::vector<std::function<void(wire::LoadShard&)>> changes = {
      [](auto& m) { m.set_rank(2); },
      [](auto& m) { m.clear_plan(); },
      [](auto& m) { m.add_peers(); },
      [](auto& m) { m.mutable_peers(0)->set_port(0); },
      [](auto& m) { m.mutable_peers(0)->set_port(65536); },
      [](auto& m) { m.mutable_peers(0)->set_host(std::string(300, 'h')); },
      [](auto& m) { m.set_group_key("short"); },
      [](auto& m) { m.set_threads(100'000); },
      [](auto& m) { m.clear_headers(); },
      [](auto& m) { m.mutable_headers(0)->set_header_bytes(1001); },
      [](auto& m) { m.mutable_headers(0)->set_header_bytes(0); },
      [](auto& m) {
        m.mutable_headers(0)->set_header_bytes(1ull << 62);
        m.mutable_headers(0)->set_file_bytes(1ull << 63);
      },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    wire::LoadShard load = good;
    changes[i](load);
    EXPECT_FALSE(CheckLoadShard(load).has_value()) << i;
  }
  const std::vector<std::function<void(wire::ShardPlan&)>> plan_changes = {
      [](auto& p) { p.clear_ranks(); },
      [](auto& p) {
        for (int i = 0; i < 16; ++i) p.add_ranks();
      },
      [](auto& p) { p.mutable_ranks(0)->set_slice_end(17); },
      [](auto& p) { p.mutable_ranks(1)->set_slice_end(7); },
      [](auto& p) { p.mutable_ranks(1)->set_first_layer(5); },
      [](auto& p) { p.mutable_ranks(1)->set_last_layer(100'000); },
      [](auto& p) { p.set_kv_blocks(0x80000000); },
      [](auto& p) { p.set_kv_type(3); },
      [](auto& p) { p.set_kv_type(256); },
  };
  for (size_t i = 0; i < plan_changes.size(); ++i) {
    wire::ShardPlan changed = good.plan();
    plan_changes[i](changed);
    EXPECT_FALSE(DecodeShardPlan(changed).has_value()) << i;
  }
}

TEST(Codec, ReadsCannotOverflow) {
  const auto read = [](uint64_t offset, uint64_t length, uint64_t stride, uint64_t count) {
    wire::ReadTensor message;
    message.set_offset(offset);
    message.set_length(length);
    message.set_stride(stride);
    message.set_count(count);
    return CheckReadTensor(message).has_value();
  };
  constexpr uint64_t kHuge = ~0ull;
  EXPECT_TRUE(read(0, 18, 34, 1000));
  EXPECT_TRUE(read(5, 100, 0, 1));
  EXPECT_FALSE(read(0, 0, 0, 1));
  EXPECT_FALSE(read(0, 1, 1, 0));
  EXPECT_FALSE(read(0, 18, 17, 2));  // pieces overlap
  EXPECT_FALSE(read(kHuge, 1, 0, 1));
  EXPECT_FALSE(read(0, 1, kHuge, 3));
  EXPECT_FALSE(read(0, kHuge, kHuge, 2));
  EXPECT_FALSE(read(kHuge - 10, 8, 8, 2));
  EXPECT_FALSE(read(0, 1ull << 32, 1ull << 32, 1ull << 32));
  wire::ReadHeader header;
  header.set_length(10);
  EXPECT_TRUE(CheckReadHeader(header).has_value());
  header.set_offset(kHuge);
  EXPECT_FALSE(CheckReadHeader(header).has_value());
  wire::Bytes bytes;
  EXPECT_FALSE(CheckBytes(bytes).has_value());
  bytes.set_data(std::string(kMaxChunkBytes, 'x'));
  EXPECT_TRUE(CheckBytes(bytes).has_value());
  bytes.mutable_data()->push_back('x');
  EXPECT_FALSE(CheckBytes(bytes).has_value());
}

// Changed bytes either do not parse or decode to something within the limits; nothing breaks.
TEST(Codec, MutatedBytesNeverBreakTheDecoder) {
  std::mt19937 random(11);
  wire::Message plan, result;
  EncodeStep(SomePlan(), plan.mutable_step());
  EncodeStepResult(SomeResult(), result.mutable_step_result());
  for (const std::string& good : {plan.SerializeAsString(), result.SerializeAsString()}) {
    for (int round = 0; round < 20'000; ++round) {
      std::string bytes = good;
      for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips)
        bytes[random() % bytes.size()] = static_cast<char>(random());
      if (random() % 4 == 0) bytes.resize(random() % bytes.size());
      wire::Message message;
      if (!message.ParseFromString(bytes)) continue;
      if (message.has_step()) {
        const auto decoded = DecodeStep(message.step());
        EXPECT_TRUE(!decoded || decoded->rows() <= limits::kMaxStepRows);
      }
      if (message.has_step_result()) (void)DecodeStepResult(message.step_result());
    }
  }
}

}  // namespace
}  // namespace shoal
