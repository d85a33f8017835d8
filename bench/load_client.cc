#include "load_client.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <exception>

#include "core/reasons.h"
#include "load_events.h"

namespace shoal::load {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;

constexpr auto kNoThrow = asio::as_tuple(asio::use_awaitable);
constexpr size_t kMaxHead = 64 * 1024;
constexpr size_t kMaxGapsOfOne = 16384;  // kept of one request
constexpr size_t kMaxErrorBody = 4096;   // read of an answer that is no stream

template <class T>
using Task = asio::awaitable<T>;

using PlainStream = beast::tcp_stream;
using TlsStream = asio::ssl::stream<beast::tcp_stream>;

struct Failure {
  std::string cause;  // empty: none
  std::string detail;
};

// One run: who may send the next request, and what came of those before.
class Run {
 public:
  Run(const Plan& plan, asio::ip::tcp::resolver::results_type servers, asio::ssl::context& tls)
      : plan_(plan), servers_(std::move(servers)), tls_(tls), io_(1) {}

  Report Finish() {
    asio::co_spawn(io_, Main(), Rethrow);
    io_.run();
    return std::move(report_);
  }

 private:
  // What a request in flight keeps.
  struct Ask {
    Time start;    // its latencies count from here
    Time give_up;  // its last deadline
    Outcome outcome{};
    Time last_text{};
    std::vector<double> gaps{};
    bool done = false;  // [DONE] came
    Failure failure{};
  };

  static void Rethrow(std::exception_ptr error) {
    if (error) std::rethrow_exception(error);
  }

  Task<void> Main() {
    run_ends_ = Now() + plan_.run_timeout;
    for (int i = 0; i < plan_.warmup; ++i) {
      Ask ask = Begin(Now());
      co_await Exchange(ask, plan_.requests + i);  // prompts that no counted request has
    }
    report_.outcomes.resize(static_cast<size_t>(plan_.requests));
    started_ = Now();
    if (plan_.rate > 0) {
      co_await Arrive();
    } else {
      for (int client = 0; client < std::min(plan_.clients, plan_.requests); ++client)
        asio::co_spawn(io_, Client(), Rethrow);
    }
  }

  // Open loop: requests come at their times, whatever became of those before.
  Task<void> Arrive() {
    const auto times = ArrivalTimes(plan_.rate, plan_.requests, plan_.seed);
    asio::steady_timer timer(io_);
    for (int i = 0; i < plan_.requests; ++i) {
      const auto after =
          std::chrono::duration_cast<Nanos>(std::chrono::duration<double>(times[static_cast<size_t>(i)]));
      const Time at = std::min(started_ + after, run_ends_);
      timer.expires_at(at);
      co_await timer.async_wait(kNoThrow);
      asio::co_spawn(io_, Send(i, at), Rethrow);
    }
  }

  // Closed loop: one client asks again when it has been answered.
  Task<void> Client() {
    while (next_ < plan_.requests) {
      const int index = next_++;
      co_await Send(index, Now());
    }
  }

  Ask Begin(Time at) const { return {.start = at, .give_up = std::min(at + plan_.request_timeout, run_ends_)}; }

  Task<void> Send(int index, Time at) {
    Ask ask = Begin(at);
    ask.outcome.scheduled = at - started_;
    ask.outcome.prompt_tokens = PromptTokens(plan_, index);
    if (at >= run_ends_) {
      ask.failure = {"run_deadline", "the run's time was up before it was sent"};
    } else if (in_flight_ >= kMaxInFlight) {
      ask.failure = {"in_flight_limit", std::to_string(kMaxInFlight) + " requests are in flight"};
    } else {
      ++in_flight_;
      co_await Exchange(ask, index);
      --in_flight_;
    }
    if (!ask.outcome.counted_by_server) ask.outcome.tokens = ask.outcome.events;
    ask.outcome.failure = ask.failure.cause;
    if (ask.outcome.ok())
      for (const double gap : ask.gaps) report_.gap_seconds.Add(gap);
    else
      report_.examples.try_emplace(ask.failure.cause, ask.failure.detail);
    report_.outcomes[static_cast<size_t>(index)] = std::move(ask.outcome);
  }

  // One connection, one request, one answer. A connection of its own each time: no answer waits behind another's rest.
  Task<void> Exchange(Ask& ask, int index) {
    if (plan_.url.tls) {
      TlsStream stream(io_, tls_);
      co_await Exchange(stream, ask, index);
    } else {
      PlainStream stream(io_);
      co_await Exchange(stream, ask, index);
    }
  }
  template <class Stream>
  Task<void> Exchange(Stream& stream, Ask& ask, int index) {
    ask.failure = co_await Converse(stream, ask, index);
    ask.outcome.end = Now() - ask.start;
    if (ask.failure.cause.empty()) co_await ReadRest(stream);
    error_code ignored;
    beast::get_lowest_layer(stream).socket().close(ignored);
  }

