#include "model/tiny_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/gguf.h"

namespace shoal {
namespace {

Result<std::shared_ptr<const GgufFile>> Parse(const std::string& bytes) {
  const GgufFile::Header header{std::as_bytes(std::span(bytes)), bytes.size()};
  return GgufFile::ParseHeaders(std::span(&header, 1));
}

TEST(TinyModel, IsAValidFileWithoutOddities) {
  for (const bool q8_0 : {false, true}) {
    for (const bool tied : {false, true}) {
      const auto file = Parse(MakeTinyModel({.vocabulary = 333, .q8_0 = q8_0, .tied = tied})).value();
      EXPECT_THAT(file->warnings(), ::testing::IsEmpty());
      EXPECT_EQ(file->tensors().size(), 20u + (tied ? 0 : 1));
      EXPECT_EQ(file->FindTensor("token_embd.weight")->type, q8_0 ? 8u : 0u);
      EXPECT_EQ(file->GetStrings("tokenizer.ggml.tokens").value()->size(), 333u);
      EXPECT_EQ(file->GetFloats("tokenizer.ggml.scores").value()->size(), 333u);
      EXPECT_EQ(file->GetInts("tokenizer.ggml.token_type", 1, 6).value()->size(), 333u);
    }
  }
}

TEST(TinyModel, TheSeedDecides) {
  EXPECT_EQ(MakeTinyModel({.seed = 5}), MakeTinyModel({.seed = 5}));
  EXPECT_NE(MakeTinyModel({.seed = 5}), MakeTinyModel({.seed = 6}));
}

TEST(TinyModel, WrongOptionsAreSaid) {
  EXPECT_FALSE(CheckTinyModel({.heads = 5}).has_value());
  EXPECT_FALSE(CheckTinyModel({.kv_heads = 3}).has_value());
  EXPECT_FALSE(CheckTinyModel({.vocabulary = 10}).has_value());
  EXPECT_FALSE(CheckTinyModel({.layers = 0}).has_value());
  EXPECT_TRUE(CheckTinyModel({}).has_value());
}

}  // namespace
}  // namespace shoal
