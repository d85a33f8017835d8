#include "model/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "core/limits.h"
#include "core/reasons.h"
#include "model/pretokenizer.h"
#include "model/tokenizer_testing.h"

namespace shoal {
namespace {

using testing::LoadFrom;
using testing::TinyBpe;
using testing::TinySpm;
using testing::TinyVocabulary;
using testing::WordPieceWriter;
using testing::WriterFor;
using Ids = std::vector<TokenId>;

constexpr EncodeOptions kPlain{.add_special = false, .parse_special = false};
constexpr EncodeOptions kParsed{.add_special = false, .parse_special = true};

std::shared_ptr<const Tokenizer> MustLoad(const GgufWriter& writer) {
  auto tokenizer = LoadFrom(writer);
  EXPECT_TRUE(tokenizer) << ToString(tokenizer.error());
  return tokenizer ? *tokenizer : nullptr;
}

TokenId IdOf(const TinyVocabulary& vocabulary, const std::string& text) {
  return static_cast<TokenId>(std::ranges::find(vocabulary.tokens, text) - vocabulary.tokens.begin());
}

void ExpectCorrupt(const GgufWriter& writer, std::string_view key) {
  const auto tokenizer = LoadFrom(writer);
  ASSERT_FALSE(tokenizer);
  EXPECT_EQ(tokenizer.error().reason, reasons::kModelCorrupt) << ToString(tokenizer.error());
  EXPECT_NE(tokenizer.error().message.find(key), std::string::npos) << ToString(tokenizer.error());
}

void ExpectUnsupported(const GgufWriter& writer, std::string_view name) {
  const auto tokenizer = LoadFrom(writer);
  ASSERT_FALSE(tokenizer);
  EXPECT_EQ(tokenizer.error().reason, reasons::kUnsupportedTokenizer) << ToString(tokenizer.error());
  EXPECT_NE(tokenizer.error().message.find(name), std::string::npos) << ToString(tokenizer.error());
}

TEST(Spm, MergesBestScoreFirstAndAddsTheSpace) {
  const auto v = TinySpm();
  const auto t = MustLoad(WriterFor(v, "llama"));
  EXPECT_EQ(*t->Encode("abc", kPlain), (Ids{IdOf(v, "\xE2\x96\x81"), IdOf(v, "abc")}));
  EXPECT_EQ(*t->Encode("a", kPlain), (Ids{IdOf(v,
                                               "\xE2\x96\x81"
                                               "a")}));
  EXPECT_EQ(*t->Encode("a", {}), (Ids{1, IdOf(v,
                                              "\xE2\x96\x81"
                                              "a")}));
  EXPECT_EQ(*t->Encode("", {}), (Ids{1}));
  EXPECT_EQ(*t->Encode("", kPlain), Ids{});
  EXPECT_EQ(t->Decode(*t->Encode("  abc \xC3\xA4 \n", {})), "  abc \xC3\xA4 \n");
}

TEST(Spm, BytesForWhatHasNoToken) {
  const auto t = MustLoad(WriterFor(TinySpm(), "llama"));
  const std::string text = "z\xE4\xBD\xA0\xFF\xC3";  // a letter, a CJK character, two ill-formed bytes
  const auto ids = *t->Encode(text, kPlain);
  EXPECT_EQ(ids.size(), 1u + text.size());
  EXPECT_EQ(ids[1], 3 + 'z');
  EXPECT_EQ(t->Decode(ids), text);
}

TEST(Spm, UnknownTokenWhereThereAreNoBytes) {
  TinyVocabulary v;
  v.Add("<unk>", 2);
  v.Add("<s>", 3);
  v.Add("</s>", 3);
  v.Add("\xE2\x96\x81");
  v.Add("a");
  const auto t = MustLoad(WriterFor(v, "llama"));
  EXPECT_EQ(*t->Encode("a\xC3\xA9z", {}), (Ids{1, 3, 4, 0, 0}));
}

TEST(Spm, FlagsOfTheFile) {
  const auto v = TinySpm();
  GgufWriter w = WriterFor(v, "llama");
  w.SetBool("tokenizer.ggml.add_space_prefix", false);
  w.SetBool("tokenizer.ggml.add_bos_token", false);
  w.SetBool("tokenizer.ggml.add_eos_token", true);
  const auto t = MustLoad(w);
  EXPECT_EQ(*t->Encode("abc", {}), (Ids{IdOf(v, "abc"), 2}));
  EXPECT_EQ(t->Decode(Ids{IdOf(v,
                               "\xE2\x96\x81"
                               "a")}),
            " a");
  EXPECT_FALSE(t->adds_bos());
}

TEST(Spm, SpecialTokensInText) {
  const auto v = TinySpm();
  const auto t = MustLoad(WriterFor(v, "llama"));
  const TokenId user = IdOf(v, "<user>");
  const TokenId space_a = IdOf(v,
                               "\xE2\x96\x81"
                               "a");
  // A user-defined token always counts, a control token only when asked for.
  EXPECT_EQ(*t->Encode("a<user>a", kPlain), (Ids{space_a, user, space_a}));
  EXPECT_EQ(*t->Encode("a</s>a", kParsed), (Ids{space_a, 2, space_a}));
  const auto plain = *t->Encode("a</s>a", kPlain);
  EXPECT_EQ(std::ranges::count(plain, 2), 0);
  EXPECT_EQ(t->Decode(plain), "a</s>a");
  EXPECT_TRUE(t->IsControl(2));
  EXPECT_EQ(t->Piece(2), "");
  EXPECT_EQ(t->Text(2), "</s>");
  EXPECT_EQ(t->Decode(Ids{1, space_a, 2}, true), "<s>a</s>");
  EXPECT_EQ(t->Decode(Ids{1, space_a, 2}), "a");
}

TEST(Spm, LikeMergingOnePairAtATime) {
  // Against the rule itself: look at all neighbours, join the best, again.
  const auto v = TinySpm();
  const auto t = MustLoad(WriterFor(v, "llama"));
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    const size_t length = random() % 24;
    for (size_t i = 0; i < length; ++i)
      text += std::vector<std::string>{"a", "b", "c", " ", "\xC3\xA4", "x"}[random() % 6];
    std::vector<std::string> parts;
    if (!text.empty()) parts.push_back("\xE2\x96\x81");
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == ' ') {
        parts.push_back("\xE2\x96\x81");
      } else if (text[i] == '\xC3') {
        parts.push_back(text.substr(i++, 2));
      } else {
        parts.push_back(text.substr(i, 1));
      }
    }
    for (;;) {
      size_t best = parts.size();
      float best_score = 0;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const TokenId id = IdOf(v, parts[i] + parts[i + 1]);
        if (id == static_cast<TokenId>(v.tokens.size())) continue;
        const float score = v.scores[static_cast<size_t>(id)];
        if (best == parts.size() || score > best_score) best = i, best_score = score;
      }
      if (best == parts.size()) break;
      parts[best] += parts[best + 1];
      parts.erase(parts.begin() + static_cast<ptrdiff_t>(best) + 1);
    }
    Ids expected;
    for (const auto& part : parts) {
      const TokenId id = IdOf(v, part);
      if (id < static_cast<TokenId>(v.tokens.size())) {
        expected.push_back(id);
      } else {
        for (const char c : part) expected.push_back(3 + static_cast<unsigned char>(c));
      }
    }
    ASSERT_EQ(*t->Encode(text, kPlain), expected) << '"' << text << '"';
    ASSERT_EQ(t->Decode(expected), text);
  }
}

