// Clients that take or give a few bytes at a time: they are cut off, hold nobody up, and cannot keep a server from stopping.
#include <gmock/gmock.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "serve/fake_engine.h"
#include "serve/server.h"
#include "serve/test_client.h"

namespace shoal::serve {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;

// Does something small over and over on its own thread, with a pause between, until told or until it cannot.
class Dripping {
 public:
  Dripping(Nanos pause, std::function<bool()> drip)
      : thread_([this, pause, drip = std::move(drip)] {
          std::unique_lock lock(mutex_);
          while (!over_.wait_for(lock, pause, [this] { return stop_; })) {
            lock.unlock();
            const bool goes_on = drip();
            lock.lock();
            if (!goes_on) return;
          }
        }) {}
  ~Dripping() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    over_.notify_all();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool stop_ = false;
  std::thread thread_;
};

class SlowClients : public ::testing::Test {
 protected:
  void StartServer(ServerLimits limits) {
    auto server = Server::Start(
        engine_,
        {.host = "127.0.0.1", .port = 0, .insecure = false, .model_name = "m", .api_keys = {}, .limits = limits});
    ASSERT_TRUE(server.has_value()) << ToString(server.error());
    server_ = std::move(*server);
  }
  Nanos TimeToStop(Deadline deadline) {
    const Time begin = Now();
    server_->Stop(deadline);
    return Now() - begin;
  }
  FakeEngine engine_;
  std::unique_ptr<Server> server_;
};

TEST_F(SlowClients, AReaderOfAFewBytesCannotKeepTheServerFromStopping) {
  StartServer({});
  engine_.SetTokenText(std::string(10'000, 't'));
  TestClient client(server_->port(), 4096);
  client.Send(TestClient::Post("/v1/completions", R"({"prompt":"Hi","max_tokens":1500})"));
  ASSERT_EQ(client.ReadHead().status, 200);  // 15 MB are on their way
  const Dripping reader(20ms, [&] { return client.ReadSome(2000) > 0; });
  EXPECT_LT(TimeToStop(Deadline::After(50ms)), 20s);  // far less than the reader's own deadline
}

TEST_F(SlowClients, AWriterOfAFewBytesCannotKeepTheServerFromStopping) {
  StartServer({});
  TestClient client(server_->port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{");
  const Dripping writer(20ms, [&] { return client.Send(" "); });
  // The server is busy with it once it has seen the head.
  TestClient other(server_->port());
  other.Send(TestClient::Get("/health"));
  ASSERT_EQ(other.Read().status, 200);
  EXPECT_LT(TimeToStop(Deadline::After(50ms)), 20s);
}

TEST_F(SlowClients, AReaderThatIsAlmostStillIsCutOff) {
  ServerLimits limits;
  limits.stalled_reader_timeout = 300ms;
  limits.max_unsent_bytes = 1 << 30;  // not that: the time alone
  StartServer(limits);
  engine_.SetTokenText(std::string(10'000, 't'));
  TestClient client(server_->port(), 4096);
  client.Send(TestClient::Post("/v1/completions", R"({"prompt":"Hi","max_tokens":1500})"));
  ASSERT_EQ(client.ReadHead().status, 200);
  std::atomic<bool> ended = false;
  std::mutex mutex;
  std::condition_variable changed;
  const Dripping reader(20ms, [&] {
    if (client.ReadSome(2000) > 0) return true;  // 100 kB/s at most, far less than 64 KiB in 300 ms
    std::lock_guard lock(mutex);
    ended = true;
    changed.notify_all();
    return false;
  });
  std::unique_lock lock(mutex);
  EXPECT_TRUE(changed.wait_for(lock, 60s, [&] { return ended.load(); }));
}

// Rendering a long prompt's log-probabilities goes in slices: others are served in between, and the pieces are bounded.
TEST_F(SlowClients, ALongPromptsLogProbabilitiesComeInPieces) {
  StartServer({});
  const std::string prompt(3000, 'p');
  TestClient client(server_->port());
  for (const bool stream : {true, false}) {
    client.Send(TestClient::Post(
        "/v1/completions",
        json{{"prompt", prompt}, {"max_tokens", 2}, {"echo", true}, {"logprobs", 20}, {"stream", stream}}.dump()));
    const ClientResponse response = client.Read();
    ASSERT_EQ(response.status, 200) << response.body;
    json tokens = json::array(), offsets = json::array();
    std::string text;
    size_t most = 0;
    const auto add = [&](const json& choice) {
      text += choice["text"].get<std::string>();
      most = std::max(most, choice["logprobs"]["tokens"].size());
      for (const char* key : {"token_logprobs", "top_logprobs", "text_offset"})
        EXPECT_EQ(choice["logprobs"][key].size(), choice["logprobs"]["tokens"].size()) << key;
      for (const json& token : choice["logprobs"]["tokens"]) tokens.push_back(token);
      for (const json& offset : choice["logprobs"]["text_offset"]) offsets.push_back(offset);
    };
    if (stream) {
      for (const json& event : ParseEvents(response.body).list) add(event["choices"][0]);
      EXPECT_LE(most, 256u);
    } else {
      add(response.json()["choices"][0]);
    }
    ASSERT_EQ(tokens.size(), 3003u);  // <s>, the prompt, two letters
    EXPECT_EQ(text, prompt + FakeEngine::AlphabetAfter(prompt, 2));
    for (size_t i = 1; i < offsets.size(); ++i) ASSERT_EQ(offsets[i], i - 1);
  }
}

TEST_F(SlowClients, LogProbabilitiesOfTooManyPromptTokensAreRefused) {
  StartServer({});
  TestClient client(server_->port());
  client.Send(TestClient::Post(
      "/v1/completions",
      json{{"prompt", std::string(20'000, 'p')}, {"max_tokens", 1}, {"echo", true}, {"n", 16}, {"logprobs", 20}}
          .dump()));
  const ClientResponse response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.json()["error"]["param"], "logprobs");
  EXPECT_EQ(engine_.submitted, 0);
}

TEST_F(SlowClients, SeedsAreAny64Bits) {
  StartServer({});
  TestClient client(server_->port());
  for (const char* seed : {"0", "-9223372036854775808", "9223372036854775808", "18446744073709551615"}) {
    client.Send(
        TestClient::Post("/v1/completions", std::string(R"({"prompt":"Hi","max_tokens":1,"seed":)") + seed + "}"));
    EXPECT_EQ(client.Read().status, 200) << seed;
  }
  EXPECT_EQ(engine_.requests.back().sampling.seed, ~uint64_t{0});
}

}  // namespace
}  // namespace shoal::serve
