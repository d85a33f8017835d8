// What: JSON from outside: a parser that refuses before it builds, and a reader of an object's fields with their ranges.
// Threads: pure; a reader belongs to one.
// Limits: kMaxJsonDepth levels, kMaxJsonValues values; checked while reading, without recursion.
// Fails: kInvalidJson with the byte offset (malformed, invalid UTF-8, lone surrogates, duplicate keys, trailing bytes, too
// deep); kInvalidValue with `param` (wrong type, out of range). A NUL written as \u0000 is text like any other.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace shoal::serve {

Result<nlohmann::json> ParseJson(std::string_view text);

Error InvalidValue(std::string_view param, std::string message);

struct IntegerRange {
  int64_t min = 0;
  int64_t max = std::numeric_limits<int64_t>::max();
};

struct NumberRange {
  double min = 0;
  double max = 0;
  bool above_min = false;  // min itself is refused
};

struct StringLimits {
  size_t max_count = 1;
  size_t max_bytes = 0;
  bool allow_empty = false;  // empty strings
};

// Reads the fields of one object; each call is one line of the table of what is accepted. A missing field and null leave
// the output as it is. The first failure is kept, the rest is then skipped. Unknown fields are ignored.
class FieldReader {
 public:
  // `prefix` names the object in `param` ("stream_options."); empty for the body itself.
  explicit FieldReader(const nlohmann::json& object, std::string prefix = {});

  FieldReader& Bool(const char* name, bool& out);
  FieldReader& Integer(const char* name, IntegerRange range, int64_t& out);
  FieldReader& Integer(const char* name, IntegerRange range, int& out);
  FieldReader& Number(const char* name, NumberRange range, float& out);
  FieldReader& String(const char* name, size_t max_bytes, std::string& out);
  // A string, or an array of strings.
  FieldReader& Strings(const char* name, StringLimits limits, std::vector<std::string>& out);
  FieldReader& Integers(const char* name, size_t max_count, IntegerRange range, std::vector<int>& out);
  // {"17": -5.5}: whole numbers as keys, as std::to_string writes them.
  FieldReader& NumberMap(const char* name, size_t max_count, IntegerRange keys, NumberRange range,
                         std::vector<std::pair<int, float>>& out);
  FieldReader& Object(const char* name, const std::function<Status(FieldReader&)>& read);

  // The field, when it is there and not null.
  const nlohmann::json* Find(const char* name) const;
  bool Has(const char* name) const { return Find(name) != nullptr; }
  // Fields nobody asked for. Only what was read without a failure has asked for all it knows.
  int CountUnknown() const;
  void Refuse(std::string_view name, std::string message);
  void Refuse(Error error);
  const Status& status() const { return status_; }

 private:
  const nlohmann::json* Want(const char* name) const;  // Find, unless something failed before
  const nlohmann::json& object_;
  std::string prefix_;
  mutable std::vector<std::string_view> known_;  // of the object's own fields: those asked for
  Status status_;
};

}  // namespace shoal::serve
