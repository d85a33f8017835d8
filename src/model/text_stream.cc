#include "model/text_stream.h"

#include <algorithm>

#include "model/unicode.h"

namespace shoal {

TextStream::TextStream(std::span<const std::string> stops) {
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) continue;
    Matcher matcher;
    matcher.text = stops[i];
    matcher.index = static_cast<int>(i);
    matcher.failure.assign(matcher.text.size(), 0);
    uint32_t matched = 0;
    for (size_t at = 1; at < matcher.text.size(); ++at) {
      while (matched > 0 && matcher.text[at] != matcher.text[matched]) matched = matcher.failure[matched - 1];
      if (matcher.text[at] == matcher.text[matched]) ++matched;
      matcher.failure[at] = matched;
    }
    matchers_.push_back(std::move(matcher));
  }
}

// `text` is well-formed and whole. Matching goes byte by byte, but what is held back begins where a stop string begins, so
// characters are never divided as long as the stop strings are UTF-8 themselves.
void TextStream::Feed(std::string_view text, std::string& out) {
  if (stopped()) return;
  if (matchers_.empty()) {
    out += text;
    return;
  }
  for (const char c : text) {
    held_ += c;
    const Matcher* found = nullptr;
    for (Matcher& matcher : matchers_) {
      uint32_t& matched = matcher.matched;
      while (matched > 0 && (matched == matcher.text.size() || matcher.text[matched] != c)) {
        matched = matcher.failure[matched - 1];
      }
      if (matcher.text[matched] == c) ++matched;
      if (matched == matcher.text.size() && (found == nullptr || matched > found->text.size())) found = &matcher;
    }
    if (found != nullptr) {
      stop_ = found->index;
      out.append(held_, 0, held_.size() - found->text.size());
      held_.clear();
      return;
    }
  }
  size_t keep = 0;
  for (const Matcher& matcher : matchers_) keep = std::max<size_t>(keep, matcher.matched);
  out.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
}

TextStream::Output TextStream::Append(std::string_view piece) {
  Output output;
  if (!stopped() && !piece.empty()) {
    std::string joined;
    std::string_view bytes = piece;
    if (!unfinished_.empty()) {
      joined = unfinished_;
      joined += piece;
      bytes = joined;
    }
    std::string whole;
    whole.reserve(bytes.size());
    size_t i = 0;
    for (; i < bytes.size();) {
      const Utf8Char c = ReadUtf8(bytes, i);
      if (c.incomplete) break;
      whole += c.valid ? bytes.substr(i, c.length) : kReplacementUtf8;
      i += c.length;
    }
    unfinished_ = std::string(bytes.substr(i));
    Feed(whole, output.text);
  }
  output.stopped = stopped();
  return output;
}

std::string TextStream::Finish() {
  std::string out;
  if (stopped()) return out;
  if (!unfinished_.empty()) {
    unfinished_.clear();
    Feed(kReplacementUtf8, out);
  }
  if (!stopped()) out += held_;
  held_.clear();
  return out;
}

}  // namespace shoal
