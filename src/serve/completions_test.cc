// The completions dialect over real sockets on loopback, against an engine that says the alphabet.
#include <gmock/gmock.h>

#include "serve/fake_engine.h"
#include "serve/server.h"
#include "serve/test_client.h"

namespace shoal::serve {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class CompletionsTest : public ::testing::Test {
 protected:
  void SetUp() override { StartServer({}); }
  void StartServer(ServerLimits limits) {
    server_.reset();
    auto server = Server::Start(
        engine_, {.host = "127.0.0.1", .port = 0, .model_name = "tiny/model:q8", .api_keys = {}, .limits = limits});
    ASSERT_TRUE(server.has_value()) << ToString(server.error());
    server_ = std::move(*server);
  }
  ClientResponse Post(const json& body) { return PostText(body.dump()); }
  ClientResponse PostText(const std::string& body) {
    TestClient client(server_->port());
    client.Send(TestClient::Post("/v1/completions", body));
    return client.Read();
  }
  // Expects status 400 and the given param; returns the message.
  std::string Refused(const json& body, const std::string& param, int status = 400) {
    const ClientResponse response = Post(body);
    EXPECT_EQ(response.status, status) << body.dump().substr(0, 200) << " -> " << response.body;
    if (response.status != status) return {};
    const json error = response.json()["error"];
    EXPECT_EQ(error.size(), 4u) << response.body;
    EXPECT_EQ(error["param"].is_null() ? "" : error["param"].get<std::string>(), param) << response.body;
    return error["message"];
  }

  FakeEngine engine_;
  std::unique_ptr<Server> server_;
};

TEST_F(CompletionsTest, AnswersInOpenAisShape) {
  const ClientResponse response = Post({{"model", "tiny/model:q8"}, {"prompt", "Hi"}, {"max_tokens", 5}});
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(response.headers.at("content-type"), "application/json");
  EXPECT_FALSE(response.headers.at("x-request-id").empty());
  const json body = response.json();
  EXPECT_TRUE(body["id"].get<std::string>().starts_with("cmpl-"));
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_TRUE(body["created"].is_number_integer());
  EXPECT_EQ(body["model"], "tiny/model:q8");
  ASSERT_EQ(body["choices"].size(), 1u);
  const json choice = body["choices"][0];
  EXPECT_EQ(choice, (json{{"index", 0},
                          {"text", FakeEngine::AlphabetAfter("Hi", 5)},
                          {"logprobs", nullptr},
                          {"finish_reason", "length"}}));
  EXPECT_EQ(body["usage"], (json{{"prompt_tokens", 3},
                                 {"completion_tokens", 5},
                                 {"total_tokens", 8},
                                 {"prompt_tokens_details", {{"cached_tokens", 0}}}}));
}

TEST_F(CompletionsTest, DefaultsAreOpenAis) {
  ASSERT_EQ(Post({{"prompt", "x"}}).status, 200);
  const Request& request = engine_.requests.at(0);
  EXPECT_EQ(request.max_tokens, 16);
  EXPECT_EQ(request.sampling.temperature, 1.0f);
  EXPECT_EQ(request.sampling.top_p, 1.0f);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.sampling.logprobs, -1);
  EXPECT_FALSE(request.sampling.prompt_logprobs);
  EXPECT_FALSE(request.sampling.want_logits);
  EXPECT_FALSE(request.ignore_eos);
  EXPECT_TRUE(request.stop.empty());
}

