#include "model/text_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "model/unicode.h"

namespace shoal {
namespace {

struct Streamed {
  std::string text;
  int stop = -1;
};

Streamed Stream(const std::vector<std::string>& pieces, const std::vector<std::string>& stops) {
  TextStream stream(stops);
  Streamed result;
  for (const std::string& piece : pieces) {
    const auto output = stream.Append(piece);
    EXPECT_TRUE(IsUtf8(output.text)) << "a divided character was sent";
    result.text += output.text;
    if (output.stopped) break;
  }
  const std::string rest = stream.Finish();
  EXPECT_TRUE(IsUtf8(rest));
  result.text += rest;
  result.stop = stream.stop();
  return result;
}

std::string Repaired(const std::string& bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size();) {
    const Utf8Char c = ReadUtf8(bytes, i);
    out += c.valid ? std::string_view(bytes).substr(i, c.length) : kReplacementUtf8;
    i += c.length;
  }
  return out;
}

// Looks at every end of the whole text, shortest first.
Streamed Naive(const std::string& bytes, const std::vector<std::string>& stops) {
  const std::string text = Repaired(bytes);
  for (size_t end = 1; end <= text.size(); ++end) {
    int best = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (stops[i].empty() || !std::string_view(text).substr(0, end).ends_with(stops[i])) continue;
      if (best < 0 || stops[i].size() > stops[static_cast<size_t>(best)].size()) best = static_cast<int>(i);
    }
    if (best >= 0) return {text.substr(0, end - stops[static_cast<size_t>(best)].size()), best};
  }
  return {text, -1};
}

TEST(TextStream, KeepsTheSpaceOfAContinuation) { EXPECT_EQ(Stream({" there", " was"}, {}).text, " there was"); }

TEST(TextStream, HoldsBackUnfinishedCharacters) {
  TextStream stream;
  EXPECT_EQ(stream.Append("a\xF0\x9F").text, "a");
  EXPECT_EQ(stream.Append("\xA6").text, "");
  EXPECT_EQ(stream.Append("\x99!").text, "\xF0\x9F\xA6\x99!");
  EXPECT_EQ(stream.Append("\xE2\x96").text, "");
  EXPECT_EQ(stream.Finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(TextStream, ReplacesWhatCannotBecomeACharacter) {
  EXPECT_EQ(Stream({"\xFF", "a\xE2", "b\x80"}, {}).text,
            "\xEF\xBF\xBD"
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD");
}

TEST(TextStream, StopAcrossPieces) {
  TextStream stream(std::vector<std::string>{"</end>"});
  EXPECT_EQ(stream.Append("one </").text, "one ");
  EXPECT_EQ(stream.Append("en").text, "");
  EXPECT_EQ(stream.Append("x <").text, "</enx ");
  const auto last = stream.Append("/end> two");
  EXPECT_EQ(last.text, "");
  EXPECT_TRUE(last.stopped);
  EXPECT_EQ(stream.stop(), 0);
  EXPECT_EQ(stream.Append("more").text, "");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(TextStream, StopThatBeginsInsideAFailedOne) {
  EXPECT_EQ(Stream({"a", "a", "a", "b", "c"}, {"aab"}).text, "a");
  EXPECT_EQ(Stream({"ababac"}, {"abac"}).text, "ab");
}

TEST(TextStream, TheFirstCompleteStopWinsAndThenTheLongest) {
  EXPECT_EQ(Stream({"xabc"}, {"abc", "b"}).text, "xa");
  EXPECT_EQ(Stream({"xa", "bc"}, {"abc", "b"}).text, "xa");
  const Streamed both = Stream({"xab"}, {"b", "ab"});
  EXPECT_EQ(both.text, "x");
  EXPECT_EQ(both.stop, 1);
}

TEST(TextStream, HeldTextIsGivenBackAtTheEnd) {
  EXPECT_EQ(Stream({"wait\n", "\nUse"}, {"\n\nUser:"}).text, "wait\n\nUse");
}

TEST(TextStream, StopInsideOneMultibyteText) {
  EXPECT_EQ(Stream({"\xC3\xA4\xE3\x80", "\x82\xC3\xB6"}, {"\xE3\x80\x82"}).text, "\xC3\xA4");
  // A stop string that shares its first bytes with another character holds nothing half back.
  EXPECT_EQ(Stream({"\xE3\x80\x81x"}, {"\xE3\x80\x82"}).text, "\xE3\x80\x81x");
}

TEST(TextStream, AReplacedEndCanCompleteAStop) { EXPECT_EQ(Stream({"ab\xE2"}, {"b\xEF\xBF\xBD"}).text, "a"); }

TEST(TextStream, SameAsLookingAtTheWholeText) {
  std::mt19937 random(7);
  const auto pick = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const std::vector<std::string> letters = {"a", "b", "ab", "\n", "\xC3\xA4", "\xE2\x96\x81", "\xF0\x9F\xA6\x99"};
  const std::vector<std::string> bytes = {"a",    "b",    "\xE2", "\x96", "\x81", "\xF0",
                                          "\x9F", "\xC3", "\xFF", "\xED", "\xA0"};
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(pick(4));
    for (std::string& stop : stops) {
      for (size_t n = pick(5); n > 0; --n) stop += letters[pick(letters.size())];
    }
    std::string text;
    for (size_t n = pick(30); n > 0; --n)
      text += pick(3) == 0 ? bytes[pick(bytes.size())] : letters[pick(letters.size())];
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t length = std::min(text.size() - at, pick(6));
      pieces.push_back(text.substr(at, length));
      at += length;
    }
    const Streamed streamed = Stream(pieces, stops);
    const Streamed expected = Naive(text, stops);
    ASSERT_EQ(streamed.text, expected.text) << "round " << round;
    ASSERT_EQ(streamed.stop, expected.stop) << "round " << round;
  }
}

TEST(TextStream, SendsAsSoonAsItMay) {
  // Nothing but a possible beginning of a stop string is held back.
  TextStream stream(std::vector<std::string>{"STOP", "TO"});
  EXPECT_EQ(stream.Append("S").text, "");
  EXPECT_EQ(stream.Append("S").text, "S");
  EXPECT_EQ(stream.Append("Tx").text, "STx");
}

TEST(TextStream, LinearOnRepetition) {
  // The worst text for a matcher that starts again: many nearly complete stops.
  const std::string almost(1000, 'a');
  TextStream stream(std::vector<std::string>(16, almost + "b"));
  std::string out;
  for (int i = 0; i < 1000; ++i) out += stream.Append(almost).text;
  out += stream.Finish();
  EXPECT_EQ(out, std::string(1000 * 1000, 'a'));
}

}  // namespace
}  // namespace shoal
