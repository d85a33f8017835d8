#include "serve/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <format>
#include <future>
#include <thread>

#include "base/log.h"
#include "core/reasons.h"
#include "serve/connection.h"
#include "serve/server_core.h"

namespace shoal::serve {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

struct Server::State {
  State(Engine& engine, const ServerOptions& options, ModelContext model, int64_t created, bool loopback_only)
      : core(engine, options, std::move(model), created, loopback_only),
        acceptor(core.io),
        accept_pause(core.io),
        keep_running(core.io.get_executor()) {}

  Status Listen(const tcp::endpoint& endpoint);
  void Accept();
  void Admit(tcp::socket socket);
  template <class Fn>
  void OnIoThread(Fn fn);

  ServerCore core;
  tcp::acceptor acceptor;
  asio::steady_timer accept_pause;
  asio::executor_work_guard<asio::io_context::executor_type> keep_running;
  std::thread thread;
  std::string host;
  uint16_t port = 0;
  bool stopped = false;
};

namespace {

constexpr Nanos kAbortTime = std::chrono::milliseconds(800);  // for the last words; then sockets are closed under them

Result<asio::ip::address> ListenAddress(const std::string& host) {
  error_code failed;
  auto address = asio::ip::make_address(host == "localhost" ? "127.0.0.1" : host, failed);
  if (failed)
    return Fail(Code::kConfig, reasons::kBadConfig,
                std::format("\"{}\" is not an address to listen on; use one like 127.0.0.1, 0.0.0.0 or ::1", host));
  return address;
}

// A vanished client is noticed within 35 s, without asking more of one that is only slow.
void Tune(tcp::socket& socket) {
  error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  socket.set_option(asio::socket_base::keep_alive(true), ignored);
  const auto set = [&](int name, int value) {
    ::setsockopt(socket.native_handle(), IPPROTO_TCP, name, &value, sizeof(value));
  };
  set(TCP_KEEPIDLE, 15);
  set(TCP_KEEPINTVL, 5);
  set(TCP_KEEPCNT, 4);
  // What the kernel holds for a reader that does not read is memory too.
  socket.set_option(asio::socket_base::send_buffer_size(256 << 10), ignored);
}

}  // namespace

Status Server::State::Listen(const tcp::endpoint& endpoint) {
  error_code failed;
  acceptor.open(endpoint.protocol(), failed);
  if (!failed) acceptor.set_option(tcp::acceptor::reuse_address(true), failed);
  if (!failed) acceptor.bind(endpoint, failed);
  if (!failed) acceptor.listen(1024, failed);
  if (failed)
    return Fail(
        Code::kUnavailable, reasons::kIo,
        std::format("cannot listen on {}:{}: {}", endpoint.address().to_string(), endpoint.port(), failed.message()));
  port = acceptor.local_endpoint(failed).port();
  host = endpoint.address().is_v6() ? "[" + endpoint.address().to_string() + "]" : endpoint.address().to_string();
  return {};
}

void Server::State::Accept() {
  acceptor.async_accept([this](error_code failed, tcp::socket socket) {
    if (!acceptor.is_open()) return;
    if (!failed) {
      Admit(std::move(socket));
      Accept();
      return;
    }
    // Out of descriptors, mostly: others must close first.
    accept_pause.expires_after(std::chrono::milliseconds(50));
    accept_pause.async_wait([this](error_code cancelled) {
      if (!cancelled && acceptor.is_open()) Accept();
    });
  });
}

void Server::State::Admit(tcp::socket socket) {
  error_code failed;
  const auto peer = socket.remote_endpoint(failed);
  if (failed) return;  // it left already
  Tune(socket);
  const std::string name = peer.address().is_loopback() ? std::string() : peer.address().to_string();
  const auto open = core.connections.size();
  const auto most = static_cast<size_t>(core.limits.max_connections);
  if (open >= most + 64) return;  // even saying no has a limit
  std::optional<Error> refusal;
  if (open >= most)
    refusal = MakeError(Code::kUnavailable, reasons::kTooManyConnections, "too many connections; try again");
  else if (const auto found = core.per_peer.find(name);
           !name.empty() && found != core.per_peer.end() && found->second >= core.limits.max_connections_per_peer)
    refusal = MakeError(Code::kUnavailable, reasons::kTooManyConnections, "too many connections from one address");
  std::make_shared<Connection>(std::move(socket), core, name)->Start(std::move(refusal));
}

template <class Fn>
void Server::State::OnIoThread(Fn fn) {
  std::promise<void> done;
  asio::post(core.io, [&] {
    fn();
    done.set_value();
  });
  done.get_future().wait();
}

Server::Server(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<Server>> Server::Start(Engine& engine, ServerOptions options) {
  SHOAL_ASSIGN(const auto address, ListenAddress(options.host));
  if (!address.is_loopback() && !options.insecure)
    return Fail(
        Code::kConfig, reasons::kBadConfig,
        std::format("{} can be reached from other machines, and this server speaks plain text: listen on 127.0.0.1 "
                    "and put a TLS proxy in front, or allow it with --insecure",
                    options.host));
  // The pool may be smaller than what the model was made for.
  int context = engine.spec().context_length;
  if (const int blocks = engine.group().plan.kv_blocks;
      blocks > 0 && blocks < limits::kMaxContext / limits::kBlockTokens)
    context = std::min(context, blocks * limits::kBlockTokens);
  const int64_t created =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  ModelContext model{options.model_name, &engine.tokenizer(), context};
  auto state = std::make_unique<State>(engine, options, std::move(model), created, address.is_loopback());
  SHOAL_RETURN_IF_ERROR(state->Listen(tcp::endpoint(address, options.port)));
  state->Accept();
  state->thread = std::thread([io = &state->core.io] {
    for (;;) {
      try {
        io->run();
        return;
      } catch (const std::exception& error) {  // memory ran out in a handler: its connection is lost, the rest goes on
        Log().error("serve: {}", error.what());
      }
    }
  });
  return std::unique_ptr<Server>(new Server(std::move(state)));
}

Server::~Server() { Stop(Deadline{Now()}); }

uint16_t Server::port() const { return state_->port; }
std::string Server::url() const { return std::format("http://{}:{}", state_->host, state_->port); }

void Server::Stop(Deadline deadline) {
  State& state = *state_;
  if (std::exchange(state.stopped, true)) return;
  ServerCore& core = state.core;
  core.service.draining = true;
  {
    // Still listening meanwhile: a balancer must see /health change, a client an answer rather than a closed door.
    std::unique_lock lock(core.mutex);
    core.changed.wait_until(lock, deadline.at, [&] { return core.busy_connections == 0; });
  }
  const auto end_all = [&](void (Connection::*how)()) {
    state.OnIoThread([&] {
      error_code ignored;
      state.acceptor.close(ignored);
      state.accept_pause.cancel();
      std::vector<std::shared_ptr<Connection>> all;  // ending one changes the table
      for (const auto& [raw, weak] : core.connections)
        if (auto connection = weak.lock()) all.push_back(std::move(connection));
      for (const auto& connection : all) (*connection.*how)();
    });
  };
  end_all(&Connection::Abort);
  {
    // Short: every wait of an aborted connection ends with its last words.
    std::unique_lock lock(core.mutex);
    const bool gone = core.changed.wait_for(lock, kAbortTime, [&] { return core.open_connections == 0; });
    lock.unlock();
    if (!gone) end_all(&Connection::Close);
    lock.lock();
    core.changed.wait(lock, [&] { return core.open_connections == 0; });
  }
  core.workers.join();
  state.keep_running.reset();
  core.io.stop();
  state.thread.join();
}

}  // namespace shoal::serve