TEST(Bpe, MergesByRank) {
  const auto v = TinyBpe();
  const auto t = MustLoad(WriterFor(v, "gpt2", "gpt-2"));
  EXPECT_EQ(*t->Encode("abc", kPlain), (Ids{IdOf(v, "abc")}));
  // " a" is the third rule, "a b" the first: the b takes the a away from the space.
  EXPECT_EQ(*t->Encode(" ab", kPlain), (Ids{' ' == 32 ? IdOf(v, "\xC4\xA0") : 0, IdOf(v, "ab")}));
  EXPECT_EQ(*t->Encode("aaaaa", kPlain), (Ids{IdOf(v, "aaaa"), IdOf(v, "a")}));
  EXPECT_EQ(t->Decode(*t->Encode("x \xC3\xA4\n\n\t \xF0\x9F\xA6\x99", kPlain)), "x \xC3\xA4\n\n\t \xF0\x9F\xA6\x99");
}

TEST(Bpe, IllFormedBytesBecomeReplacements) {
  const auto t = MustLoad(WriterFor(TinyBpe(), "gpt2", "gpt-2"));
  EXPECT_EQ(t->Decode(*t->Encode("a\xFF\xE2\x82", kPlain)), "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Bpe, BosOnlyWhereTheFileOrItsPreTokenizerSays) {
  const auto v = TinyBpe();
  const TokenId end = IdOf(v, "<|end|>");
  GgufWriter plain = WriterFor(v, "gpt2", "gpt-2");
  plain.SetU32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(end));
  EXPECT_EQ(*MustLoad(plain)->Encode("a", {}), (Ids{IdOf(v, "a")}));
  GgufWriter llama3 = WriterFor(v, "gpt2", "llama-bpe");
  llama3.SetU32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(end));
  EXPECT_EQ(*MustLoad(llama3)->Encode("a", {}), (Ids{end, IdOf(v, "a")}));
  GgufWriter stated = WriterFor(v, "gpt2", "gpt-2");
  stated.SetBool("tokenizer.ggml.add_bos_token", true);
  ExpectCorrupt(stated, "tokenizer.ggml.add_bos_token");  // true, but which token?
}

