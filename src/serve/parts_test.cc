// The parts that need no socket: JSON reader, API keys, mailbox, error table, small text functions.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "core/limits.h"
#include "core/reasons.h"
#include "serve/api_keys.h"
#include "serve/errors.h"
#include "serve/http.h"
#include "serve/json_reader.h"
#include "serve/mailbox.h"
#include "serve/router.h"
#include "serve/text.h"
#include "tests/support/shared.h"

namespace shoal::serve {
namespace {

using ::testing::HasSubstr;

TEST(JsonReader, NamesTheByteThatIsWrong) {
  const std::vector<std::pair<std::string, size_t>> cases = {
      {"", 0},          {"{", 1},           {"{\"a\":", 5}, {"[1,]", 3},       {"{\"a\":1} x", 8},
      {"{\"a\" 1}", 5}, {"[\"a\xFF\"]", 3}, {"[01]", 2},    {"{\"a\":1}{", 7}, {"[\"\\ud800\"]", 8}};
  for (const auto& [text, offset] : cases) {
    const auto result = ParseJson(text);
    ASSERT_FALSE(result.has_value()) << text;
    EXPECT_EQ(result.error().reason, reasons::kInvalidJson);
    EXPECT_THAT(result.error().message, ::testing::EndsWith("at byte " + std::to_string(offset))) << text;
  }
}

TEST(JsonReader, BoundsDepthAndCount) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_TRUE(ParseJson(nested(64)).has_value());
  EXPECT_FALSE(ParseJson(nested(65)).has_value());
  EXPECT_FALSE(ParseJson(std::string(5'000'000, '[')).has_value());
  std::string many = "[0";
  for (int i = 0; i < limits::kMaxJsonValues; ++i) many += ",0";
  EXPECT_THAT(ParseJson(many + "]").error().message, HasSubstr("more than"));
}

TEST(JsonReader, BuildsWhatItReads) {
  const std::string text = R"({"a":[1,-2,3.5,{"b":[[],{}],"c":null}],"d":"\u00e9\ud83d\ude42","e":true})";
  EXPECT_EQ(ParseJson(text).value(), nlohmann::json::parse(text));
}

TEST(ApiKeys, ReadsKeysAndHashes) {
  const shoal::testing::TemporaryFolder folder;
  const std::string path = (folder.path() / "keys").string();
  // SHA-256 of "sk-two".
  std::string hex;
  for (const unsigned char byte : HashKey("sk-two")) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789ABCDEF"[byte & 15];
  }
  shoal::testing::WriteFile(path, "# keys\n\n  sk-one \r\nsha256:" + hex + "\n");
  const auto keys = LoadApiKeys(path);
  ASSERT_TRUE(keys.has_value());
  EXPECT_EQ(keys->size(), 2u);
  EXPECT_TRUE(IsKnownKey(HashKey("sk-one"), *keys));
  EXPECT_TRUE(IsKnownKey(HashKey("sk-two"), *keys));
  EXPECT_FALSE(IsKnownKey(HashKey("sk-three"), *keys));
  EXPECT_FALSE(IsKnownKey(HashKey(""), *keys));
  for (const std::string bad : {"", "# only a comment\n", "sha256:12\n", "sha256:zz"}) {
    shoal::testing::WriteFile(path, bad);
    EXPECT_FALSE(LoadApiKeys(path).has_value()) << bad;
  }
  EXPECT_FALSE(LoadApiKeys((folder.path() / "none").string()).has_value());
  for (const char* endless : {"/dev/zero", "/dev/urandom"})
    EXPECT_THAT(LoadApiKeys(endless).error().message, HasSubstr("longer than"));
}

Delta Text(std::string text) {
  Delta delta;
  delta.text = std::move(text);
  delta.tokens.resize(1);
  return delta;
}

