// What: text to token ids and back, built from GGUF metadata: SentencePiece-style ("llama"), byte-level BPE ("gpt2") with
// the file's pre-tokenizer, WordPiece ("bert"). An unknown model or pre-tokenizer, or none, is refused by name, never guessed.
// Threads: immutable after Load; every method may be called from any thread.
// Limits: kMaxVocabulary tokens of at most kMaxTokenBytes; PCRE2 match limits. Encoding is O(n log n) in the text.
// Fails: kModelCorrupt, kUnsupportedTokenizer at load; Encode fails only when a match limit is hit.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "core/ids.h"

namespace shoal {

class GgufFile;

struct EncodeOptions {
  bool add_special = true;  // BOS / EOS / CLS / SEP as the file says
  bool parse_special =
      false;  // control tokens written in the text become those tokens (never for user text unless asked)
};

class Tokenizer {
 public:
  static Result<std::shared_ptr<const Tokenizer>> Load(const GgufFile& file);
  virtual ~Tokenizer() = default;

  virtual Result<std::vector<TokenId>> Encode(std::string_view text, EncodeOptions options) const = 0;
  // Text of a run of tokens as a user sees it (the leading space that SentencePiece adds is removed; control tokens give nothing
  // unless `with_control`). May hold broken UTF-8 when the tokens do.
  virtual std::string Decode(std::span<const TokenId> tokens, bool with_control = false) const = 0;
  // Bytes of one token inside a text; empty for control tokens. What incremental decoding appends.
  virtual std::string_view Piece(TokenId token) const = 0;
  // The token's bytes whatever its kind (a control token's name): for logprobs and inspect.
  virtual std::string_view Text(TokenId token) const = 0;

  virtual int vocabulary_size() const = 0;
  virtual TokenId bos() const = 0;  // -1 = none
  virtual TokenId eos() const = 0;  // -1 = none
  virtual bool adds_bos() const = 0;
  virtual bool IsControl(TokenId token) const = 0;
  // Tokens that end a generation (EOS, EOT, EOM as the file lists them). May be empty.
  virtual std::span<const TokenId> end_tokens() const = 0;
};

}  // namespace shoal
