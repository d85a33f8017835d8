// The answering half of Connection: plain responses, generations, and the socket's deadlines.
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <ctime>
#include <deque>
#include <format>

#include "core/reasons.h"
#include "serve/connection.h"
#include "serve/errors.h"
#include "serve/mailbox.h"

// As in connection.cc: GCC 14 warns of a pair of Asio's frame allocations that is none.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

namespace shoal::serve {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr size_t kMaxPipelined = 48 << 10;  // read ahead while a generation runs
constexpr size_t kMaxPiece = 256 << 10;     // rendered at once
constexpr int kMaxRenderings = 8;           // of log-probabilities at once: some milliseconds
constexpr size_t kMuch = 1 << 20;           // bytes that another thread puts together
constexpr size_t kLeastTaken = 64 << 10;    // bytes a reader must take in each stalled_reader_timeout, if it is behind
constexpr Nanos kLingerTime = std::chrono::seconds(2);
constexpr Nanos kLastWordsTime = std::chrono::milliseconds(500);

std::string HttpDate() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[40];
  const size_t size = std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return std::string(text, size);
}

}  // namespace

// The engine requests of one generation; whatever ends it, none of them runs on.
struct Connection::Running {
  Engine& engine;
  std::unique_ptr<Generation> generation;
  std::shared_ptr<Mailbox> mailbox = nullptr;
  std::vector<std::optional<RequestHandle>> handles = {};  // empty: finished
  std::vector<Time> last_token = {};                       // of each choice; min(): none yet
  std::deque<Mailbox::Letter> letters = {};                // taken, not rendered yet
  size_t unfinished = 0;
  bool any_token = false;
  bool head_sent = false;

  void Cancel() {
    if (mailbox) mailbox->Close();
    for (auto& handle : handles)
      if (handle) engine.Cancel(*std::exchange(handle, std::nullopt));
  }
  ~Running() { Cancel(); }
};

std::string Connection::Head(const Exchange& exchange, const HttpResponse& response, bool streamed) const {
  std::string head =
      std::format("HTTP/1.1 {} {}\r\nserver: shoal\r\ndate: {}\r\ncontent-type: {}\r\nx-request-id: {}\r\n",
                  response.status, StatusText(response.status), HttpDate(), response.content_type, exchange.request_id);
  for (const auto& [name, value] : response.headers) head += std::format("{}: {}\r\n", name, value);
  if (!streamed)
    head += std::format("content-length: {}\r\n", response.body.size());
  else if (exchange.version == 11)
    head += "transfer-encoding: chunked\r\n";
  head += exchange.keep_alive ? "connection: keep-alive\r\n\r\n" : "connection: close\r\n\r\n";
  return head;
}

Connection::Task<void> Connection::Send(Exchange& exchange, HttpResponse response) {
  exchange.status = response.status;
  std::string bytes = Head(exchange, response, false);
  if (!exchange.head_only) bytes += response.body;
  if (!co_await Write(std::move(bytes))) exchange.broken = true;
}

Connection::Task<void> Connection::SendError(Exchange& exchange, const Error& error, std::string allow) {
  core_.metrics.OnRejection(error.reason);
  HttpResponse response = ErrorResponse(error);
  if (!allow.empty()) response.headers.emplace_back("allow", std::move(allow));
  co_await Send(exchange, std::move(response));
}

Connection::Task<void> Connection::Generate(Exchange& exchange, std::unique_ptr<Generation> generation) {
  Running running{.engine = core_.service.engine, .generation = std::move(generation)};
  const bool streaming = running.generation->streaming;
  std::vector<Request> requests = std::move(running.generation->requests);
  running.mailbox = std::make_shared<Mailbox>(
      requests.size(), streaming ? core_.limits.max_unsent_bytes : core_.limits.max_response_bytes,
      running.generation->wants_tokens, [] {});
  // The engine's thread only posts: it never waits for this one.
  running.mailbox->SetWake(
      [weak = weak_from_this(), &io = core_.io, mailbox = std::weak_ptr(running.mailbox), streaming] {
        asio::post(io, [weak, mailbox, streaming] {
          const auto self = weak.lock();
          const auto box = mailbox.lock();
          if (self && box) self->OnMail(*box, streaming);
        });
      });
  running.handles.resize(requests.size());
  running.last_token.resize(requests.size(), Time::min());
  running.unfinished = requests.size();

  core_.metrics.OnUnknownFields(running.generation->unknown_fields);
  std::optional<Error> failure;
  for (size_t i = 0; i < requests.size() && !failure; ++i) {
    auto handle = running.engine.Submit(
        std::move(requests[i]), [mailbox = running.mailbox, i](Delta delta) { mailbox->Push(i, std::move(delta)); });
    if (handle)
      running.handles[i] = *handle;
    else
      failure = std::move(handle).error();
  }
  mail_ = gone_ = too_slow_ = false;
  watching_ = true;
  Watch();
  if (!failure) failure = co_await Converse(exchange, running);
  watching_ = false;
  running.Cancel();  // before any last words: nobody may hold up the engine by reading them slowly

  if (gone_ || closed_) {
    core_.metrics.OnBrokenStream(too_slow_ ? "slow_reader" : "client_gone");
    exchange.broken = true;
    if (exchange.status == 0) exchange.status = 499;  // for the metric: nobody saw it
    Close();
  } else if (failure && !running.head_sent) {
    co_await SendError(exchange, *failure);
  } else if (failure) {
    // A clean end would be taken for a complete answer: say why, then break the connection.
    exchange.broken = true;
    core_.metrics.OnBrokenStream(failure->reason.name());
    co_await SendPiece(exchange, running, running.generation->OnFailure(*failure), false);
    error_code ignored;
    if (exchange.version == 10) socket_.set_option(asio::socket_base::linger(true, 0), ignored);
    Close();
  }
}