TEST(Mailbox, MergesWhatWaits) {
  int woken = 0;
  Mailbox box(2, 1000, false, [&] { ++woken; });
  box.Push(0, Text("a"));
  box.Push(1, Text("x"));
  Delta end = Text("b");
  end.finish = FinishReason::kStop;
  end.usage.completion_tokens = 2;
  box.Push(0, std::move(end));
  EXPECT_EQ(woken, 1);
  const auto letters = box.Take();
  ASSERT_EQ(letters.size(), 2u);
  EXPECT_EQ(letters[0].delta.text, "ab");
  EXPECT_EQ(letters[0].delta.finish, FinishReason::kStop);
  EXPECT_EQ(letters[0].delta.usage.completion_tokens, 2);
  EXPECT_EQ(letters[0].token_count, 2);
  EXPECT_TRUE(letters[0].delta.tokens.empty());
  EXPECT_EQ(letters[1].delta.text, "x");
  EXPECT_TRUE(box.Take().empty());
  box.Push(1, Text("y"));
  EXPECT_EQ(woken, 2);
}

TEST(Mailbox, OverflowsRatherThanGrow) {
  Mailbox box(1, 100, false, [] {});
  box.Push(0, Text(std::string(60, 'a')));
  EXPECT_FALSE(box.overflowed());
  box.Push(0, Text(std::string(60, 'b')));
  EXPECT_TRUE(box.overflowed());
  EXPECT_EQ(box.Take().at(0).delta.text.size(), 60u);
}

TEST(Mailbox, SaysNothingOnceClosed) {
  int woken = 0;
  Mailbox box(1, 100, true, [&] { ++woken; });
  box.Close();
  box.Push(0, Text("a"));
  EXPECT_EQ(woken, 0);
  EXPECT_TRUE(box.Take().empty());
}

TEST(Errors, EveryCodeHasAnAnswer) {
  for (const auto& [code, status] : std::vector<std::pair<Code, int>>{{Code::kInvalidArgument, 400},
                                                                      {Code::kConfig, 500},
                                                                      {Code::kNotFound, 404},
                                                                      {Code::kCorrupt, 500},
                                                                      {Code::kUnsupported, 400},
                                                                      {Code::kResourceExhausted, 429},
                                                                      {Code::kUnavailable, 503},
                                                                      {Code::kDeadlineExceeded, 504},
                                                                      {Code::kCancelled, 503},
                                                                      {Code::kUnauthenticated, 401},
                                                                      {Code::kInternal, 500}})
    EXPECT_EQ(Classify(MakeError(code, kNoReason, "x")).status, status) << CodeName(code);
  EXPECT_EQ(Classify(MakeError(Code::kInvalidArgument, reasons::kOutOfBlocks, "never fits")).status, 400);
  EXPECT_EQ(Classify(MakeError(Code::kResourceExhausted, reasons::kOutOfBlocks, "now")).status, 429);
  const Error error = MakeError(Code::kInternal, reasons::kInternal, "quote \" and \xFF");
  EXPECT_EQ(ErrorBody(error),
            "{\"error\":{\"message\":\"quote \\\" and "
            "\xEF\xBF\xBD\",\"type\":\"server_error\",\"param\":null,\"code\":\"internal\"}}");
}

TEST(Text, KnowsUtf8) {
  for (const char* good : {"", "a", "\xC3\xA9", "\xE2\x98\x83", "\xF0\x9F\x99\x82", "\xED\x9F\xBF", "\xF4\x8F\xBF\xBF"})
    EXPECT_TRUE(IsUtf8(good));
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                          "\xF5\x80\x80\x80", "\xC3", "\xE2\x98", "a\xFF"})
    EXPECT_FALSE(IsUtf8(bad));
  EXPECT_EQ(CharacterCount("a\xC3\xA9\xF0\x9F\x99\x82"), 3);
  EXPECT_EQ(PrintableToken("\xE2\x98"), "bytes:\\xe2\\x98");
}

TEST(Http, DecodesOnce) {
  EXPECT_EQ(PercentDecode("a%2Fb%252F"), "a/b%2F");
  EXPECT_EQ(PercentDecode("%00"), std::string(1, '\0'));
  for (const char* bad : {"%", "%1", "%g1", "a%"}) EXPECT_EQ(PercentDecode(bad), std::nullopt);
  EXPECT_NE(NewId("x-"), NewId("x-"));
}

}  // namespace
}  // namespace shoal::serve
