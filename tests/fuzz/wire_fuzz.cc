// Bytes as they come from a peer -> frames -> messages -> values. Input: a byte (how the stream is cut, before or after the
// handshake), then the stream; with the byte's top bit set the rest is one message instead. The mutator keeps checksums and
// sequence numbers right most of the time, so that what is inside frames is reached.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "net/codec.h"
#include "net/frame.h"
#include "net/wire.pb.h"

using namespace shoal;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

constexpr uint8_t kMessageOnly = 0x80;
constexpr uint8_t kTrusted = 0x40;

void Decode(std::span<const std::byte> bytes) {
  wire::Message message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  if (message.has_step()) {
    if (const auto plan = DecodeStep(message.step())) {
      SHOAL_CHECK(plan->rows() <= limits::kMaxStepRows);
      wire::Step again;
      EncodeStep(*plan, &again);
      const auto twice = DecodeStep(again);
      SHOAL_CHECK(twice.has_value() && ToString(*twice) == ToString(*plan));
    }
  }
  if (message.has_step_result()) {
    if (const auto result = DecodeStepResult(message.step_result())) {
      wire::StepResult again;
      EncodeStepResult(*result, &again);
      SHOAL_CHECK(DecodeStepResult(again).has_value());
    }
  }
  if (message.has_failed()) (void)DecodeError(message.failed().error());
  if (message.has_reject()) (void)DecodeError(message.reject().error());
  if (message.has_load_shard() && CheckLoadShard(message.load_shard())) {
    const auto plan = DecodeShardPlan(message.load_shard().plan());
    SHOAL_CHECK(!plan || plan->size() == message.load_shard().peers_size());
  }
  if (message.has_read_tensor() && CheckReadTensor(message.read_tensor())) {
    const auto& read = message.read_tensor();
    SHOAL_CHECK(read.length() * read.count() <= kMaxReadBytes);
    SHOAL_CHECK(read.offset() + read.stride() * (read.count() - 1) + read.length() > read.offset());
  }
  if (message.has_read_header()) (void)CheckReadHeader(message.read_header());
  if (message.has_bytes()) (void)CheckBytes(message.bytes());
  if (message.has_worker_info()) (void)CheckWorkerInfo(message.worker_info());
}

// A small valid message of each kind that has numbers in it.
std::string Seed(unsigned choice) {
  wire::Message message;
  switch (choice % 5) {
    case 0: {
      StepPlan plan;
      plan.step = 3;
      plan.removed = {1};
      plan.added.push_back({2, {1, 5, 6}, 2, {}, {2}});
      plan.added[0].sampling.logit_bias = {{1, 0.5f}};
      plan.chunks.push_back({2, 0, 3, {0}, true});
      plan.overlap = true;
      EncodeStep(plan, message.mutable_step());
      break;
    }
    case 1: {
      StepResult result;
      result.step = 3;
      result.tokens.push_back({2, 3, 7, -1.0f, {{7, -1.0f}}, {0.5f, 1.5f}, Error{}});
      result.prompt.push_back({2, 1, {5, -2.0f}, {{5, -2.0f}}});
      result.compute_ns = 5;
      result.meeting_ns = 3;
      EncodeStepResult(result, message.mutable_step_result());
      break;
    }
    case 2: {
      auto* load = message.mutable_load_shard();
      EncodeShardPlan({{{{0, 16}, 0, 4}}, 8, {"why"}}, load->mutable_plan());
      load->add_peers()->set_host("127.0.0.1");
      load->mutable_peers(0)->set_port(7);
      load->set_group_key(std::string(32, 'k'));
      load->add_headers()->set_header_bytes(10);
      load->mutable_headers(0)->set_file_bytes(20);
      break;
    }
    case 3: {
      auto* read = message.mutable_read_tensor();
      read->set_length(18);
      read->set_stride(36);
      read->set_count(4);
      break;
    }
    default:
      message.mutable_worker_info()->set_name("w");
      break;
  }
  return message.SerializeAsString();
}

std::string Framed(const std::string& payload) {
  std::string frame = std::string(kFrameHeaderBytes, '\0') + payload;
  SealFrame(std::as_writable_bytes(std::span(frame.data(), frame.size())), 0, 0);
  return frame;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  std::string made;
  if (size < 4) {
    made = std::string(1, static_cast<char>(seed % 2 == 0 ? kMessageOnly : kTrusted)) +
           (seed % 2 == 0 ? Seed(seed / 2) : Framed(Seed(seed / 2)));
  } else if ((data[0] & kMessageOnly) == 0 && size > kFrameHeaderBytes + 2 && seed % 8 != 0) {
    // Change the payload, then seal it again.
    made.assign(reinterpret_cast<const char*>(data) + 1 + kFrameHeaderBytes, size - 1 - kFrameHeaderBytes);
    const size_t room = std::max(made.size(), std::min<size_t>(2 * made.size() + 16, max_size));
    size_t length = made.size();
    made.resize(room);
    length = LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(made.data()), length, room);
    made.resize(std::max<size_t>(length, 1));
    made = std::string(1, static_cast<char>(data[0])) + Framed(made);
  } else {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  const size_t length = std::min(made.size(), max_size);
  std::memcpy(data, made.data(), length);
  return length;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  std::span<const std::byte> stream(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  if ((data[0] & kMessageOnly) != 0) {
    Decode(stream);
    return 0;
  }
  const size_t piece = (data[0] & 0x3fu) + 1;
  FrameReader reader;
  if ((data[0] & kTrusted) != 0) reader.Trust(0);
  for (;;) {
    const auto payload = reader.Next();
    if (!payload) {
      SHOAL_CHECK(!reader.Space().has_value());  // a failure is for good
      return 0;
    }
    if (*payload) {
      Decode(**payload);
      continue;
    }
    if (stream.empty()) return 0;
    const auto space = reader.Space();
    SHOAL_CHECK(space.has_value() && !space->empty() && space->size() <= (64u << 10) + 2 * size);
    const size_t step = std::min({piece, space->size(), stream.size()});
    std::memcpy(space->data(), stream.data(), step);
    reader.Took(step);
    stream = stream.subspan(step);
  }
}
