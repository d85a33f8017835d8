#include "app/session.h"

#include <filesystem>

#include "app/cluster_head.h"
#include "app/planning.h"
#include "app/progress.h"
#include "base/log.h"
#include "base/machine.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "engine/local_group.h"
#include "model/file_source.h"
#include "model/spec_reader.h"

namespace shoal {
namespace {

Status CheckFlags(const EngineFlags& flags) {
  const int ranks = flags.workers + flags.wait_for;
  if (ranks > limits::kMaxRanks)
    return Fail(Code::kInvalidArgument, reasons::kUsage,
                "a model is split over at most " + std::to_string(limits::kMaxRanks) + " workers");
  if (!flags.shares.empty() && static_cast<int>(flags.shares.size()) != ranks)
    return Fail(
        Code::kInvalidArgument, reasons::kUsage,
        "--shares names " + std::to_string(flags.shares.size()) + " workers, but there are " + std::to_string(ranks));
  if (flags.stages > std::max(1, ranks))
    return Fail(Code::kInvalidArgument, reasons::kUsage,
                "--stages " + std::to_string(flags.stages) + " needs at least as many workers (--workers N)");
  return {};
}

Result<std::unique_ptr<Group>> LoadHere(const ModelSpec& spec, std::shared_ptr<const GgufFile> file,
                                        const EngineFlags& flags) {
  SHOAL_ASSIGN(const ShardPlan plan, MakePlan(spec, {{"this machine", AvailableMemory()}}, flags));
  FileSource source(file);
  ProgressBar bar("loading", spec.tensor_bytes);
  ProgressSource counted(source, bar);
  return LoadLocalGroup(spec, counted, plan, flags.threads > 0 ? flags.threads : AvailableCores());
}

}  // namespace

Result<std::unique_ptr<Session>> StartSession(const EngineFlags& flags) {
  SHOAL_RETURN_IF_ERROR(CheckFlags(flags));
  const Time begin = Now();
  auto session = std::make_unique<Session>();
  SHOAL_ASSIGN(session->file, GgufFile::Open(flags.model));
  for (const auto& warning : session->file->warnings()) Log().warn("{}: {}", flags.model, warning);
  SHOAL_ASSIGN(ModelSpec spec, ReadModelSpec(*session->file));
  SHOAL_ASSIGN(session->tokenizer, Tokenizer::Load(*session->file));
  if (session->tokenizer->vocabulary_size() > spec.n_vocab)
    return Fail(Code::kCorrupt, reasons::kModelCorrupt,
                flags.model + ": the tokenizer has " + std::to_string(session->tokenizer->vocabulary_size()) +
                    " tokens, the embedding " + std::to_string(spec.n_vocab));
  if (flags.context > 0) spec.context_length = std::min(spec.context_length, flags.context);
  std::unique_ptr<Group> group;
  if (flags.workers + flags.wait_for > 0) {
    SHOAL_ASSIGN(group, GatherWorkers(spec, session->file, flags, session->workers));
  } else {
    SHOAL_ASSIGN(group, LoadHere(spec, session->file, flags));
  }
  session->load_time = Now() - begin;
  const EngineOptions options{.max_step_rows = flags.step_rows,
                              .max_sequences = flags.sequences,
                              .prefix_cache = flags.prefix_cache,
                              .speculate = flags.speculate,
                              .mixed_rows = flags.mixed_rows,
                              .overlap = flags.overlap};
  session->engine = Engine::Start(std::move(spec), session->tokenizer, std::move(group), options);
  return session;
}

}  // namespace shoal
