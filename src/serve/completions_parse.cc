#include "serve/completions_parse.h"

#include <format>
#include <nlohmann/json.hpp>

#include "core/limits.h"
#include "core/reasons.h"
#include "serve/json_reader.h"

namespace shoal::serve {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxPromptLogprobs =
    4 << 20;  // prompt tokens * (logprobs + 8) of one request: about 64 MiB of answer

Result<CompletionPrompt> TextPrompt(const std::string& text, const Tokenizer& tokenizer) {
  CompletionPrompt prompt;
  prompt.text = text;
  prompt.is_text = true;
  SHOAL_ASSIGN(prompt.tokens, tokenizer.Encode(text, EncodeOptions{}));
  return prompt;
}

Result<CompletionPrompt> TokenPrompt(const Json& ids, const ModelContext& context) {
  CompletionPrompt prompt;
  prompt.tokens.reserve(ids.size());
  const int vocabulary = context.tokenizer->vocabulary_size();
  for (const Json& id : ids) {
    if (!id.is_number_integer())
      return Fail(InvalidValue("prompt", "prompt must hold token ids or strings, not both nor anything else"));
    const bool fits = id.is_number_unsigned() ? id.get<uint64_t>() < static_cast<uint64_t>(vocabulary)
                                              : id.get<int64_t>() >= 0 && id.get<int64_t>() < vocabulary;
    if (!fits)
      return Fail(InvalidValue("prompt", std::format("prompt holds the token id {}; this model has the ids 0 to {}",
                                                     id.dump(), vocabulary - 1)));
    prompt.tokens.push_back(id.get<TokenId>());
  }
  return prompt;
}

// A string, an array of strings, an array of ids, or an array of arrays of ids.
Result<std::vector<CompletionPrompt>> ReadPrompts(const Json& value, const ModelContext& context) {
  std::vector<CompletionPrompt> prompts;
  if (value.is_string()) {
    SHOAL_ASSIGN(auto prompt, TextPrompt(value.get_ref<const std::string&>(), *context.tokenizer));
    prompts.push_back(std::move(prompt));
    return prompts;
  }
  if (!value.is_array())
    return Fail(InvalidValue("prompt", "prompt must be a string, an array of strings, or token ids"));
  if (value.empty()) return Fail(InvalidValue("prompt", "prompt must not be an empty array"));
  if (value.front().is_number()) {
    SHOAL_ASSIGN(auto prompt, TokenPrompt(value, context));
    prompts.push_back(std::move(prompt));
    return prompts;
  }
  if (value.size() > limits::kMaxPromptsPerRequest)
    return Fail(InvalidValue("prompt", std::format("prompt has {} entries; at most {} are allowed", value.size(),
                                                   limits::kMaxPromptsPerRequest)));
  const bool texts = value.front().is_string();
  for (const Json& item : value) {
    if (texts ? !item.is_string() : !item.is_array())
      return Fail(InvalidValue("prompt", "prompt must hold only strings, or only arrays of token ids"));
    SHOAL_ASSIGN(auto prompt, texts ? TextPrompt(item.get_ref<const std::string&>(), *context.tokenizer)
                                    : TokenPrompt(item, context));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

// Every field but the prompt: names, ranges, places. What is not here is ignored.
Status ReadFields(const Json& object, const ModelContext& context, CompletionBody& body, int64_t& max_tokens) {
  SamplingParams& sampling = body.common.sampling;
  const int vocabulary = context.tokenizer->vocabulary_size();
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  std::string model, suffix, user;
  int best_of = 0;
  int64_t ignored = 0;
  FieldReader fields(object);
  fields.String("model", limits::kMaxModelNameBytes, model)
      .Bool("stream", body.stream)
      .Bool("echo", body.echo)
      .Integer("n", {1, limits::kMaxChoices}, body.n)
      .Integer("best_of", {1, limits::kMaxChoices}, best_of)
      .Integer("max_tokens", {0, kAny}, max_tokens)
      .Integer("max_completion_tokens", {0, kAny}, max_tokens)
      .Integer("logprobs", {0, limits::kMaxLogprobs}, body.logprobs)
      .Number("temperature", {0, 2}, sampling.temperature)
      .Number("top_p", {0, 1, true}, sampling.top_p)
      .Integer("top_k", {-1, limits::kMaxVocabulary}, sampling.top_k)
      .Number("min_p", {0, 1}, sampling.min_p)
      .Number("presence_penalty", {-2, 2}, sampling.presence_penalty)
      .Number("frequency_penalty", {-2, 2}, sampling.frequency_penalty)
      .Number("repetition_penalty", {0, 10, true}, sampling.repeat_penalty)
      .Number("repeat_penalty", {0, 10, true}, sampling.repeat_penalty)
      .Integer("repeat_last_n", {-1, limits::kMaxContext}, sampling.repeat_last_n)
      .NumberMap("logit_bias", limits::kMaxLogitBias, {0, vocabulary - 1}, {-100, 100}, sampling.logit_bias)
      .Strings("stop", {limits::kMaxStops, limits::kMaxStopBytes}, body.common.stop)
      .Integers("stop_token_ids", limits::kMaxStops, {0, vocabulary - 1}, body.common.stop_tokens)
      .Bool("ignore_eos", body.common.ignore_eos)
      .Object("stream_options",
              [&](FieldReader& options) { return options.Bool("include_usage", body.include_usage).status(); })
      .String("user", limits::kMaxModelNameBytes, user)
      .String("cache_salt", limits::kMaxCacheSaltBytes, body.common.tenant)
      .String("suffix", limits::kMaxBodyBytes, suffix)
      // Other servers' fields, without a meaning here; what was an attack there is refused all the same.
      .Integer("n_keep", {0, kAny}, ignored)
      .Integer("n_discard", {0, kAny}, ignored)
      .Integer("id_slot", {0, kAny}, ignored);

  if (const Json* raw = fields.Find("seed"); raw != nullptr) {
    // Any 64 bits, with a sign or without; a float may already have lost some of them.
    if (!raw->is_number_integer())
      fields.Refuse("seed", std::format("must be a whole number between {} and {}", std::numeric_limits<int64_t>::min(),
                                        std::numeric_limits<uint64_t>::max()));
    else
      sampling.seed = raw->is_number_unsigned() ? raw->get<uint64_t>() : static_cast<uint64_t>(raw->get<int64_t>());
    body.has_seed = true;
  }
  if (sampling.top_k < 0) sampling.top_k = 0;
  if (fields.Has("best_of") && best_of != body.n)
    fields.Refuse("best_of", "is offered only where it equals n: choices are not ranked");
  if (!suffix.empty()) {
    Error error = InvalidValue("suffix", "suffix is not supported: this endpoint completes to the right only");
    error.code = Code::kUnsupported;
    error.reason = reasons::kUnsupportedValue;
    fields.Refuse(std::move(error));
  }
  if (max_tokens == 0 && !body.echo) fields.Refuse("max_tokens", "may be 0 only together with echo");
  if (body.include_usage && !body.stream) fields.Refuse("stream_options", "is allowed only with stream");
  SHOAL_RETURN_IF_ERROR(fields.status());
  fields.Find("prompt");
  body.unknown_fields = fields.CountUnknown();
  if (!model.empty() && model != context.model_name) {
    Error error = MakeError(Code::kNotFound, reasons::kModelNotFound,
                            std::format("the model \"{}\" does not exist here; this server has \"{}\"",
                                        model.substr(0, 128), context.model_name));
    error.param = "model";
    return Fail(std::move(error));
  }
  return {};
}

// What the engine and the answer must hold: of each prompt token its own numbers and its `logprobs` most likely ones.
Status CheckPromptLogprobs(const CompletionBody& body) {
  const int64_t each = std::max(body.logprobs, 0) + 8;
  int64_t sum = 0;
  for (const CompletionPrompt& prompt : body.prompts)
    sum += static_cast<int64_t>(prompt.tokens.size()) * body.n * each;  // 8 MiB of text, 16 choices: far from overflow
  if (sum <= kMaxPromptLogprobs) return {};
  return Fail(InvalidValue(
      "logprobs", std::format("logprobs with echo asks for too much: prompt tokens of all choices × (logprobs + 8) "
                              "are {}; at most {} are allowed in one request",
                              sum, kMaxPromptLogprobs)));
}

// The prompt and what it may grow to must fit the context. max_tokens beyond the context itself is a way to say "as much as
// possible"; less than that is meant as it is written.
Result<int> AnswerRoom(size_t prompt_tokens, int64_t max_tokens, int context) {
  const auto prompt = static_cast<int64_t>(prompt_tokens);
  const int64_t room = context - prompt;
  if (max_tokens > context && room >= 1) return static_cast<int>(room);
  if (room >= max_tokens && room >= 0) return static_cast<int>(max_tokens);
  Error error = MakeError(
      Code::kInvalidArgument, reasons::kContextLengthExceeded,
      max_tokens > context
          ? std::format("this model's context is {} tokens, but the prompt alone has {}", context, prompt)
          : std::format("this model's context is {} tokens, but {} were asked for: {} in the prompt and {} to generate",
                        context, prompt + max_tokens, prompt, max_tokens));
  error.param = "prompt";
  return Fail(std::move(error));
}

}  // namespace

Result<CompletionBody> ReadCompletionBody(std::string_view text, const ModelContext& context) {
  SHOAL_ASSIGN(const Json object, ParseJson(text));
  if (!object.is_object())
    return Fail(Code::kInvalidArgument, reasons::kInvalidJson,
                std::format("the body must be a JSON object, not {}", object.type_name()));
  CompletionBody body;
  int64_t max_tokens = 16;
  SHOAL_RETURN_IF_ERROR(ReadFields(object, context, body, max_tokens));
  const auto prompt = object.find("prompt");
  if (prompt == object.end() || prompt->is_null()) return Fail(InvalidValue("prompt", "prompt is missing"));
  SHOAL_ASSIGN(body.prompts, ReadPrompts(*prompt, context));
  if (body.prompts.size() * static_cast<size_t>(body.n) > limits::kMaxChoicesPerRequest)
    return Fail(InvalidValue("n", std::format("{} prompts with n = {} are more than {} choices in one request",
                                              body.prompts.size(), body.n, limits::kMaxChoicesPerRequest)));
  for (CompletionPrompt& one : body.prompts) {
    if (one.tokens.empty())
      return Fail(InvalidValue("prompt", "the prompt has no tokens, and this model has none that starts a text"));
    SHOAL_ASSIGN(one.max_tokens, AnswerRoom(one.tokens.size(), max_tokens, context.context_length));
  }
  body.common.sampling.logprobs = body.logprobs;
  // max_tokens 0 is a pass over the prompt alone, which the engine does for its log-probabilities.
  body.common.sampling.prompt_logprobs = body.echo && (body.logprobs >= 0 || max_tokens == 0);
  if (body.common.sampling.prompt_logprobs && body.logprobs < 0) body.common.sampling.logprobs = 0;
  if (body.common.sampling.prompt_logprobs) SHOAL_RETURN_IF_ERROR(CheckPromptLogprobs(body));
  return body;
}

}  // namespace shoal::serve
