#include "serve/completions.h"

#include <openssl/rand.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "serve/completions_parse.h"
#include "serve/errors.h"
#include "serve/http.h"
#include "serve/sse.h"
#include "serve/text.h"

namespace shoal::serve {
namespace {

using Json = nlohmann::ordered_json;  // OpenAI's order of keys

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

uint64_t RandomSeed() {
  uint64_t seed = 0;
  SHOAL_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(&seed), sizeof(seed)) == 1);
  return seed;
}

const char* FinishName(FinishReason reason) { return reason == FinishReason::kLength ? "length" : "stop"; }

constexpr int kTokensAtOnce = 256;  // rendered in one call: with 21 names each about a millisecond

// The classic log-probabilities: four arrays of one length, kept as the text they become: a tree of them would take
// several times the memory.
struct Logprobs {
  std::string tokens, token_logprobs, top_logprobs, text_offset;

  size_t bytes() const { return tokens.size() + token_logprobs.size() + top_logprobs.size() + text_offset.size(); }
  bool empty() const { return tokens.empty(); }

  void Add(const Json& name, const Json& logprob, const Json& top, int64_t offset) {
    const auto append = [](std::string& list, const Json& value) {
      if (!list.empty()) list += ',';
      list += Dump(value);
    };
    append(tokens, name);
    append(token_logprobs, logprob);
    append(top_logprobs, top);
    append(text_offset, offset);
  }

  std::string Take() {
    std::string text = "{\"tokens\":[" + tokens + "],\"token_logprobs\":[" + token_logprobs + "],\"top_logprobs\":[" +
                       top_logprobs + "],\"text_offset\":[" + text_offset + "]}";
    *this = Logprobs{};
    return text;
  }
};

class Completion : public Generation {
 public:
  Completion(CompletionBody body, const ModelContext& context)
      : body_(std::move(body)),
        tokenizer_(*context.tokenizer),
        model_(context.model_name),
        id_(NewId("cmpl-")),
        created_(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                     .count()) {
    streaming = body_.stream;
    wants_tokens = body_.logprobs >= 0;
    unknown_fields = body_.unknown_fields;
    for (const CompletionPrompt& prompt : body_.prompts) {
      for (int i = 0; i < body_.n; ++i) {
        Request request = body_.common;
        request.id = id_;
        request.prompt = prompt.tokens;
        request.max_tokens = prompt.max_tokens;
        // A prompt's first choice draws what it draws alone; the others differ from it.
        request.sampling.seed = body_.has_seed ? body_.common.sampling.seed + static_cast<uint64_t>(i) : RandomSeed();
        requests.push_back(std::move(request));
      }
    }
    choices_.resize(requests.size());
  }

  std::string_view content_type() const override { return streaming ? kSseContentType : "application/json"; }
  std::string Ping() override { return std::string(kSsePing); }
  std::string OnFailure(const Error& error) override { return SseEvent(ErrorBody(error)); }
  size_t collected_bytes() const override { return collected_; }

  bool OnDelta(size_t index, Delta& delta, std::string& out) override {
    Choice& choice = choices_[index];
    std::string text;
    if (!choice.started && body_.echo) text = Echo(index);
    const size_t collected_before = choice.logprobs.bytes();
    bool whole = true;
    if (wants_tokens) {
      int room = kTokensAtOnce;
      if (body_.echo) AddPromptLogprobs(choice, Prompt(index), delta.prompt, room);
      for (; room > 0 && choice.next_token < delta.tokens.size(); --room) {
        const TokenOutput& token = delta.tokens[choice.next_token++];
        AddToken(choice, token, token.logprob, token.text);
      }
      whole = choice.next_token == delta.tokens.size() &&
              (!body_.echo || choice.next_prompt == Prompt(index).tokens.size());
    }
    choice.started = true;
    std::optional<FinishReason> finish;
    if (whole) {
      choice.next_token = 0;
      choice.usage = delta.usage;
      text += delta.text;
      finish = delta.finish;
      if (finish) choice.finish = *finish;
    }
    if (streaming) {
      if (!text.empty() || finish || !choice.logprobs.empty()) out += SseEvent(Chunk(index, text, finish));
    } else {
      collected_ += text.size() + choice.logprobs.bytes() - collected_before;
      choice.text += text;
    }
    return whole;
  }

  std::string OnEnd() override {
    if (streaming) {
      std::string out;
      if (body_.include_usage) {
        Json chunk = Head();
        chunk["choices"] = Json::array();
        chunk["usage"] = TotalUsage();
        out = SseEvent(Dump(chunk));
      }
      out += kSseDone;
      return out;
    }
    std::string answer = Opening();
    for (size_t i = 0; i < choices_.size(); ++i) {
      if (i > 0) answer += ',';
      answer += ChoiceObject(i, std::exchange(choices_[i].text, {}), choices_[i].finish);
    }
    return answer + "],\"usage\":" + Dump(TotalUsage()) + "}";
  }

 private:
  struct Choice {
    bool started = false;
    size_t next_prompt = 0;  // the first token of the prompt without its log-probabilities
    size_t next_token = 0;   // the same of the delta at hand
    bool led = false;        // the prompt's first token has a space that its text does not have
    size_t missing = 0;      // tokens of the prompt the engine says nothing about
    int64_t offset = 0;      // characters of choices[].text before the next token
    std::string text;        // collected, without streaming
    Logprobs logprobs;       // not sent yet
    FinishReason finish = FinishReason::kStop;
    Usage usage;
  };