TEST(Bpe, EndTokens) {
  const auto v = TinyBpe();
  const auto t = MustLoad(WriterFor(v, "gpt2", "gpt-2"));
  EXPECT_EQ(t->eos(), -1);
  EXPECT_EQ(Ids(t->end_tokens().begin(), t->end_tokens().end()), (Ids{IdOf(v, "<|end|>")}));
  EXPECT_EQ(*t->Encode("a<|end|>", kParsed), (Ids{IdOf(v, "a"), IdOf(v, "<|end|>")}));
  EXPECT_EQ(t->Decode(*t->Encode("a<|end|>", kPlain)), "a<|end|>");
}

TEST(Bpe, MissingPreTokenizerIsRefused) {
  const auto none = LoadFrom(WriterFor(TinyBpe(), "gpt2"));
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().reason, reasons::kUnsupportedTokenizer);
  EXPECT_NE(none.error().message.find("tokenizer.ggml.pre"), std::string::npos) << none.error().message;
}

TEST(Bpe, WholeTokensBeforeMerges) {
  TinyVocabulary v = TinyBpe();
  v.Add("cab");  // no rule makes it
  EXPECT_EQ(*MustLoad(WriterFor(v, "gpt2", "llama-bpe"))->Encode("cab", kPlain), (Ids{IdOf(v, "cab")}));
  EXPECT_EQ(*MustLoad(WriterFor(v, "gpt2", "gpt-2"))->Encode("cab", kPlain), (Ids{IdOf(v, "c"), IdOf(v, "ab")}));
}

TEST(WordPiece, Words) {
  const auto v = testing::TinyWordPiece();
  const auto t = MustLoad(WordPieceWriter());
  EXPECT_EQ(*t->Encode("Hello, h\xC3\xA9llo", {}),
            (Ids{2, IdOf(v, "\xE2\x96\x81hello"), IdOf(v, "\xE2\x96\x81,"), IdOf(v, "\xE2\x96\x81hello"), 3}));
  EXPECT_EQ(*t->Encode("hello\xE4\xBD\xA0"
                       "hello",
                       kPlain),
            (Ids{IdOf(v, "\xE2\x96\x81hello"), IdOf(v, "\xE2\x96\x81\xE4\xBD\xA0"), IdOf(v, "\xE2\x96\x81hello")}));
  EXPECT_EQ(*t->Encode("hellohello", kPlain), (Ids{1}));  // one unknown for a word that cannot be covered
  EXPECT_EQ(*t->Encode(" \xFF\x01\n", kPlain), Ids{});
  EXPECT_EQ(t->Decode(*t->Encode("HE,", {})), "he ,");
}

