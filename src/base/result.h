// What: Result<T> = a value or an Error, and the two macros that pass errors up.
// Fails: by value only. Foreign exceptions are caught in the one file that calls the library which throws them.
#pragma once

#include <expected>
#include <utility>

#include "base/error.h"

namespace shoal {

template <class T>
using Result = std::expected<T, Error>;
using Status = std::expected<void, Error>;

inline std::unexpected<Error> Fail(Error error) { return std::unexpected<Error>(std::move(error)); }
inline std::unexpected<Error> Fail(Code code, Reason reason, std::string message, std::string detail = {}) {
  return std::unexpected<Error>(MakeError(code, reason, std::move(message), std::move(detail)));
}

#define SHOAL_CONCAT_INNER(a, b) a##b
#define SHOAL_CONCAT(a, b) SHOAL_CONCAT_INNER(a, b)

// Returns the error of `expression` (a Result or Status) to the caller, if it is one.
#define SHOAL_RETURN_IF_ERROR(...)                                             \
  do {                                                                         \
    if (auto shoal_status = (__VA_ARGS__); !shoal_status) [[unlikely]]         \
      return std::unexpected<::shoal::Error>(std::move(shoal_status).error()); \
  } while (false)

// SHOAL_ASSIGN(auto file, OpenFile(path)): the value, or the error goes to the caller.
#define SHOAL_ASSIGN(target, ...) SHOAL_ASSIGN_INNER(SHOAL_CONCAT(shoal_result_, __LINE__), target, __VA_ARGS__)
#define SHOAL_ASSIGN_INNER(result, target, ...)                        \
  auto result = (__VA_ARGS__);                                         \
  if (!result) [[unlikely]]                                            \
    return std::unexpected<::shoal::Error>(std::move(result).error()); \
  target = std::move(*result)

}  // namespace shoal
