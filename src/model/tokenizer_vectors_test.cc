// The reference vectors (../shared/data/tokenizer-vectors) and the prompts of every golden file, to the id.
#include <gtest/gtest.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "model/gguf.h"
#include "model/tokenizer.h"
#include "tests/support/shared.h"

namespace shoal {
namespace {

std::shared_ptr<const Tokenizer> LoadTokenizer(const std::filesystem::path& path) {
  auto file = GgufFile::Open(path);
  EXPECT_TRUE(file) << ToString(file.error());
  if (!file) return nullptr;
  auto tokenizer = Tokenizer::Load(**file);
  EXPECT_TRUE(tokenizer) << ToString(tokenizer.error());
  return tokenizer ? *tokenizer : nullptr;  // the file goes: the tokenizer must not need it
}

std::vector<std::string> SplitCases(const std::string& text) {
  static const std::string kLine = "\n__ggml_vocab_test__\n";
  std::vector<std::string> cases;
  for (size_t at = 0;;) {
    const size_t next = text.find(kLine, at);
    cases.push_back(text.substr(at, next - at));
    if (next == std::string::npos) return cases;
    at = next + kLine.size();
  }
}

std::vector<TokenId> ParseIds(const std::string& line) {
  std::istringstream in(line);
  std::vector<TokenId> ids;
  for (TokenId id = 0; in >> id;) ids.push_back(id);
  return ids;
}

class TokenizerVectors : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(TokenizerVectors, EveryCaseGivesTheListedIdsAndDecodesBack) {
  const auto folder = testing::SharedPath("data/tokenizer-vectors");
  SHOAL_REQUIRE_SHARED(folder);
  const auto [vocabulary, cases_name] = GetParam();
  const auto tokenizer = LoadTokenizer(folder / (std::string(vocabulary) + ".gguf"));
  ASSERT_NE(tokenizer, nullptr);
  // The last case has no separator behind it, and so may end in the file's own newline.
  auto texts = SplitCases(testing::ReadFile(folder / (std::string(cases_name) + ".gguf.inp")));
  std::istringstream out(testing::ReadFile(folder / (std::string(cases_name) + ".gguf.out")));
  const bool lossless = std::string(vocabulary).find("bert") == std::string::npos;
  size_t count = 0;
  for (std::string line; std::getline(out, line); ++count) {
    ASSERT_LT(count, texts.size());
    const std::string& text = texts[count];
    auto ids = tokenizer->Encode(text, {.add_special = false, .parse_special = false});
    ASSERT_TRUE(ids) << ToString(ids.error());
    EXPECT_EQ(*ids, ParseIds(line)) << "case " << count << ": \"" << text << '"';
    if (lossless) {
      EXPECT_EQ(tokenizer->Decode(*ids), text) << "case " << count;
    }
  }
  EXPECT_GE(count, 40u);
  EXPECT_LE(texts.size() - count, 1u);
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerVectors,
                         ::testing::Values(std::pair("ggml-vocab-bert-bge", "ggml-vocab-bert-bge"),
                                           std::pair("ggml-vocab-deepseek-coder", "ggml-vocab-deepseek-coder"),
                                           std::pair("ggml-vocab-deepseek-llm", "ggml-vocab-deepseek-llm"),
                                           std::pair("ggml-vocab-falcon", "ggml-vocab-falcon"),
                                           std::pair("ggml-vocab-gpt-2", "ggml-vocab-gpt-2"),
                                           std::pair("ggml-vocab-llama-spm", "ggml-vocab-llama-spm"),
                                           std::pair("ggml-vocab-mpt", "ggml-vocab-mpt"),
                                           std::pair("ggml-vocab-phi-3", "ggml-vocab-phi-3"),
                                           std::pair("ggml-vocab-refact", "ggml-vocab-refact"),
                                           std::pair("rebuilt-vocab-llama-bpe", "ggml-vocab-llama-bpe"),
                                           std::pair("rebuilt-vocab-qwen2", "ggml-vocab-qwen2")),
                         [](const auto& test) {
                           std::string name = test.param.first;
                           std::ranges::replace_if(
                               name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
                           return name;
                         });

struct Golden {
  std::filesystem::path model, answers;
};

std::vector<Golden> Goldens() {
  std::vector<Golden> found;
  for (const char* folder : {"golden", "golden/arch", "golden/quant", "models/llama-babyllama-tok105",
                             "models/llama-stories260K", "models/llama-stories3M"}) {
    const auto path = testing::SharedPath(folder);
    if (!std::filesystem::exists(path)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      const std::string name = entry.path().filename().string();
      if (!name.ends_with(".json") || name.find("golden") == std::string::npos) continue;
      const auto answers = nlohmann::json::parse(testing::ReadFile(entry.path()));
      std::vector<std::filesystem::path> places;
      if (answers.is_object() && answers.contains("model")) {
        const std::string model = std::filesystem::path(answers["model"].get<std::string>()).filename();
        places = {path / model};
        for (const auto& folder_entry : std::filesystem::directory_iterator(testing::SharedPath("models"))) {
          places.push_back(folder_entry.path() / model);
        }
      } else {
        for (const auto& beside : std::filesystem::directory_iterator(path)) {
          if (beside.path().extension() == ".gguf") places.push_back(beside.path());
        }
      }
      for (const auto& place : places) {
        if (std::filesystem::exists(place)) {
          found.push_back({place, entry.path()});
          break;
        }
      }
    }
  }
  return found;
}

// Calls f(prompt, ids) for every pair of them anywhere in the document.
template <class F>
void ForEachPrompt(const nlohmann::json& node, F f) {
  if (node.is_object() && node.contains("prompt") && node["prompt"].is_string()) {
    for (const char* key : {"prompt_ids", "prompt_tokens"}) {
      if (node.contains(key) && node[key].is_array()) {
        f(node["prompt"].template get<std::string>(), node[key].template get<std::vector<TokenId>>());
      }
    }
  }
  if (node.is_structured()) {
    for (const auto& child : node) ForEachPrompt(child, f);
  }
}

TEST(TokenizerGolden, PromptsOfAllGoldenFiles) {
  SHOAL_REQUIRE_SHARED(testing::SharedPath("golden"));
  const auto goldens = Goldens();
  EXPECT_GE(goldens.size(), 20u);
  size_t prompts = 0;
  for (const auto& [model, answers] : goldens) {
    SCOPED_TRACE(answers.string());
    const auto tokenizer = LoadTokenizer(model);
    ASSERT_NE(tokenizer, nullptr);
    ForEachPrompt(nlohmann::json::parse(testing::ReadFile(answers)),
                  [&](const std::string& prompt, const std::vector<TokenId>& ids) {
                    ++prompts;
                    const auto encoded = tokenizer->Encode(prompt, {.add_special = true, .parse_special = false});
                    ASSERT_TRUE(encoded);
                    EXPECT_EQ(*encoded, ids) << '"' << prompt << '"';
                  });
  }
  EXPECT_GE(prompts, 60u);
}

TEST(TokenizerGolden, SortingModelHasThreeLetters) {
  const auto path = testing::SharedPath("models/gpt2-nano-sort/gpt-nano-sort-f32.gguf");
  SHOAL_REQUIRE_SHARED(path);
  const auto tokenizer = LoadTokenizer(path);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(*tokenizer->Encode("CABBA", {}), (std::vector<TokenId>{2, 0, 1, 1, 0}));
  EXPECT_EQ(*tokenizer->Encode("A?B", {}), (std::vector<TokenId>{0, 1}));  // no token stands for '?'
  EXPECT_EQ(tokenizer->bos(), -1);
  EXPECT_EQ(tokenizer->eos(), -1);
  EXPECT_TRUE(tokenizer->end_tokens().empty());
}

}  // namespace
}  // namespace shoal