  // The bytes after [DONE], so that the server sees its answer taken. Nobody waits for it, it is not part of any figure.
  template <class Stream>
  Task<void> ReadRest(Stream& stream) {
    std::array<char, 512> bytes;
    for (int i = 0; i < 16; ++i) {
      beast::get_lowest_layer(stream).expires_after(std::chrono::seconds(1));
      if (const auto [error, count] = co_await stream.async_read_some(asio::buffer(bytes), kNoThrow); error) break;
    }
  }

  template <class Stream>
  void Arm(Stream& stream, const Ask& ask, Nanos patience) const {
    beast::get_lowest_layer(stream).expires_at(std::min(Now() + patience, ask.give_up));
  }

  // Why an operation failed; `late` names a deadline that passed.
  Failure Cause(const Ask& ask, error_code error, const char* cause, const char* late) const {
    if (error != beast::error::timeout) return {cause, error.message()};
    if (Now() >= run_ends_) return {"run_deadline", "the run's time was up"};
    if (Now() >= ask.give_up) return {"request_timeout", "not whole by the request's deadline"};
    return {late, "its deadline passed"};
  }

  Task<Failure> Trust(PlainStream&, Ask&) { co_return Failure{}; }
  Task<Failure> Trust(TlsStream& stream, Ask& ask) {
    const std::string& host = plan_.url.host;
    error_code no_address;
    asio::ip::make_address(host, no_address);
    if (no_address && SSL_set_tlsext_host_name(stream.native_handle(), host.c_str()) != 1)  // addresses are not sent
      co_return Failure{"tls", "the host's name cannot be sent"};
    if (plan_.verify) stream.set_verify_callback(asio::ssl::host_name_verification(host));
    const auto [untrusted] = co_await stream.async_handshake(TlsStream::client, kNoThrow);
    if (untrusted) co_return Cause(ask, untrusted, "tls", "connect_timeout");
    co_return Failure{};
  }

  template <class Stream>
  Task<Failure> Converse(Stream& stream, Ask& ask, int index) {
    beast::tcp_stream& socket = beast::get_lowest_layer(stream);
    Arm(stream, ask, plan_.connect_timeout);
    const auto [refused, endpoint] = co_await socket.async_connect(servers_, kNoThrow);
    if (refused) co_return Cause(ask, refused, "connect", "connect_timeout");
    error_code ignored;
    socket.socket().set_option(asio::ip::tcp::no_delay(true), ignored);
    if (Failure failure = co_await Trust(stream, ask); !failure.cause.empty()) co_return failure;

    const std::string request = RequestBytes(index);
    Arm(stream, ask, plan_.idle_timeout);
    const auto [unsent, sent] = co_await asio::async_write(stream, asio::buffer(request), kNoThrow);
    if (unsent) co_return Cause(ask, unsent, "closed_early", "idle_timeout");

    beast::flat_buffer buffer(kMaxHead);
    http::response_parser<http::buffer_body> parser;
    parser.header_limit(kMaxHead);
    parser.body_limit(boost::none);  // nothing of it is kept
    Arm(stream, ask, plan_.idle_timeout);
    const auto [headless, head] = co_await http::async_read_header(stream, buffer, parser, kNoThrow);
    if (headless) co_return Cause(ask, headless, IsProtocol(headless) ? "bad_http" : "closed_early", "idle_timeout");
    const std::string type = parser.get()[http::field::content_type];
    if (parser.get().result_int() == 200 && type.starts_with("text/event-stream"))
      co_return co_await ReadStream(stream, buffer, parser, ask);
    co_return co_await ReadRefusal(stream, buffer, parser, ask);
  }

  static bool IsProtocol(error_code error) {
    return error.category() == make_error_code(http::error::bad_method).category() &&
           error != http::error::end_of_stream && error != http::error::partial_message;
  }

  std::string RequestBytes(int index) const {
    const std::string body = RequestBody(plan_, index);
    const bool is_v6 = plan_.url.host.contains(':');
    std::string head = "POST " + plan_.url.path + (plan_.chat ? "/chat/completions" : "/completions") +
                       " HTTP/1.1\r\nHost: " + (is_v6 ? "[" + plan_.url.host + "]" : plan_.url.host) + ":" +
                       plan_.url.port + "\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n" +
                       "User-Agent: shoal-load\r\nConnection: close\r\nContent-Length: " + std::to_string(body.size());
    if (!plan_.api_key.empty()) head += "\r\nAuthorization: Bearer " + plan_.api_key;
    return head + "\r\n\r\n" + body;
  }

