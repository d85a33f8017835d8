#include "serve/json_reader.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <format>
#include <nlohmann/json.hpp>

#include "core/limits.h"
#include "core/reasons.h"

namespace shoal::serve {
namespace {

using Json = nlohmann::json;

Error BadJson(std::string message, size_t offset) {
  return MakeError(Code::kInvalidArgument, reasons::kInvalidJson,
                   std::format("the body is not valid JSON: {} at byte {}", message, offset));
}

// Builds the document from the parser's events. The parser itself keeps no stack on the call stack, so a deep document
// costs nothing before it is refused here.
class Builder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t&) override { return Add(value); }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return Open(Json::object()); }
  bool start_array(std::size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    if (open_.size() == 1) field_ = name;
    auto [place, added] = open_.back()->emplace(std::move(name), nullptr);
    if (!added) return Refuse(std::format("duplicate key \"{}\"", place.key().substr(0, 64)));
    member_ = &*place;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& last, const nlohmann::detail::exception& error) override {
    if (error.id == 406) {  // a number that no double can hold
      error_ = InvalidValue(field_, std::format("the number {} is out of range", last.substr(0, 32)));
      return false;
    }
    // The library says "[json.exception...] parse error at line 1, column 2: WHAT - MORE; last read: '...'".
    std::string what = error.what();
    for (const std::string_view mark : {"while parsing ", "syntax error"})
      if (const size_t at = what.find(mark); at != std::string::npos) what = what.substr(at);
    if (const size_t at = what.find("; last read"); at != std::string::npos) what.resize(at);
    offset_ = position == 0 ? 0 : position - 1;
    message_ = std::move(what);
    return false;
  }

  // The document, or why there is none. `text` bounds the offset: at its end the library counts one byte more.
  Result<Json> Take(bool parsed, size_t text_size) {
    if (parsed) return std::move(root_);
    if (!error_) return Fail(BadJson(message_, std::min(offset_, text_size)));
    return Fail(std::move(*error_));
  }

 private:
  bool Refuse(const std::string& why) {
    error_ = MakeError(Code::kInvalidArgument, reasons::kInvalidJson, "the body is refused: " + why);
    error_->param = field_;
    return false;
  }

  template <class T>
  Json* Place(T&& value) {
    if (open_.empty()) {
      root_ = std::forward<T>(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::forward<T>(value));
      return &open_.back()->back();
    }
    *member_ = std::forward<T>(value);
    return member_;
  }

  template <class T>
  bool Add(T&& value) {
    if (++values_ > limits::kMaxJsonValues) return Refuse(std::format("more than {} values", limits::kMaxJsonValues));
    Place(Json(std::forward<T>(value)));
    return true;
  }

  bool Open(Json container) {
    if (open_.size() >= static_cast<size_t>(limits::kMaxJsonDepth))
      return Refuse(std::format("nested deeper than {} levels", limits::kMaxJsonDepth));
    if (++values_ > limits::kMaxJsonValues) return Refuse(std::format("more than {} values", limits::kMaxJsonValues));
    open_.push_back(Place(std::move(container)));
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Json*> open_;  // a container does not move while one inside it is open
  Json* member_ = nullptr;
  std::string field_;  // of the outermost object
  int values_ = 0;
  size_t offset_ = 0;
  std::string message_;
  std::optional<Error> error_;
};

const char* TypeName(const Json& value) {
  if (value.is_number_float()) return "a fraction";
  if (value.is_number()) return "a number";
  return value.type_name();
}

std::string Span(double min, double max, bool above) {
  return above ? std::format("above {} and at most {}", min, max) : std::format("between {} and {}", min, max);
}

}  // namespace

Result<Json> ParseJson(std::string_view text) {
  if (text.starts_with("\xEF\xBB\xBF")) return Fail(BadJson("a byte order mark", 0));
  try {
    Builder builder;
    const bool parsed = Json::sax_parse(text.begin(), text.end(), &builder, Json::input_format_t::json, true);
    return builder.Take(parsed, text.size());
  } catch (const std::bad_alloc&) {
    return Fail(Code::kResourceExhausted, reasons::kOverloaded, "not enough memory to read the body");
  }
}

