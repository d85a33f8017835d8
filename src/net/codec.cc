#include "net/codec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "base/checked.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "net/handshake.h"
#include "net/wire.pb.h"

namespace shoal {
namespace {

// A Reason is a literal of the catalogue, so one that comes by name is looked up here. net/codec_test
// compares the list with core/reasons.h.
constexpr std::array kReasons = {
#include "net/reason_list_inl.h"
};

std::unexpected<Error> Bad(const std::string& field) {
  return Fail(Code::kCorrupt, reasons::kBadFrame, "a peer sent a message that makes no sense", field);
}

std::string Cut(const std::string& text, size_t most) { return text.size() <= most ? text : text.substr(0, most); }

// `value` as an int of 0..most.
template <class T>
std::optional<int> Count(T value, int64_t most) {
  if (value > static_cast<std::make_unsigned_t<T>>(most)) return std::nullopt;
  return static_cast<int>(value);
}

bool IsToken(int64_t token) { return token >= 0 && token < limits::kMaxVocabulary; }
bool Between(float value, float low, float high) { return value >= low && value <= high; }  // false for NaN

Status DecodeTokens(const google::protobuf::RepeatedField<int32_t>& from, int most, std::vector<TokenId>& to,
                    const char* field) {
  if (from.size() > most) return Bad(std::string(field) + ": too many");
  for (const int32_t token : from)
    if (!IsToken(token)) return Bad(std::string(field) + ": " + std::to_string(token) + " is no token");
  to.assign(from.begin(), from.end());
  return {};
}

Result<std::vector<TokenLogprob>> DecodeTop(const google::protobuf::RepeatedPtrField<wire::TokenLogprob>& from) {
  if (from.size() > limits::kMaxLogprobs) return Bad("top: too many");
  std::vector<TokenLogprob> top;
  for (const auto& entry : from) {
    if (!IsToken(entry.token()) || std::isnan(entry.logprob())) return Bad("top");
    top.push_back({entry.token(), entry.logprob()});
  }
  return top;
}

void EncodeTop(const std::vector<TokenLogprob>& top, google::protobuf::RepeatedPtrField<wire::TokenLogprob>* to) {
  for (const TokenLogprob& entry : top) {
    auto* made = to->Add();
    made->set_token(entry.token);
    made->set_logprob(entry.logprob);
  }
}

}  // namespace

void EncodeError(const Error& error, wire::Error* to) {
  to->set_code(static_cast<uint32_t>(error.code));
  to->set_reason(std::string(error.reason.name()));
  to->set_message(Cut(error.message, kMaxMessageText));
  to->set_detail(Cut(error.detail, kMaxMessageText));
  to->set_param(Cut(error.param, kMaxMessageText));
}

Result<Error> DecodeError(const wire::Error& from) {
  if (from.code() > static_cast<uint32_t>(Code::kInternal)) return Bad("error code");
  if (std::max({from.message().size(), from.detail().size(), from.param().size()}) > kMaxMessageText)
    return Bad("error text: too long");
  Error error;
  error.code = static_cast<Code>(from.code());
  error.message = from.message();
  error.detail = from.detail();
  error.param = from.param();
  const auto* known = std::ranges::find(kReasons, from.reason(), [](const Reason& reason) { return reason.name(); });
  if (known != kReasons.end()) {
    error.reason = *known;
  } else {
    // A newer peer's reason: the class and the text still hold.
    error.reason = reasons::kInternal;
    error.detail += (error.detail.empty() ? "" : "; ") + ("reason " + Cut(from.reason(), 64));
  }
  return error;
}

void EncodeSampling(const SamplingParams& sampling, wire::SamplingParams* to) {
  to->set_temperature(sampling.temperature);
  to->set_top_k(sampling.top_k);
  to->set_top_p(sampling.top_p);
  to->set_min_p(sampling.min_p);
  to->set_presence_penalty(sampling.presence_penalty);
  to->set_frequency_penalty(sampling.frequency_penalty);
  to->set_repeat_penalty(sampling.repeat_penalty);
  to->set_repeat_last_n(sampling.repeat_last_n);
  to->set_seed(sampling.seed);
  for (const auto& [token, bias] : sampling.logit_bias) {
    auto* made = to->add_logit_bias();
    made->set_token(static_cast<uint32_t>(token));
    made->set_bias(bias);
  }
  to->set_logprobs(sampling.logprobs);
  to->set_prompt_logprobs(sampling.prompt_logprobs);
  to->set_want_logits(sampling.want_logits);
}

Result<SamplingParams> DecodeSampling(const wire::SamplingParams& from) {
  SamplingParams sampling;
  sampling.temperature = from.temperature();
  sampling.top_k = from.top_k();
  sampling.top_p = from.top_p();
  sampling.min_p = from.min_p();
  sampling.presence_penalty = from.presence_penalty();
  sampling.frequency_penalty = from.frequency_penalty();
  sampling.repeat_penalty = from.repeat_penalty();
  sampling.repeat_last_n = from.repeat_last_n();
  sampling.seed = from.seed();
  sampling.logprobs = from.logprobs();
  sampling.prompt_logprobs = from.prompt_logprobs();
  sampling.want_logits = from.want_logits();
  constexpr float kMost = std::numeric_limits<float>::max();
  // What a user may ask for is decided by the API; here a value need only be one that the sampler can compute
  // with.
  if (!Between(sampling.temperature, 0, kMost)) return Bad("temperature");
  if (sampling.top_k < 0) return Bad("top_k");
  if (!Between(sampling.top_p, 0, 1)) return Bad("top_p");
  if (!Between(sampling.min_p, 0, 1)) return Bad("min_p");
  if (!Between(sampling.presence_penalty, -kMost, kMost)) return Bad("presence_penalty");
  if (!Between(sampling.frequency_penalty, -kMost, kMost)) return Bad("frequency_penalty");
  if (!(sampling.repeat_penalty > 0) || sampling.repeat_penalty > kMost) return Bad("repeat_penalty");
  if (sampling.repeat_last_n < -1) return Bad("repeat_last_n");
  if (sampling.logprobs < -1 || sampling.logprobs > limits::kMaxLogprobs) return Bad("logprobs");
  if (from.logit_bias_size() > limits::kMaxLogitBias) return Bad("logit_bias: too many");
  for (const auto& bias : from.logit_bias()) {
    if (!IsToken(bias.token()) || std::isnan(bias.bias())) return Bad("logit_bias");
    sampling.logit_bias.emplace_back(static_cast<TokenId>(bias.token()), bias.bias());
  }
  return sampling;
}

void EncodeShardPlan(const ShardPlan& plan, wire::ShardPlan* to) {
  for (const RankShare& share : plan.ranks) {
    auto* made = to->add_ranks();
    made->set_slice_begin(static_cast<uint32_t>(share.slices.begin));
    made->set_slice_end(static_cast<uint32_t>(share.slices.end));
    made->set_first_layer(static_cast<uint32_t>(share.first_layer));
    made->set_last_layer(static_cast<uint32_t>(share.last_layer));
  }
  to->set_kv_blocks(static_cast<uint32_t>(plan.kv_blocks));
  to->set_kv_type(static_cast<uint32_t>(plan.kv_type));
  for (const std::string& reason : plan.reasons) to->add_reasons(Cut(reason, kMaxMessageText));
}

Result<ShardPlan> DecodeShardPlan(const wire::ShardPlan& from) {
  if (from.ranks_size() < 1 || from.ranks_size() > limits::kMaxRanks)
    return Bad("a plan for " + std::to_string(from.ranks_size()) + " ranks");
  if (from.reasons_size() > kMaxSequencesKnown) return Bad("plan reasons: too many");
  ShardPlan plan;
  for (const auto& share : from.ranks()) {
    const auto begin = Count(share.slice_begin(), kSlices), end = Count(share.slice_end(), kSlices);
    const auto first = Count(share.first_layer(), limits::kMaxLayers),
               last = Count(share.last_layer(), limits::kMaxLayers);
    if (!begin || !end || *begin > *end) return Bad("slices of a share");
    if (!first || !last || *first > *last) return Bad("layers of a share");
    plan.ranks.push_back({{*begin, *end}, *first, *last});
  }
  const auto blocks = Count(from.kv_blocks(), std::numeric_limits<BlockId>::max());
  if (!blocks) return Bad("kv_blocks");
  plan.kv_blocks = *blocks;
  if (from.kv_type() >= kKvTypeNames.size()) return Bad("kv_type");
  plan.kv_type = static_cast<KvType>(from.kv_type());
  for (const auto& reason : from.reasons()) plan.reasons.push_back(Cut(reason, kMaxMessageText));
  return plan;
}

void EncodeStep(const StepPlan& plan, wire::Step* to) {
  to->set_step(plan.step);
  to->set_overlap(plan.overlap);
  to->mutable_removed()->Assign(plan.removed.begin(), plan.removed.end());
  for (const SequenceStart& start : plan.added) {
    auto* made = to->add_added();
    made->set_id(start.id);
    made->mutable_tokens()->Assign(start.tokens.begin(), start.tokens.end());
    made->set_prompt_length(static_cast<uint32_t>(start.prompt_length));
    EncodeSampling(start.sampling, made->mutable_sampling());
    made->mutable_forbidden()->Assign(start.forbidden.begin(), start.forbidden.end());
  }
  for (const SequenceChunk& chunk : plan.chunks) {
    auto* made = to->add_chunks();
    made->set_id(chunk.id);
    made->set_first(static_cast<uint32_t>(chunk.first));
    made->set_count(static_cast<uint32_t>(chunk.count));
    made->mutable_new_blocks()->Assign(chunk.new_blocks.begin(), chunk.new_blocks.end());
    made->set_sample(chunk.sample);
    made->mutable_draft()->Assign(chunk.draft.begin(), chunk.draft.end());
    made->mutable_new_tokens()->Assign(chunk.new_tokens.begin(), chunk.new_tokens.end());
  }
}

namespace {

Result<SequenceStart> DecodeStart(const wire::SequenceStart& from) {
  SequenceStart start;
  start.id = from.id();
  if (from.tokens().empty()) return Bad("a sequence without tokens");
  SHOAL_RETURN_IF_ERROR(DecodeTokens(from.tokens(), limits::kMaxContext, start.tokens, "tokens"));
  const auto prompt = Count(from.prompt_length(), from.tokens_size());
  if (!prompt || *prompt < 1) return Bad("prompt_length");
  start.prompt_length = *prompt;
  if (!from.has_sampling()) return Bad("a sequence without sampling parameters");
  SHOAL_ASSIGN(start.sampling, DecodeSampling(from.sampling()));
  SHOAL_RETURN_IF_ERROR(DecodeTokens(from.forbidden(), limits::kMaxLogitBias, start.forbidden, "forbidden"));
  return start;
}

Result<SequenceChunk> DecodeChunk(const wire::SequenceChunk& from) {
  SequenceChunk chunk;
  chunk.id = from.id();
  const auto first = Count(from.first(), limits::kMaxContext), count = Count(from.count(), limits::kMaxStepRows);
  if (!first || !count || *count < 1 || *first + *count > limits::kMaxContext) return Bad("positions of a chunk");
  chunk.first = *first;
  chunk.count = *count;
  chunk.sample = from.sample();
  SHOAL_RETURN_IF_ERROR(DecodeTokens(from.draft(), kMaxDraft, chunk.draft, "draft"));
  if (!chunk.draft.empty() && !chunk.sample) return Bad("a draft that is not to be drawn");
  // One step draws no more of a sequence.
  SHOAL_RETURN_IF_ERROR(DecodeTokens(from.new_tokens(), kMaxDraft + 1, chunk.new_tokens, "new_tokens"));
  const int end = chunk.first + chunk.rows();
  if (end > limits::kMaxContext) return Bad("positions of a draft");
  // No more blocks than hold all positions up to the chunk's end.
  if (from.new_blocks_size() > CeilDiv(end, limits::kBlockTokens)) return Bad("new_blocks: too many");
  for (const int32_t block : from.new_blocks()) {
    if (block < 0) return Bad("new_blocks");
    chunk.new_blocks.push_back(block);
  }
  return chunk;
}

}  // namespace

Result<StepPlan> DecodeStep(const wire::Step& from) {
  if (from.removed_size() > kMaxSequencesKnown || from.added_size() > kMaxSequencesKnown)
    return Bad("step: too many sequences");
  if (from.chunks_size() > limits::kMaxStepSequences) return Bad("step: too many chunks");
  StepPlan plan;
  plan.step = from.step();
  plan.overlap = from.overlap();
  plan.removed.assign(from.removed().begin(), from.removed().end());
  for (const auto& start : from.added()) {
    SHOAL_ASSIGN(auto decoded, DecodeStart(start));
    plan.added.push_back(std::move(decoded));
  }
  for (const auto& chunk : from.chunks()) {
    SHOAL_ASSIGN(auto decoded, DecodeChunk(chunk));
    plan.chunks.push_back(std::move(decoded));
  }
  if (plan.rows() > limits::kMaxStepRows) return Bad("step: too many rows");
  return plan;
}

void EncodeStepResult(const StepResult& result, wire::StepResult* to) {
  to->set_step(result.step);
  for (const SampledToken& token : result.tokens) {
    auto* made = to->add_tokens();
    made->set_id(token.id);
    made->set_position(static_cast<uint32_t>(token.position));
    made->set_token(token.token);
    made->set_logprob(token.logprob);
    EncodeTop(token.top, made->mutable_top());
    made->mutable_logits()->Assign(token.logits.begin(), token.logits.end());
    if (token.error) EncodeError(*token.error, made->mutable_error());
  }
  for (const PromptLogprob& entry : result.prompt) {
    auto* made = to->add_prompt();
    made->set_id(entry.id);
    made->set_position(static_cast<uint32_t>(entry.position));
    made->mutable_chosen()->set_token(entry.chosen.token);
    made->mutable_chosen()->set_logprob(entry.chosen.logprob);
    EncodeTop(entry.top, made->mutable_top());
  }
  const int64_t compute_ns = std::max<int64_t>(result.compute_ns, 0);
  to->set_compute_ns(static_cast<uint64_t>(compute_ns));
  to->set_meeting_ns(static_cast<uint64_t>(std::clamp<int64_t>(result.meeting_ns, 0, compute_ns)));
}

Result<StepResult> DecodeStepResult(const wire::StepResult& from) {
  if (from.tokens_size() > limits::kMaxStepRows) return Bad("result: too many tokens");
  if (from.prompt_size() > limits::kMaxStepRows) return Bad("result: too many prompt tokens");
  if (from.compute_ns() > static_cast<uint64_t>(std::chrono::nanoseconds(limits::kStepTimeout).count()))
    return Bad("compute_ns");
  if (from.meeting_ns() > from.compute_ns()) return Bad("meeting_ns");
  StepResult result;
  result.step = from.step();
  result.compute_ns = static_cast<int64_t>(from.compute_ns());
  result.meeting_ns = static_cast<int64_t>(from.meeting_ns());
  for (const auto& token : from.tokens()) {
    const auto position = Count(token.position(), limits::kMaxContext);
    if (!position || !IsToken(token.token()) || std::isnan(token.logprob())) return Bad("a sampled token");
    if (token.logits_size() > limits::kMaxVocabulary) return Bad("logits: too many");
    SampledToken made;
    made.id = token.id();
    made.position = *position;
    made.token = token.token();
    made.logprob = token.logprob();
    SHOAL_ASSIGN(made.top, DecodeTop(token.top()));
    made.logits.assign(token.logits().begin(), token.logits().end());
    if (token.has_error()) {
      SHOAL_ASSIGN(made.error, DecodeError(token.error()));
    }
    result.tokens.push_back(std::move(made));
  }
  for (const auto& entry : from.prompt()) {
    const auto position = Count(entry.position(), limits::kMaxContext);
    if (!position || !IsToken(entry.chosen().token()) || std::isnan(entry.chosen().logprob()))
      return Bad("a prompt token");
    PromptLogprob made;
    made.id = entry.id();
    made.position = *position;
    made.chosen = {entry.chosen().token(), entry.chosen().logprob()};
    SHOAL_ASSIGN(made.top, DecodeTop(entry.top()));
    result.prompt.push_back(std::move(made));
  }
  return result;
}

Status CheckLoadShard(const wire::LoadShard& message) {
  if (!message.has_plan()) return Bad("a shard without a plan");
  if (message.peers_size() != message.plan().ranks_size() ||
      message.rank() >= static_cast<uint32_t>(message.peers_size()))
    return Bad("rank or number of peers");
  for (const auto& peer : message.peers())
    if (peer.host().empty() || peer.host().size() > kMaxNameBytes || peer.port() < 1 || peer.port() > 65535)
      return Bad("a peer's address");
  if (message.group_key().size() != kSecretBytes) return Bad("group_key");
  if (message.threads() > static_cast<uint32_t>(limits::kMaxThreads)) return Bad("threads");
  if (message.model_name().size() > kMaxMessageText) return Bad("model_name");
  if (message.headers_size() < 1 || message.headers_size() > limits::kMaxSplitFiles)
    return Bad("number of model files");
  uint64_t total = 0;
  for (const auto& header : message.headers()) {
    if (header.header_bytes() < 1 || header.header_bytes() > header.file_bytes()) return Bad("size of a model file");
    const auto sum = CheckedAdd(total, header.header_bytes());
    if (!sum || *sum > 2 * limits::kMaxMetadataBytes) return Bad("size of the model's headers");
    total = *sum;
  }
  return {};
}

Status CheckReadTensor(const wire::ReadTensor& message) {
  const auto bytes = CheckedMul(message.length(), message.count());
  if (message.length() == 0 || message.count() == 0 || !bytes || *bytes > kMaxReadBytes) return Bad("size of a read");
  if (message.count() > 1 && message.stride() < message.length()) return Bad("stride of a read");
  const auto last = CheckedMul(message.stride(), message.count() - 1);
  const auto begin = last ? CheckedAdd(*last, message.offset()) : std::nullopt;
  if (!begin || !CheckedAdd(*begin, message.length())) return Bad("end of a read");
  return {};
}

Status CheckReadHeader(const wire::ReadHeader& message) {
  if (message.file() >= static_cast<uint32_t>(limits::kMaxSplitFiles)) return Bad("file of a read");
  if (message.length() == 0 || message.length() > limits::kMaxMetadataBytes) return Bad("size of a read");
  if (!CheckedAdd(message.offset(), message.length())) return Bad("end of a read");
  return {};
}

Status CheckBytes(const wire::Bytes& message) {
  if (message.data().empty() || message.data().size() > kMaxChunkBytes) return Bad("size of an answer's piece");
  if (message.offset() > kMaxReadBytes) return Bad("offset of an answer's piece");
  return {};
}

Status CheckWorkerInfo(const wire::WorkerInfo& message) {
  if (message.name().empty() || message.name().size() > kMaxNameBytes) return Bad("name");
  if (message.kernel().size() > kMaxNameBytes) return Bad("kernel");
  if (message.threads() < 1 || message.threads() > static_cast<uint32_t>(limits::kMaxThreads)) return Bad("threads");
  if (message.data_port() < 1 || message.data_port() > 65535) return Bad("data_port");
  return {};
}

}  // namespace shoal