  // Reads the next bytes of the body into `bytes`; empty at its end.
  template <class Stream>
  Task<std::pair<error_code, std::string_view>> ReadBody(Stream& stream, beast::flat_buffer& buffer,
                                                         http::response_parser<http::buffer_body>& parser,
                                                         std::array<char, 16384>& bytes) {
    while (!parser.is_done()) {
      parser.get().body().data = bytes.data();
      parser.get().body().size = bytes.size();
      auto [error, count] = co_await http::async_read_some(stream, buffer, parser, kNoThrow);
      if (error == http::error::need_buffer) error = {};
      const size_t got = bytes.size() - parser.get().body().size;
      if (error || got > 0) co_return std::pair(error, std::string_view(bytes.data(), got));
    }
    co_return std::pair(error_code(), std::string_view());
  }

  template <class Stream>
  Task<Failure> ReadStream(Stream& stream, beast::flat_buffer& buffer, http::response_parser<http::buffer_body>& parser,
                           Ask& ask) {
    std::array<char, 16384> bytes;
    EventReader reader;
    Failure failure;
    const auto event = [&](std::string_view data) { TakeEvent(ask, data, failure); };
    while (!ask.done && failure.cause.empty()) {
      Arm(stream, ask, plan_.idle_timeout);
      const auto [error, piece] = co_await ReadBody(stream, buffer, parser, bytes);
      if (!reader.Feed(piece, event)) co_return Failure{"event_too_long", "an event is longer than 1 MiB"};
      if (ask.done || !failure.cause.empty()) break;
      if (error) co_return Cause(ask, error, IsProtocol(error) ? "bad_http" : "closed_early", "idle_timeout");
      if (piece.empty()) co_return Failure{"no_done", "the stream ended without [DONE]"};
    }
    co_return failure;
  }

  static void TakeEvent(Ask& ask, std::string_view data, Failure& failure) {
    if (ask.done || !failure.cause.empty()) return;
    const Event event = ParseEvent(data);
    Outcome& outcome = ask.outcome;
    if (event.kind == Event::Kind::kDone) ask.done = true;
    if (event.kind == Event::Kind::kError) failure = {"error_event", event.message};
    if (event.kind == Event::Kind::kBroken) failure = {"broken_event", event.message};
    if (event.kind == Event::Kind::kText) {
      const Time now = Now();
      if (outcome.events++ == 0) {
        outcome.first_token = now - ask.start;
      } else {
        outcome.longest_gap = std::max(outcome.longest_gap, now - ask.last_text);
        if (ask.gaps.size() < kMaxGapsOfOne)
          ask.gaps.push_back(std::chrono::duration<double>(now - ask.last_text).count());
      }
      ask.last_text = now;
      outcome.last_token = now - ask.start;
    }
    if (event.prompt_tokens >= 0) outcome.prompt_tokens = event.prompt_tokens;
    if (event.completion_tokens >= 0) {
      outcome.tokens = event.completion_tokens;
      outcome.counted_by_server = true;
    }
  }

  template <class Stream>
  Task<Failure> ReadRefusal(Stream& stream, beast::flat_buffer& buffer,
                            http::response_parser<http::buffer_body>& parser, Ask& ask) {
    std::array<char, 16384> bytes;
    std::string body;
    while (body.size() < kMaxErrorBody) {
      Arm(stream, ask, plan_.idle_timeout);
      const auto [error, piece] = co_await ReadBody(stream, buffer, parser, bytes);
      body += piece;
      if (error || piece.empty()) break;
    }
    const int status = static_cast<int>(parser.get().result_int());
    if (status == 200) co_return Failure{"no_stream", body.substr(0, 200)};
    co_return Failure{"http_" + std::to_string(status), body.substr(0, 200)};
  }

  const Plan& plan_;
  const asio::ip::tcp::resolver::results_type servers_;
  asio::ssl::context& tls_;
  asio::io_context io_;
  Time started_{};
  Time run_ends_{};
  int next_ = 0;
  int in_flight_ = 0;
  Report report_;
};

}  // namespace

Result<Report> Drive(const Plan& plan) {
  rlimit files{};  // a socket for each request in flight
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  asio::io_context io;
  error_code error;
  const auto servers = asio::ip::tcp::resolver(io).resolve(plan.url.host, plan.url.port, error);
  if (error) return Fail(Code::kUnavailable, reasons::kIo, "cannot resolve " + plan.url.host + ": " + error.message());
  try {
    asio::ssl::context tls(asio::ssl::context::tls_client);
    tls.set_verify_mode(plan.verify ? asio::ssl::verify_peer : asio::ssl::verify_none);
    if (plan.ca_file.empty())
      tls.set_default_verify_paths();
    else if (tls.load_verify_file(plan.ca_file, error); error)
      return Fail(Code::kInvalidArgument, reasons::kInvalidValue,
                  "no certificates in " + plan.ca_file + ": " + error.message());
    return Run(plan, servers, tls).Finish();
  } catch (const std::exception& thrown) {  // of Asio or Beast, out of memory
    return Fail(Code::kInternal, reasons::kIo, std::string("the client stopped: ") + thrown.what());
  }
}

}  // namespace shoal::load
