// What: the little of Unicode that tokenizers need: reading and writing UTF-8, classes of characters (utf8proc), and the
// reversible bytes <-> characters table of byte-level BPE.
// Threads: pure functions.
// Limits: none of its own; every function looks at its argument once.
// Fails: never. Ill-formed bytes are reported as such, one maximal part at a time (Unicode 3.9, table 3-7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace shoal {

inline constexpr char32_t kReplacement = 0xFFFD;
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, how SentencePiece writes a space

struct Utf8Char {
  char32_t code = kReplacement;
  uint32_t length = 1;  // bytes taken; when ill-formed, the longest part that begins a character
  bool valid = false;
  bool incomplete = false;  // ill-formed only because the text ends here
};

// The character at `offset` (< text.size()).
Utf8Char ReadUtf8(std::string_view text, size_t offset);

// Bytes that a character beginning with `lead` should have, whatever follows; 1 for a continuation byte. llama.cpp cuts
// SentencePiece text by this, so ill-formed text gets the same pieces here.
inline size_t Utf8LeadLength(unsigned char lead) { return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

void AppendUtf8(std::string& out, char32_t code);

// True when `text` is well-formed as a whole.
bool IsUtf8(std::string_view text);

// `text` with every ill-formed byte replaced by its own U+FFFD.
std::string ReplaceIllFormedBytes(std::string_view text);

enum class CharClass : uint8_t { kUndefined, kLetter, kMark, kNumber, kPunctuation, kSymbol, kSeparator, kControl };
CharClass ClassOf(char32_t code);
bool IsWhiteSpace(char32_t code);   // property White_Space
char32_t LowerCase(char32_t code);  // simple mapping
char32_t NfdBase(char32_t code);    // first character of the canonical decomposition

// Byte-level BPE writes each byte as one printable character: itself where printable in Latin-1, else U+0100 onwards.
char32_t ByteToChar(uint8_t byte);
int CharToByte(char32_t code);  // -1 = not of the table

}  // namespace shoal
