// The load generator: its schedule and prompts by seed, its figures, its reading of streams cut anywhere, and what it
// makes of servers that refuse, break off, or say nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <thread>

#include "load_client.h"
#include "load_events.h"
#include "load_figures.h"
#include "load_plan.h"
#include "tests/support/shared.h"

namespace shoal::load {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

TEST(LoadPlan, ReadsUrls) {
  const auto url = ParseUrl("http://localhost:8080/api/v1/");
  ASSERT_TRUE(url.has_value());
  EXPECT_EQ(url->host, "localhost");
  EXPECT_EQ(url->port, "8080");
  EXPECT_EQ(url->path, "/api/v1");
  EXPECT_EQ(ParseUrl("http://h")->path, "/v1");
  EXPECT_EQ(ParseUrl("http://h/")->port, "80");
  EXPECT_FALSE(ParseUrl("http://h")->tls);
  EXPECT_TRUE(ParseUrl("https://h")->tls);
  EXPECT_EQ(ParseUrl("https://h")->port, "443");
  EXPECT_EQ(ParseUrl("https://h:8443/x")->port, "8443");
  EXPECT_EQ(ParseUrl("http://[::1]:7462")->host, "::1");
  EXPECT_EQ(ParseUrl("http://[::1]:7462")->port, "7462");
  for (const char* wrong :
       {"", "h:1", "ftp://h", "https://", "http://", "http://:80", "http://h:0", "http://h:65536", "http://h:x",
        "http://h:", "http://[::1", "http://[::1]x", "http://u@h", "http://h/a b", "http://h/?q", "http://h/a\r\nX: y"})
    EXPECT_FALSE(ParseUrl(wrong).has_value()) << wrong;
}

TEST(LoadPlan, ReadsRanges) {
  EXPECT_EQ(ParseRange("32-512", 1, 1000)->low, 32);
  EXPECT_EQ(ParseRange("32-512", 1, 1000)->high, 512);
  EXPECT_EQ(ParseRange("7", 1, 1000)->high, 7);
  for (const char* wrong : {"", "-", "5-", "-5", "5-4", "0-4", "1-1001", "1-2-3", "a", "99999999999"})
    EXPECT_FALSE(ParseRange(wrong, 1, 1000).has_value()) << wrong;
}

TEST(LoadPlan, ArrivesBySeed) {
  const auto times = ArrivalTimes(10, 10000, 1);
  EXPECT_EQ(times, ArrivalTimes(10, 10000, 1));
  EXPECT_NE(times, ArrivalTimes(10, 10000, 2));
  EXPECT_EQ(times.front(), 0);
  EXPECT_TRUE(std::ranges::is_sorted(times));
  EXPECT_NEAR(times.back() / 9999, 0.1, 0.003);  // the mean gap; its standard error is 0.001
  const auto longer = ArrivalTimes(10, 20000, 1);
  EXPECT_TRUE(std::ranges::equal(times, std::span(longer).first(10000)));
  const auto faster = ArrivalTimes(20, 10000, 1);  // the same draws, in half the time
  for (size_t i = 0; i < times.size(); ++i) EXPECT_NEAR(faster[i], times[i] / 2, 1e-9);
  EXPECT_THAT(ArrivalTimes(10, 0, 1), ElementsAre());
}

TEST(LoadPlan, AsksTheSameForOneSeed) {
  Plan plan{.token_ids = true, .ids = {300, 999}, .max_tokens = 16, .ignore_eos = true};
  int least = 1000, most = 0;
  for (int i = 0; i < 4000; ++i) {
    const int length = PromptTokens(plan, i);
    least = std::min(least, length);
    most = std::max(most, length);
  }
  EXPECT_EQ(least, 32);
  EXPECT_EQ(most, 512);
  const auto body = nlohmann::json::parse(RequestBody(plan, 5));
  EXPECT_EQ(static_cast<int>(body["prompt"].size()), PromptTokens(plan, 5));
  for (const int id : body["prompt"]) EXPECT_TRUE(id >= 300 && id <= 999) << id;
  EXPECT_EQ(body["ignore_eos"], true);
  EXPECT_EQ(body["max_tokens"], 16);
  EXPECT_EQ(body["stream_options"]["include_usage"], true);
  EXPECT_FALSE(body.contains("model"));
  EXPECT_EQ(RequestBody(plan, 5), RequestBody(plan, 5));
  EXPECT_NE(RequestBody(plan, 5), RequestBody(plan, 6));
  plan.seed = 2;
  EXPECT_NE(nlohmann::json::parse(RequestBody(plan, 5)), body);

  Plan chat{.chat = true, .model = "m", .prompt_tokens = {3, 3}, .extra = R"({"top_k":1,"max_tokens":2})"};
  const auto asked = nlohmann::json::parse(RequestBody(chat, 0));
  const std::string text = asked["messages"][0]["content"];
  EXPECT_EQ(std::ranges::count(text, ' '), 2);
  EXPECT_EQ(asked["model"], "m");
  EXPECT_EQ(asked["top_k"], 1);
  EXPECT_EQ(asked["max_tokens"], 2);
  EXPECT_FALSE(asked.contains("prompt"));
  EXPECT_TRUE(CheckExtra("").has_value());
  EXPECT_TRUE(CheckExtra("{}").has_value());
  for (const char* wrong : {"[]", "1", "{", "{}}"}) EXPECT_FALSE(CheckExtra(wrong).has_value()) << wrong;
}

TEST(LoadFigures, FindsPercentiles) {
  EXPECT_EQ(Percentile({}, 0.5), 0);
  EXPECT_EQ(Percentile({7}, 0.99), 7);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 0), 1);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 0.5), 2.5);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 1), 4);
  std::vector<double> hundred(101);
  for (size_t i = 0; i < hundred.size(); ++i) hundred[i] = static_cast<double>(100 - i);
  const Spread spread = SpreadOf(hundred);
  EXPECT_EQ(spread.p50, 50);
  EXPECT_EQ(spread.p90, 90);
  EXPECT_EQ(spread.p99, 99);
  EXPECT_EQ(spread.max, 100);
  EXPECT_EQ(spread.mean, 50);
}

