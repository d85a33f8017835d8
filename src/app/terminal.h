// What: model text on its way to a terminal. A model may write control sequences (cursor moves, title changes, links): on a
// terminal they are dropped, in a pipe the bytes go out as they are.
#pragma once

#include <cstdio>
#include <string_view>

namespace shoal {

class TerminalText {
 public:
  explicit TerminalText(std::FILE* file);
  void Write(std::string_view text);  // flushes

 private:
  std::FILE* file_;
  bool terminal_;
};

}  // namespace shoal