TEST(PreTokenizer, EveryNameCompilesAndUnknownOnesAreRefused) {
  for (const char* name :
       {"default",     "gpt-2",     "llama-bpe", "qwen2",  "deepseek-llm", "deepseek-coder", "falcon",
        "starcoder",   "refact",    "mpt",       "smollm", "gpt-4o",       "tekken",         "olmo",
        "dbrx",        "command-r", "stablelm2", "qwen35", "exaone",       "minerva-7b",     "chatglm-bpe",
        "deepseek-v3", "bloom",     "viking",    "jais-2", "bailingmoe",   "seed-coder",     "minicpm5"}) {
    const auto pre = PreTokenizer::ForName(name);
    ASSERT_TRUE(pre) << name;
    for (const std::string text :
         {"", "x", " I'm 12345 \xC3\xA4\xE4\xBD\xA0\xE3\x80\x80!\r\n\t  end ", "\xE1\x9E\x80\xE1\x9E\xB6 '"}) {
      std::vector<uint32_t> lengths;
      ASSERT_TRUE(pre->Split(text, lengths));
      size_t sum = 0;
      for (const uint32_t length : lengths) sum += length;
      EXPECT_EQ(sum, text.size()) << name;
    }
  }
  const auto unknown = PreTokenizer::ForName("gpt-22");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().reason, reasons::kUnsupportedTokenizer);
  EXPECT_NE(unknown.error().message.find("gpt-22"), std::string::npos);
}

TEST(PreTokenizer, Pieces) {
  const auto split = [](const char* name, const std::string& text) {
    const auto pre = PreTokenizer::ForName(name);
    std::vector<uint32_t> lengths;
    EXPECT_TRUE(pre->Split(text, lengths));
    std::vector<std::string> out;
    size_t at = 0;
    for (const uint32_t length : lengths) out.push_back(text.substr(at, length)), at += length;
    return out;
  };
  using Texts = std::vector<std::string>;
  EXPECT_EQ(split("gpt-2", "We'll go  on 123!"), (Texts{"We", "'ll", " go", " ", " on", " 123", "!"}));
  EXPECT_EQ(split("llama-bpe", "WE'LL 12345\n\n x"), (Texts{"WE", "'LL", " ", "123", "45", "\n\n", " x"}));
  EXPECT_EQ(split("qwen2", "a12\t\tb"), (Texts{"a", "1", "2", "\t", "\tb"}));
  EXPECT_EQ(split("gpt-4o", "camelCase's XMLFile"), (Texts{"camel", "Case's", " XMLFile"}));
  EXPECT_EQ(split("starcoder", "x 42"), (Texts{"x", " ", "4", "2"}));
  EXPECT_EQ(split("deepseek-llm", "a  "), (Texts{"a", "  "}));
  // White space up to its last line end in one piece, else in pieces of powers of two: also behind punctuation that took a line end.
  EXPECT_EQ(split("jais-2", "a \n  \n b!\n \n      c"), (Texts{"a", " \n  \n", " b", "!\n", " \n", "    ", " ", " c"}));
}

TEST(Hostile, UnsupportedModels) {
  for (const char* model : {"t5", "rwkv", "plamo2", "gemma4", "no_vocab", "nonsense\x1b[31m"}) {
    ExpectUnsupported(WriterFor(TinySpm(), model), std::string(model).substr(0, 4));
  }
  GgufWriter none;
  none.SetString("general.architecture", "llama");
  ExpectUnsupported(none, "tokenizer.ggml.model");
  ExpectUnsupported(WriterFor(TinyBpe(), "gpt2", "gpt-22"), "gpt-22");  // K6
}