TEST(LoadFigures, KeepsAFairSample) {
  Samples samples(100);
  for (int i = 0; i < 100; ++i) samples.Add(i);
  EXPECT_EQ(samples.values()[42], 42);
  for (int i = 100; i < 100000; ++i) samples.Add(i);
  EXPECT_EQ(samples.count(), 100000u);
  ASSERT_EQ(samples.values().size(), 100u);
  EXPECT_NEAR(SpreadOf(samples.values()).mean, 50000, 12000);  // four standard errors
}

TEST(LoadFigures, SumsUp) {
  const Outcome quick{.scheduled = 0s,
                      .first_token = 100ms,
                      .last_token = 1100ms,
                      .end = 1200ms,
                      .prompt_tokens = 10,
                      .tokens = 11,
                      .events = 11,
                      .counted_by_server = true};
  const Outcome slow{.scheduled = 2s,
                     .first_token = 900ms,
                     .last_token = 2900ms,
                     .end = 3s,
                     .prompt_tokens = 20,
                     .tokens = 11,
                     .events = 10,
                     .counted_by_server = true};
  const Outcome failed{.scheduled = 1s, .end = 500ms, .tokens = 5, .failure = "http_429"};
  EXPECT_DOUBLE_EQ(quick.InterTokenSeconds(), 0.1);
  Samples gaps;
  gaps.Add(0.1);
  const Figures figures = Summarize({quick, failed, slow}, gaps, {.first_token_ms = 500, .inter_token_ms = 150});
  EXPECT_EQ(figures.requests, 3);
  EXPECT_EQ(figures.ok, 2);
  EXPECT_EQ(figures.failures, (std::map<std::string, int>{{"http_429", 1}}));
  EXPECT_EQ(figures.seconds, 5);
  EXPECT_EQ(figures.tokens, 22);
  EXPECT_EQ(figures.prompt_tokens, 30);
  EXPECT_DOUBLE_EQ(figures.tokens_per_s, 4.4);
  EXPECT_DOUBLE_EQ(figures.goodput_per_s, 0.2);
  EXPECT_DOUBLE_EQ(figures.first_token_ms.p50, 500);
  EXPECT_DOUBLE_EQ(figures.gap_ms.p99, 100);
  EXPECT_TRUE(figures.counted_by_server);
  EXPECT_EQ(Summarize({}, Samples(), {}).requests_per_s, 0);
  const Outcome mute{.end = 1s};
  EXPECT_TRUE(Meets(mute, {}));
  EXPECT_FALSE(Meets(mute, {.first_token_ms = 500}));
}