  const CompletionPrompt& Prompt(size_t index) const { return body_.prompts[index / static_cast<size_t>(body_.n)]; }

  std::string Echo(size_t index) const {
    const CompletionPrompt& prompt = Prompt(index);
    return prompt.is_text ? prompt.text : tokenizer_.Decode(prompt.tokens);
  }

  std::string Name(TokenId token, std::string_view own_bytes) const {
    return PrintableToken(own_bytes.empty() ? tokenizer_.Text(token) : own_bytes);
  }

  void AddToken(Choice& choice, const TokenOutput& token, std::optional<float> logprob, std::string_view bytes) {
    const std::string name = Name(token.token, bytes);
    if (!logprob) {  // nothing comes before the first token of a prompt
      choice.logprobs.Add(name, nullptr, nullptr, choice.offset);
    } else {
      Json top = Json::object();
      for (const TokenLogprob& one : token.top) AddTop(top, Name(one.token, tokenizer_.Piece(one.token)), one.logprob);
      AddTop(top, name, *logprob);
      choice.logprobs.Add(name, Clamp(*logprob), top, choice.offset);
    }
    choice.offset += CharacterCount(bytes);
  }

  // Two tokens may look alike; the likelier one keeps the name.
  static void AddTop(Json& top, const std::string& name, float logprob) {
    auto [place, added] = top.emplace(name, Clamp(logprob));
    if (!added && place->template get<float>() < logprob) *place = Clamp(logprob);
  }

  // JSON has no infinity; OpenAI's clients know -9999.
  static float Clamp(float logprob) { return logprob >= -9999.0f ? logprob : -9999.0f; }

  // The engine gives the prompt's tokens from the first or from the second on: the first has no log-probability.
  void AddPromptLogprobs(Choice& choice, const CompletionPrompt& prompt, const std::vector<TokenOutput>& given,
                         int& room) {
    const size_t count = prompt.tokens.size();
    if (!choice.started) {
      choice.missing = count - std::min(count, given.size());
      size_t bytes = 0;
      for (const TokenId token : prompt.tokens) bytes += tokenizer_.Piece(token).size();
      // A tokenizer may put a space before the text which the echo does not have.
      choice.led = prompt.is_text && bytes == prompt.text.size() + 1 && StartsWithSpace(prompt.tokens);
    }
    for (; choice.next_prompt < count && room > 0; --room) {
      const size_t i = choice.next_prompt++;
      TokenOutput none;
      none.token = prompt.tokens[i];
      const bool known = i >= choice.missing && i > 0;
      const TokenOutput& token = i >= choice.missing ? given[i - choice.missing] : none;
      const std::string_view bytes = tokenizer_.Piece(prompt.tokens[i]);
      AddToken(choice, token, known ? std::optional<float>(token.logprob) : std::nullopt, bytes);
      if (choice.led && !bytes.empty()) {
        choice.offset -= 1;
        choice.led = false;
      }
    }
  }

  bool StartsWithSpace(const std::vector<TokenId>& tokens) const {
    for (const TokenId token : tokens)
      if (const std::string_view bytes = tokenizer_.Piece(token); !bytes.empty()) return bytes[0] == ' ';
    return false;
  }

  Json Head() const {
    return Json{{"id", id_},
                {"object", "text_completion"},
                {"created", created_},
                {"model", model_},
                {"system_fingerprint", "shoal-" SHOAL_VERSION}};
  }

  // The head with its last brace still open: the choices come as text.
  std::string Opening() const {
    std::string text = Dump(Head());
    text.pop_back();
    return text + ",\"choices\":[";
  }

  std::string ChoiceObject(size_t index, const std::string& text, std::optional<FinishReason> finish) {
    std::string choice = "{\"index\":" + std::to_string(index) + ",\"text\":" + Dump(text) + ",\"logprobs\":";
    choice += wants_tokens ? choices_[index].logprobs.Take() : "null";
    choice += ",\"finish_reason\":";
    choice += finish ? Dump(FinishName(*finish)) : "null";
    return choice + "}";
  }

  std::string Chunk(size_t index, const std::string& text, std::optional<FinishReason> finish) {
    return Opening() + ChoiceObject(index, text, finish) + (body_.include_usage ? "],\"usage\":null}" : "]}");
  }

  // A prompt counts once, however many choices continue it.
  Json TotalUsage() const {
    int64_t prompt = 0, cached = 0, completion = 0;
    for (size_t i = 0; i < choices_.size(); ++i) {
      completion += choices_[i].usage.completion_tokens;
      if (i % static_cast<size_t>(body_.n) != 0) continue;
      prompt += static_cast<int64_t>(Prompt(i).tokens.size());
      cached += choices_[i].usage.cached_tokens;
    }
    return Json{{"prompt_tokens", prompt},
                {"completion_tokens", completion},
                {"total_tokens", prompt + completion},
                {"prompt_tokens_details", {{"cached_tokens", cached}}}};
  }

  const CompletionBody body_;
  const Tokenizer& tokenizer_;
  const std::string model_;
  const std::string id_;
  const int64_t created_;
  std::vector<Choice> choices_;
  size_t collected_ = 0;
};

}  // namespace

Result<std::unique_ptr<Generation>> ParseCompletion(std::string_view text, const ModelContext& context) {
  SHOAL_ASSIGN(CompletionBody body, ReadCompletionBody(text, context));
  return std::make_unique<Completion>(std::move(body), context);
}

}  // namespace shoal::serve
