#include "model/tokenizer_vocabulary.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <format>
#include <optional>
#include <set>
#include <span>

#include "base/log.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/gguf.h"
#include "model/printable.h"
#include "model/unicode.h"

namespace shoal {
namespace {

constexpr std::string_view kTokensKey = "tokenizer.ggml.tokens";
constexpr std::string_view kTypesKey = "tokenizer.ggml.token_type";
constexpr std::string_view kScoresKey = "tokenizer.ggml.scores";

std::unexpected<Error> Corrupt(const GgufFile& file, std::string_view key, const std::string& what) {
  return Fail(Code::kCorrupt, reasons::kModelCorrupt, std::format("{}: {}: {}", file.name(), key, what));
}

void Append(std::vector<char>& out, std::string_view text) { out.insert(out.end(), text.begin(), text.end()); }

bool IsHexDigit(char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f'); }
int HexValue(char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; }

// The byte that "<0x2F>" names.
std::optional<uint8_t> ParseByteToken(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  if (!IsHexDigit(text[3]) || !IsHexDigit(text[4])) return std::nullopt;
  return static_cast<uint8_t>(HexValue(text[3]) * 16 + HexValue(text[4]));
}

Status LoadTexts(const GgufFile& file, Vocabulary& out) {
  SHOAL_ASSIGN(const auto found, file.GetStrings(kTokensKey));
  if (!found) return Corrupt(file, kTokensKey, "is missing");
  if (found->empty()) return Corrupt(file, kTokensKey, "is empty");
  if (found->size() > static_cast<size_t>(limits::kMaxVocabulary)) {
    return Corrupt(file, kTokensKey,
                   std::format("{} tokens; at most {} are accepted", found->size(), limits::kMaxVocabulary));
  }
  size_t bytes = 0;
  for (size_t id = 0; id < found->size(); ++id) {
    const std::string_view text = (*found)[id];
    if (text.size() > limits::kMaxTokenBytes) {
      return Corrupt(
          file, kTokensKey,
          std::format("token {} has {} bytes; at most {} are accepted", id, text.size(), limits::kMaxTokenBytes));
    }
    bytes += text.size();
  }
  out.storage.reserve(bytes);
  out.texts.reserve(found->size());
  for (const std::string_view text : *found) {
    out.texts.emplace_back(out.storage.data() + out.storage.size(), text.size());
    Append(out.storage, text);  // never reallocates: reserved above
  }
  out.index.Build(out.texts);
  return {};
}

Status LoadKinds(const GgufFile& file, Vocabulary& out) {
  const size_t count = out.texts.size();
  out.kinds.assign(count, TokenKind::kNormal);
  SHOAL_ASSIGN(const auto types, file.GetInts(kTypesKey, 0, 6));
  if (!types) {
    // Without kinds only SentencePiece's bytes can be told by their text; the special ids follow in LoadSpecialIds.
    if (out.kind != TokenizerKind::kSpm) return {};
    for (size_t id = 0; id < count; ++id) {
      if (ParseByteToken(out.texts[id])) out.kinds[id] = TokenKind::kByte;
    }
    return {};
  }
  if (types->size() < count) {
    return Corrupt(file, kTypesKey, std::format("has {} entries for {} tokens", types->size(), count));
  }
  for (size_t id = 0; id < count; ++id) {
    out.kinds[id] = static_cast<TokenKind>((*types)[id]);
    if (out.kinds[id] == TokenKind::kByte && !ParseByteToken(out.texts[id])) {
      return Corrupt(file, kTokensKey,
                     std::format("token {} '{}' is marked as a byte but is not of the form <0xHH>", id,
                                 Printable(out.texts[id], 40)));
    }
  }
  return {};
}

Status LoadScores(const GgufFile& file, Vocabulary& out) {
  SHOAL_ASSIGN(auto scores, file.GetFloats(kScoresKey));
  if (!scores) {
    if (out.kind == TokenizerKind::kSpm)
      Log().warn("{}: {} is missing: all tokens count as equally likely", file.name(), kScoresKey);
    return {};
  }
  if (scores->size() < out.texts.size()) {
    return Corrupt(file, kScoresKey, std::format("has {} entries for {} tokens", scores->size(), out.texts.size()));
  }
  scores->resize(out.texts.size());
  for (size_t id = 0; id < scores->size(); ++id) {
    if (std::isnan((*scores)[id]))
      return Corrupt(file, kScoresKey, std::format("the score of token {} is not a number", id));
  }
  out.scores = std::move(*scores);
  return {};
}

// The id under "tokenizer.ggml.<name>_token_id", else `fallback` where the vocabulary is that large, else -1.
Result<TokenId> ReadId(const GgufFile& file, const Vocabulary& vocabulary, std::string_view name, TokenId fallback) {
  SHOAL_ASSIGN(const auto id, file.GetInt(std::format("tokenizer.ggml.{}_token_id", name), 0, vocabulary.size() - 1));
  if (id) return static_cast<TokenId>(*id);
  return fallback < vocabulary.size() ? fallback : -1;
}

// Texts that end a turn or a text in the models seen so far; files often fail to list them.
constexpr std::string_view kEndTexts[] = {"<|eot_id|>",
                                          "<|im_end|>",
                                          "<|end|>",
                                          "<|return|>",
                                          "<|call|>",
                                          "<|flush|>",
                                          "<|calls|>",
                                          "<end_of_turn>",
                                          "<|endoftext|>",
                                          "</s>",
                                          "<|eom_id|>",
                                          "<EOT>",
                                          "_<EOT>",
                                          "[EOT]",
                                          "[EOS]",
                                          "<|end_of_text|>",
                                          "<end_of_utterance>",
                                          "<eos>",
                                          "<turn|>",
                                          "<|tool_response>",
                                          "<\xEF\xBD\x9C"
                                          "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
                                          "[e~["};

// Fill-in-the-middle marks: all are control tokens, and padding, repository and file marks end a text.
constexpr std::string_view kFillEndTexts[] = {"<|fim_pad|>", "<fim-pad>",    "<fim_pad>",     "<PAD>",
                                              "[PAD]",       "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
                                              "<REPO>",      "<reponame>",   "<|file_sep|>"};
constexpr std::string_view kFillTexts[] = {"<|fim_prefix|>",
                                           "<fim-prefix>",
                                           "<fim_prefix>",
                                           "<\xEF\xBD\x9C"
                                           "fim\xE2\x96\x81"
                                           "begin\xEF\xBD\x9C>",
                                           "<PRE>",
                                           "\xE2\x96\x81<PRE>",
                                           "<|code_prefix|>",
                                           "<|prefix|>",
                                           "<|fim_suffix|>",
                                           "<fim-suffix>",
                                           "<fim_suffix>",
                                           "<\xEF\xBD\x9C"
                                           "fim\xE2\x96\x81hole\xEF\xBD\x9C>",
                                           "<SUF>",
                                           "\xE2\x96\x81<SUF>",
                                           "<|code_suffix|>",
                                           "<|suffix|>",
                                           "<|fim_middle|>",
                                           "<fim-middle>",
                                           "<fim_middle>",
                                           "<\xEF\xBD\x9C"
                                           "fim\xE2\x96\x81"
                                           "end\xEF\xBD\x9C>",
                                           "<MID>",
                                           "\xE2\x96\x81<MID>",
                                           "<|code_middle|>",
                                           "<|middle|>"};

void AddByText(Vocabulary& vocabulary, std::span<const std::string_view> texts, std::set<TokenId>* ends) {
  for (const std::string_view text : texts) {
    const TokenId id = vocabulary.index.Find(text);
    if (id < 0) continue;
    vocabulary.kinds[static_cast<size_t>(id)] = TokenKind::kControl;
    if (ends != nullptr) ends->insert(id);
  }
}

Status LoadEndTokens(const GgufFile& file, Vocabulary& out) {
  std::set<TokenId> ends;
  if (out.eos >= 0) ends.insert(out.eos);
  for (const std::string_view name : {"eot", "eom", "fim_pad", "fim_rep", "fim_sep"}) {
    SHOAL_ASSIGN(const TokenId id, ReadId(file, out, name, -1));
    if (id >= 0) ends.insert(id);
  }
  if (out.kind != TokenizerKind::kWordPiece) {
    AddByText(out, kEndTexts, &ends);
    AddByText(out, kFillEndTexts, &ends);
    AddByText(out, kFillTexts, nullptr);
    const auto has = [&](std::string_view text) { return ends.contains(out.index.Find(text)); };
    // In the vocabularies with <|return|> and <|call|> the mark <|end|> only ends a message, not the answer; in those with
    // <|tool_response> the mark </s> is a word.
    if ((has("<|call|>") || has("<|calls|>")) && (has("<|return|>") || has("<|flush|>")) && has("<|end|>")) {
      ends.erase(out.index.Find("<|end|>"));
    }
    if (has("<|tool_response>") && has("</s>")) ends.erase(out.index.Find("</s>"));
    if (ends.empty()) Log().warn("{}: no end-of-sequence token: generation ends at its token limit only", file.name());
  }
  out.end_tokens.assign(ends.begin(), ends.end());
  return {};
}

Status LoadSpecialIds(const GgufFile& file, Vocabulary& out, bool adds_bos) {
  const bool spm = out.kind == TokenizerKind::kSpm;
  const bool word_piece = out.kind == TokenizerKind::kWordPiece;
  SHOAL_ASSIGN(const TokenId cls, ReadId(file, out, "cls", word_piece ? 101 : -1));
  SHOAL_ASSIGN(out.bos, ReadId(file, out, "bos", spm ? 1 : word_piece ? cls : -1));
  SHOAL_ASSIGN(out.eos, ReadId(file, out, "eos", spm ? 2 : -1));
  SHOAL_ASSIGN(out.unk, ReadId(file, out, "unknown", spm ? 0 : word_piece ? 100 : -1));
  SHOAL_ASSIGN(const TokenId separator, ReadId(file, out, "separator", word_piece ? 102 : -1));
  SHOAL_ASSIGN(out.sep, ReadId(file, out, "seperator", separator));  // so spelt in the format
  for (const std::string_view checked_only : {"padding", "mask", "fim_pre", "fim_suf", "fim_mid"}) {
    SHOAL_RETURN_IF_ERROR(ReadId(file, out, checked_only, -1));
  }

  const auto read_flag = [&](std::string_view name, TokenId id, bool fallback) -> Result<bool> {
    const std::string key = std::format("tokenizer.ggml.add_{}_token", name);
    SHOAL_ASSIGN(const auto flag, file.GetBool(key));
    if (flag && *flag && id < 0) return Corrupt(file, key, "is true, but there is no such token");
    return flag.value_or(fallback && id >= 0);
  };
  SHOAL_ASSIGN(out.add_bos, read_flag("bos", out.bos, spm || word_piece || adds_bos));
  SHOAL_ASSIGN(out.add_eos, read_flag("eos", out.eos, false));
  SHOAL_ASSIGN(out.add_sep, read_flag("sep", out.sep, word_piece));

  SHOAL_ASSIGN(const auto prefix, file.GetBool("tokenizer.ggml.add_space_prefix"));
  out.add_space_prefix = spm && prefix.value_or(true);
  if (word_piece) {
    SHOAL_ASSIGN(const auto lower, file.GetBool("tokenizer.ggml.normalizer.lowercase"));
    SHOAL_ASSIGN(const auto accents, file.GetBool("tokenizer.ggml.normalizer.strip_accents"));
    out.lower_case = lower.value_or(true);
    out.strip_accents = accents.value_or(out.lower_case);
    if (out.unk < 0) return Corrupt(file, "tokenizer.ggml.unknown_token_id", "is missing");
  }
  if (spm && file.Find(kTypesKey) == nullptr) {
    for (const TokenId id : {out.bos, out.eos}) {
      if (id >= 0) out.kinds[static_cast<size_t>(id)] = TokenKind::kControl;
    }
    if (out.unk >= 0) out.kinds[static_cast<size_t>(out.unk)] = TokenKind::kUnknown;
  }
  return {};
}

// The bytes of a byte-level BPE token; characters outside its table (added tokens) stand for themselves.
void AppendBpeBytes(std::vector<char>& out, std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = ReadUtf8(text, i);
    const int byte = c.valid ? CharToByte(c.code) : -1;
    if (byte >= 0) {
      out.push_back(static_cast<char>(byte));
    } else {
      Append(out, text.substr(i, c.length));
    }
    i += c.length;
  }
}

void AppendUnmarked(std::vector<char>& out, std::string_view text) {
  for (size_t at = 0;;) {
    const size_t mark = text.find(kSpaceMark, at);
    Append(out, text.substr(at, mark - at));
    if (mark == std::string_view::npos) return;
    out.push_back(' ');
    at = mark + kSpaceMark.size();
  }
}

void BuildPieces(Vocabulary& out) {
  out.byte_ids.fill(-1);
  std::vector<std::pair<size_t, size_t>> places;  // the storage moves while it grows
  places.reserve(out.texts.size());
  out.piece_storage.reserve(out.storage.size());
  for (size_t id = 0; id < out.texts.size(); ++id) {
    const std::string_view text = out.texts[id];
    const size_t start = out.piece_storage.size();
    if (out.kinds[id] == TokenKind::kByte) {
      const uint8_t byte = *ParseByteToken(text);
      out.piece_storage.push_back(static_cast<char>(byte));
      if (out.byte_ids[byte] < 0) out.byte_ids[byte] = static_cast<TokenId>(id);
    } else if (out.kinds[id] != TokenKind::kNormal) {
      Append(out.piece_storage, text);
    } else if (out.kind == TokenizerKind::kBpe) {
      AppendBpeBytes(out.piece_storage, text);
    } else {
      AppendUnmarked(out.piece_storage, text);
    }
    places.emplace_back(start, out.piece_storage.size() - start);
  }
  out.pieces.reserve(places.size());
  for (const auto& [start, length] : places) out.pieces.emplace_back(out.piece_storage.data() + start, length);
  for (int byte = 0; byte < 256; ++byte) {
    const char one = static_cast<char>(byte);
    if (out.byte_ids[byte] < 0) out.byte_ids[byte] = out.index.Find({&one, 1});
  }
}

Result<std::string> LowerName(const GgufFile& file, std::string_view key) {
  SHOAL_ASSIGN(const auto value, file.GetString(key));
  std::string out(value.value_or(""));
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

// White space around some special tokens is not part of the text. The format has no key for it; llama.cpp goes by the
// model's name, and so do we.
Status ListSpecial(const GgufFile& file, Vocabulary& out) {
  for (TokenId id = 0; id < out.size(); ++id) {
    const TokenKind kind = out.KindOf(id);
    if (out.texts[static_cast<size_t>(id)].empty()) continue;
    if (kind == TokenKind::kControl || kind == TokenKind::kUserDefined || kind == TokenKind::kUnknown)
      out.special.push_back(id);
  }
  std::ranges::stable_sort(out.special, std::ranges::greater{},
                           [&](TokenId id) { return out.texts[static_cast<size_t>(id)].size(); });
  out.strip.assign(out.special.size(), 0);

  SHOAL_ASSIGN(const std::string name, LowerName(file, "general.name"));
  SHOAL_ASSIGN(const std::string pre, LowerName(file, "tokenizer.ggml.pre"));
  SHOAL_ASSIGN(const std::string arch, LowerName(file, "general.architecture"));
  const bool jina = pre == "jina-v2-de" || pre == "jina-v2-es" || pre == "jina-v2-code" || arch == "nomic-bert-moe" ||
                    arch == "jina-bert-v3";
  const bool phi3 = name.find("phi-3") != std::string::npos || name.find("phi3") != std::string::npos;
  const bool modern_bert = name.find("modern-bert") != std::string::npos;
  for (size_t i = 0; i < out.special.size(); ++i) {
    const std::string_view text = out.texts[static_cast<size_t>(out.special[i])];
    if (jina) {
      if (text == "<mask>") out.strip[i] = Vocabulary::kStripLeft;
    } else if (phi3) {
      if (text != "<unk>" && text != "<s>" && text != "<|endoftext|>") out.strip[i] = Vocabulary::kStripRight;
    } else if (modern_bert && text == "[MASK]") {
      out.strip[i] = Vocabulary::kStripLeft;
    }
  }
  return {};
}

}  // namespace

Result<Vocabulary> LoadVocabulary(const GgufFile& file, TokenizerKind kind, bool adds_bos) {
  Vocabulary out;
  out.kind = kind;
  SHOAL_RETURN_IF_ERROR(LoadTexts(file, out));
  SHOAL_RETURN_IF_ERROR(LoadKinds(file, out));
  SHOAL_RETURN_IF_ERROR(LoadScores(file, out));
  SHOAL_RETURN_IF_ERROR(LoadSpecialIds(file, out, adds_bos));
  SHOAL_RETURN_IF_ERROR(LoadEndTokens(file, out));
  BuildPieces(out);
  SHOAL_RETURN_IF_ERROR(ListSpecial(file, out));
  // From here on no text finds a control token by merging, whatever the vocabulary holds; CutSpecial alone gives those.
  out.words = out.texts;
  for (TokenId id = 0; id < out.size(); ++id) {
    const TokenKind token_kind = out.KindOf(id);
    if (token_kind == TokenKind::kControl || token_kind == TokenKind::kUnknown) out.words[static_cast<size_t>(id)] = {};
  }
  out.index.Build(out.words);
  return out;
}

}  // namespace shoal
