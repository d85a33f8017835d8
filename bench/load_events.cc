#include "load_events.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

namespace shoal::load {
namespace {

using nlohmann::json;

// The text that choices[0] brings: of a completion, or of a chat (where thinking is text too).
bool HasText(const json& choice) {
  const auto filled = [](const json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() && !found->get_ref<const std::string&>().empty();
  };
  if (!choice.is_object()) return false;
  if (filled(choice, "text")) return true;
  const auto delta = choice.find("delta");
  return delta != choice.end() && delta->is_object() &&
         (filled(*delta, "content") || filled(*delta, "reasoning_content"));
}

int Count(const json& usage, const char* key) {
  const auto found = usage.find(key);
  if (found == usage.end() || !found->is_number_integer()) return -1;
  const auto value = found->get<int64_t>();
  return value < 0 || value > std::numeric_limits<int>::max() ? -1 : static_cast<int>(value);
}

}  // namespace

bool EventReader::Feed(std::string_view bytes, const std::function<void(std::string_view data)>& event) {
  while (!bytes.empty()) {
    if (std::exchange(after_cr_, false) && bytes.front() == '\n') {  // the second half of CR LF
      bytes.remove_prefix(1);
      continue;
    }
    const size_t end = std::min(bytes.find_first_of("\r\n"), bytes.size());
    if (line_.size() + data_.size() + end > kMaxEventBytes) return false;
    line_.append(bytes.substr(0, end));
    if (end == bytes.size()) return true;
    after_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    if (!EndLine(event)) return false;
  }
  return true;
}

bool EventReader::EndLine(const std::function<void(std::string_view data)>& event) {
  std::string_view line = line_;
  if (std::exchange(first_line_, false) && line.starts_with("\xef\xbb\xbf")) line.remove_prefix(3);
  if (line.empty()) {
    if (has_data_) event(data_);
    data_.clear();
    has_data_ = false;
  } else if (line.starts_with("data:")) {
    line.remove_prefix(5);
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (std::exchange(has_data_, true)) data_ += '\n';
    data_ += line;
  }
  line_.clear();
  return data_.size() <= kMaxEventBytes;
}

Event ParseEvent(std::string_view data) {
  Event event;
  if (data == "[DONE]") {
    event.kind = Event::Kind::kDone;
    return event;
  }
  const json object = json::parse(data, nullptr, false);
  if (!object.is_object()) {
    event.kind = Event::Kind::kBroken;
    event.message = data.substr(0, 200);
    return event;
  }
  if (const auto error = object.find("error"); error != object.end() && !error->is_null()) {
    event.kind = Event::Kind::kError;
    event.message = error->dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 200);
    return event;
  }
  if (const auto choices = object.find("choices"); choices != object.end() && choices->is_array())
    if (std::ranges::any_of(*choices, HasText)) event.kind = Event::Kind::kText;
  if (const auto usage = object.find("usage"); usage != object.end() && usage->is_object()) {
    event.completion_tokens = Count(*usage, "completion_tokens");
    event.prompt_tokens = Count(*usage, "prompt_tokens");
  }
  return event;
}

}  // namespace shoal::load
