#include "model/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string>

#include "base/check.h"
#include "core/reasons.h"
#include "model/printable.h"

namespace shoal {
namespace {

// A piece of text may be megabytes of one character, so these are far above what the expressions need there; they only
// bound what a fault could cost.
constexpr uint32_t kMatchLimit = 200'000'000;
constexpr uint32_t kHeapLimitKib = 256 << 10;
constexpr size_t kJitStackMin = 32 << 10;
constexpr size_t kJitStackMax = 8 << 20;

// In all of these \s and \S mean the property White_Space (PCRE2's own \s would add U+180E).
#define SHOAL_CONTRACTIONS R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]))"
#define SHOAL_WHITE_TAIL R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define SHOAL_WORD_TAIL R"(| ?[^\s\p{L}\p{N}]+[\r\n]*)" SHOAL_WHITE_TAIL
#define SHOAL_ASCII_PUNCTUATION R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~])"

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))";
constexpr const char* kDigit = R"(\p{N})";
constexpr const char* kDigits3 = R"(\p{N}{1,3})";
constexpr const char* kLlama3 = SHOAL_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})" SHOAL_WORD_TAIL;
constexpr const char* kQwen2 = SHOAL_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})" SHOAL_WORD_TAIL;
constexpr const char* kQwen35 =
    SHOAL_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*)" SHOAL_WHITE_TAIL;
constexpr const char* kMiniCpm5 = SHOAL_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+)" SHOAL_WORD_TAIL;
constexpr const char* kBailing = R"('(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
                                 R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* kSeedCoder =
    SHOAL_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+)" SHOAL_WHITE_TAIL;
// Published with "|\s*[\r\n]+" alone. Behind a space that was cut off before, no line end can follow in the same white space, and
// looking for it at each cut would take the square of the run's length.
constexpr const char* kJais2 = SHOAL_CONTRACTIONS
    R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|(?<![^\S\r\n])\s*[\r\n]+)"
    R"(|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S))"
    R"(|\s{1,2}(?!\S)|\s{1})";

// A letter that is not a-z (upper), one that is not A-Z (lower): [^\P{L}a-z] and [^\P{L}A-Z].
#define SHOAL_CASED_WORD(suffix) \
  R"([^\r\n\p{L}\p{N}]?[^\P{L}a-z]*[^\P{L}A-Z]+)" suffix R"(|[^\r\n\p{L}\p{N}]?[^\P{L}a-z]+[^\P{L}A-Z]*)" suffix
constexpr const char* kTekken = SHOAL_CASED_WORD("") R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" SHOAL_WHITE_TAIL;
constexpr const char* kGpt4o =
    SHOAL_CASED_WORD(SHOAL_CONTRACTIONS "?") R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" SHOAL_WHITE_TAIL;

constexpr const char* kFalconPunctuation = R"([\p{P}\$\+<=>\^~\|`]+)";
constexpr const char* kThreeDigits = "[0-9][0-9][0-9]";
constexpr const char* kDefaultPunctuation = R"([\p{P}\$\+<=>\^~\|]+)";
constexpr const char* kBloom = R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+)";

constexpr const char* kLineEnd = R"([\r\n])";
// White space characters inside the published range U+0800-U+4E00 are left out: they are cut off before.
constexpr const char* kDeepseekCjk =
    R"([\x{800}-\x{167F}\x{1681}-\x{1FFF}\x{200B}-\x{2027}\x{202A}-\x{202E}\x{2030}-\x{205E}\x{2060}-\x{2FFF})"
    R"(\x{3001}-\x{9FA5}\x{AC00}-\x{D7FF}]+)";
// Letters with case, as Unicode 11 had them.
constexpr const char* kDeepseekLetters =
    R"(\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF})"
    R"(\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5})"
    R"(\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD})"
    R"(\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15})"
    R"(\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D})"
    R"(\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3})"
    R"(\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115})"
    R"(\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F})"
    R"(\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3})"
    R"(\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF})"
    R"(\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3})"
    R"(\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+)";
constexpr const char* kDeepseekPunctuation =
    R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}-\x{3002}]+)";
// "\s+$" as published; written so that a run of spaces inside the text is looked at once, not once per space.
constexpr const char* kTrailingSpace = R"((?<!\s)\s++\z)";
constexpr const char* kDeepseek3Cjk = R"([\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+)";
constexpr const char* kDeepseek3 =
    SHOAL_ASCII_PUNCTUATION R"([A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*)" SHOAL_WHITE_TAIL;

enum class Trait : uint8_t { kNone = 0, kWholeTokens = 1, kBos = 2 };
constexpr Trait operator|(Trait a, Trait b) {
  return static_cast<Trait>(static_cast<uint8_t>(a) | static_cast<uint8_t>(b));
}
constexpr bool Has(Trait set, Trait one) { return (static_cast<uint8_t>(set) & static_cast<uint8_t>(one)) != 0; }

