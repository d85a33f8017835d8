// The server around the dialects: malformed HTTP, limits, keys, clients that leave or do not read, shutting down.
#include "serve/server.h"

#include <gmock/gmock.h>

#include <thread>

#include "serve/fake_engine.h"
#include "serve/router.h"
#include "serve/routes.h"
#include "serve/test_client.h"

namespace shoal::serve {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using ::testing::HasSubstr;

constexpr std::string_view kStream = R"({"prompt":"Hi","max_tokens":50000,"stream":true})";
constexpr std::string_view kWhole = R"({"prompt":"Hi","max_tokens":50000})";
constexpr std::string_view kShort = R"({"prompt":"Hi","max_tokens":3})";

class ServerTest : public ::testing::Test {
 protected:
  void SetUp() override { StartServer({}); }
  void StartServer(ServerLimits limits, std::vector<KeyHash> keys = {}, std::string host = "127.0.0.1") {
    server_.reset();
    ServerOptions options{.host = host,
                          .port = 0,
                          .insecure = host != "127.0.0.1",
                          .model_name = "tiny/model:q8",
                          .api_keys = std::move(keys),
                          .limits = limits};
    auto server = Server::Start(engine_, std::move(options));
    ASSERT_TRUE(server.has_value()) << ToString(server.error());
    server_ = std::move(*server);
  }
  ClientResponse Raw(std::string_view bytes) {
    TestClient client(server_->port());
    client.Send(bytes);
    return client.Read();
  }
  // Expects a refusal with all of OpenAI's keys, and then the end of the connection.
  void RefusesAndCloses(std::string_view bytes, int status, std::string_view code) {
    TestClient client(server_->port());
    client.Send(bytes);
    const ClientResponse response = client.Read();
    EXPECT_EQ(response.status, status) << bytes.substr(0, 80) << " -> " << response.body;
    if (response.status != status) return;
    EXPECT_EQ(response.json()["error"].size(), 4u);
    EXPECT_EQ(response.code(), code);
    EXPECT_EQ(response.headers.at("connection"), "close");
    EXPECT_TRUE(response.headers.contains("x-request-id"));
    EXPECT_TRUE(client.AtEnd());
  }
  bool NothingRuns() {
    return engine_.WaitFor([](const FakeEngine& engine) { return engine.running() == 0; });
  }
  bool Runs(int sequences) {
    return engine_.WaitFor([&](const FakeEngine& engine) { return engine.running() == sequences; });
  }
  double Metric(const std::string& line_start) {
    const std::string text = Raw(TestClient::Get("/metrics")).body;
    const size_t at = text.find("\n" + line_start);
    if (at == std::string::npos) return -1;
    return std::stod(text.substr(at + 1 + line_start.size()));
  }

  FakeEngine engine_;
  std::unique_ptr<Server> server_;
};

TEST_F(ServerTest, ListsItsModel) {
  const json list = Raw(TestClient::Get("/v1/models")).json();
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 1u);
  EXPECT_EQ(list["data"][0]["id"], "tiny/model:q8");
  EXPECT_EQ(list["data"][0]["object"], "model");
  EXPECT_TRUE(list["data"][0]["created"].is_number_integer());
  EXPECT_TRUE(list["data"][0]["owned_by"].is_string());
  for (const char* path :
       {"/v1/models/tiny/model:q8", "/v1/models/tiny%2Fmodel%3Aq8", "/v1/models/tiny%2fmodel:q8?x=1"})
    EXPECT_EQ(Raw(TestClient::Get(path)).json(), list["data"][0]) << path;
}

TEST_F(ServerTest, LooksModelsUpAndNeverOpensThem) {  // H22
  for (const std::string path : {"/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/../../etc/passwd", "/v1/models/%00",
                                 "/v1/models/a%00b", "/v1/models/tiny%252Fmodel%253Aq8"}) {
    const ClientResponse response = Raw(TestClient::Get(path));
    EXPECT_EQ(response.status, 404) << path;
    EXPECT_EQ(response.code(), "model_not_found") << path;
  }
  EXPECT_EQ(Raw(TestClient::Get("/v1/models/" + std::string(8000, 'm'))).status, 404);
  EXPECT_EQ(Raw(TestClient::Get("/v1/models/%zz")).status, 400);
  EXPECT_EQ(Raw(TestClient::Get("/v1/models/%f")).status, 400);
}