std::vector<std::string> Read(EventReader& reader, std::string_view bytes, size_t step) {
  std::vector<std::string> events;
  for (size_t at = 0; at < bytes.size(); at += step)
    EXPECT_TRUE(reader.Feed(bytes.substr(at, step), [&](std::string_view data) { events.emplace_back(data); }));
  return events;
}

TEST(LoadEvents, ReadsStreamsCutAnywhere) {
  const std::string_view stream =
      "\xef\xbb\xbf"
      "data: {\"a\":1}\n\n: ping\n\nevent: x\r\nid: 3\r\ndata:b\r\n\r\n\n\ndata: c\rdata:  d\r\rdata:\n\n"
      "data\n\ndata: [DONE]\n\ndata: half";
  for (size_t step = 1; step <= stream.size(); ++step) {
    EventReader reader;
    EXPECT_THAT(Read(reader, stream, step), ElementsAre("{\"a\":1}", "b", "c\n d", "", "[DONE]")) << step;
  }
}

TEST(LoadEvents, BoundsAnEvent) {
  const auto none = [](std::string_view) { ADD_FAILURE(); };
  EventReader line;
  const std::string piece(64 * 1024, 'x');
  int fed = 0;
  while (line.Feed(piece, none)) ASSERT_LT(++fed, 17);
  EventReader lines;
  const std::string data = "data: " + piece + "\n";
  fed = 0;
  while (lines.Feed(data, none)) ASSERT_LT(++fed, 17);
}

TEST(LoadEvents, KnowsWhatAnEventSays) {
  using Kind = Event::Kind;
  EXPECT_EQ(ParseEvent("[DONE]").kind, Kind::kDone);
  EXPECT_EQ(ParseEvent(R"({"choices":[{"text":"a"}]})").kind, Kind::kText);
  EXPECT_EQ(ParseEvent(R"({"choices":[{"text":"","finish_reason":"length"}]})").kind, Kind::kOther);
  EXPECT_EQ(ParseEvent(R"({"choices":[{"delta":{"content":"a"}}]})").kind, Kind::kText);
  EXPECT_EQ(ParseEvent(R"({"choices":[{"delta":{"reasoning_content":"a","content":null}}]})").kind, Kind::kText);
  EXPECT_EQ(ParseEvent(R"({"choices":[{"delta":{"role":"assistant","content":""}}]})").kind, Kind::kOther);
  const Event usage = ParseEvent(R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":128},"error":null})");
  EXPECT_EQ(usage.kind, Kind::kOther);
  EXPECT_EQ(usage.completion_tokens, 128);
  EXPECT_EQ(usage.prompt_tokens, 3);
  const Event error = ParseEvent(R"({"error":{"message":"gone"}})");
  EXPECT_EQ(error.kind, Kind::kError);
  EXPECT_THAT(error.message, HasSubstr("gone"));
  for (const char* broken : {"", "{", "[]", "1", "nonsense", "{\"a\":\"\xff\"}"})
    EXPECT_EQ(ParseEvent(broken).kind, Kind::kBroken) << broken;
  for (const char* odd : {R"({"choices":3})", R"({"choices":[3,null,{"text":4,"delta":5}]})", R"({"usage":[]})",
                          R"({"usage":{"completion_tokens":-4,"prompt_tokens":99999999999}})"}) {
    EXPECT_EQ(ParseEvent(odd).kind, Kind::kOther) << odd;
    EXPECT_EQ(ParseEvent(odd).completion_tokens, -1) << odd;
  }
}