Error InvalidValue(std::string_view param, std::string message) {
  Error error = MakeError(Code::kInvalidArgument, reasons::kInvalidValue, std::move(message));
  error.param = param;
  return error;
}

FieldReader::FieldReader(const Json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

const Json* FieldReader::Find(const char* name) const {
  const auto found = object_.find(name);
  if (found != object_.end() && !std::ranges::contains(known_, std::string_view(found.key())))
    known_.push_back(found.key());
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

int FieldReader::CountUnknown() const { return static_cast<int>(object_.size() - known_.size()); }

const Json* FieldReader::Want(const char* name) const { return status_ ? Find(name) : nullptr; }

void FieldReader::Refuse(std::string_view name, std::string message) {
  Refuse(InvalidValue(prefix_ + std::string(name), std::format("{}{} {}", prefix_, name, message)));
}

void FieldReader::Refuse(Error error) {
  if (status_) status_ = Fail(std::move(error));
}

FieldReader& FieldReader::Bool(const char* name, bool& out) {
  const Json* value = Want(name);
  if (value == nullptr) return *this;
  if (!value->is_boolean())
    Refuse(name, std::format("must be true or false, not {}", TypeName(*value)));
  else
    out = value->get<bool>();
  return *this;
}

namespace {

// Why `value` is not a whole number of the range; empty when it is one. 16.0 is one: Python's clients write it so.
std::string WholeNumber(const Json& value, IntegerRange range, int64_t& out) {
  bool in_range = true;
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    in_range = number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    out = in_range ? static_cast<int64_t>(number) : 0;
  } else if (value.is_number_integer()) {
    out = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::trunc(number) != number) return std::format("must be a whole number, not {}", number);
    in_range = std::abs(number) <= 9007199254740992.0;  // 2^53
    out = in_range ? static_cast<int64_t>(number) : 0;
  } else {
    return std::format("must be a whole number, not {}", TypeName(value));
  }
  if (in_range && out >= range.min && out <= range.max) return {};
  return range.max == std::numeric_limits<int64_t>::max()
             ? std::format("must be a whole number of at least {}", range.min)
             : std::format("must be between {} and {}", range.min, range.max);
}

std::string Finite(const Json& value, NumberRange range, float& out) {
  if (!value.is_number()) return std::format("must be a number, not {}", TypeName(value));
  const auto number = value.get<double>();
  if (!(number >= range.min && number <= range.max) || (range.above_min && number <= range.min))
    return std::format("must be {}", Span(range.min, range.max, range.above_min));
  out = static_cast<float>(number);
  return {};
}

}  // namespace

FieldReader& FieldReader::Integer(const char* name, IntegerRange range, int64_t& out) {
  const Json* value = Want(name);
  if (value == nullptr) return *this;
  int64_t number = 0;
  if (std::string why = WholeNumber(*value, range, number); !why.empty())
    Refuse(name, std::move(why));
  else
    out = number;
  return *this;
}

FieldReader& FieldReader::Integer(const char* name, IntegerRange range, int& out) {
  range.max = std::min<int64_t>(range.max, std::numeric_limits<int>::max());
  int64_t number = out;
  Integer(name, range, number);
  out = static_cast<int>(number);
  return *this;
}

FieldReader& FieldReader::Number(const char* name, NumberRange range, float& out) {
  const Json* value = Want(name);
  if (value == nullptr) return *this;
  if (std::string why = Finite(*value, range, out); !why.empty()) Refuse(name, std::move(why));
  return *this;
}

FieldReader& FieldReader::String(const char* name, size_t max_bytes, std::string& out) {
  const Json* value = Want(name);
  if (value == nullptr) return *this;
  if (!value->is_string()) {
    Refuse(name, std::format("must be a string, not {}", TypeName(*value)));
  } else if (const auto& text = value->get_ref<const std::string&>(); text.size() > max_bytes) {
    Refuse(name, std::format("must be at most {} bytes, not {}", max_bytes, text.size()));
  } else {
    out = text;
  }
  return *this;
}

