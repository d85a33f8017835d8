#include "load_plan.h"

#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/reasons.h"

namespace shoal::load {
namespace {

// splitmix64: the same numbers from every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }  // [0, 1)
  int In(Range range) {
    return range.low + static_cast<int>(Next() % (static_cast<uint64_t>(range.high - range.low) + 1));
  }

 private:
  uint64_t state_;
};

// Each request has numbers of its own, so that its prompt does not depend on which client sends it.
Random OfRequest(const Plan& plan, int index) {
  Random seeds(plan.seed * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(index));
  return Random(seeds.Next());
}

constexpr std::array<std::string_view, 48> kWords = {
    "the",   "of",    "and",  "to",   "in",  "is",   "that", "it",    "was",   "for", "on",  "are",
    "as",    "with",  "his",  "they", "at",  "be",   "this", "have",  "from",  "or",  "one", "had",
    "by",    "not",   "but",  "what", "all", "were", "when", "we",    "there", "can", "an",  "your",
    "which", "their", "said", "if",   "do",  "will", "each", "about", "how",   "up",  "out", "them"};

std::unexpected<Error> Wrong(std::string message) {
  return Fail(Code::kInvalidArgument, reasons::kUsage, std::move(message));
}

bool ParseInt(std::string_view text, int& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

Result<Url> ParseUrl(std::string_view text) {
  const std::string shown(text);
  const bool tls = text.starts_with("https://");
  if (!tls && !text.starts_with("http://")) return Wrong("a URL starts with http:// or https:// (" + shown + ")");
  text.remove_prefix(tls ? 8 : 7);
  Url url{.host = {}, .port = tls ? "443" : "80", .path = "/v1", .tls = tls};
  const size_t slash = text.find('/');
  std::string_view authority = text.substr(0, slash);
  if (slash != std::string_view::npos) {
    std::string_view path = text.substr(slash);
    while (path.ends_with('/')) path.remove_suffix(1);
    if (!path.empty()) url.path = path;
  }
  size_t host_end = authority.find(':');
  if (authority.starts_with('[')) {  // an IPv6 address
    const size_t bracket = authority.find(']');
    if (bracket == std::string_view::npos) return Wrong("a bracket is not closed (" + shown + ")");
    url.host = authority.substr(1, bracket - 1);
    authority.remove_prefix(bracket + 1);
    if (!authority.empty() && authority[0] != ':') return Wrong("behind the address comes :PORT (" + shown + ")");
    host_end = authority.empty() ? std::string_view::npos : 0;
  } else {
    url.host = authority.substr(0, host_end);
  }
  if (host_end != std::string_view::npos) url.port = authority.substr(host_end + 1);
  int port = 0;
  if (!ParseInt(url.port, port) || port < 1 || port > 65535) return Wrong("a port is 1 to 65535 (" + shown + ")");
  for (const char c : url.host + url.path)
    if (c <= ' ' || c == 0x7f || c == '@' || c == '?' || c == '#')
      return Wrong("a URL of host, port and path only (" + shown + ")");
  if (url.host.empty()) return Wrong("the URL names no host (" + shown + ")");
  return url;
}

Result<Range> ParseRange(std::string_view text, int least, int most) {
  const size_t dash = text.find('-');
  Range range;
  const bool numbers = ParseInt(text.substr(0, dash), range.low) &&
                       ParseInt(dash == std::string_view::npos ? text : text.substr(dash + 1), range.high);
  if (!numbers || range.low < least || range.high > most || range.low > range.high)
    return Wrong("'" + std::string(text) + "' is not LOW-HIGH within " + std::to_string(least) + " to " +
                 std::to_string(most));
  return range;
}

Status CheckExtra(std::string_view text) {
  if (text.empty() || nlohmann::json::parse(text, nullptr, false).is_object()) return {};
  return Wrong("the extra fields are not one JSON object");
}

std::vector<double> ArrivalTimes(double rate, int count, uint64_t seed) {
  Random random(seed ^ 0x61727269766c5full);
  std::vector<double> times(static_cast<size_t>(count));
  double at = 0;
  for (double& time : times) {
    time = at;  // the first one starts the clock
    at -= std::log1p(-random.Unit()) / rate;
  }
  return times;
}

int PromptTokens(const Plan& plan, int index) { return OfRequest(plan, index).In(plan.prompt_tokens); }

std::string RequestBody(const Plan& plan, int index) {
  Random random = OfRequest(plan, index);
  const int length = random.In(plan.prompt_tokens);  // the first number drawn, as in PromptTokens
  nlohmann::json body = {{"max_tokens", plan.max_tokens},
                         {"temperature", plan.temperature},
                         {"stream", true},
                         {"stream_options", {{"include_usage", true}}}};
  if (plan.token_ids) {
    std::vector<int> ids(static_cast<size_t>(length));
    for (int& id : ids) id = random.In(plan.ids);
    body["prompt"] = std::move(ids);
  } else {
    std::string text;
    for (int i = 0; i < length; ++i) {
      if (i > 0) text += ' ';
      text += kWords[random.Next() % kWords.size()];
    }
    if (plan.chat)
      body["messages"] = nlohmann::json::array({{{"role", "user"}, {"content", std::move(text)}}});
    else
      body["prompt"] = std::move(text);
  }
  if (!plan.model.empty()) body["model"] = plan.model;
  if (plan.ignore_eos) body["ignore_eos"] = true;
  if (!plan.extra.empty()) body.update(nlohmann::json::parse(plan.extra, nullptr, false));
  return body.dump();
}

}  // namespace shoal::load
