// What: server-sent events, as OpenAI's clients read them.
// Threads: pure.
#pragma once

#include <string>
#include <string_view>

namespace shoal::serve {

inline constexpr std::string_view kSseContentType = "text/event-stream; charset=utf-8";
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";
inline constexpr std::string_view kSsePing = ": ping\n\n";

// `json` must be on one line, which dump() without indentation gives.
inline std::string SseEvent(std::string_view json) {
  std::string event;
  event.reserve(json.size() + 8);
  event.append("data: ").append(json).append("\n\n");
  return event;
}

}  // namespace shoal::serve