// A key and a certificate for localhost that it signs itself, in PEM.
struct Identity {
  std::string key, certificate;
  Identity() {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> pair(EVP_EC_gen("P-256"), &EVP_PKEY_free);
    const std::unique_ptr<X509, decltype(&X509_free)> x509(X509_new(), &X509_free);
    X509_set_version(x509.get(), X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x509.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(x509.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(x509.get()), 3600);
    X509_set_pubkey(x509.get(), pair.get());
    X509_NAME* const name = X509_get_subject_name(x509.get());
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("localhost"), -1, -1,
                               0);
    X509_set_issuer_name(x509.get(), name);
    const std::unique_ptr<X509_EXTENSION, decltype(&X509_EXTENSION_free)> names(
        X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "DNS:localhost"), &X509_EXTENSION_free);
    X509_add_ext(x509.get(), names.get(), -1);
    X509_sign(x509.get(), pair.get(), EVP_sha256());
    key = Pem([&](BIO* to) { PEM_write_bio_PrivateKey(to, pair.get(), nullptr, nullptr, 0, nullptr, nullptr); });
    certificate = Pem([&](BIO* to) { PEM_write_bio_X509(to, x509.get()); });
  }

 private:
  static std::string Pem(const std::function<void(BIO*)>& write) {
    const std::unique_ptr<BIO, decltype(&BIO_free)> memory(BIO_new(BIO_s_mem()), &BIO_free);
    write(memory.get());
    char* bytes = nullptr;
    const long size = BIO_get_mem_data(memory.get(), &bytes);
    return std::string(bytes, static_cast<size_t>(size));
  }
};

// A server that answers each connection with the same bytes, cut as told, and then closes it or waits for its end. With an
// identity it speaks TLS.
class ScriptedServer {
 public:
  ScriptedServer(std::string answer, size_t cut, bool closes, const Identity* identity = nullptr)
      : tls_(ContextOf(identity)),
        acceptor_(io_, {boost::asio::ip::address_v4::loopback(), 0}),
        thread_([=, this](std::stop_token stop) {
          while (!stop.stop_requested()) Serve(answer, cut, closes);
        }) {}
  ~ScriptedServer() {
    thread_.request_stop();
    boost::asio::io_context io;
    boost::asio::ip::tcp::socket(io).connect(acceptor_.local_endpoint());  // wakes accept
  }
  std::string url() const { return "http://127.0.0.1:" + port(); }
  std::string port() const { return std::to_string(acceptor_.local_endpoint().port()); }

 private:
  void Serve(const std::string& answer, size_t cut, bool closes) {
    boost::system::error_code error;
    auto socket = acceptor_.accept(error);
    socket.set_option(boost::asio::ip::tcp::no_delay(true), error);
    if (tls_) {
      boost::asio::ssl::stream<boost::asio::ip::tcp::socket&> stream(socket, *tls_);
      stream.handshake(boost::asio::ssl::stream_base::server, error);
      Answer(stream, answer, cut, error);
    } else {
      Answer(socket, answer, cut, error);
    }
    if (closes) socket.shutdown(boost::asio::ip::tcp::socket::shutdown_send, error);
    char byte = 0;
    while (!error) socket.read_some(boost::asio::buffer(&byte, 1), error);  // until the client has left
  }
  template <class Stream>
  static void Answer(Stream& stream, const std::string& answer, size_t cut, boost::system::error_code& error) {
    std::string request;
    if (!error) boost::asio::read_until(stream, boost::asio::dynamic_buffer(request), "\r\n\r\n", error);
    for (size_t at = 0; at < answer.size() && !error; at += cut)
      boost::asio::write(stream, boost::asio::buffer(answer.data() + at, std::min(cut, answer.size() - at)), error);
  }
  static std::unique_ptr<boost::asio::ssl::context> ContextOf(const Identity* identity) {
    if (identity == nullptr) return nullptr;
    auto context = std::make_unique<boost::asio::ssl::context>(boost::asio::ssl::context::tls_server);
    context->use_private_key(boost::asio::buffer(identity->key), boost::asio::ssl::context::pem);
    context->use_certificate(boost::asio::buffer(identity->certificate), boost::asio::ssl::context::pem);
    return context;
  }
  const std::unique_ptr<boost::asio::ssl::context> tls_;
  boost::asio::io_context io_;
  boost::asio::ip::tcp::acceptor acceptor_;
  std::jthread thread_;
};

