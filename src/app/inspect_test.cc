#include "app/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "app/exit_codes.h"
#include "model/gguf.h"
#include "model/gguf_writer.h"
#include "tests/support/shared.h"
#include "tests/support/tiny_model.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::shared_ptr<const GgufFile> Parse(const std::string& bytes) {
  const GgufFile::Header header{std::as_bytes(std::span(bytes)), bytes.size()};
  return GgufFile::ParseHeaders(std::span(&header, 1)).value();
}

TEST(Inspect, JsonHoldsTheWholeFile) {
  const std::string bytes = MakeTinyModel({.layers = 3, .q8_0 = true});
  const auto object = nlohmann::json::parse(InspectJson(*Parse(bytes)));
  EXPECT_EQ(object["version"], 3);
  EXPECT_EQ(object["files"], 1);
  EXPECT_EQ(object["file_bytes"], bytes.size());
  EXPECT_EQ(object["architecture"], "llama");
  EXPECT_EQ(object["metadata"]["llama.block_count"], 3);
  EXPECT_EQ(object["metadata"]["tokenizer.ggml.add_bos_token"], true);
  EXPECT_EQ(object["metadata"]["tokenizer.ggml.tokens"].size(), 300u);
  EXPECT_EQ(object["metadata"]["tokenizer.ggml.tokens"][3], "<0x00>");
  EXPECT_EQ(object["metadata"]["llama.rope.freq_base"], 10000.0);
  EXPECT_EQ(object["tensors"].size(), 30u);
  EXPECT_EQ(object["tensors"][0]["name"], "token_embd.weight");
  EXPECT_EQ(object["tensors"][0]["type"], "Q8_0");
  EXPECT_EQ(object["tensors"][0]["shape"], nlohmann::json::array({64, 300}));
  EXPECT_EQ(object["tensors"][0]["bytes"], 300 * 64 / 32 * 34);
  EXPECT_EQ(object["tensors"][0]["file"], 0);
  ASSERT_EQ(object["layers"].size(), 3u);
  uint64_t sum = object["other"]["bytes"];
  for (const auto& layer : object["layers"]) {
    EXPECT_EQ(layer["tensors"], 9);
    sum += layer["bytes"].get<uint64_t>();
  }
  EXPECT_EQ(object["bytes"], sum);
  uint64_t parameters = 0;
  for (const auto& type : object["types"]) parameters += type["parameters"].get<uint64_t>();
  EXPECT_EQ(object["parameters"], parameters);
  EXPECT_TRUE(object["warnings"].empty());
}

TEST(Inspect, HostileTextCannotDriveTheTerminal) {
  GgufWriter writer;
  writer.SetString("general.architecture", "\x1b]0;title\x07 \xff");
  writer.SetStrings("list", std::vector<std::string>{"\x1b[2J", "b\nc"});
  writer.SetF32("nan", std::numeric_limits<float>::quiet_NaN());
  writer.SetFloats("inf", std::vector<float>{std::numeric_limits<float>::infinity(), 0.25f});
  writer.SetU64("u64", std::numeric_limits<uint64_t>::max());
  writer.SetRaw("nested", GgufType::kArray,
                std::string("\x09\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\7\x08\4\0\0\0\0\0\0\0\0\0\0\0", 38));
  const auto file = Parse(writer.Build());
  const std::string text = InspectText(*file);
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_THAT(text, HasSubstr("\\x1b]0;title\\x07 \\xff"));
  EXPECT_THAT(text, HasSubstr("\"b\\nc\""));
  const std::string json = InspectJson(*file);
  EXPECT_THAT(json, Not(HasSubstr("\x1b")));
  const auto object = nlohmann::json::parse(json);
  EXPECT_EQ(object["metadata"]["list"], nlohmann::json::array({"\x1b[2J", "b\nc"}));
  EXPECT_TRUE(object["metadata"]["nan"].is_null());
  EXPECT_EQ(object["metadata"]["inf"], nlohmann::json::parse("[null, 0.25]"));
  EXPECT_EQ(object["metadata"]["u64"], std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(object["metadata"]["nested"], nlohmann::json::parse("[[7, 8], []]"));
}

TEST(Inspect, LongArraysAreCutForPeople) {
  GgufWriter writer;
  writer.SetInts("ints", std::vector<int32_t>(100, 5));
  writer.SetStrings("words", std::vector<std::string>(100, "w"));
  const std::string text = InspectText(*Parse(writer.Build()));
  EXPECT_THAT(text, HasSubstr("100 x int32: [5, 5, 5, 5, 5, 5, ...]\n"));
  EXPECT_THAT(text, HasSubstr("100 x string: [\"w\", \"w\", \"w\", \"w\", \"w\", \"w\", ...]\n"));
}

TEST(Inspect, ExitCodes) {
  const testing::TemporaryFolder folder;
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(InspectCommand(testing::WriteTinyModel(folder.path()), true), kExitOk);
  EXPECT_TRUE(nlohmann::json::accept(::testing::internal::GetCapturedStdout()));
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(InspectCommand(folder.path() / "none.gguf", false), kExitModel);
  testing::WriteFile(folder.path() / "bad.gguf", "GGUF");
  EXPECT_EQ(InspectCommand(folder.path() / "bad.gguf", true), kExitModel);
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("bad.gguf"));
}

}  // namespace
}  // namespace shoal