FieldReader& FieldReader::Strings(const char* name, StringLimits limit, std::vector<std::string>& out) {
  const Json* value = Want(name);
  if (value == nullptr) return *this;
  if (!value->is_string() && !value->is_array()) {
    Refuse(name, std::format("must be a string or an array of strings, not {}", TypeName(*value)));
    return *this;
  }
  const size_t count = value->is_array() ? value->size() : 1;
  if (count > limit.max_count) {
    Refuse(name, std::format("must have at most {} entries, not {}", limit.max_count, count));
    return *this;
  }
  std::vector<std::string> texts;
  for (size_t i = 0; i < count; ++i) {
    const Json& item = value->is_array() ? (*value)[i] : *value;
    if (!item.is_string()) {
      Refuse(name, std::format("must hold strings; entry {} is {}", i, TypeName(item)));
      return *this;
    }
    const auto& text = item.get_ref<const std::string&>();
    if (text.empty() && !limit.allow_empty) {
      Refuse(name, "must not hold an empty string");
      return *this;
    }
    if (text.size() > limit.max_bytes) {
      Refuse(name,
             std::format("must hold strings of at most {} bytes; entry {} has {}", limit.max_bytes, i, text.size()));
      return *this;
    }
    texts.push_back(text);
  }
  out = std::move(texts);
  return *this;
}

FieldReader& FieldReader::Integers(const char* name, size_t max_count, IntegerRange range, std::vector<int>& out) {
  const Json* value = Want(name);
  if (value == nullptr) return *this;
  range.max = std::min<int64_t>(range.max, std::numeric_limits<int>::max());
  if (!value->is_array()) {
    Refuse(name, std::format("must be an array of whole numbers, not {}", TypeName(*value)));
    return *this;
  }
  if (value->size() > max_count) {
    Refuse(name, std::format("must have at most {} entries, not {}", max_count, value->size()));
    return *this;
  }
  std::vector<int> numbers;
  numbers.reserve(value->size());
  for (const Json& item : *value) {
    int64_t number = 0;
    if (std::string why = WholeNumber(item, range, number); !why.empty()) {
      Refuse(name, std::format("entry {} {}", numbers.size(), why));
      return *this;
    }
    numbers.push_back(static_cast<int>(number));
  }
  out = std::move(numbers);
  return *this;
}

FieldReader& FieldReader::NumberMap(const char* name, size_t max_count, IntegerRange keys, NumberRange range,
                                    std::vector<std::pair<int, float>>& out) {
  const Json* value = Want(name);
  if (value == nullptr) return *this;
  if (!value->is_object()) {
    Refuse(name, std::format("must be an object, not {}", TypeName(*value)));
    return *this;
  }
  if (value->size() > max_count) {
    Refuse(name, std::format("must have at most {} entries, not {}", max_count, value->size()));
    return *this;
  }
  std::vector<std::pair<int, float>> pairs;
  for (const auto& [text, item] : value->items()) {
    int key = 0;
    const auto end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data(), end, key);
    float number = 0;
    // One way to write a number, so that no key is there twice.
    const bool canonical = parsed.ec == std::errc() && parsed.ptr == end && text == std::to_string(key);
    if (!canonical || key < keys.min || key > keys.max) {
      Refuse(name, std::format("has the key \"{}\"; keys are whole numbers between {} and {}, without leading zeros",
                               text.substr(0, 32), keys.min, keys.max));
      return *this;
    }
    if (std::string why = Finite(item, range, number); !why.empty()) {
      Refuse(name, std::format("entry {} {}", key, why));
      return *this;
    }
    pairs.emplace_back(key, number);
  }
  out = std::move(pairs);
  return *this;
}

FieldReader& FieldReader::Object(const char* name, const std::function<Status(FieldReader&)>& read) {
  const Json* value = Want(name);
  if (value == nullptr) return *this;
  if (!value->is_object()) {
    Refuse(name, std::format("must be an object, not {}", TypeName(*value)));
    return *this;
  }
  FieldReader inner(*value, prefix_ + name + ".");
  if (Status status = read(inner); !status) Refuse(std::move(status).error());
  return *this;
}

}  // namespace shoal::serve