constexpr Trait kLlama3Traits = Trait::kWholeTokens | Trait::kBos;

struct Entry {
  std::string_view name;
  std::array<const char*, 6> expressions;
  Trait traits = Trait::kNone;
};

// clang-format off
constexpr Entry kEntries[] = {
    {"default", {kDefaultPunctuation, kGpt2, R"(\p{N}+)", kThreeDigits}},
    {"gpt-2", {kGpt2}}, {"phi-2", {kGpt2}}, {"mpt", {kGpt2}}, {"olmo", {kGpt2}}, {"jais", {kGpt2}}, {"trillion", {kGpt2}},
    {"jina-es", {kGpt2}}, {"jina-de", {kGpt2}}, {"jina-v2-es", {kGpt2}}, {"jina-v2-de", {kGpt2}}, {"jina-v1-en", {kGpt2}},
    {"jina-v2-code", {kGpt2}}, {"roberta-bpe", {kGpt2}}, {"modern-bert", {kGpt2}}, {"gigachat", {kGpt2}},
    {"a.x-4.0", {kGpt2}}, {"mellum", {kGpt2}}, {"exaone4", {kGpt2}}, {"granite-docling", {kGpt2}},
    {"starcoder", {kDigit, kGpt2}}, {"refact", {kDigit, kGpt2}}, {"command-r", {kDigit, kGpt2}}, {"smollm", {kDigit, kGpt2}},
    {"codeshell", {kDigit, kGpt2}}, {"exaone", {kDigit, kGpt2}}, {"minerva-7b", {kDigit, kGpt2}}, {"mellum2", {kDigit, kGpt2}},
    {"falcon", {kFalconPunctuation, kGpt2, kThreeDigits}},
    {"llama3", {kLlama3}, kLlama3Traits}, {"llama-v3", {kLlama3}, kLlama3Traits}, {"llama-bpe", {kLlama3}, kLlama3Traits},
    {"falcon3", {kLlama3}, kLlama3Traits}, {"falcon-h1", {kLlama3}, kLlama3Traits}, {"pixtral", {kLlama3}, kLlama3Traits},
    {"midm-2.0", {kLlama3}, kLlama3Traits}, {"lfm2", {kLlama3}, kLlama3Traits}, {"jina-v5-nano", {kLlama3}, kLlama3Traits},
    {"dbrx", {kLlama3}}, {"smaug-bpe", {kLlama3}}, {"glm4", {kLlama3}}, {"chatglm-bpe", {kLlama3}},
    {"minicpm5", {kDigits3, kMiniCpm5}, Trait::kWholeTokens},
    {"jais-2", {kJais2}},
    {"qwen2", {kQwen2}}, {"deepseek-r1-qwen", {kQwen2}}, {"kormo", {kQwen2}}, {"f2llmv2", {kQwen2}}, {"megrez", {kQwen2}},
    {"stablelm2", {kQwen2}}, {"hunyuan", {kQwen2}}, {"solar-open", {kQwen2}}, {"grok-2", {kQwen2}},
    {"qwen35", {kQwen35}},
    {"bailingmoe", {kBailing}}, {"bailingmoe2", {kBailing}}, {"llada-moe", {kBailing}},
    {"seed-coder", {kSeedCoder}},
    {"deepseek-llm", {kLineEnd, kDeepseekLetters, kDeepseekPunctuation, kTrailingSpace, kDeepseekCjk, R"(\p{N}+)"}},
    {"deepseek-coder", {kLineEnd, R"(\s?\p{L}+)", R"(\s?\p{P}+)", kDeepseekCjk, kDigit}},
    {"deepseek-v3", {kDigits3, kDeepseek3Cjk, kDeepseek3}}, {"hunyuan-dense", {kDigits3, kDeepseek3Cjk, kDeepseek3}},
    {"joyai-llm", {kDigits3, kDeepseek3Cjk, kDeepseek3}},
    {"poro-chat", {kBloom}}, {"bloom", {kBloom}}, {"gpt3-finnish", {kBloom}}, {"viking", {kBloom, kDigit}},
    {"tekken", {kTekken}, kLlama3Traits},
    {"gpt-4o", {kGpt4o}}, {"llama4", {kGpt4o}}, {"kanana2", {kGpt4o}}, {"talkie", {kGpt4o}}, {"minimax-m2", {kGpt4o}},
};
// clang-format on

std::string WithWhiteSpaceProperty(std::string_view pattern) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      out += pattern[i];
      continue;
    }
    const char next = pattern[++i];
    if (next == 's') {
      out += R"(\p{White_Space})";
    } else if (next == 'S') {
      out += R"(\P{White_Space})";
    } else {
      out += '\\';
      out += next;
    }
  }
  return out;
}