// Until all choices are finished, the client is gone (no error then), or something failed.
Connection::Task<std::optional<Error>> Connection::Converse(Exchange& exchange, Running& running) {
  Generation& generation = *running.generation;
  Time ping_at = Now() + core_.limits.ping_interval;
  for (;;) {
    std::string out;
    if (auto error = TakeMail(exchange, running, out)) co_return error;
    if (gone_ || closed_) co_return std::nullopt;
    // Of an answer in one body, what waits counts like what is collected: an engine may be faster than this thread.
    if (!generation.streaming &&
        (running.mailbox->overflowed() || generation.collected_bytes() > core_.limits.max_response_bytes))
      co_return MakeError(
          Code::kInvalidArgument, reasons::kResponseTooLarge,
          std::format("the answer is longer than {} bytes; ask for a stream", core_.limits.max_response_bytes));
    const bool done = running.unfinished == 0;
    if (aborted_ && !done)
      co_return MakeError(Code::kUnavailable, reasons::kShuttingDown,
                          "the server shut down before the answer was complete");
    if (done && generation.collected_bytes() > kMuch)
      co_await OnWorker([&] { out += generation.OnEnd(); });
    else if (done)
      out += generation.OnEnd();
    if (!generation.streaming) {
      if (done) {
        HttpResponse response;
        response.content_type = generation.content_type();
        response.body = std::move(out);
        co_await Send(exchange, std::move(response));
        co_return std::nullopt;
      }
      if (running.letters.empty())
        co_await WaitForMail(Time::max());
      else
        co_await LetOthersRun();
      continue;
    }
    if (out.empty() && Now() >= ping_at) out = generation.Ping();
    if (out.empty()) {
      if (running.letters.empty())
        co_await WaitForMail(ping_at);
      else
        co_await LetOthersRun();
      continue;
    }
    if (!co_await SendPiece(exchange, running, std::move(out), done)) co_return std::nullopt;
    if (done) co_return std::nullopt;
    ping_at = Now() + core_.limits.ping_interval;
  }
}

// Renders what has come, a bounded piece at a time. An Error ends the whole request: its other choices are cancelled with it.
std::optional<Error> Connection::TakeMail(Exchange& exchange, Running& running, std::string& out) {
  if (running.letters.empty()) {
    mail_ = false;  // not before: what comes while letters are left must still be looked for
    for (Mailbox::Letter& letter : running.mailbox->Take()) running.letters.push_back(std::move(letter));
  }
  for (int parts = 0; !running.letters.empty() && out.size() < kMaxPiece;) {
    Mailbox::Letter& letter = running.letters.front();
    Delta& delta = letter.delta;
    const bool failed = delta.finish == FinishReason::kError || delta.finish == FinishReason::kCancelled;
    if (!failed && !running.generation->OnDelta(letter.choice, delta, out)) {
      if (++parts == kMaxRenderings) return std::nullopt;
      continue;
    }
    if (letter.token_count > 0) {
      Time& last = running.last_token[letter.choice];
      if (!std::exchange(running.any_token, true)) core_.metrics.OnFirstToken(letter.at - exchange.arrived);
      if (last != Time::min()) core_.metrics.OnNextTokens(letter.at - last, letter.token_count);
      last = letter.at;
    }
    if (delta.finish) {
      running.handles[letter.choice].reset();
      --running.unfinished;
      if (delta.finish == FinishReason::kError)
        return delta.error ? std::move(*delta.error)
                           : MakeError(Code::kInternal, reasons::kInternal, "the engine gave no answer");
      if (delta.finish == FinishReason::kCancelled)
        return MakeError(Code::kUnavailable, reasons::kShuttingDown,
                         "the request was ended before its answer was complete");
    }
    running.letters.pop_front();
  }
  return std::nullopt;
}

// A piece of a stream, with the response's head before the first: an error until then still gets its own status.
Connection::Task<bool> Connection::SendPiece(Exchange& exchange, Running& running, std::string piece, bool last) {
  std::string bytes;
  if (!std::exchange(running.head_sent, true)) {
    HttpResponse response;
    response.content_type = running.generation->content_type();
    response.headers = {{"cache-control", "no-cache"}, {"x-accel-buffering", "no"}};
    exchange.status = 200;
    if (exchange.version == 10) exchange.keep_alive = false;  // the end of the connection is the end of the stream
    bytes = Head(exchange, response, true);
  }
  if (exchange.version == 11)
    bytes += std::format("{:x}\r\n{}\r\n{}", piece.size(), piece, last ? "0\r\n\r\n" : "");
  else
    bytes += piece;
  co_return co_await Write(std::move(bytes));
}

