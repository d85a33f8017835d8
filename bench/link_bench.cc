// A round trip of one small message between two processes: over net/link (one thread owns the socket; asleep in poll, or
// polling first), and over an event-loop thread (Boost.Asio) that hands messages to the thread that wants them, as a link
// on the server's event loop would. Medians; the variants take turns. See docs/decisions/0001-links-without-asio.md.
//     link_bench [--rounds N]
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"
#include "base/check.h"
#include "net/link.h"
#include "net/wire.pb.h"

using namespace shoal;
namespace asio = boost::asio;

namespace {

Deadline Soon() { return Deadline::After(std::chrono::seconds(60)); }

// A message of the size of a decode step of eight sequences.
wire::Message SomeStep() {
  wire::Message message;
  auto* step = message.mutable_step();
  step->set_step(1000);
  for (uint64_t i = 0; i < 8; ++i) {
    auto* chunk = step->add_chunks();
    chunk->set_id(i + 100);
    chunk->set_first(500);
    chunk->set_count(1);
    chunk->set_sample(true);
  }
  return message;
}

// The same frames, carried by an event loop on its own thread.
class LoopLink {
 public:
  explicit LoopLink(Fd fd) : socket_(loop_, asio::ip::tcp::v4(), fd.Release()), received_(16) {
    ReadHeader();
    thread_ = std::thread([this] { loop_.run(); });
  }
  ~LoopLink() {
    asio::post(loop_, [this] { loop_.stop(); });  // after what was sent before
    thread_.join();
  }
  void Send(const wire::Message& message) {
    auto frame = std::make_shared<std::vector<std::byte>>(kFrameHeaderBytes + message.ByteSizeLong());
    message.SerializeToArray(frame->data() + kFrameHeaderBytes, static_cast<int>(frame->size() - kFrameHeaderBytes));
    SealFrame(*frame, sent_++, 42);
    asio::post(loop_, [this, frame] {
      asio::async_write(socket_, asio::buffer(*frame), [frame](const boost::system::error_code&, size_t) {});
    });
  }
  wire::Message Receive() {
    auto message = received_.PopBefore(Soon());
    SHOAL_CHECK(message.has_value());
    return std::move(*message);
  }

 private:
  void ReadHeader() {
    buffer_.resize(kFrameHeaderBytes);
    asio::async_read(socket_, asio::buffer(buffer_), [this](const boost::system::error_code& error, size_t) {
      if (error) return;
      uint32_t bytes = 0;
      std::memcpy(&bytes, buffer_.data() + 4, sizeof bytes);
      buffer_.resize(bytes);
      asio::async_read(socket_, asio::buffer(buffer_), [this](const boost::system::error_code& failed, size_t) {
        if (failed) return;
        wire::Message message;
        SHOAL_CHECK(message.ParseFromArray(buffer_.data(), static_cast<int>(buffer_.size())));
        SHOAL_CHECK(received_.TryPush(std::move(message)));
        ReadHeader();
      });
    });
  }

  asio::io_context loop_;
  asio::ip::tcp::socket socket_;
  std::vector<std::byte> buffer_;
  BoundedQueue<wire::Message> received_;
  uint32_t sent_ = 0;
  std::thread thread_;
};

std::pair<Fd, Fd> SocketPair() {
  auto listener = ListenOn({"127.0.0.1", 0}, Exposure::kLoopback);
  auto near = DialTo(*LocalAddress(listener->get()), Soon(), Exposure::kLoopback);
  auto far = AcceptFrom(listener->get(), Soon());
  return {std::move(*near), std::move(*far)};
}

struct Variant {
  std::string name;
  std::function<void(const wire::Message&)> send;
  std::function<wire::Message()> receive;
  std::vector<double> micros;
};

// Trips per turn; the first few of a turn warm up.
constexpr int kTrips = 30;

void Run(bool asks, int rounds, Fd sleeping, Fd polling, Fd looping) {
  Link sleeper(std::move(sleeping)), poller(std::move(polling));
  for (Link* link : {&sleeper, &poller}) link->Trust(42);
  poller.SetSpin(std::chrono::microseconds(200));
  LoopLink loop(std::move(looping));
  std::vector<Variant> variants;
  for (auto& [name, link] :
       {std::pair<const char*, Link*>{"link, asleep in poll", &sleeper}, {"link, polling first", &poller}})
    variants.push_back({name,
                        [link = link](const wire::Message& m) { SHOAL_CHECK(link->Send(m, Soon()).has_value()); },
                        [link = link] { return std::move(*link->Receive(Soon())); },
                        {}});
  variants.push_back(
      {"event loop and queue", [&](const wire::Message& m) { loop.Send(m); }, [&] { return loop.Receive(); }, {}});
  const wire::Message step = SomeStep();
  for (int round = 0; round < rounds; ++round)
    for (Variant& variant : variants)
      for (int i = 0; i < kTrips; ++i) {
        const Time start = Now();
        if (asks) variant.send(step);
        const wire::Message got = variant.receive();
        if (!asks) variant.send(got);
        if (i >= 5) variant.micros.push_back(static_cast<double>((Now() - start).count()) / 1000.0);
      }
  if (!asks) return;
  std::printf("round trip of a %zu-byte message between two processes, us\n%24s %10s %10s\n", step.ByteSizeLong(), "",
              "median", "99 %");
  for (Variant& variant : variants) {
    std::ranges::sort(variant.micros);
    std::printf("%24s %10.1f %10.1f\n", variant.name.c_str(), variant.micros[variant.micros.size() / 2],
                variant.micros[variant.micros.size() * 99 / 100]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 100;
  for (int i = 1; i + 1 < argc; ++i)
    if (std::string_view(argv[i]) == "--rounds") rounds = std::max(1, std::atoi(argv[i + 1]));
  auto [a1, a2] = SocketPair();
  auto [b1, b2] = SocketPair();
  auto [c1, c2] = SocketPair();
  const pid_t child = ::fork();
  if (child == 0) {
    a1.Reset(), b1.Reset(), c1.Reset();
    Run(false, rounds, std::move(a2), std::move(b2), std::move(c2));
    ::_exit(0);
  }
  a2.Reset(), b2.Reset(), c2.Reset();
  Run(true, rounds, std::move(a1), std::move(b1), std::move(c1));
  ::waitpid(child, nullptr, 0);
}