TEST_F(CompletionsTest, EveryFieldReachesTheEngine) {
  ASSERT_EQ(Post({{"prompt", "x"},
                  {"max_completion_tokens", 3},
                  {"temperature", 0.5},
                  {"top_p", 0.9},
                  {"top_k", 40},
                  {"min_p", 0.05},
                  {"presence_penalty", -1.5},
                  {"frequency_penalty", 1.25},
                  {"repetition_penalty", 1.1},
                  {"seed", 7},
                  {"n", 2},
                  {"best_of", 2},
                  {"stop", {"END", "\n\n"}},
                  {"stop_token_ids", {5, 257}},
                  {"logit_bias", {{"3", -100}, {"257", 2.5}}},
                  {"logprobs", 4},
                  {"ignore_eos", true},
                  {"user", "u"},
                  {"suffix", ""},
                  {"unheard_of", {{"deep", 1}}}})
                .status,
            200);
  ASSERT_EQ(engine_.requests.size(), 2u);
  const Request& request = engine_.requests[0];
  EXPECT_EQ(request.max_tokens, 3);
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.top_p, 0.9f);
  EXPECT_EQ(request.sampling.top_k, 40);
  EXPECT_EQ(request.sampling.min_p, 0.05f);
  EXPECT_EQ(request.sampling.presence_penalty, -1.5f);
  EXPECT_EQ(request.sampling.frequency_penalty, 1.25f);
  EXPECT_EQ(request.sampling.repeat_penalty, 1.1f);
  EXPECT_EQ(request.sampling.seed, 7u);
  EXPECT_EQ(engine_.requests[1].sampling.seed, 8u);  // else both choices would be the same
  EXPECT_EQ(request.stop, (std::vector<std::string>{"END", "\n\n"}));
  EXPECT_EQ(request.stop_tokens, (std::vector<TokenId>{5, 257}));
  EXPECT_EQ(request.sampling.logit_bias, (std::vector<std::pair<TokenId, float>>{{257, 2.5f}, {3, -100.0f}}));
  EXPECT_EQ(request.sampling.logprobs, 4);
  EXPECT_TRUE(request.ignore_eos);
}

TEST_F(CompletionsTest, NullIsAbsent) {
  ASSERT_EQ(Post({{"prompt", "x"},
                  {"max_tokens", nullptr},
                  {"stop", nullptr},
                  {"logprobs", nullptr},
                  {"stream", nullptr},
                  {"n", nullptr},
                  {"logit_bias", nullptr},
                  {"stream_options", nullptr},
                  {"suffix", nullptr},
                  {"seed", nullptr},
                  {"best_of", nullptr}})
                .status,
            200);
  EXPECT_EQ(engine_.requests.at(0).max_tokens, 16);
}