TEST_F(ServerTest, TellsItsHealth) {
  EXPECT_EQ(Raw(TestClient::Get("/health")).json(), (json{{"status", "ok"}}));
  engine_.SetFailure(MakeError(Code::kUnavailable, reasons::kPeerLost, "worker 2 was lost"));
  for (const char* path : {"/health", "/healthz"}) {
    const ClientResponse response = Raw(TestClient::Get(path));
    EXPECT_EQ(response.status, 503);
    EXPECT_EQ(response.json()["reason"], "peer_lost");
    EXPECT_EQ(response.json()["error"]["message"], "worker 2 was lost");
  }
  EXPECT_EQ(Raw(TestClient::Get("/livez")).status, 200);
  const ClientResponse refused = Raw(TestClient::Post("/v1/completions", kShort));
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.at("retry-after"), "5");
  engine_.SetFailure(std::nullopt);
  EXPECT_EQ(Raw(TestClient::Get("/health")).status, 200);
}

TEST_F(ServerTest, CountsWhatItDoes) {
  Raw(TestClient::Post("/v1/completions", kShort));
  Raw(TestClient::Post("/v1/completions", "{"));
  Raw(TestClient::Post("/v1/completions", R"({"prompt":"Hi","max_tokens":3,"x":1,"y":null,"suffix":null,"seed":1})"));
  Raw("nonsense\r\n\r\n");
  Raw("GET /" + std::string(9000, 'u') + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
  const ClientResponse response = Raw(TestClient::Get("/metrics"));
  EXPECT_THAT(response.headers.at("content-type"), HasSubstr("text/plain; version=0.0.4"));
  for (const char* name :
       {"shoal_tokens_generated_total 6", "shoal_unknown_fields_total 2", "shoal_prompt_tokens_total",
        "shoal_requests_running 0", "shoal_requests_waiting 0", "shoal_kv_blocks_total 100", "shoal_kv_blocks_free 90",
        "shoal_requests_total{status=\"200\"} 2", "shoal_requests_total{status=\"400\"} 2",
        "shoal_requests_total{status=\"414\"} 1", "shoal_rejections_total{reason=\"invalid_json\"} 1",
        "shoal_time_to_first_token_seconds_count 2", "shoal_inter_token_seconds_count",
        "shoal_request_duration_seconds_bucket", "shoal_sequences_finished_total{reason=\"stop\"} 2",
        "shoal_build_info{"})
    EXPECT_THAT(response.body, HasSubstr(std::string("\n") + name)) << name;
  EXPECT_EQ(Raw(TestClient::Get("/version")).json()["version"], SHOAL_VERSION);
}

TEST_F(ServerTest, RoutesExactly) {  // H12, H13
  for (const char* path : {"/", "/v1", "//v1//models", "/v1/models/", "/V1/models", "/v1/completions/", "/v1/chat",
                           "/health/x", "/..%2fhealth", "/%2e%2e/health", "/health%00"})
    EXPECT_EQ(Raw(TestClient::Get(path)).status, 404) << path;
  for (const auto& [method, path, allow] :
       std::vector<std::array<std::string, 3>>{{"GET", "/v1/completions", "POST"},
                                               {"DELETE", "/v1/completions", "POST"},
                                               {"OPTIONS", "/v1/completions", "POST"},
                                               {"POST", "/v1/models", "GET, HEAD"},
                                               {"PUT", "/v1/models/x", "GET, HEAD"},
                                               {"BREW", "/health", "GET, HEAD"}}) {
    const ClientResponse response =
        Raw(method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    EXPECT_EQ(response.status, 405) << method << path;
    EXPECT_EQ(response.headers.at("allow"), allow);
    EXPECT_EQ(response.code(), "method_not_allowed");
  }
  TestClient client(server_->port());
  client.Send("HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + TestClient::Get("/health"));
  const ClientResponse head = client.Read(true);
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers.at("content-length"), std::to_string(std::string(R"({"status":"ok"})").size()));
  EXPECT_EQ(client.Read().json(), (json{{"status", "ok"}}));
  EXPECT_EQ(Raw("GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200);
  EXPECT_EQ(Raw("GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 403);
  EXPECT_EQ(Raw("GET http://localhost?x=/health HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 404);
}

TEST_F(ServerTest, EchoesSaneRequestIdsOnly) {
  EXPECT_EQ(Raw(TestClient::Get("/health", "X-Request-Id: trace-1.a_B\r\n")).headers.at("x-request-id"), "trace-1.a_B");
  for (const std::string& id :
       {std::string("a b"), std::string("<x>"), std::string(129, 'i'), std::string("\xC3\xA9")}) {
    const std::string given =
        Raw(TestClient::Get("/health", "X-Request-Id: " + id + "\r\n")).headers.at("x-request-id");
    EXPECT_NE(given, id);
    EXPECT_TRUE(given.starts_with("req-"));
  }
}

TEST_F(ServerTest, ChecksTheContentType) {  // H14, H15
  const auto post = [&](const std::string& type) {
    return Raw("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + type +
               "Content-Length: " + std::to_string(kShort.size()) + "\r\n\r\n" + std::string(kShort))
        .status;
  };
  EXPECT_EQ(post(""), 200);
  EXPECT_EQ(post("Content-Type: application/json; charset=utf-8\r\n"), 200);
  EXPECT_EQ(post("Content-Type: APPLICATION/JSON\r\n"), 200);
  EXPECT_EQ(post("Content-Type: application/vnd.x+json\r\n"), 200);
  for (const char* type :
       {"multipart/form-data; boundary=x", "application/xml", "text/plain", "application/x-www-form-urlencoded"})
    EXPECT_EQ(post(std::string("Content-Type: ") + type + "\r\n"), 415) << type;
  EXPECT_EQ(post("Content-Encoding: gzip\r\n"), 415);
  EXPECT_EQ(post("Content-Encoding: identity\r\n"), 200);
}

TEST_F(ServerTest, AnswersMalformedHttpAndCloses) {  // H9, H10, H11, H16
  const std::string post = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n";
  for (const std::string& bytes :
       {std::string("GET /health\r\n\r\n"),
        std::string("GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n"),
        std::string("GARBAGE\r\n\r\n"),
        std::string("GET  /health HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\nHost: localhost\r\nno colon here\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\nHost: localhost\r\nX : a\r\n\r\n"),
        "GET /health HTTP/1.1\r\nHost: localhost\r\nX: a" + std::string(1, '\0') + "b\r\n\r\n",
        std::string("GET /he\x01lth HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        post + "Content-Length: -1\r\n\r\n",
        post + "Content-Length: abc\r\n\r\n",
        post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        post + "Content-Length: 5, 5\r\n\r\n",
        post + "Content-Length: 99999999999999999999999\r\n\r\n",
        post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        post + "Transfer-Encoding: gzip\r\n\r\n",
        post + "Transfer-Encoding: chunked, gzip\r\n\r\n",
        post + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
        post + "Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        post + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n{}\r\n0\r\n\r\n",
        post + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
        std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11),
        std::string("\0\0\0\0", 4),
        std::string("{\"prompt\":1}")})
    RefusesAndCloses(bytes, 400, "bad_request");
  EXPECT_EQ(engine_.submitted, 0);
}

TEST_F(ServerTest, RefusesTooMuchOfAnything) {  // H9, H11, H12
  RefusesAndCloses("GET /" + std::string(9000, 'u') + " HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "url_too_long");
  RefusesAndCloses("GET /" + std::string(30'000, 'u') + " HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "url_too_long");
  RefusesAndCloses("GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + std::string(20'000, 'h') + "\r\n\r\n", 431,
                   "headers_too_large");
  std::string many = "GET /health HTTP/1.1\r\nHost: localhost\r\n";
  for (int i = 0; i < 1000; ++i) many += "X:y\r\n";
  RefusesAndCloses(many + "\r\n", 431, "headers_too_large");
  ServerLimits limits;
  limits.max_body_bytes = 1000;
  StartServer(limits);
  const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n";
  RefusesAndCloses(head + "Content-Length: 1001\r\n\r\n", 413, "body_too_large");
  RefusesAndCloses(head + "Content-Length: 1001\r\n\r\n" + std::string(1001, ' '), 413, "body_too_large");
  RefusesAndCloses(head + "Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + std::string(1001, ' ') + "\r\n0\r\n\r\n", 413,
                   "body_too_large");
}

TEST_F(ServerTest, ReadsChunkedBodiesAndTrailers) {
  std::string bytes = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const char c : kShort) bytes += std::string("1;ext=1\r\n") + c + "\r\n";
  const ClientResponse response = Raw(bytes + "0\r\nTrailer: x\r\n\r\n");
  EXPECT_EQ(response.status, 200) << response.body;
}

TEST_F(ServerTest, BoundsTheBodiesOfAllConnectionsTogether) {
  ServerLimits limits;
  limits.max_body_bytes_held = 1000;
  StartServer(limits);
  TestClient first(server_->port());
  first.Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n" +
             std::string(900, ' '));
  const std::string body = std::string(200, ' ') + std::string(kShort);
  // The first one's bytes may still be on their way.
  const Deadline deadline = Deadline::After(10s);
  ClientResponse response;
  do response = Raw(TestClient::Post("/v1/completions", body));
  while (response.status == 200 && !deadline.passed());
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.code(), "overloaded");
  first.Reset();
  do response = Raw(TestClient::Post("/v1/completions", body));
  while (response.status != 200 && !deadline.passed());
  EXPECT_EQ(response.status, 200);
}

TEST_F(ServerTest, UnderstandsExpect) {  // H16
  TestClient client(server_->port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: " +
              std::to_string(kShort.size()) + "\r\n\r\n");
  EXPECT_EQ(client.ReadHead().status, 100);
  client.Send(kShort);
  EXPECT_EQ(client.Read().status, 200);
  RefusesAndCloses("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\nContent-Length: 5\r\n\r\n", 417,
                   "expectation_failed");
  RefusesAndCloses("POST /nothing HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
                   404, "not_found");
}

TEST_F(ServerTest, ServesPipelinedRequestsInOrder) {  // H17
  ServerLimits limits;
  limits.max_requests_per_connection = 50;
  StartServer(limits);
  TestClient client(server_->port());
  std::string bytes;
  for (int i = 0; i < 60; ++i)
    bytes += i % 3 == 0
                 ? TestClient::Post("/v1/completions", json{{"prompt", std::string(1, static_cast<char>('A' + i % 26))},
                                                            {"max_tokens", 4},
                                                            {"stream", i % 2 == 0}}
                                                           .dump())
                 : TestClient::Get(i % 3 == 1 ? "/health" : "/nothing", "X-Request-Id: r" + std::to_string(i) + "\r\n");
  client.Send(bytes);
  for (int i = 0; i < 50; ++i) {
    const ClientResponse response = client.Read();
    ASSERT_EQ(response.status, i % 3 == 2 ? 404 : 200) << i;
    if (i % 3 != 0) {
      EXPECT_EQ(response.headers.at("x-request-id"), "r" + std::to_string(i));
      continue;
    }
    const std::string expected = FakeEngine::AlphabetAfter(std::string(1, static_cast<char>('A' + i % 26)), 4);
    EXPECT_EQ(
        i % 2 == 0 ? ParseEvents(response.body).text[0] : response.json()["choices"][0]["text"].get<std::string>(),
        expected);
    EXPECT_EQ(response.headers.at("connection"), i == 49 ? "close" : "keep-alive");
  }
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(ServerTest, ConnectionCloseEndsAfterTheWholeStream) {  // H18
  TestClient client(server_->port());
  client.Send(
      TestClient::Post("/v1/completions", R"({"prompt":"Hi","max_tokens":9,"stream":true})", "Connection: close\r\n"));
  const ClientResponse response = client.Read();
  EXPECT_TRUE(response.complete);
  EXPECT_EQ(response.headers.at("connection"), "close");
  EXPECT_TRUE(ParseEvents(response.body).done);
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(ServerTest, Http10GetsNoChunks) {
  const std::string head = "POST /v1/completions HTTP/1.0\r\nContent-Length: ";
  const std::string body = R"({"prompt":"Hi","max_tokens":9,"stream":true})";
  const ClientResponse stream = Raw(head + std::to_string(body.size()) + "\r\nConnection: keep-alive\r\n\r\n" + body);
  EXPECT_EQ(stream.status, 200);
  EXPECT_FALSE(stream.headers.contains("transfer-encoding"));
  EXPECT_EQ(stream.headers.at("connection"), "close");
  EXPECT_EQ(ParseEvents(stream.body).text.at(0), FakeEngine::AlphabetAfter("Hi", 9));
  EXPECT_TRUE(ParseEvents(stream.body).done);
  const ClientResponse whole = Raw(head + std::to_string(kShort.size()) + "\r\n\r\n" + std::string(kShort));
  EXPECT_EQ(whole.status, 200);
  EXPECT_EQ(whole.headers.at("connection"), "close");
}

TEST_F(ServerTest, NeedsAKeyEverywhereButForHealth) {  // H19
  StartServer({}, {HashKey("sk-one"), HashKey("sk-two")});
  // Walks all routes there are.
  Metrics metrics(engine_, "m");
  Service service{engine_, metrics, {"m", &engine_.tokenizer_, 100}};
  for (const Route& route : MakeRoutes(service)) {
    const std::string path = std::string(route.path) + (route.path.ends_with('/') ? "x" : "");
    const std::string request =
        std::string(route.method) + " " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n";
    const bool open = path == "/health" || path == "/healthz" || path == "/livez";
    EXPECT_EQ(route.open, open) << path;
    const ClientResponse bare = Raw(request + "\r\n");
    EXPECT_EQ(bare.status == 401, !open) << path << bare.status;
    if (!open) {
      EXPECT_EQ(bare.headers.at("www-authenticate"), "Bearer realm=\"shoal\"");
      EXPECT_EQ(bare.code(), "invalid_api_key");
      EXPECT_EQ(bare.json()["error"]["type"], "authentication_error");
    }
    EXPECT_NE(Raw(request + "Authorization: Bearer sk-two\r\n\r\n").status, 401) << path;
    EXPECT_NE(Raw(request + "authorization: bearer sk-one\r\n\r\n").status, 401) << path;
  }
  for (const std::string bad :
       {"Authorization: Bearer sk-onE\r\n", "Authorization: Bearer \r\n", "Authorization: sk-one\r\n",
        "Authorization: Basic sk-one\r\n", "Authorization: Bearer sk-one\r\nAuthorization: Bearer sk-one\r\n",
        "X-Api-Key: sk-one\r\n", ""})
    EXPECT_EQ(Raw(TestClient::Get("/v1/models?api_key=sk-one&key=sk-one", bad)).status, 401) << bad;
  EXPECT_EQ(Raw(TestClient::Get("/nothing")).status, 401);
  EXPECT_EQ(Raw(TestClient::Get("/v1/models", "Authorization: Bearer " + std::string(10'000, 'k') + "\r\n")).status,
            401);
}

TEST_F(ServerTest, AKeyIsATenant) {
  const auto tenant_of = [&](const std::string& headers) {
    EXPECT_EQ(Raw(TestClient::Post("/v1/completions", kShort, headers)).status, 200);
    std::string tenant;
    EXPECT_TRUE(engine_.WaitFor([&](const FakeEngine& engine) {
      tenant = engine.requests.back().tenant;
      return true;
    }));
    return tenant;
  };
  EXPECT_EQ(tenant_of(""), "");
  StartServer({}, {HashKey("sk-one"), HashKey("sk-two")});
  const std::string one = tenant_of("Authorization: Bearer sk-one\r\n");
  const std::string two = tenant_of("Authorization: Bearer sk-two\r\n");
  EXPECT_EQ(one.size(), sizeof(KeyHash));
  EXPECT_NE(one, two);
  EXPECT_EQ(one.find("sk-one"), std::string::npos);
  EXPECT_EQ(tenant_of("authorization: bearer sk-one\r\n"), one);
  const std::string salted = R"({"prompt":"Hi","max_tokens":1,"cache_salt":"user 7"})";
  EXPECT_EQ(Raw(TestClient::Post("/v1/completions", salted, "Authorization: Bearer sk-one\r\n")).status, 200);
  EXPECT_TRUE(
      engine_.WaitFor([&](const FakeEngine& engine) { return engine.requests.back().tenant == one + "user 7"; }));
}

TEST_F(ServerTest, OnLoopbackAnswersThisMachinesNamesOnly) {  // H21
  const auto get = [&](const std::string& headers) {
    return Raw("GET /v1/models HTTP/1.1\r\n" + headers + "\r\n").status;
  };
  for (const char* host : {"localhost", "LocalHost:80", "127.0.0.1:7462", "[::1]", "[::1]:99"})
    EXPECT_EQ(get(std::string("Host: ") + host + "\r\n"), 200) << host;
  for (const char* host : {"evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost:80:90",
                           "localhost:x", "169.254.169.254", ""})
    EXPECT_EQ(get(std::string("Host: ") + host + "\r\n"), 403) << host;
  EXPECT_EQ(get("Host: localhost\r\nOrigin: http://localhost:3000\r\n"), 200);
  for (const char* origin :
       {"https://evil.example", "null", "http://localhost.evil.example", "http://evil.example/localhost"}) {
    const ClientResponse response = Raw(TestClient::Get("/v1/models", std::string("Origin: ") + origin + "\r\n"));
    EXPECT_EQ(response.status, 403) << origin;
    EXPECT_FALSE(response.headers.contains("access-control-allow-origin"));
  }
  StartServer({}, {}, "0.0.0.0");
  EXPECT_EQ(get("Host: shoal.example\r\n"), 200);
}

TEST_F(ServerTest, AClientThatLeavesCancelsItsSequence) {
  engine_.HoldAt(10);
  for (const std::string_view body : {kStream, kWhole}) {
    for (const int how : {0, 1, 2}) {
      TestClient client(server_->port());
      client.Send(TestClient::Post("/v1/completions", body));
      ASSERT_TRUE(Runs(1));
      if (how == 0) client.Close();
      if (how == 1) client.Reset();
      if (how == 2) client.FinishSending();
      EXPECT_TRUE(NothingRuns()) << how;
    }
  }
  EXPECT_EQ(engine_.cancelled, 6);
}

TEST_F(ServerTest, AClientThatLeavesBehindPipelinedRequestsIsNoticedToo) {
  engine_.HoldAt(10);
  TestClient client(server_->port());
  client.Send(TestClient::Post("/v1/completions", kStream) + TestClient::Get("/health") + TestClient::Get("/health"));
  ASSERT_TRUE(Runs(1));
  client.Close();
  EXPECT_TRUE(NothingRuns());
}

TEST_F(ServerTest, AClientThatOnlyWaitsIsNotCancelled) {
  engine_.HoldAt(10);
  TestClient client(server_->port());
  client.Send(TestClient::Post("/v1/completions", R"({"prompt":"Hi","max_tokens":20})"));
  ASSERT_TRUE(Runs(1));
  EXPECT_EQ(Raw(TestClient::Get("/health")).status, 200);  // others are served meanwhile
  engine_.HoldAt(-1);
  EXPECT_EQ(client.Read().json()["choices"][0]["text"], FakeEngine::AlphabetAfter("Hi", 20));
  client.Send(TestClient::Get("/health"));  // the connection goes on
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(ServerTest, AReaderThatDoesNotReadIsCutOffAndHoldsNobodyUp) {
  ServerLimits limits;
  limits.max_unsent_bytes = 100'000;
  limits.ping_interval = 20ms;
  StartServer(limits);
  engine_.SetTokenText(std::string(1000, 't'));
  engine_.HoldAt(0);  // else it may fill the mailbox before the server has written a byte; a ping brings the head
  TestClient slow(server_->port(), 4096);
  slow.Send(TestClient::Post("/v1/completions", kStream));
  ASSERT_EQ(slow.ReadHead().status, 200);
  engine_.HoldAt(-1);
  TestClient other(server_->port());
  other.Send(TestClient::Post("/v1/completions", R"({"prompt":"Hi","max_tokens":50,"stream":true})"));
  const ClientResponse response = other.Read();
  EXPECT_TRUE(ParseEvents(response.body).done);
  EXPECT_TRUE(NothingRuns());
  EXPECT_EQ(engine_.cancelled, 1);
  // The mailbox, one piece and the socket's buffers: nothing else holds any of it.
  EXPECT_LT(engine_.generated, 3'000u);
  while (slow.ReadChunk()) {  // ends, and not in good order
  }
  EXPECT_EQ(Metric("shoal_broken_streams_total{reason=\"slow_reader\"} "), 1);
}

TEST_F(ServerTest, AReaderThatStallsIsCutOffInTime) {
  ServerLimits limits;
  limits.stalled_reader_timeout = 200ms;
  limits.max_unsent_bytes = 1 << 30;
  StartServer(limits);
  engine_.SetTokenText(std::string(10'000, 't'));
  engine_.HoldAt(1000);
  TestClient slow(server_->port(), 4096);
  slow.Send(TestClient::Post("/v1/completions", kStream));
  ASSERT_TRUE(Runs(1));
  EXPECT_TRUE(NothingRuns());
  EXPECT_EQ(engine_.cancelled, 1);
  EXPECT_EQ(Metric("shoal_broken_streams_total{reason=\"slow_reader\"} "), 1);
}

TEST_F(ServerTest, PingsASilentStream) {
  ServerLimits limits;
  limits.ping_interval = 20ms;
  StartServer(limits);
  engine_.HoldAt(0);
  TestClient client(server_->port());
  client.Send(TestClient::Post("/v1/completions", R"({"prompt":"Hi","max_tokens":2,"stream":true})"));
  EXPECT_EQ(client.ReadHead().status, 200);
  EXPECT_EQ(client.ReadChunk(), ": ping\n\n");
  EXPECT_EQ(client.ReadChunk(), ": ping\n\n");
  engine_.HoldAt(-1);
  std::string rest;
  while (const auto chunk = client.ReadChunk()) {
    if (chunk->empty()) break;
    rest += *chunk;
  }
  EXPECT_EQ(ParseEvents(rest).text.at(0), FakeEngine::AlphabetAfter("Hi", 2));
}

TEST_F(ServerTest, SlowRequestsRunIntoTheirDeadlines) {
  ServerLimits limits;
  limits.header_timeout = 500ms;
  limits.idle_timeout = 500ms;
  limits.body_stall_timeout = 500ms;
  StartServer(limits);
  TestClient silent(server_->port());
  EXPECT_TRUE(silent.AtEnd());
  RefusesAndCloses("GET /health HTTP/1.1\r\nHost:", 408, "request_timeout");
  RefusesAndCloses("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", 408,
                   "request_timeout");
  TestClient idle(server_->port());
  idle.Send(TestClient::Get("/health"));
  EXPECT_EQ(idle.Read().status, 200);
  EXPECT_TRUE(idle.AtEnd());
}

TEST_F(ServerTest, BoundsItsConnections) {
  ServerLimits limits;
  limits.max_connections = 2;
  StartServer(limits);
  TestClient one(server_->port()), two(server_->port());
  for (TestClient* client : {&one, &two}) {
    client->Send(TestClient::Get("/health"));
    EXPECT_EQ(client->Read().status, 200);
  }
  TestClient three(server_->port());
  const ClientResponse response = three.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.code(), "too_many_connections");
  EXPECT_EQ(response.headers.at("retry-after"), "1");
  one.Close();
  const Deadline deadline = Deadline::After(10s);
  int status = 0;
  while (status != 200 && !deadline.passed()) status = Raw(TestClient::Get("/health")).status;
  EXPECT_EQ(status, 200);
}

TEST_F(ServerTest, ManyClientsAtOnceGetWhatEachWouldGetAlone) {
  constexpr int kClients = 64;
  std::vector<std::unique_ptr<TestClient>> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.push_back(std::make_unique<TestClient>(server_->port()));
    clients.back()->Send(TestClient::Post(
        "/v1/completions",
        json{{"prompt", "client " + std::to_string(i)}, {"max_tokens", 40}, {"stream", i % 4 != 0}}.dump()));
  }
  for (int i = 0; i < kClients; ++i) {
    const ClientResponse response = clients[static_cast<size_t>(i)]->Read();
    ASSERT_EQ(response.status, 200);
    const std::string text =
        i % 4 != 0 ? ParseEvents(response.body).text.at(0) : response.json()["choices"][0]["text"].get<std::string>();
    EXPECT_EQ(text, FakeEngine::AlphabetAfter("client " + std::to_string(i), 40)) << i;
  }
}

TEST_F(ServerTest, StopLetsWhatRunsFinish) {
  engine_.HoldAt(5);
  TestClient running(server_->port()), idle(server_->port());
  idle.Send(TestClient::Get("/health"));
  EXPECT_EQ(idle.Read().status, 200);
  running.Send(TestClient::Post("/v1/completions", R"({"prompt":"Hi","max_tokens":10,"stream":true})"));
  ASSERT_TRUE(Runs(1));
  std::thread stopper([&] { server_->Stop(Deadline::After(20s)); });
  // Until the running stream ends, the server answers, but takes no work.
  const Deadline deadline = Deadline::After(10s);
  while (Raw(TestClient::Get("/health")).status == 200 && !deadline.passed()) {
  }
  EXPECT_EQ(Raw(TestClient::Get("/health")).json()["reason"], "shutting_down");
  EXPECT_EQ(Raw(TestClient::Get("/livez")).status, 200);
  const ClientResponse refused = Raw(TestClient::Post("/v1/completions", kShort));
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.code(), "shutting_down");
  EXPECT_EQ(refused.headers.at("connection"), "close");
  engine_.HoldAt(-1);
  const ClientResponse response = running.Read();
  EXPECT_TRUE(response.complete);
  EXPECT_EQ(ParseEvents(response.body).text.at(0), FakeEngine::AlphabetAfter("Hi", 10));
  stopper.join();
  EXPECT_TRUE(idle.AtEnd());
  EXPECT_FALSE(TestClient(server_->port()).connected());
}

TEST_F(ServerTest, StopBreaksOffWhatTakesTooLong) {
  engine_.HoldAt(5);
  TestClient stream(server_->port()), whole(server_->port()), half(server_->port());
  stream.Send(TestClient::Post("/v1/completions", kStream));
  whole.Send(TestClient::Post("/v1/completions", kWhole));
  half.Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le");
  ASSERT_TRUE(engine_.WaitFor([](const FakeEngine& engine) { return engine.generated == 10; }));
  ASSERT_EQ(stream.ReadHead().status, 200);
  server_->Stop(Deadline::After(50ms));
  EXPECT_TRUE(NothingRuns());
  std::string rest;
  while (const auto chunk = stream.ReadChunk()) rest += *chunk;
  EXPECT_THAT(rest, HasSubstr("data: {\"error\":{"));
  EXPECT_THAT(rest, HasSubstr("shutting_down"));
  EXPECT_THAT(rest, ::testing::Not(HasSubstr("[DONE]")));
  const ClientResponse response = whole.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.code(), "shutting_down");
}

TEST_F(ServerTest, SaysWhyItCannotStart) {
  auto taken = Server::Start(engine_, {.host = "127.0.0.1",
                                       .port = server_->port(),
                                       .insecure = false,
                                       .model_name = "m",
                                       .api_keys = {},
                                       .limits = {}});
  ASSERT_FALSE(taken.has_value());
  EXPECT_EQ(taken.error().reason, reasons::kIo);
  EXPECT_THAT(taken.error().message, HasSubstr("Address already in use"));
  auto nowhere = Server::Start(
      engine_, {.host = "no such host", .port = 0, .insecure = false, .model_name = "m", .api_keys = {}, .limits = {}});
  ASSERT_FALSE(nowhere.has_value());
  EXPECT_EQ(nowhere.error().code, Code::kConfig);
  for (const char* host : {"0.0.0.0", "::", "192.0.2.1"}) {
    auto open = Server::Start(
        engine_,
        {.host = host, .port = 0, .insecure = false, .model_name = "m", .api_keys = {HashKey("k")}, .limits = {}});
    ASSERT_FALSE(open.has_value()) << host;
    EXPECT_EQ(open.error().reason, reasons::kBadConfig);
    EXPECT_THAT(open.error().message, HasSubstr("--insecure"));
  }
}

}  // namespace
}  // namespace shoal::serve