Plan PlanFor(const std::string& url, int requests = 3) {
  Plan plan{.requests = requests, .clients = 2, .prompt_tokens = {4, 8}, .max_tokens = 2};
  plan.url = *ParseUrl(url);
  return plan;
}

std::string Chunked(std::initializer_list<std::string_view> pieces) {
  std::string bytes =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const std::string_view piece : pieces) {
    char size[32];
    std::snprintf(size, sizeof(size), "%zx\r\n", piece.size());
    bytes.append(size).append(piece).append("\r\n");
  }
  return bytes;
}

constexpr std::string_view kText = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
constexpr std::string_view kUsage =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5}}\n\n";
constexpr std::string_view kDone = "data: [DONE]\n\n";

// All of three requests end like this.
void ExpectFailure(const Plan& plan, const std::string& cause, const std::string& said = {}) {
  const auto report = Drive(plan);
  ASSERT_TRUE(report.has_value());
  for (const Outcome& outcome : report->outcomes) EXPECT_EQ(outcome.failure, cause);
  EXPECT_EQ(report->gap_seconds.count(), 0u);
  ASSERT_TRUE(report->examples.contains(cause));
  EXPECT_THAT(report->examples.at(cause), HasSubstr(said));
}

TEST(LoadClient, ReadsAStreamInAnyPieces) {
  // An event over two chunks, two events in one chunk, one without a length of its own.
  const std::string answer =
      Chunked({kText.substr(0, 9), kText.substr(9), std::string(kText) + std::string(kUsage), kDone, ""});
  for (const size_t cut : {size_t{1}, size_t{7}, answer.size()}) {
    ScriptedServer server(answer, cut, true);
    const auto report = Drive(PlanFor(server.url()));
    ASSERT_TRUE(report.has_value());
    for (const Outcome& outcome : report->outcomes) {
      EXPECT_EQ(outcome.failure, "") << cut;
      EXPECT_EQ(outcome.events, 2);
      EXPECT_EQ(outcome.tokens, 5);
      EXPECT_EQ(outcome.prompt_tokens, 7);
      EXPECT_TRUE(outcome.counted_by_server);
      EXPECT_GE(outcome.last_token, outcome.first_token);
      EXPECT_GE(outcome.end, outcome.last_token);
    }
    EXPECT_EQ(report->gap_seconds.count(), 3u);
  }
}

TEST(LoadClient, CountsEventsWithoutUsageAndReadsToTheConnectionsEnd) {
  ScriptedServer server("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + std::string(kText) +
                            std::string(kText) + std::string(kText) + std::string(kDone),
                        5, true);
  Plan plan = PlanFor(server.url());
  plan.rate = 1000;  // open loop
  plan.warmup = 1;
  const auto report = Drive(plan);
  ASSERT_TRUE(report.has_value());
  ASSERT_EQ(report->outcomes.size(), 3u);
  for (const Outcome& outcome : report->outcomes) {
    EXPECT_EQ(outcome.failure, "");
    EXPECT_EQ(outcome.tokens, 3);
    EXPECT_FALSE(outcome.counted_by_server);
  }
}

