#include "serve/connection.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <format>

#include "core/reasons.h"
#include "serve/errors.h"

// GCC 14 sees one of Asio's frame deletes inlined but not the matching new, and warns of a pair that is none.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

namespace shoal::serve {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr size_t kMaxBuffered = 64 << 10;  // of requests that come before the one that runs is answered

Error HttpFault(Reason reason, std::string message) {
  return MakeError(Code::kInvalidArgument, reason, std::move(message));
}

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

// "http://host/path" means "/path" of that host; a query is nobody's business here.
void ReadTarget(std::string_view target, HttpRequest& request) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!Lower(target.substr(0, scheme.size())).starts_with(scheme)) continue;
    target.remove_prefix(scheme.size());
    const size_t end = std::min(target.find_first_of("/?#"), target.size());
    request.authority = target.substr(0, end);
    target = end == target.size() || target[end] != '/' ? std::string_view("/") : target.substr(end);
    break;
  }
  request.path = target.substr(0, target.find_first_of("?#"));
}

// Stop waits for what is busy, so this must be taken back whatever ends the exchange.
class Busy {
 public:
  explicit Busy(ServerCore& core) : core_(core) { core_.Count(0, 1); }
  ~Busy() { core_.Count(0, -1); }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  ServerCore& core_;
};

}  // namespace

Connection::Task<void> Connection::OnWorker(std::function<void()> work) {
  std::exception_ptr thrown;
  co_await asio::async_initiate<const asio::use_awaitable_t<>, void()>(
      [&](auto handler) {
        asio::post(core_.workers, [&work, &thrown, handler = std::move(handler)]() mutable {
          try {
            work();
          } catch (...) {  // out of memory: this connection's affair, as it is on the socket thread
            thrown = std::current_exception();
          }
          asio::post(std::move(handler));  // to the handler's own executor
        });
      },
      asio::use_awaitable);
  if (thrown) std::rethrow_exception(thrown);
}

Connection::Task<void> Connection::LetOthersRun() { co_await asio::post(core_.io, asio::use_awaitable); }

struct Connection::Incoming {
  http::request_parser<http::string_body> parser;
  HttpRequest request;
  size_t counted_bytes = 0;  // of the body, in ServerCore::body_bytes_held
  ServerCore& core;

  explicit Incoming(ServerCore& shared) : core(shared) {
    parser.header_limit(limits::kMaxHeaderBytes);
    parser.body_limit(core.limits.max_body_bytes);
  }
  ~Incoming() { Release(); }
  Incoming(const Incoming&) = delete;
  Incoming& operator=(const Incoming&) = delete;

  // False when all connections together hold too much.
  bool CountBody() {
    const size_t now = parser.get().body().size();
    core.body_bytes_held += now - counted_bytes;
    counted_bytes = now;
    return core.body_bytes_held <= core.limits.max_body_bytes_held;
  }
  void Release() { core.body_bytes_held -= std::exchange(counted_bytes, 0); }
};

Connection::Connection(asio::ip::tcp::socket socket, ServerCore& core, std::string peer)
    : socket_(std::move(socket)),
      core_(core),
      peer_(std::move(peer)),
      buffer_(kMaxBuffered),
      deadline_(core.io),
      wake_(core.io) {}

Connection::~Connection() = default;

void Connection::Start(std::optional<Error> refusal) {
  core_.connections.emplace(this, weak_from_this());
  if (!peer_.empty()) ++core_.per_peer[peer_];
  core_.Count(1, 0);
  asio::co_spawn(
      core_.io, [self = shared_from_this(), refusal = std::move(refusal)] { return self->Run(refusal); },
      [self = shared_from_this()](std::exception_ptr) {  // out of memory, at worst: this client pays for it
        self->Close();
        self->core_.connections.erase(self.get());
        if (!self->peer_.empty() && --self->core_.per_peer[self->peer_] == 0) self->core_.per_peer.erase(self->peer_);
        self->core_.Count(-1, 0);
      });
}

Connection::Task<void> Connection::Run(std::optional<Error> refusal) {
  if (refusal) {
    Exchange exchange{.request_id = NewId("req-")};
    co_await SendError(exchange, *refusal);
    core_.metrics.OnRequest(exchange.status, Now() - exchange.arrived);
    co_await LingeringClose();
    co_return;
  }
  for (int served = 0; !aborted_; ++served) {
    if (served + 1 >= core_.limits.max_requests_per_connection) last_request_ = true;
    if (!co_await ServeOne(served == 0)) break;
  }
}

