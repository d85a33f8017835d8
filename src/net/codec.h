// What: the plain values of core/ to and from their wire messages. Every number that comes in is checked
// against a limit before it is used or anything is allocated for it; what a step means (does this sequence
// exist, is this block free) is the receiver's business.
// Threads: pure functions.
// Limits: core/limits.h and those below.
// Fails: kBadFrame naming the field.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "core/ids.h"
#include "core/request.h"
#include "core/shard_plan.h"
#include "core/step.h"

namespace shoal {

namespace wire {  // net/wire.pb.h
class Error;
class LoadShard;
class ReadTensor;
class ReadHeader;
class SamplingParams;
class ShardPlan;
class Step;
class StepResult;
class Bytes;
class WorkerInfo;
}  // namespace wire

inline constexpr size_t kMaxChunkBytes = 4u << 20;     // of one Bytes message
inline constexpr uint64_t kMaxReadBytes = 1ull << 40;  // of one ReadTensor
inline constexpr int kMaxSequencesKnown = 4096;        // added or removed in one step
inline constexpr size_t kMaxMessageText = 64 << 10;    // of an error's message, detail, param
inline constexpr size_t kMaxNameBytes = 256;           // of a worker, a host, a kernel

void EncodeError(const Error& error, wire::Error* to);
Result<Error> DecodeError(const wire::Error& from);

void EncodeSampling(const SamplingParams& sampling, wire::SamplingParams* to);
Result<SamplingParams> DecodeSampling(const wire::SamplingParams& from);

void EncodeShardPlan(const ShardPlan& plan, wire::ShardPlan* to);
Result<ShardPlan> DecodeShardPlan(const wire::ShardPlan& from);

void EncodeStep(const StepPlan& plan, wire::Step* to);
Result<StepPlan> DecodeStep(const wire::Step& from);

void EncodeStepResult(const StepResult& result, wire::StepResult* to);
Result<StepResult> DecodeStepResult(const wire::StepResult& from);

// Whether the numbers of a message are within limits and agree with each other; what they refer to (a tensor,
// a file) is checked by whoever has it.
Status CheckLoadShard(const wire::LoadShard& message);    // DecodeShardPlan is still to be called
Status CheckReadTensor(const wire::ReadTensor& message);  // no overflow; pieces do not overlap
Status CheckReadHeader(const wire::ReadHeader& message);
Status CheckBytes(const wire::Bytes& message);
Status CheckWorkerInfo(const wire::WorkerInfo& message);

}  // namespace shoal
