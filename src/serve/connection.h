// What: one client's socket: reads requests, has them answered in order, watches whether the client is still there.
// Owns: the socket; while a generation runs, its engine requests (cancelled when the client leaves).
// Threads: everything on the thread of ServerCore::io, but the parsing of a body, which runs on its workers.
// Limits: every wait has a deadline, every buffer a size (ServerLimits).
// Fails: into HTTP answers; what cannot be answered closes the socket.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "serve/server_core.h"

namespace shoal::serve {

class Mailbox;

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  // `peer` is counted in ServerCore::per_peer when it is not empty.
  Connection(boost::asio::ip::tcp::socket socket, ServerCore& core, std::string peer);
  ~Connection();

  // Serves until the client or the server has enough. With `refusal`, says so and closes.
  void Start(std::optional<Error> refusal);
  // Ends whatever goes on, as quickly as it can be said.
  void Abort();
  // Ends it without a word.
  void Close();

 private:
  template <class T>
  using Task = boost::asio::awaitable<T>;

  // One request's fate: what its answer must know.
  struct Exchange {
    Time arrived = Now();
    std::string request_id = {};
    int version = 11;  // 10 or 11
    bool head_only = false;
    bool keep_alive = false;
    int status = 0;       // sent
    bool broken = false;  // the answer did not reach its end
  };
  struct Incoming;  // a request and its parser (connection.cc)

  Task<void> Run(std::optional<Error> refusal);
  Task<bool> ServeOne(bool first);  // true: the connection may go on
  Task<bool> AwaitFirstByte(bool first);
  Task<std::optional<Error>> ReadHead(Incoming& incoming);
  Task<std::optional<Error>> ReadBody(Incoming& incoming);
  Task<void> Reply(Exchange& exchange, Incoming& incoming);

  // connection_answer.cc
  Task<void> Send(Exchange& exchange, HttpResponse response);
  Task<void> SendError(Exchange& exchange, const Error& error, std::string allow = {});
  Task<void> Generate(Exchange& exchange, std::unique_ptr<Generation> generation);
  struct Running;
  Task<std::optional<Error>> Converse(Exchange& exchange, Running& running);
  std::optional<Error> TakeMail(Exchange& exchange, Running& running, std::string& out);
  Task<bool> SendPiece(Exchange& exchange, Running& running, std::string piece, bool last);
  std::string Head(const Exchange& exchange, const HttpResponse& response, bool streamed) const;

  Task<bool> Write(std::string bytes);  // false: the client is gone or reads nothing
  Task<void> LingeringClose();
  Task<void> OnWorker(std::function<void()> work);  // runs it on another thread and goes on here
  Task<void> LetOthersRun();

  void SetDeadline(Nanos from_now);
  void ClearDeadline() { deadline_at_ = Time::max(); }
  void ArmDeadline();
  Task<void> WaitForMail(Time until);
  void OnMail(Mailbox& mailbox, bool streaming);
  void Watch();  // notice the client's leaving while nothing is read
  void OnReadable();

  boost::asio::ip::tcp::socket socket_;
  ServerCore& core_;
  const std::string peer_;
  boost::beast::flat_buffer buffer_;

  boost::asio::steady_timer deadline_;
  Time deadline_at_ = Time::max();
  Time deadline_armed_for_ = Time::max();
  Time abort_at_ = Time::max();  // no deadline is later: set by Abort
  bool timed_out_ = false;

  boost::asio::steady_timer wake_;
  bool mail_ = false;      // something is in the mailbox
  bool watching_ = false;  // a generation runs
  bool watch_armed_ = false;
  bool gone_ = false;      // the client left
  bool too_slow_ = false;  // the client does not take what it asked for
  bool aborted_ = false;
  bool idle_ = false;  // between requests
  bool closed_ = false;
  bool last_request_ = false;  // this client has had enough of them on one connection
};

}  // namespace shoal::serve
