// What: what shoal-load asks of a server, decided beforehand: when each request starts, how long its prompt is, its body.
// Owns: nothing; plain values and pure functions. Request i is the same for one seed, whoever sends it and whenever.
// Limits: kMaxRequests, kMaxPromptTokens.
// Fails: wrong text (a URL, a range, extra fields) is kInvalidArgument.
// Reads next: bench/load_client.h (sends it), bench/load.cc (the flags).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace shoal::load {

inline constexpr int kMaxRequests = 1'000'000;
inline constexpr int kMaxPromptTokens = 1'000'000;

// Both ends belong to it.
struct Range {
  int low = 0;
  int high = 0;
};

struct Url {
  std::string host;  // a name or an address, without brackets
  std::string port;
  std::string path;  // the base, "/v1": no slash at its end
  bool tls = false;
};

struct Plan {
  Url url = {};
  bool chat = false;       // /chat/completions in place of /completions
  std::string model = {};  // may be empty: left out
  std::string api_key = {};
  bool verify = true;        // the certificate of a TLS server
  std::string ca_file = {};  // PEM, instead of the system's authorities
  int requests = 64;
  int warmup = 0;   // sent before, one by one, and not counted
  double rate = 0;  // requests a second, Poisson; 0: closed loop
  int clients = 8;  // of the closed loop
  Range prompt_tokens{32, 512};
  bool token_ids = false;  // prompts are arrays of ids: their length is exact
  Range ids{3, 99};        // what ids are drawn from; these are in any vocabulary
  int max_tokens = 128;
  double temperature = 0;
  bool ignore_eos = false;
  std::string extra = {};  // a JSON object whose fields are added to each body; may be empty
  uint64_t seed = 1;

  Nanos connect_timeout = std::chrono::seconds(10);
  Nanos idle_timeout = std::chrono::seconds(60);      // nothing came for so long
  Nanos request_timeout = std::chrono::seconds(300);  // one request, all of it
  Nanos run_timeout = std::chrono::seconds(1800);     // all requests; what is not done by then has failed
};

// http[s]://HOST[:PORT][/BASE]; without a base it is /v1.
Result<Url> ParseUrl(std::string_view text);

// "32-512", or "64" for 64-64; both within [least, most].
Result<Range> ParseRange(std::string_view text, int least, int most);

// A JSON object, or nothing at all.
Status CheckExtra(std::string_view text);

// Seconds from the start at which each of `count` requests is sent: a Poisson process of `rate` a second.
std::vector<double> ArrivalTimes(double rate, int count, uint64_t seed);

// Tokens of request `index`'s prompt; a text is made of as many common words, of about a token each.
int PromptTokens(const Plan& plan, int index);

// The body of request `index`, one JSON object.
std::string RequestBody(const Plan& plan, int index);

}  // namespace shoal::load
