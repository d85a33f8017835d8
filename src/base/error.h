// What: the one error type of Shoal. A failure is a value (`Result<T>` in base/result.h), never an exception.
// Owns: nothing but its strings.
// Reads next: base/result.h, core/reasons.h (the catalogue).
#pragma once

#include <string>
#include <string_view>
#include <utility>

namespace shoal {

// The closed set of failure classes. They say who can do something about it, not what HTTP status it becomes.
enum class Code {
  kInvalidArgument,    // the caller asked for something that can never work
  kConfig,             // a configuration file, flag or environment variable is wrong
  kNotFound,           // no such model, route, file
  kCorrupt,            // bytes that contradict themselves
  kUnsupported,        // well-formed, but this build cannot do it
  kResourceExhausted,  // a limit was reached; the same call may work later
  kUnavailable,        // a peer is gone or not there yet
  kDeadlineExceeded,   // it took longer than its deadline
  kCancelled,          // the one who asked no longer wants it
  kUnauthenticated,    // the peer did not prove who it is
  kInternal,           // a fault of ours
};

std::string_view CodeName(Code code);

// A reason is an entry of a fixed catalogue (core/reasons.h): safe as a metric label, stable for scripts.
class Reason {
 public:
  consteval explicit Reason(const char* name) : name_(name) {}
  constexpr std::string_view name() const { return name_; }
  friend bool operator==(Reason a, Reason b) { return a.name() == b.name(); }

 private:
  const char* name_;
};

inline constexpr Reason kNoReason{"unspecified"};

struct [[nodiscard]] Error {
  Code code = Code::kInternal;
  Reason reason = kNoReason;
  std::string message;  // for the user: what failed, why, what to do; one line
  std::string detail;   // for operators: offsets, errno, peer; may be empty
  std::string param;    // the request field or flag that is wrong; may be empty
};

// "model_corrupt: message (detail)", for logs and tests.
std::string ToString(const Error& error);

inline Error MakeError(Code code, Reason reason, std::string message, std::string detail = {}) {
  return Error{code, reason, std::move(message), std::move(detail), {}};
}

}  // namespace shoal