Connection::Task<bool> Connection::AwaitFirstByte(bool first) {
  if (buffer_.size() == 0) {
    idle_ = true;
    SetDeadline(first ? core_.limits.header_timeout : core_.limits.idle_timeout);
    auto [failed, count] = co_await socket_.async_read_some(buffer_.prepare(4096), kAwait);
    idle_ = false;
    if (failed || aborted_) co_return false;
    buffer_.commit(count);
  }
  co_return true;
}

Connection::Task<bool> Connection::ServeOne(bool first) {
  if (!co_await AwaitFirstByte(first)) co_return false;
  Exchange exchange;
  Incoming incoming(core_);
  const Busy busy(core_);
  if (auto error = co_await ReadHead(incoming)) {
    exchange.request_id = NewId("req-");
    if (!error->message.empty()) {  // else the client left: nobody listens
      co_await SendError(exchange, *error);
      core_.metrics.OnRequest(exchange.status, Now() - exchange.arrived);
      co_await LingeringClose();
    }
    co_return false;
  }
  co_await Reply(exchange, incoming);
  if (exchange.status != 0) core_.metrics.OnRequest(exchange.status, Now() - exchange.arrived);
  const bool unread = !incoming.parser.is_done();
  if (unread && !exchange.broken) co_await LingeringClose();
  co_return exchange.keep_alive && !unread && !exchange.broken && !closed_;
}

// An Error with an empty message: the client left or its bytes cannot be answered.
Connection::Task<std::optional<Error>> Connection::ReadHead(Incoming& incoming) {
  const auto first_byte = static_cast<const unsigned char*>(buffer_.data().data())[0];
  if ((first_byte < 'A' || first_byte > 'Z') && first_byte != '\r')
    co_return HttpFault(reasons::kBadRequest,
                        first_byte == 0x16 ? "this port speaks plain HTTP, not TLS" : "this is not an HTTP request");
  SetDeadline(core_.limits.header_timeout);
  auto [failed, count] = co_await http::async_read_header(socket_, buffer_, incoming.parser, kAwait);
  ClearDeadline();
  if (timed_out_)
    co_return MakeError(Code::kDeadlineExceeded, reasons::kRequestTimeout, "the request's head took too long");
  if (failed == http::error::header_limit) {
    if (incoming.parser.get().target().empty())  // not even the first line has ended
      co_return HttpFault(reasons::kUrlTooLong,
                          std::format("the address is longer than {} bytes", limits::kMaxUrlBytes));
    co_return HttpFault(reasons::kHeadersTooLarge,
                        std::format("the headers are longer than {} bytes", limits::kMaxHeaderBytes));
  }
  if (failed == http::error::body_limit)
    co_return HttpFault(reasons::kBodyTooLarge,
                        std::format("the body is longer than {} bytes", core_.limits.max_body_bytes));
  if (failed == http::error::end_of_stream || failed == http::error::partial_message) co_return Error{};
  if (failed) {
    if (failed.category() != http::make_error_code(http::error::bad_method).category()) co_return Error{};
    co_return HttpFault(reasons::kBadRequest, "malformed HTTP: " + failed.message());
  }

  const auto& message = incoming.parser.get();
  HttpRequest& request = incoming.request;
  request.method = std::string(View(message.method_string()));
  ReadTarget(View(message.target()), request);
  for (const auto& field : message) {
    if (request.headers.size() >= limits::kMaxHeaderFields)
      co_return HttpFault(reasons::kHeadersTooLarge,
                          std::format("more than {} header fields", limits::kMaxHeaderFields));
    request.headers.emplace_back(Lower(View(field.name_string())), std::string(View(field.value())));
  }
  if (View(message.target()).size() > limits::kMaxUrlBytes)
    co_return HttpFault(reasons::kUrlTooLong, std::format("the address is longer than {} bytes", limits::kMaxUrlBytes));
  if (message.version() != 11 && message.version() != 10)
    co_return HttpFault(reasons::kBadRequest, "this server speaks HTTP/1.1");
  if (message.version() == 11 && !request.Header("host"))
    co_return HttpFault(reasons::kBadRequest, "the request has no Host header");
  // One framing only: whoever stands between us and the client must not read another length than we do.
  const int encodings = request.CountHeader("transfer-encoding");
  const auto length = request.Header("content-length");
  const bool odd_length = length && length->find_first_not_of("0123456789") != std::string_view::npos;  // "5, 5"
  if (encodings > 1 ||
      (encodings == 1 && (Lower(*request.Header("transfer-encoding")) != "chunked" || message.version() == 10)) ||
      (encodings == 1 && length) || odd_length || request.CountHeader("content-length") > 1)
    co_return HttpFault(reasons::kBadRequest,
                        "the length of the body is not clear: send one content-length, or chunks");
  co_return std::nullopt;
}