TEST_F(CompletionsTest, StreamsChunksThatJoinToTheSameText) {
  const ClientResponse response = Post({{"prompt", "Hi"}, {"max_tokens", 20}, {"stream", true}});
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_TRUE(response.complete);
  EXPECT_EQ(response.headers.at("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(response.headers.at("cache-control"), "no-cache");
  EXPECT_EQ(response.headers.at("x-accel-buffering"), "no");
  EXPECT_TRUE(response.headers.contains("x-request-id"));
  const Events events = ParseEvents(response.body);
  EXPECT_TRUE(events.done);
  EXPECT_EQ(events.text.at(0), FakeEngine::AlphabetAfter("Hi", 20));
  EXPECT_EQ(events.finish_reason.at(0), "length");
  for (const json& event : events.list) {
    EXPECT_EQ(event["id"], events.list[0]["id"]);
    EXPECT_EQ(event["object"], "text_completion");
    EXPECT_EQ(event["created"], events.list[0]["created"]);
    EXPECT_EQ(event["choices"].size(), 1u);
    EXPECT_FALSE(event.contains("usage"));
  }
}

TEST_F(CompletionsTest, StreamsUsageWhenAsked) {
  const ClientResponse response =
      Post({{"prompt", "Hi"}, {"max_tokens", 4}, {"stream", true}, {"stream_options", {{"include_usage", true}}}});
  const Events events = ParseEvents(response.body);
  ASSERT_TRUE(events.done);
  ASSERT_GE(events.list.size(), 2u);
  for (size_t i = 0; i + 1 < events.list.size(); ++i) EXPECT_TRUE(events.list[i].at("usage").is_null());
  EXPECT_EQ(events.list.back()["choices"], json::array());
  EXPECT_EQ(events.list.back()["usage"]["total_tokens"], 7);
}

TEST_F(CompletionsTest, SeveralPromptsAndChoicesKeepTheirIndex) {
  const json prompts = {"A", "Bee", "See"};
  for (const bool stream : {false, true}) {
    const ClientResponse response = Post({{"prompt", prompts}, {"n", 2}, {"max_tokens", 9}, {"stream", stream}});
    ASSERT_EQ(response.status, 200);
    std::map<int, std::string> text;
    if (stream) {
      const Events events = ParseEvents(response.body);
      text = events.text;
      EXPECT_EQ(events.finish_reason.size(), 6u);
    } else {
      const json body = response.json();
      for (const auto& choice : body["choices"]) text[choice["index"]] = choice["text"];
      EXPECT_EQ(response.json()["usage"]["prompt_tokens"], 2 + 4 + 4);
      EXPECT_EQ(response.json()["usage"]["completion_tokens"], 6 * 9);
    }
    ASSERT_EQ(text.size(), 6u);
    for (int i = 0; i < 6; ++i)
      EXPECT_EQ(text[i], FakeEngine::AlphabetAfter(prompts[static_cast<size_t>(i / 2)].get<std::string>(), 9)) << i;
  }
}

TEST_F(CompletionsTest, TokenPromptsAreUsedAsTheyAre) {
  ASSERT_EQ(Post({{"prompt", {72, 105}}, {"max_tokens", 2}}).status, 200);
  ASSERT_EQ(Post({{"prompt", {{1, 2}, {3}}}, {"max_tokens", 2}}).status, 200);
  EXPECT_EQ(engine_.requests.at(0).prompt, (std::vector<TokenId>{72, 105}));
  EXPECT_EQ(engine_.requests.at(1).prompt, (std::vector<TokenId>{1, 2}));
  EXPECT_EQ(engine_.requests.at(2).prompt, (std::vector<TokenId>{3}));
}

TEST_F(CompletionsTest, EchoPutsThePromptFirst) {
  for (const bool stream : {false, true}) {
    for (const json& prompt : {json("Hi \xE2\x98\x83"), json{72, 105}}) {
      const ClientResponse response = Post({{"prompt", prompt}, {"max_tokens", 3}, {"echo", true}, {"stream", stream}});
      ASSERT_EQ(response.status, 200) << response.body;
      const std::string text =
          stream ? ParseEvents(response.body).text.at(0) : response.json()["choices"][0]["text"].get<std::string>();
      EXPECT_EQ(text, prompt.is_string()
                          ? prompt.get<std::string>() + FakeEngine::AlphabetAfter(prompt.get<std::string>(), 3)
                          : "Hi" + FakeEngine::Alphabet({72, 105}, 3));
    }
  }
}

TEST_F(CompletionsTest, EchoesMoreThanOnePieceOfAStream) {
  const std::string prompt(90'000, 'p');
  const ClientResponse response =
      Post({{"prompt", prompt}, {"n", 8}, {"max_tokens", 3}, {"echo", true}, {"stream", true}});
  const Events events = ParseEvents(response.body);
  EXPECT_TRUE(events.done);
  ASSERT_EQ(events.text.size(), 8u);
  for (const auto& [index, text] : events.text)
    EXPECT_TRUE(text == prompt + FakeEngine::AlphabetAfter(prompt, 3)) << index;
}

TEST_F(CompletionsTest, EchoAloneWithMaxTokensZero) {
  const json body = Post({{"prompt", "Hi"}, {"max_tokens", 0}, {"echo", true}}).json();
  EXPECT_EQ(body["choices"][0],
            (json{{"index", 0}, {"text", "Hi"}, {"logprobs", nullptr}, {"finish_reason", "length"}}));
  EXPECT_EQ(body["usage"]["completion_tokens"], 0);
}

TEST_F(CompletionsTest, LogprobsAreFourArraysOfOneLength) {
  engine_.SetScript("ab\xE2\x98\x83z");
  const json body = Post({{"prompt", "x"}, {"max_tokens", 16}, {"logprobs", 2}}).json();
  const json logprobs = body["choices"][0]["logprobs"];
  EXPECT_EQ(body["choices"][0]["text"], "ab\xE2\x98\x83z");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(logprobs["tokens"], (json{"a", "b", "bytes:\\xe2", "bytes:\\x98", "bytes:\\x83", "z"}));
  EXPECT_EQ(logprobs["text_offset"], (json{0, 1, 2, 3, 3, 3}));
  ASSERT_EQ(logprobs["token_logprobs"].size(), 6u);
  EXPECT_EQ(logprobs["token_logprobs"][0].get<float>(), -97 / 256.0f);
  ASSERT_EQ(logprobs["top_logprobs"].size(), 6u);
  EXPECT_EQ(logprobs["top_logprobs"][0].size(), 2u);
  EXPECT_EQ(logprobs["top_logprobs"][0]["a"].get<float>(), -97 / 256.0f);
  EXPECT_EQ(logprobs["top_logprobs"][0]["b"].get<float>(), -97 / 256.0f - 1);
}

TEST_F(CompletionsTest, StreamedLogprobsJoinToTheWholeOnes) {
  const json request = {{"prompt", "x"}, {"max_tokens", 12}, {"logprobs", 3}, {"echo", true}};
  const json whole = Post(request).json()["choices"][0]["logprobs"];
  json streamed = request;
  streamed["stream"] = true;
  json joined;
  const Events events = ParseEvents(Post(streamed).body);
  for (const json& event : events.list)
    for (const auto& [name, list] : event["choices"][0]["logprobs"].items())
      for (const json& one : list) joined[name].push_back(one);
  EXPECT_EQ(joined, whole);
}

TEST_F(CompletionsTest, EchoedLogprobsStartWithNull) {
  for (const bool omit : {false, true}) {  // the engine may or may not list the first token, which has none
    engine_.OmitFirstPromptToken(omit);
    const json choice =
        Post({{"prompt", "Hi"}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 1}}).json()["choices"][0];
    EXPECT_EQ(choice["text"], "Hi");
    EXPECT_EQ(choice["logprobs"]["tokens"], (json{"<s>", "H", "i"}));
    EXPECT_EQ(choice["logprobs"]["text_offset"], (json{0, 0, 1}));
    EXPECT_TRUE(choice["logprobs"]["token_logprobs"][0].is_null());
    EXPECT_TRUE(choice["logprobs"]["top_logprobs"][0].is_null());
    EXPECT_EQ(choice["logprobs"]["token_logprobs"][1].get<float>(), -'H' / 256.0f);
  }
}

TEST_F(CompletionsTest, CharactersAndStopsArriveWhole) {  // R19, R20
  engine_.SetScript("caf\xC3\xA9 \xF0\x9F\x99\x82 done. STOP and more");
  for (const bool stream : {false, true}) {
    const ClientResponse response =
        Post({{"prompt", "x STOP"}, {"max_tokens", 100}, {"stop", " STOP"}, {"stream", stream}});
    if (stream) {
      const Events events = ParseEvents(response.body);  // each event parses by itself: no half character in any
      EXPECT_EQ(events.text.at(0), "caf\xC3\xA9 \xF0\x9F\x99\x82 done.");
      EXPECT_EQ(events.finish_reason.at(0), "stop");
      EXPECT_THAT(response.body, ::testing::Not(HasSubstr("\xEF\xBF\xBD")));
    } else {
      EXPECT_EQ(response.json()["choices"][0]["text"], "caf\xC3\xA9 \xF0\x9F\x99\x82 done.");
    }
  }
}

TEST_F(CompletionsTest, EmptyPromptWorksOnlyWhereSomethingStartsAText) {  // R2
  EXPECT_EQ(Post({{"prompt", ""}}).status, 200);
  EXPECT_EQ(Post({{"prompt", "  \n"}}).status, 200);
  engine_.tokenizer_.add_bos = false;
  Refused({{"prompt", ""}}, "prompt");
}

TEST_F(CompletionsTest, ContextIsNeverExceededNorCutSilently) {  // R3, R4
  engine_.spec_.context_length = 64;
  StartServer({});
  const std::string prompt(49, 'p');  // 50 tokens
  EXPECT_EQ(Post({{"prompt", prompt}, {"max_tokens", 14}}).status, 200);
  const ClientResponse response = Post({{"prompt", prompt}, {"max_tokens", 15}});
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.code(), "context_length_exceeded");
  EXPECT_THAT(response.body, HasSubstr("64"));
  EXPECT_THAT(response.body, HasSubstr("65"));
  EXPECT_EQ(Post({{"prompt", std::string(63, 'p')}, {"max_tokens", 1}}).code(), "context_length_exceeded");
  EXPECT_EQ(Post({{"prompt", std::string(500, 'p')}, {"max_tokens", 1'000'000}}).code(), "context_length_exceeded");
  for (const int64_t huge :
       {int64_t{65}, int64_t{1} << 31, int64_t{1'000'000'000}, std::numeric_limits<int64_t>::max()}) {
    const ClientResponse clamped = Post({{"prompt", prompt}, {"max_tokens", huge}});
    ASSERT_EQ(clamped.status, 200) << clamped.body;
    EXPECT_EQ(clamped.json()["usage"]["completion_tokens"], 14);
    EXPECT_EQ(clamped.json()["choices"][0]["finish_reason"], "length");
  }
  EXPECT_EQ(Post({{"prompt", std::string(63, 'p')}, {"max_tokens", 0}, {"echo", true}}).status, 200);
}

TEST_F(CompletionsTest, ClampsEachPromptByItself) {
  engine_.spec_.context_length = 64;
  StartServer({});
  ASSERT_EQ(Post({{"prompt", {std::string(49, 'p'), "p"}}, {"max_tokens", 100}}).status, 200);
  EXPECT_EQ(engine_.requests.at(0).max_tokens, 14);
  EXPECT_EQ(engine_.requests.at(1).max_tokens, 62);
}

TEST_F(CompletionsTest, RefusesWhatIsOutOfRange) {  // H6, H7, R4..R12
  const auto with = [](const char* name, json value) { return json{{"prompt", "x"}, {name, std::move(value)}}; };
  const std::vector<std::pair<const char*, std::vector<json>>> cases = {
      {"max_tokens", {0, -1, 1.5, "5", true, 1e300}},
      {"max_completion_tokens", {-1, "5"}},
      {"n", {0, 17, 129, 1'000'000'000, -1, 1.5, "2"}},
      {"temperature", {-1, 2.1, "0.7", true, json::array()}},
      {"top_p", {0, 1.1, -0.5, "1"}},
      {"min_p", {-0.1, 1.1}},
      {"top_k", {-5, 1.5, "40", 1'000'000'000'000}},
      {"presence_penalty", {3, -3}},
      {"frequency_penalty", {3, -3, "1"}},
      {"repetition_penalty", {0, -1, 11}},
      {"repeat_penalty", {0, -1}},
      {"seed", {1.5, 1.0, "7", 1.8446744073709552e19}},
      {"logprobs", {-1, 21, true, "5"}},
      {"stop",
       {"", json::array({""}), json::array({1, 2}), std::string(1025, 's'), 5, std::vector<std::string>(17, "s")}},
      {"stop_token_ids", {json::array({258}), json::array({-1}), 5, json::array({"a"}), std::vector<int>(17, 1)}},
      {"logit_bias",
       {{{"258", 1}},
        {{"-1", 1}},
        {{"x", 1}},
        {{"01", 1}},
        {{"-0", 1}},
        {{"1", 1}, {"01", 2}},
        {{"1", 101}},
        {{"1", -1000}},
        {{"1", "1"}},
        json::array({1})}},
      {"stream", {"yes", 1}},
      {"echo", {"yes"}},
      {"ignore_eos", {1}},
      {"best_of", {2, 0}},
      {"suffix", {"tail", 5}},
      {"model", {5}},
      {"user", {5}},
      {"stream_options", {5, {{"include_usage", true}}}},
      {"n_discard", {-1}},
      {"n_keep", {-5}},
      {"id_slot", {-2, "a"}},
  };
  for (const auto& [name, values] : cases)
    for (const json& value : values) Refused(with(name, value), name);
  EXPECT_EQ(Refused({{"prompt", "x"}, {"stream", true}, {"stream_options", {{"include_usage", 1}}}},
                    "stream_options.include_usage"),
            "stream_options.include_usage must be true or false, not a number");
  EXPECT_NE(Refused(with("logit_bias", {{"1", 1}, {"01", 2}}), "logit_bias").find("\"01\""), std::string::npos);
  json many;
  for (int i = 0; i < 1025; ++i) many[std::to_string(i)] = 1;
  Refused(with("logit_bias", many), "logit_bias");
  EXPECT_EQ(engine_.submitted, 0);
}

TEST_F(CompletionsTest, RefusesPromptsThatAreNone) {  // R12
  for (const json& prompt :
       {json(5), json(true), json::object(), json::array(), json{"a", 1}, json{1, "a"}, json{{1}, "a"}, json{"a", {1}},
        json{{1}, {2, "x"}}, json{258}, json{-1}, json{1.5}, json{4294967296}, json{1, 18446744073709551615u},
        json{json::array()}, json{{1}, json::array()}, json{nullptr}, json{{{1}}},
        json(std::vector<std::string>(65, "p"))})
    Refused({{"prompt", prompt}}, "prompt");
  Refused(json::object(), "prompt");
  Refused({{"prompt", nullptr}}, "prompt");
  Refused({{"prompt", std::vector<std::string>(64, "p")}, {"n", 5}}, "n");
  EXPECT_EQ(engine_.submitted, 0);
}

TEST_F(CompletionsTest, RefusesWhatIsNotAJsonObject) {  // H1..H5
  std::string deep(100'000, '[');
  std::string deep_object = R"({"prompt":)" + std::string(64, '[') + std::string(64, ']') + "}";
  for (const std::string& body : {std::string(),
                                  std::string("null"),
                                  std::string("[]"),
                                  std::string("hello"),
                                  std::string("\"x\""),
                                  std::string("{\"prompt\":\"x\""),
                                  std::string("{\"prompt\":\"x\",}"),
                                  std::string("{\"prompt\":\"x\"}{}"),
                                  std::string("{\"prompt\":\"x\"} x"),
                                  std::string("\xEF\xBB\xBF{\"prompt\":\"x\"}"),
                                  deep,
                                  deep_object,
                                  std::string("{\"prompt\":\"\xFF\"}"),
                                  std::string("{\"prompt\":\"\xE2\x98\"}"),
                                  std::string("{\"prompt\":\"\\ud800\"}"),
                                  std::string("{\"prompt\":\"\\udc00x\"}"),
                                  std::string("{\"prompt\":\"a\nb\"}"),
                                  std::string("{\"prompt\":NaN}"),
                                  std::string("{'prompt':1}"),
                                  std::string("{\"prompt\":\"x\",\"prompt\":\"y\"}"),
                                  std::string("{\"prompt\":01}"),
                                  std::string("{\0}", 3)}) {
    const ClientResponse response = PostText(body);
    EXPECT_EQ(response.status, 400) << body.substr(0, 60);
    EXPECT_THAT(response.body, HasSubstr("\"code\":\"invalid_json\"")) << body.substr(0, 60);
  }
  EXPECT_EQ(PostText(R"({"prompt":"a\u0000b"})").status, 200);  // NUL is text
  EXPECT_EQ(PostText(R"({"prompt":"x","deep":)" + std::string(63, '[') + std::string(63, ']') + "}").status, 200);
}

TEST_F(CompletionsTest, NumbersNoDoubleCanHoldNameTheirField) {  // H6
  engine_.spec_.context_length = 64;
  StartServer({});
  const ClientResponse response = PostText(R"({"prompt":"x","temperature":1e400})");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.json()["error"]["param"], "temperature");
  EXPECT_EQ(PostText(R"({"prompt":"x","n":9999999999999999999999})").json()["error"]["param"], "n");
  EXPECT_EQ(PostText(R"({"prompt":"x","temperature":-0})").status, 200);
  EXPECT_EQ(PostText(R"({"prompt":"x","max_tokens":9007199254740993})").status, 200);  // clamped: more than the context
}

TEST_F(CompletionsTest, OtherModelsDoNotExist) {
  const ClientResponse response = Post({{"model", "gpt-4"}, {"prompt", "x"}});
  EXPECT_EQ(response.status, 404);
  EXPECT_EQ(response.code(), "model_not_found");
  EXPECT_EQ(response.json()["error"]["param"], "model");
}

TEST_F(CompletionsTest, AFullQueueIs429AndLeavesNothingRunning) {
  engine_.RefuseFrom(2, MakeError(Code::kResourceExhausted, reasons::kQueueFull, "the queue is full"));
  const ClientResponse response = Post({{"prompt", {"a", "b", "c"}}, {"max_tokens", 1000}});
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(response.code(), "queue_full");
  EXPECT_EQ(response.json()["error"]["type"], "rate_limit_error");
  EXPECT_EQ(response.headers.at("retry-after"), "1");
  EXPECT_EQ(response.headers.at("x-should-retry"), "true");
  EXPECT_TRUE(engine_.WaitFor([](const FakeEngine& engine) { return engine.running() == 0; }));
}

TEST_F(CompletionsTest, AFailureBeforeTheFirstByteHasItsOwnStatus) {
  engine_.FailAt(0, MakeError(Code::kInternal, reasons::kModelProducedNan, "the model gave no number"));
  for (const bool stream : {false, true}) {
    const ClientResponse response = Post({{"prompt", "x"}, {"stream", stream}});
    EXPECT_EQ(response.status, 500);
    EXPECT_EQ(response.code(), "model_produced_nan");
    EXPECT_EQ(response.headers.at("x-should-retry"), "false");
  }
}

TEST_F(CompletionsTest, AFailureInMidStreamBreaksTheConnection) {
  engine_.HoldAt(5);
  engine_.FailAt(5, MakeError(Code::kUnavailable, reasons::kPeerLost, "a worker was lost"));
  TestClient client(server_->port());
  client.Send(TestClient::Post("/v1/completions", R"({"prompt":"Hi","max_tokens":50,"stream":true})"));
  ASSERT_EQ(client.ReadHead().status, 200);
  std::string text;
  while (text.size() < 5) {
    const auto chunk = client.ReadChunk();
    ASSERT_TRUE(chunk.has_value());
    text += ParseEvents(*chunk).text[0];
  }
  engine_.HoldAt(-1);
  const auto last = client.ReadChunk();
  ASSERT_TRUE(last.has_value());
  ASSERT_TRUE(last->starts_with("data: {\"error\":{")) << *last;
  EXPECT_EQ(json::parse(last->substr(6))["error"]["code"], "peer_lost");
  EXPECT_FALSE(client.ReadChunk().has_value());  // no [DONE], no last chunk
}

TEST_F(CompletionsTest, OneChoicesFailureEndsTheOthers) {
  engine_.HoldAt(5);
  engine_.FailAt(5, MakeError(Code::kUnavailable, reasons::kPeerLost, "a worker was lost"));
  TestClient client(server_->port());
  client.Send(TestClient::Post("/v1/completions", R"({"prompt":["a","b","c"],"max_tokens":50})"));
  ASSERT_TRUE(engine_.WaitFor([](const FakeEngine& engine) { return engine.generated == 15; }));
  engine_.HoldAt(-1);
  const ClientResponse response = client.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.headers.at("retry-after"), "5");
  EXPECT_TRUE(engine_.WaitFor([](const FakeEngine& engine) { return engine.running() == 0; }));
}

TEST_F(CompletionsTest, AnAnswerThatIsTooLongForOneBodyIsRefused) {
  ServerLimits limits;
  limits.max_response_bytes = 10'000;
  StartServer(limits);
  engine_.SetTokenText(std::string(1000, 't'));
  const ClientResponse response = Post({{"prompt", "x"}, {"max_tokens", 500}});
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.code(), "response_too_large");
  EXPECT_TRUE(engine_.WaitFor([](const FakeEngine& engine) { return engine.running() == 0; }));
  EXPECT_EQ(Post({{"prompt", "x"}, {"max_tokens", 5}}).status, 200);
}

// More than the limit waits before the connection looks at any of it: no slow reader, the same refusal.
TEST_F(CompletionsTest, AnAnswerThatIsTooLongAtOnceIsRefusedToo) {
  ServerLimits limits;
  limits.max_response_bytes = 10'000;
  StartServer(limits);
  engine_.SetTokenText(std::string(9'000, 't'));
  for (int i = 0; i < 20; ++i) {
    const ClientResponse response = Post({{"prompt", {"x", "y", "z"}}, {"n", 8}, {"max_tokens", 2}});
    ASSERT_EQ(response.status, 400) << i;
    EXPECT_EQ(response.code(), "response_too_large");
  }
}

}  // namespace
}  // namespace shoal::serve