// A reader that takes a byte now and then is as slow as one that takes none: the deadline moves on only with a good many.
Connection::Task<bool> Connection::Write(std::string bytes) {
  size_t counted = 0;
  Time end = Now() + core_.limits.stalled_reader_timeout;
  for (size_t sent = 0; sent < bytes.size();) {
    if (closed_) co_return false;
    if (sent - counted >= kLeastTaken) {
      counted = sent;
      end = Now() + core_.limits.stalled_reader_timeout;
    }
    SetDeadline(end - Now());
    auto [failed, count] =
        co_await socket_.async_write_some(asio::buffer(bytes.data() + sent, bytes.size() - sent), kAwait);
    ClearDeadline();
    if (timed_out_) too_slow_ = true;
    if (failed) {
      gone_ = true;
      Close();
      co_return false;
    }
    sent += count;
  }
  co_return true;
}

// Closing with unread bytes would reset the connection and take our last answer with it: read on for a moment.
Connection::Task<void> Connection::LingeringClose() {
  if (closed_) co_return;
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  const Time end = Now() + kLingerTime;
  char waste[8192];
  while (Now() < end && !aborted_) {
    SetDeadline(end - Now());
    auto [failed, count] = co_await socket_.async_read_some(asio::buffer(waste), kAwait);
    if (failed) break;
  }
  Close();
}

void Connection::Close() {
  closed_ = true;
  ClearDeadline();
  error_code ignored;
  deadline_.cancel();
  wake_.cancel();
  socket_.close(ignored);
}

void Connection::Abort() {
  aborted_ = true;
  abort_at_ = Now() + kLastWordsTime;
  wake_.cancel();
  if (closed_) return;
  if (idle_)
    Close();
  else
    SetDeadline(kLastWordsTime);  // for a read or write that waits
}

// One timer serves all deadlines: it is moved only when it would ring too late.
void Connection::SetDeadline(Nanos from_now) {
  timed_out_ = false;
  const Time now = Now();
  deadline_at_ = std::min(abort_at_, from_now > Time::max() - now ? Time::max() : now + from_now);
  if (deadline_armed_for_ > deadline_at_) ArmDeadline();
}

void Connection::ArmDeadline() {
  deadline_armed_for_ = deadline_at_;
  deadline_.expires_at(deadline_at_);
  deadline_.async_wait([self = shared_from_this()](error_code failed) {
    if (failed || self->closed_) return;  // moved, or over
    self->deadline_armed_for_ = Time::max();
    if (self->deadline_at_ == Time::max()) return;
    if (Now() < self->deadline_at_) {
      self->ArmDeadline();
      return;
    }
    self->timed_out_ = true;
    self->deadline_at_ = Time::max();
    error_code ignored;
    self->socket_.cancel(ignored);
  });
}

Connection::Task<void> Connection::WaitForMail(Time until) {
  if (mail_ || gone_ || aborted_ || closed_) co_return;
  wake_.expires_at(until);
  co_await wake_.async_wait(kAwait);
}

void Connection::OnMail(Mailbox& mailbox, bool streaming) {
  mail_ = true;
  if (streaming && mailbox.overflowed() && !closed_) {
    gone_ = too_slow_ = true;
    Close();  // ends the write that the client does not take
  }
  wake_.cancel();
}

// A client that closes its socket, or only its sending side, has left.
void Connection::Watch() {
  if (watch_armed_ || closed_) return;
  watch_armed_ = true;
  const auto what = buffer_.size() < kMaxPipelined ? asio::socket_base::wait_read : asio::socket_base::wait_error;
  socket_.async_wait(what, [self = shared_from_this()](error_code failed) {
    self->watch_armed_ = false;
    if (!self->watching_ || self->closed_) return;
    if (failed) {
      if (failed != asio::error::operation_aborted) self->gone_ = true;
      self->wake_.cancel();
      return;
    }
    self->OnReadable();
  });
}

// Requests that come early are kept for later; what matters now is whether the end of the stream is behind them.
void Connection::OnReadable() {
  const auto space = buffer_.prepare(buffer_.size() < kMaxPipelined ? 4096 : 0);
  char none;
  const ssize_t count = space.size() > 0 ? ::recv(socket_.native_handle(), space.data(), space.size(), MSG_DONTWAIT)
                                         : ::recv(socket_.native_handle(), &none, 1, MSG_DONTWAIT | MSG_PEEK);
  if (count > 0 && space.size() > 0) buffer_.commit(static_cast<size_t>(count));
  if (count == 0 || (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
    gone_ = true;
    wake_.cancel();
    return;
  }
  Watch();
}

}  // namespace shoal::serve
