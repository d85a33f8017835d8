// What: tiny vocabularies in memory, for the tests and the fuzz target of the tokenizers.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/gguf.h"
#include "model/gguf_writer.h"
#include "model/tokenizer.h"
#include "model/unicode.h"

namespace shoal::testing {

struct TinyVocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<float> scores;
  std::vector<std::string> merges;

  void Add(std::string text, int32_t type = 1, float score = 0) {
    tokens.push_back(std::move(text));
    types.push_back(type);
    scores.push_back(score);
  }
};

inline Result<std::shared_ptr<const Tokenizer>> LoadFrom(const GgufWriter& writer) {
  const std::string bytes = writer.Build();
  const GgufFile::Header header{std::as_bytes(std::span(bytes)), bytes.size()};
  SHOAL_ASSIGN(const auto file, GgufFile::ParseHeaders({&header, 1}));
  return Tokenizer::Load(*file);
}

inline GgufWriter WriterFor(const TinyVocabulary& vocabulary, std::string_view model, std::string_view pre = {}) {
  GgufWriter writer;
  writer.SetString("general.architecture", "llama");
  writer.SetString("tokenizer.ggml.model", model);
  if (!pre.empty()) writer.SetString("tokenizer.ggml.pre", pre);
  writer.SetStrings("tokenizer.ggml.tokens", vocabulary.tokens);
  if (!vocabulary.types.empty()) writer.SetInts("tokenizer.ggml.token_type", vocabulary.types);
  if (!vocabulary.scores.empty()) writer.SetFloats("tokenizer.ggml.scores", vocabulary.scores);
  if (model == "gpt2") writer.SetStrings("tokenizer.ggml.merges", vocabulary.merges);
  return writer;
}

// <unk> <s> </s>, the 256 bytes (ids 3..258), then words.
inline TinyVocabulary TinySpm() {
  TinyVocabulary out;
  out.Add("<unk>", 2);
  out.Add("<s>", 3);
  out.Add("</s>", 3);
  const char* hex = "0123456789ABCDEF";
  for (int b = 0; b < 256; ++b) out.Add(std::string("<0x") + hex[b / 16] + hex[b % 16] + ">", 6);
  float score = 0;
  for (const char* word : {"\xE2\x96\x81", "a", "b", "c", "ab",
                           "\xE2\x96\x81"
                           "a",
                           "bc", "abc", "\xC3\xA4", "\xE2\x96\x81\xE2\x96\x81"}) {
    out.Add(word, 1, score -= 1);
  }
  out.Add("<user>", 4);
  return out;
}

// The 256 bytes (ids 0..255), merges of them, <|end|> (control), <user>.
inline TinyVocabulary TinyBpe() {
  TinyVocabulary out;
  for (int b = 0; b < 256; ++b) {
    std::string text;
    AppendUtf8(text, ByteToChar(static_cast<uint8_t>(b)));
    out.Add(text);
  }
  for (const char* merge : {"a b", "ab c", "\xC4\xA0 a", "a a", "aa aa", "\xC3\x83 \xC2\xA4"}) {
    out.merges.push_back(merge);
    std::string joined(merge);
    joined.erase(joined.find(' '), 1);
    out.Add(joined);
  }
  out.Add("<|end|>", 3);
  out.Add("<user>", 4);
  return out;
}

// [PAD] [UNK] [CLS] [SEP], then words.
inline TinyVocabulary TinyWordPiece() {
  TinyVocabulary out;
  for (const char* name : {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}) out.Add(name, 3);
  for (const char* word :
       {"\xE2\x96\x81"
        "hello",
        "\xE2\x96\x81he", "ll", "o", "\xE2\x96\x81,", "\xE2\x96\x81\xE4\xBD\xA0", "\xE2\x96\x81strasse"}) {
    out.Add(word);
  }
  return out;
}

inline GgufWriter WordPieceWriter() {
  GgufWriter writer = WriterFor(TinyWordPiece(), "bert");
  writer.SetU32("tokenizer.ggml.unknown_token_id", 1);
  writer.SetU32("tokenizer.ggml.cls_token_id", 2);
  writer.SetU32("tokenizer.ggml.seperator_token_id", 3);
  return writer;
}

}  // namespace shoal::testing