Connection::Task<std::optional<Error>> Connection::ReadBody(Incoming& incoming) {
  const Time end = Now() + core_.limits.body_timeout;
  while (!incoming.parser.is_done()) {
    SetDeadline(std::min(core_.limits.body_stall_timeout, end - Now()));
    auto [failed, count] = co_await http::async_read_some(socket_, buffer_, incoming.parser, kAwait);
    ClearDeadline();
    if (timed_out_)
      co_return MakeError(Code::kDeadlineExceeded, reasons::kRequestTimeout, "the request's body took too long");
    if (failed == http::error::body_limit)
      co_return HttpFault(reasons::kBodyTooLarge,
                          std::format("the body is longer than {} bytes", core_.limits.max_body_bytes));
    if (failed == http::error::end_of_stream || failed == http::error::partial_message) co_return Error{};
    if (failed) {
      if (failed.category() != http::make_error_code(http::error::bad_method).category()) co_return Error{};
      co_return HttpFault(reasons::kBadRequest, "malformed body: " + failed.message());
    }
    if (!incoming.CountBody())
      co_return MakeError(Code::kUnavailable, reasons::kOverloaded, "too many request bodies at once; try again");
  }
  incoming.request.body = std::move(incoming.parser.get().body());
  co_return std::nullopt;
}

Connection::Task<void> Connection::Reply(Exchange& exchange, Incoming& incoming) {
  HttpRequest& request = incoming.request;
  const auto given_id = request.Header("x-request-id");
  request.request_id = given_id && IsSaneRequestId(*given_id) ? std::string(*given_id) : NewId("req-");
  exchange.request_id = request.request_id;
  exchange.version = static_cast<int>(incoming.parser.get().version());
  exchange.head_only = request.method == "HEAD";
  exchange.keep_alive = incoming.parser.keep_alive() && !last_request_ && !core_.service.draining && !aborted_;

  auto admitted = core_.router.Admit(request);
  std::optional<Error> expectation;
  if (const auto expect = request.Header("expect"); expect && Lower(*expect) != "100-continue")
    expectation = HttpFault(reasons::kExpectationFailed, "only \"expect: 100-continue\" is understood");
  if (!admitted || expectation) {
    // Its body is not read, or its next request may begin anywhere.
    if (!incoming.parser.is_done() || (!admitted && admitted.error().error.reason == reasons::kBadRequest))
      exchange.keep_alive = false;
    if (!admitted)
      co_await SendError(exchange, admitted.error().error, admitted.error().allow);
    else
      co_await SendError(exchange, *expectation);
    co_return;
  }
  if (!incoming.parser.is_done() && request.Header("expect") && exchange.version == 11)
    if (!co_await Write("HTTP/1.1 100 Continue\r\n\r\n")) co_return;
  if (auto error = co_await ReadBody(incoming)) {
    exchange.keep_alive = false;
    if (!error->message.empty())
      co_await SendError(exchange, *error);
    else
      exchange.broken = true;
    co_return;
  }

  Result<Answer> answer = HttpResponse{};
  const auto handle = [&] { answer = admitted->route->handler(request, admitted->rest); };
  if (admitted->route->method == "POST") {
    co_await OnWorker(handle);
    request.body = std::string();
    incoming.Release();
  } else {
    handle();
  }
  if (!answer)
    co_await SendError(exchange, answer.error());
  else if (auto* response = std::get_if<HttpResponse>(&*answer))
    co_await Send(exchange, std::move(*response));
  else {
    auto generation = std::move(std::get<std::unique_ptr<Generation>>(*answer));
    for (Request& sequence : generation->requests) sequence.tenant.insert(0, admitted->tenant);
    co_await Generate(exchange, std::move(generation));
  }
}

}  // namespace shoal::serve