TEST(LoadClient, SpeaksTlsToWhomItCanTrust) {
  const Identity identity;
  const shoal::testing::TemporaryFolder folder;
  const std::string ca = (folder.path() / "ca.pem").string();
  shoal::testing::WriteFile(ca, identity.certificate);
  ScriptedServer server(Chunked({kText, kUsage, kDone, ""}), 11, true, &identity);
  Plan plan = PlanFor("https://localhost:" + server.port());
  plan.ca_file = ca;
  const auto trusted = Drive(plan);
  ASSERT_TRUE(trusted.has_value());
  for (const Outcome& outcome : trusted->outcomes) {
    EXPECT_EQ(outcome.failure, "");
    EXPECT_EQ(outcome.tokens, 5);
  }
  plan.url.host = "127.0.0.1";  // the certificate is of another name
  ExpectFailure(plan, "tls", "certificate verify failed");
  plan.url.host = "localhost";
  plan.ca_file.clear();  // no authority knows it
  ExpectFailure(plan, "tls", "certificate verify failed");
  plan.verify = false;
  const auto unverified = Drive(plan);
  ASSERT_TRUE(unverified.has_value());
  for (const Outcome& outcome : unverified->outcomes) EXPECT_EQ(outcome.failure, "");
  plan.ca_file = (folder.path() / "none.pem").string();
  EXPECT_FALSE(Drive(plan).has_value());
  ScriptedServer plain(Chunked({kText, kDone, ""}), 11, true);
  plan = PlanFor("https://localhost:" + plain.port());
  plan.connect_timeout = 200ms;
  ExpectFailure(plan, "connect_timeout");
}

TEST(LoadClient, NamesWhatWentWrong) {
  const std::string head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
  const std::string stream = head + "\r\n";
  const struct {
    std::string answer, cause, said;
  } cases[] = {
      {"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy", "http_429", "busy"},
      {"HTTP/1.1 500 Oh\r\n\r\n", "http_500", ""},
      {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", "no_stream", "{}"},
      {"nonsense\r\n\r\n", "bad_http", ""},
      {"", "closed_early", ""},
      {"HTTP/1.1 200 O", "closed_early", ""},
      {stream + std::string(kText), "no_done", "[DONE]"},
      {Chunked({kText}), "closed_early", ""},
      {Chunked({kText}) + "xyz\r\n", "bad_http", ""},
      {stream + std::string(kText) + "data: {\"error\":{\"message\":\"peer lost\"}}\n\n", "error_event", "peer lost"},
      {stream + "data: nonsense\n\n", "broken_event", "nonsense"},
      {stream + "data: " + std::string(2 << 20, 'x'), "event_too_long", ""},
      {"HTTP/1.1 200 OK\r\nX: " + std::string(1 << 18, 'x') + "\r\n\r\n", "bad_http", ""},
  };
  for (const auto& one : cases) {
    SCOPED_TRACE(one.answer.substr(0, 120));
    ScriptedServer server(one.answer, 1 << 16, true);
    ExpectFailure(PlanFor(server.url()), one.cause, one.said);
  }
}

TEST(LoadClient, NeverWaitsForever) {
  for (const std::string& answer : {std::string(), std::string("HTTP/1.1 200 OK\r\n"), Chunked({kText})}) {
    ScriptedServer server(answer, 1 << 16, false);
    Plan plan = PlanFor(server.url());
    plan.clients = 1;
    plan.idle_timeout = 20ms;
    ExpectFailure(plan, "idle_timeout");
    plan = PlanFor(server.url());
    plan.clients = 1;
    plan.request_timeout = 20ms;
    ExpectFailure(plan, "request_timeout");
    plan = PlanFor(server.url(), 1000);
    plan.run_timeout = 20ms;
    ExpectFailure(plan, "run_deadline");
    plan.rate = 10;  // open loop: a hundred seconds of arrivals
    ExpectFailure(plan, "run_deadline");
  }
}

TEST(LoadClient, SaysWhenNobodyListens) {
  std::string url;
  {
    ScriptedServer server("", 1, true);
    url = server.url();
  }
  ExpectFailure(PlanFor(url), "connect");
  Plan plan = PlanFor("http://127.0.0.1:1");
  plan.url.host = "256.256.256.256";
  EXPECT_FALSE(Drive(plan).has_value());
}

}  // namespace
}  // namespace shoal::load
