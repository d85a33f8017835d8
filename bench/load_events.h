// What: a stream of server-sent events, put together from pieces cut anywhere, and what one event of a completion says.
// Owns: the bytes of the event that is not whole yet.
// Limits: one event has at most kMaxEventBytes.
// Fails: Feed says false when an event is longer; an event that makes no sense is kBroken.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace shoal::load {

inline constexpr size_t kMaxEventBytes = size_t{1} << 20;

class EventReader {
 public:
  // Calls `event` with the data of each event that `bytes` completes. Lines may end in LF, CR LF or CR; comments and other
  // fields are passed over; several data lines are joined by LF. False: an event is too long; the reader is of no more use.
  bool Feed(std::string_view bytes, const std::function<void(std::string_view data)>& event);

 private:
  bool EndLine(const std::function<void(std::string_view data)>& event);

  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool after_cr_ = false;
  bool first_line_ = true;
};

struct Event {
  enum class Kind {
    kText,    // brings text
    kOther,   // well-formed, without text: the end of a choice, the usage, a role
    kDone,    // the stream is whole
    kError,   // the server gives up; `message` says why
    kBroken,  // no JSON object
  };
  Kind kind = Kind::kOther;
  int completion_tokens = -1;  // of `usage`, where it is there
  int prompt_tokens = -1;
  std::string message;
};

Event ParseEvent(std::string_view data);

}  // namespace shoal::load