TEST(Hostile, MissingOrWrongArrays) {
  GgufWriter no_tokens;
  no_tokens.SetString("general.architecture", "llama");
  no_tokens.SetString("tokenizer.ggml.model", "llama");
  ExpectCorrupt(no_tokens, "tokenizer.ggml.tokens");
  no_tokens.SetU32("tokenizer.ggml.tokens", 7);
  ExpectCorrupt(no_tokens, "tokenizer.ggml.tokens");
  TinyVocabulary empty;
  ExpectCorrupt(WriterFor(empty, "llama"), "tokenizer.ggml.tokens");
  GgufWriter no_merges;
  no_merges.SetString("general.architecture", "llama");
  no_merges.SetString("tokenizer.ggml.model", "gpt2");
  no_merges.SetString("tokenizer.ggml.pre", "gpt-2");
  no_merges.SetStrings("tokenizer.ggml.tokens", TinyBpe().tokens);
  ExpectCorrupt(no_merges, "tokenizer.ggml.merges");
}

TEST(Hostile, K1ByteTokens) {
  for (const char* text : {"<0x-1>", "<0xZZ>", "<0x1>", "<0x123>", "0x0A", "<0x0A", "", "<0xA\xC3"}) {
    TinyVocabulary v = TinySpm();
    v.Add(text, 6);
    ExpectCorrupt(WriterFor(v, "llama"), "tokenizer.ggml.tokens");
  }
}

TEST(Hostile, K2SpecialIdsOutsideTheVocabulary) {
  for (const char* name : {"bos", "eos", "padding", "unknown", "seperator", "cls", "mask", "eot", "eom", "fim_pad"}) {
    const std::string key = std::string("tokenizer.ggml.") + name + "_token_id";
    GgufWriter large = WriterFor(TinySpm(), "llama");
    large.SetU32(key, static_cast<uint32_t>(TinySpm().tokens.size()));
    ExpectCorrupt(large, key);
    GgufWriter negative = WriterFor(TinySpm(), "llama");
    negative.SetI32(key, -1);
    ExpectCorrupt(negative, key);
  }
}

TEST(Hostile, K3ShortArrays) {
  TinyVocabulary scores = TinySpm();
  scores.scores.pop_back();
  ExpectCorrupt(WriterFor(scores, "llama"), "tokenizer.ggml.scores");
  TinyVocabulary types = TinySpm();
  types.types.pop_back();
  ExpectCorrupt(WriterFor(types, "llama"), "tokenizer.ggml.token_type");
  types.types.push_back(99);
  ExpectCorrupt(WriterFor(types, "llama"), "tokenizer.ggml.token_type");
  TinyVocabulary nan = TinySpm();
  nan.scores[300 % nan.scores.size()] = std::numeric_limits<float>::quiet_NaN();
  ExpectCorrupt(WriterFor(nan, "llama"), "tokenizer.ggml.scores");
}

TEST(Hostile, K4Merges) {
  for (const char* line : {"ab", "", " ", "a ", " b"}) {
    TinyVocabulary v = TinyBpe();
    v.merges.push_back(line);
    ExpectCorrupt(WriterFor(v, "gpt2", "gpt-2"), "tokenizer.ggml.merges");
  }
  // Rules with unknown pieces, rules given twice and rules in a circle change nothing.
  TinyVocabulary v = TinyBpe();
  for (const char* line : {"q zz", "nothere a", "a b", "ab c", "abc a", "a abc"}) v.merges.push_back(line);
  const auto t = MustLoad(WriterFor(v, "gpt2", "gpt-2"));
  const auto clean = MustLoad(WriterFor(TinyBpe(), "gpt2", "gpt-2"));
  EXPECT_EQ(*t->Encode("abcabca qzz", kPlain), *clean->Encode("abcabca qzz", kPlain));
}

TEST(Hostile, K5TokenTexts) {
  TinyVocabulary v = TinySpm();
  v.Add("\xFF\xFE", 1, 5);  // not UTF-8: stays bytes
  v.Add("", 1);             // never matched
  const auto t = MustLoad(WriterFor(v, "llama"));
  EXPECT_EQ(t->Decode(*t->Encode("a\xFF\xFE", kPlain)), "a\xFF\xFE");
  EXPECT_EQ(t->Piece(static_cast<TokenId>(v.tokens.size()) - 1), "");
  v.Add(std::string(limits::kMaxTokenBytes, 'x'));
  EXPECT_NE(MustLoad(WriterFor(v, "llama")), nullptr);
  v.Add(std::string(1 << 20, 'x'));
  ExpectCorrupt(WriterFor(v, "llama"), "tokenizer.ggml.tokens");
  EXPECT_EQ(t->Piece(-1), "");
  EXPECT_EQ(t->Piece(1 << 30), "");
  EXPECT_EQ(t->Decode(Ids{-5, 1 << 30}), "");
}

