// What: turns the pieces of generated tokens into text that may be sent: whole characters only, and nothing that is part of a stop string.
// Owns: what is held back: an unfinished character, and the longest end of the text that may yet become a stop string.
// Threads: one at a time. Pure: no I/O, no clock.
// Limits: limits::kMaxStops stops of kMaxStopBytes; time is linear in text times stops.
// Fails: never. Bytes that are no UTF-8 become U+FFFD, one for each longest part that begins a character.
//
// The stop string that is complete first ends the text; of those complete at the same byte the longest. The text is cut before
// it. This does not depend on how the text is divided into pieces. A generation continues its prompt, so the
// space at the beginning of the first piece is text like any other.
// Source: Knuth, Morris, Pratt 1977, "Fast pattern matching in strings".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

class TextStream {
 public:
  // Empty stop strings are ignored.
  explicit TextStream(std::span<const std::string> stops = {});

  struct Output {
    std::string text;      // ready to be sent
    bool stopped = false;  // a stop string is complete: nothing more will come
  };
  Output Append(std::string_view piece);
  // What was held back: to be called once, when the generation is over without a stop string.
  // An unfinished character becomes U+FFFD; should that complete a stop string, the text is cut there too.
  std::string Finish();

  bool stopped() const { return stop_ >= 0; }
  int stop() const { return stop_; }  // index of the stop string found, -1 = none

 private:
  struct Matcher {
    std::string text;
    std::vector<uint32_t> failure;  // failure[i]: longest proper prefix of text that ends text[0..i]
    uint32_t matched = 0;
    int index = 0;
  };
  void Feed(std::string_view text, std::string& out);

  std::vector<Matcher> matchers_;
  std::string unfinished_;  // the beginning of a character
  std::string held_;        // ends in the beginning of a stop string, as long as the longest match
  int stop_ = -1;
};

}  // namespace shoal
