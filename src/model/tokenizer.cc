#include "model/tokenizer.h"

#include <algorithm>
#include <cstring>
#include <format>
#include <optional>

#include "base/check.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/bpe.h"
#include "model/gguf.h"
#include "model/pretokenizer.h"
#include "model/printable.h"
#include "model/spm.h"
#include "model/tokenizer_fragments.h"
#include "model/tokenizer_vocabulary.h"
#include "model/unicode.h"
#include "model/wordpiece.h"

namespace shoal {
namespace {

constexpr std::string_view kModelKey = "tokenizer.ggml.model";
constexpr std::string_view kPreKey = "tokenizer.ggml.pre";

class GgufTokenizer final : public Tokenizer {
 public:
  explicit GgufTokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

  Status Prepare(const GgufFile& file, std::optional<PreTokenizer> pre) {
    switch (vocabulary_.kind) {
      case TokenizerKind::kSpm:
        spm_.emplace(vocabulary_);
        break;
      case TokenizerKind::kWordPiece:
        word_piece_.emplace(vocabulary_);
        break;
      case TokenizerKind::kBpe: {
        SHOAL_ASSIGN(auto encoder, BpeEncoder::Load(file, vocabulary_, pre->ignore_merges()));
        bpe_.emplace(std::move(encoder));
        pre_ = std::move(pre);
        break;
      }
    }
    return {};
  }

  Result<std::vector<TokenId>> Encode(std::string_view text, EncodeOptions options) const override {
    if (text.size() > limits::kMaxTextBytes) {
      return Fail(Code::kInvalidArgument, reasons::kInvalidValue,
                  std::format("the text has {} bytes; at most {} can be encoded", text.size(), limits::kMaxTextBytes));
    }
    std::vector<TokenId> out;
    if (options.add_special && vocabulary_.add_bos) out.push_back(vocabulary_.bos);
    bool after_special = true;  // SentencePiece starts a new text, with its space, behind every special token
    for (const TextFragment& fragment : CutSpecial(vocabulary_, text, options.parse_special)) {
      if (fragment.token >= 0) {
        out.push_back(fragment.token);
        after_special = true;
        continue;
      }
      SHOAL_RETURN_IF_ERROR(EncodeText(text.substr(fragment.begin, fragment.end - fragment.begin), after_special, out));
      after_special = false;
    }
    if (options.add_special && vocabulary_.add_eos) out.push_back(vocabulary_.eos);
    if (options.add_special && vocabulary_.add_sep && vocabulary_.kind == TokenizerKind::kWordPiece) {
      out.push_back(vocabulary_.sep);
    }
    return out;
  }

  std::string Decode(std::span<const TokenId> tokens, bool with_control) const override {
    std::string out;
    bool at_start = vocabulary_.add_space_prefix || vocabulary_.kind == TokenizerKind::kWordPiece;
    for (const TokenId token : tokens) {
      if (!Known(token)) continue;
      if (with_control && Hidden(token)) {
        out += Text(token);
        continue;
      }
      std::string_view piece = Piece(token);
      if (piece.empty()) continue;
      if (at_start && piece.front() == ' ') piece.remove_prefix(1);
      at_start = false;
      out += piece;
    }
    return out;
  }

  std::string_view Piece(TokenId token) const override {
    if (!Known(token)) return {};
    const TokenKind kind = vocabulary_.KindOf(token);
    const bool shown = kind == TokenKind::kNormal || kind == TokenKind::kUserDefined || kind == TokenKind::kByte;
    return shown ? vocabulary_.pieces[static_cast<size_t>(token)] : std::string_view();
  }

  std::string_view Text(TokenId token) const override {
    return Known(token) ? vocabulary_.pieces[static_cast<size_t>(token)] : std::string_view();
  }

  int vocabulary_size() const override { return vocabulary_.size(); }
  TokenId bos() const override { return vocabulary_.bos; }
  TokenId eos() const override { return vocabulary_.eos; }
  bool adds_bos() const override { return vocabulary_.add_bos; }
  bool IsControl(TokenId token) const override {
    return Known(token) && vocabulary_.KindOf(token) == TokenKind::kControl;
  }
  std::span<const TokenId> end_tokens() const override { return vocabulary_.end_tokens; }

