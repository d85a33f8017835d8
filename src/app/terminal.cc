#include "app/terminal.h"

#include <unistd.h>

#include <string>

namespace shoal {

TerminalText::TerminalText(std::FILE* file) : file_(file), terminal_(isatty(fileno(file)) != 0) {}

void TerminalText::Write(std::string_view text) {
  if (!terminal_) {
    std::fwrite(text.data(), 1, text.size(), file_);
  } else {
    std::string safe;
    for (size_t i = 0; i < text.size(); ++i) {
      const auto c = static_cast<unsigned char>(text[i]);
      // C0 controls but newline and tab, DEL, and C1 controls (U+0080..U+009F: c2 80..c2 9f) are dropped.
      if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) continue;
      if (c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0) {
        ++i;
        continue;
      }
      safe += text[i];
    }
    std::fwrite(safe.data(), 1, safe.size(), file_);
  }
  std::fflush(file_);
}

}  // namespace shoal
