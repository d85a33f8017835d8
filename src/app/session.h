// What: from flags to a running engine: opens the model, plans the split, starts or awaits workers, loads the shards.
// Owns: the model file, local worker processes and the engine; ends them in that order reversed.
// Fails: with the error of whatever could not be had; nothing is left running then.
// Reads next: engine/engine.h, app/local_workers.h, engine/remote_group.h.
#pragma once

#include <memory>

#include "app/local_workers.h"
#include "app/options.h"
#include "base/result.h"
#include "core/model_spec.h"
#include "engine/engine.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

namespace shoal {

struct Session {
  std::shared_ptr<const GgufFile> file;
  std::shared_ptr<const Tokenizer> tokenizer;
  LocalWorkers workers;
  std::unique_ptr<Engine> engine;  // last: stopped first
  Nanos load_time{};
};

Result<std::unique_ptr<Session>> StartSession(const EngineFlags& flags);

}  // namespace shoal
