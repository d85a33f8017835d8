// Fuzz target: any bytes through the tokenizers of tiny in-memory vocabularies, with every way to ask. The first byte chooses
// the vocabulary and the options, the rest is the text. What is lossless must come back; the ids must be ids; the
// same text in pieces through TextStream must be what it is at once.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "model/text_stream.h"
#include "model/tokenizer.h"
#include "model/tokenizer_testing.h"
#include "model/unicode.h"

namespace {

using shoal::TokenId;

std::vector<std::shared_ptr<const shoal::Tokenizer>> MakeTokenizers() {
  using namespace shoal::testing;
  std::vector<std::shared_ptr<const shoal::Tokenizer>> out;
  const auto add = [&](const shoal::GgufWriter& writer) {
    auto tokenizer = LoadFrom(writer);
    SHOAL_CHECK(tokenizer.has_value());
    out.push_back(*tokenizer);
  };
  add(WriterFor(TinySpm(), "llama"));
  for (const char* pre : {"default", "gpt-2", "llama-bpe", "qwen2", "qwen35", "falcon", "starcoder", "deepseek-llm",
                          "deepseek-coder", "deepseek-v3", "gpt-4o", "tekken", "bloom", "viking", "jais-2"}) {
    add(WriterFor(TinyBpe(), "gpt2", pre));
  }
  add(WordPieceWriter());
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokenizers = MakeTokenizers();
  if (size < 2) return 0;
  const auto& tokenizer = *tokenizers[data[0] % tokenizers.size()];
  const bool spm = &tokenizer == tokenizers.front().get();
  const bool word_piece = &tokenizer == tokenizers.back().get();
  const shoal::EncodeOptions options{.add_special = (data[1] & 1) != 0, .parse_special = (data[1] & 2) != 0};
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);

  const auto ids = tokenizer.Encode(text, options);
  SHOAL_CHECK(ids.has_value());
  for (const TokenId id : *ids) SHOAL_CHECK(id >= 0 && id < tokenizer.vocabulary_size());

  // User text alone never gives a control token.
  if (!options.add_special && !options.parse_special) {
    SHOAL_CHECK(std::ranges::none_of(*ids, [&](TokenId id) { return !word_piece && tokenizer.IsControl(id); }));
    // Lossless but for the space behind a user-defined token (SentencePiece) and a space mark written out by the user.
    const bool marks = spm && (text.find(shoal::kSpaceMark) != std::string_view::npos ||
                               text.find("<user>") != std::string_view::npos);
    if (!word_piece && !marks) {
      const std::string expected = spm ? std::string(text) : shoal::ReplaceIllFormedBytes(text);
      SHOAL_CHECK(tokenizer.Decode(*ids) == expected);
    }
  }

  const std::vector<std::string> stops = {"ab", "\n\n", "\xC3\xA4"};
  shoal::TextStream whole(stops), pieces(stops);
  std::string all, joined;
  for (const TokenId id : *ids) {
    all += tokenizer.Piece(id);
    const auto output = pieces.Append(tokenizer.Piece(id));
    SHOAL_CHECK(shoal::IsUtf8(output.text));
    joined += output.text;
  }
  std::string at_once = whole.Append(all).text;
  at_once += whole.Finish();
  joined += pieces.Finish();
  SHOAL_CHECK(at_once == joined && whole.stop() == pieces.stop());
  return 0;
}