TEST(Hostile, K8SameTextTwice) {
  TinyVocabulary v = TinySpm();
  const auto first = IdOf(v, "abc");
  v.Add("abc", 1, 9);
  const auto second = static_cast<TokenId>(v.tokens.size()) - 1;
  v.Add("ab", 3);  // a control token that reads like a word
  const auto t = MustLoad(WriterFor(v, "llama"));
  EXPECT_EQ(t->Encode("abc", kPlain)->back(), first);  // the lower id
  EXPECT_EQ(t->Piece(second), "abc");                  // both decode
  EXPECT_EQ(t->Encode("ab", kPlain)->back(), IdOf(v, "ab"));
  EXPECT_EQ(t->Encode("ab", kParsed)->back(), static_cast<TokenId>(v.tokens.size()) - 1);
}

TEST(Hostile, TextNeverMergesIntoAControlToken) {
  TinyVocabulary v = TinySpm();
  v.Add("ca", 3, 99);
  const auto spm = MustLoad(WriterFor(v, "llama"));
  EXPECT_EQ(spm->Encode("ca", kPlain)->back(), IdOf(v, "a"));
  EXPECT_EQ(spm->Encode("ca", kParsed)->back(), IdOf(v, "ca"));
  TinyVocabulary b = TinyBpe();
  b.Add("ca", 3);
  b.merges.push_back("c a");
  for (const char* pre : {"gpt-2", "llama-bpe"}) {
    EXPECT_EQ(*MustLoad(WriterFor(b, "gpt2", pre))->Encode("ca", kPlain), (Ids{IdOf(b, "c"), IdOf(b, "a")}));
  }
}

TEST(Hostile, K9NoEndOfSequence) {
  TinyVocabulary v = TinyBpe();
  v.tokens[static_cast<size_t>(IdOf(v, "<|end|>"))] = "<other>";
  const auto t = MustLoad(WriterFor(v, "gpt2", "gpt-2"));
  EXPECT_TRUE(t->end_tokens().empty());
}

TEST(Hostile, LongTextsOfOneCharacter) {
  const std::string a(1 << 20, 'a');
  const std::string spaces(1 << 20, ' ');
  for (const auto& t :
       {MustLoad(WriterFor(TinySpm(), "llama")), MustLoad(WriterFor(TinyBpe(), "gpt2", "gpt-2")),
        MustLoad(WriterFor(TinyBpe(), "gpt2", "deepseek-llm")), MustLoad(WriterFor(TinyBpe(), "gpt2", "gpt-4o"))}) {
    for (const std::string& text : {a, spaces, spaces + "x"}) {
      const auto ids = t->Encode(text, kPlain);
      ASSERT_TRUE(ids) << ToString(ids.error());
      EXPECT_TRUE(t->Decode(*ids) == text);
    }
  }
  EXPECT_EQ(MustLoad(WordPieceWriter())->Encode(a, kPlain)->size(), 1u);
}

// Found by fuzzing: an ill-formed lead byte swallowed the first byte of the space mark behind it.
TEST(Tokenizer, ASpaceBehindAnIllFormedByteComesBack) {
  const auto tokenizer = LoadFrom(WriterFor(TinySpm(), "llama"));
  ASSERT_TRUE(tokenizer);
  for (const std::string text : {"\xDC ", "\xE2 a", "\xF0\x9F b", "\xDC\xDC  "}) {
    const auto ids = (*tokenizer)->Encode(text, {.add_special = false, .parse_special = false});
    ASSERT_TRUE(ids);
    EXPECT_EQ((*tokenizer)->Decode(*ids), text);
  }
}

}  // namespace
}  // namespace shoal