 private:
  bool Known(TokenId token) const { return token >= 0 && token < vocabulary_.size(); }
  bool Hidden(TokenId token) const {
    const TokenKind kind = vocabulary_.KindOf(token);
    return kind == TokenKind::kControl || kind == TokenKind::kUnknown;
  }

  Status EncodeText(std::string_view text, bool after_special, std::vector<TokenId>& out) const {
    if (spm_) {
      std::string marked;
      marked.reserve(text.size() + text.size() / 4 + 4);
      if (vocabulary_.add_space_prefix && after_special) marked += kSpaceMark;
      for (const char c : text) {
        if (c == ' ') {
          marked += kSpaceMark;
        } else {
          marked += c;
        }
      }
      spm_->Encode(marked, out);
      return {};
    }
    if (word_piece_) {
      word_piece_->Encode(text, out);
      return {};
    }
    std::string repaired;
    if (!IsUtf8(text)) {
      repaired = ReplaceIllFormedBytes(text);
      text = repaired;
    }
    std::vector<uint32_t> lengths;
    SHOAL_RETURN_IF_ERROR(pre_->Split(text, lengths));
    BpeEncoder::Work work;
    for (const uint32_t length : lengths) {
      bpe_->EncodeWord(text.substr(0, length), work, out);
      text.remove_prefix(length);
    }
    return {};
  }

  const Vocabulary vocabulary_;
  std::optional<SpmEncoder> spm_;
  std::optional<WordPieceEncoder> word_piece_;
  std::optional<BpeEncoder> bpe_;
  std::optional<PreTokenizer> pre_;
};

Result<TokenizerKind> KindOfFile(const GgufFile& file) {
  SHOAL_ASSIGN(const auto model, file.GetString(kModelKey));
  if (!model) {
    return Fail(Code::kUnsupported, reasons::kUnsupportedTokenizer,
                std::format("{}: the file has no tokenizer ({} is missing)", file.name(), kModelKey));
  }
  if (*model == "llama") return TokenizerKind::kSpm;
  if (*model == "gpt2") return TokenizerKind::kBpe;
  if (*model == "bert") return TokenizerKind::kWordPiece;
  return Fail(Code::kUnsupported, reasons::kUnsupportedTokenizer,
              std::format("{}: the tokenizer '{}' ({}) is not supported; llama, gpt2 and bert are", file.name(),
                          Printable(*model, 64), kModelKey));
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const GgufFile& file) {
  SHOAL_ASSIGN(const TokenizerKind kind, KindOfFile(file));
  std::optional<PreTokenizer> pre;
  if (kind == TokenizerKind::kBpe) {
    SHOAL_ASSIGN(const auto name, file.GetString(kPreKey));
    // Only converters of before May 2024 leave it out. What they leave is a guess for any model ("default" is none's own
    // rule), and a wrong guess gives wrong tokens that nobody sees: refused like an unknown name.
    if (!name) {
      return Fail(
          Code::kUnsupported, reasons::kUnsupportedTokenizer,
          std::format("{}: the file does not say how words are cut ({} is missing); convert the model again with "
                      "a current converter, or add the key with gguf-new-metadata --pre-tokenizer NAME",
                      file.name(), kPreKey));
    }
    auto found = PreTokenizer::ForName(*name);
    if (!found) {
      Error error = std::move(found).error();
      error.message = std::format("{}: {}", file.name(), error.message);
      return Fail(std::move(error));
    }
    pre.emplace(std::move(*found));
  }
  SHOAL_ASSIGN(auto vocabulary, LoadVocabulary(file, kind, pre && pre->adds_bos()));
  auto out = std::make_shared<GgufTokenizer>(std::move(vocabulary));
  SHOAL_RETURN_IF_ERROR(out->Prepare(file, std::move(pre)));
  return out;
}

}  // namespace shoal
