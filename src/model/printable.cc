#include "model/printable.h"

#include <utf8proc.h>

#include <algorithm>
#include <format>

namespace shoal {
namespace {

bool MustEscape(utf8proc_int32_t point) {
  if (point < 0x20 || (point >= 0x7f && point < 0xa0)) return true;  // C0, DEL, C1: terminals obey them
  return point == 0x200e || point == 0x200f || (point >= 0x202a && point <= 0x202e) ||
         (point >= 0x2066 && point <= 0x2069) || point == 0x2028 || point == 0x2029;
}

void AppendEscaped(std::string& out, utf8proc_int32_t point) {
  switch (point) {
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      out += point < 0x100 ? std::format("\\x{:02x}", point) : std::format("\\u{:04x}", point);
  }
}

}  // namespace

std::string Printable(std::string_view text, size_t max_bytes) {
  std::string out;
  out.reserve(std::min(text.size(), max_bytes) + 8);
  size_t at = 0;
  while (at < text.size()) {
    if (out.size() >= max_bytes) return out + "...";
    utf8proc_int32_t point = -1;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at);
    const auto length =
        utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(std::min<size_t>(text.size() - at, 4)), &point);
    if (length <= 0 || point < 0) {
      out += std::format("\\x{:02x}", static_cast<unsigned char>(text[at++]));
      continue;
    }
    if (MustEscape(point)) {
      AppendEscaped(out, point);
    } else {
      out.append(text.substr(at, static_cast<size_t>(length)));
    }
    at += static_cast<size_t>(length);
  }
  return out;
}

}  // namespace shoal