std::string Pcre2Message(int code) {
  PCRE2_UCHAR text[256];
  return pcre2_get_error_message(code, text, sizeof text) < 0 ? std::to_string(code)
                                                              : std::string(reinterpret_cast<const char*>(text));
}

// What one Split needs besides the expressions; made per call so that Split may run in many threads.
class Scratch {
 public:
  Scratch()
      : context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(kJitStackMin, kJitStackMax, nullptr)),
        data_(pcre2_match_data_create(1, nullptr)) {
    SHOAL_CHECK(context_ != nullptr && data_ != nullptr);
    pcre2_set_match_limit(context_, kMatchLimit);
    pcre2_set_heap_limit(context_, kHeapLimitKib);
    if (stack_ != nullptr) pcre2_jit_stack_assign(context_, nullptr, stack_);
  }
  ~Scratch() {
    pcre2_match_data_free(data_);
    pcre2_jit_stack_free(stack_);
    pcre2_match_context_free(context_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  pcre2_match_context* context() { return context_; }
  pcre2_match_data* data() { return data_; }

 private:
  pcre2_match_context* context_;
  pcre2_jit_stack* stack_;
  pcre2_match_data* data_;
};

}  // namespace

struct PreTokenizer::Expression {
  explicit Expression(std::string_view pattern) {
    const std::string full = WithWhiteSpaceProperty(pattern);
    int error = 0;
    PCRE2_SIZE offset = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(full.data()), full.size(), PCRE2_UTF | PCRE2_UCP, &error, &offset,
                         nullptr);
    SHOAL_CHECK(code != nullptr);  // every pattern is in the table above and compiled by the tests
    jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;  // without JIT support it is slower, not different
  }
  ~Expression() { pcre2_code_free(code); }
  Expression(const Expression&) = delete;
  Expression& operator=(const Expression&) = delete;

  // Splits one piece, seen as a text of its own: look-ahead does not see past its end.
  Status Split(std::string_view piece, Scratch& scratch, std::vector<uint32_t>& out) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(piece.data());
    const size_t* found = pcre2_get_ovector_pointer(scratch.data());
    size_t start = 0;
    while (start < piece.size()) {
      int count = jit ? pcre2_jit_match(code, subject, piece.size(), start, PCRE2_NO_UTF_CHECK, scratch.data(),
                                        scratch.context())
                      : PCRE2_ERROR_JIT_BADOPTION;
      if (count == PCRE2_ERROR_JIT_BADOPTION || count == PCRE2_ERROR_JIT_STACKLIMIT) {
        count = pcre2_match(code, subject, piece.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch.data(),
                            scratch.context());
      }
      if (count == PCRE2_ERROR_NOMATCH) break;
      if (count < 0) {
        return Fail(Code::kResourceExhausted, reasons::kInvalidValue,
                    "the text cannot be cut into words within the limits of the regular expressions",
                    Pcre2Message(count));
      }
      SHOAL_CHECK(found[1] > found[0]);  // no expression of the table matches nothing
      if (found[0] > start) out.push_back(static_cast<uint32_t>(found[0] - start));
      out.push_back(static_cast<uint32_t>(found[1] - found[0]));
      start = found[1];
    }
    if (start < piece.size()) out.push_back(static_cast<uint32_t>(piece.size() - start));
    return {};
  }

  pcre2_code* code = nullptr;
  bool jit = false;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

Result<PreTokenizer> PreTokenizer::ForName(std::string_view name) {
  const auto* entry = std::ranges::find(kEntries, name, &Entry::name);
  if (entry == std::end(kEntries)) {
    return Fail(Code::kUnsupported, reasons::kUnsupportedTokenizer,
                "the pre-tokenizer '" + Printable(name, 64) +
                    "' (tokenizer.ggml.pre) is not known; guessing one would give wrong tokens");
  }
  PreTokenizer out;
  for (const char* pattern : entry->expressions) {
    if (pattern != nullptr) out.expressions_.push_back(std::make_unique<Expression>(pattern));
  }
  out.ignore_merges_ = Has(entry->traits, Trait::kWholeTokens);
  out.adds_bos_ = Has(entry->traits, Trait::kBos);
  return out;
}

Status PreTokenizer::Split(std::string_view text, std::vector<uint32_t>& lengths) const {
  if (text.empty()) return {};
  Scratch scratch;
  std::vector<uint32_t> pieces{static_cast<uint32_t>(text.size())};
  std::vector<uint32_t> next;
  for (const auto& expression : expressions_) {
    next.clear();
    next.reserve(pieces.size());
    size_t start = 0;
    for (const uint32_t length : pieces) {
      SHOAL_RETURN_IF_ERROR(expression->Split(text.substr(start, length), scratch, next));
      start += length;
    }
    pieces.swap(next);
  }
  lengths.insert(lengths.end(), pieces.begin(), pieces.end());
  return {};
}

}  // namespace shoal
