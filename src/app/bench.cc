#include "app/bench.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "app/exit_codes.h"
#include "app/session.h"
#include "base/bounded_queue.h"
#include "compute/executor.h"
#include "core/limits.h"
#include "core/reasons.h"

namespace shoal {
namespace {

double Seconds(Nanos time) { return std::chrono::duration<double>(time).count(); }

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

// How fast `threads` threads read from memory: the bound of decoding, which reads all weights once a step. A line is fetched
// whole whoever asks for a word of it, and with few instructions a line a core keeps more of them under way.
class MemoryReader {
 public:
  explicit MemoryReader(int threads) : threads_(static_cast<size_t>(threads)) {
    if (!memory_) return;
    madvise(memory_.get(), kBytes, MADV_HUGEPAGE);
    const size_t part = kBytes / threads_;
    std::vector<std::jthread> owners;  // each part is first touched, and so placed, by a thread of its own
    for (size_t t = 0; t < threads_; ++t)
      owners.emplace_back([this, t, part] { std::memset(static_cast<char*>(memory_.get()) + part * t, 1, part); });
  }

  // Bytes a second, now; 0: not known.
  double Measure() const {
    if (!memory_) return 0;
    double best = 0;
    // Which way of asking for what comes next is the fastest depends on the processor: none, 1 KiB ahead, 8 KiB ahead.
    for (const size_t ahead : {0, 128, 1024, 0, 128, 1024}) {
      const Time begin = Now();
      ReadAll(ahead);
      best = std::max(best, static_cast<double>(kBytes) / Seconds(Now() - begin));
    }
    return best;
  }

 private:
  static constexpr size_t kBytes = 512u << 20, kHugePage = 2u << 20;
  static constexpr size_t kLineWords = 64 / sizeof(uint64_t);

  void ReadAll(size_t ahead) const {
    const size_t part = kBytes / sizeof(uint64_t) / threads_;
    std::atomic<uint64_t> total = 0;  // makes the sums used
    std::vector<std::jthread> readers;
    for (size_t t = 0; t < threads_; ++t)
      readers.emplace_back([&, at = static_cast<const uint64_t*>(memory_.get()) + part * t] {
        uint64_t even = 0, odd = 0;
        for (size_t i = 0; i + 2 * kLineWords <= part; i += 2 * kLineWords) {
          __builtin_prefetch(at + i + ahead, 0, 2);
          __builtin_prefetch(at + i + kLineWords + ahead, 0, 2);
          even ^= at[i];
          odd ^= at[i + kLineWords];
        }
        total += even ^ odd;
      });
  }

  const size_t threads_;
  std::unique_ptr<void, decltype(&std::free)> memory_{std::aligned_alloc(kHugePage, kBytes), &std::free};
};

struct Timeline {
  std::vector<Time> tokens;  // when each generated token arrived
  Time submitted;
};

using Busy = decltype(EngineStats::rank_busy_ns);

// What the ranks had computed, and when.
struct BusySample {
  Time at{};
  Busy busy{};
};

struct Loaded {
  std::vector<Timeline> lines;
  BusySample all_decode, first_ends;  // the time in which every sequence decodes lies between
};

// Submits `count` requests at once and waits for all.
Result<Loaded> Load(Engine& engine, int count, int prompt, int generate, uint64_t salt) {
  // Shared with the sinks: when a later request is refused, those before it still run.
  struct Run {
    explicit Run(size_t size) : ends(size) { loaded.lines.resize(size); }
    Loaded loaded;
    size_t decode = 0;  // sequences that have a token
    BoundedQueue<std::optional<Error>> ends;
  };
  const auto run = std::make_shared<Run>(static_cast<size_t>(count));
  uint64_t state = 0x9e3779b97f4a7c15ull * (salt + 1);
  for (auto& line : run->loaded.lines) {
    Request request;
    request.id = "bench";
    for (int i = 0; i < prompt; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      request.prompt.push_back(static_cast<TokenId>((state >> 33) % static_cast<uint64_t>(engine.spec().n_vocab)));
    }
    request.max_tokens = generate;
    request.ignore_eos = true;
    request.sampling.temperature = 0;
    line.submitted = Now();
    SHOAL_ASSIGN([[maybe_unused]] const auto handle,
                 engine.Submit(std::move(request), [&engine, run, &line](Delta delta) {
                   const Time now = Now();
                   const auto sample = [&] { return BusySample{now, engine.Stats().rank_busy_ns}; };
                   if (line.tokens.empty() && !delta.tokens.empty() && ++run->decode == run->loaded.lines.size())
                     run->loaded.all_decode = sample();
                   if (delta.finish && run->loaded.first_ends.at == Time{}) run->loaded.first_ends = sample();
                   for (size_t i = 0; i < delta.tokens.size(); ++i) line.tokens.push_back(now);
                   if (delta.finish) (void)run->ends.TryPush(std::move(delta.error));
                 }));
  }
  for (int i = 0; i < count; ++i) {
    auto end = run->ends.PopBefore({Time::max()});
    if (end && *end) return std::unexpected(**end);
  }
  return std::move(run->loaded);
}

struct Prefill {
  double tokens_per_s = 0;
  double first_p50 = 0, first_max = 0;  // seconds from the request to its first token
};

struct Decode {
  int sequences = 0;        // together
  double tokens_per_s = 0;  // of all; 0: they never decoded all at once
  double step_p50 = 0, step_p99 = 0;
  double bandwidth = 0;      // bytes a second that could be read from memory just before and after, whichever was more
  std::vector<double> busy;  // [rank]: share of the time that it computed, while every sequence decoded
};

struct Figures {
  Prefill prefill;
  std::vector<Decode> decode;  // one for each number of sequences that was asked for
};

// The tokens that arrived while every sequence was decoding, over that time.
void MeasureSteps(const std::vector<Timeline>& lines, Decode& decode) {
  Time begin{}, end = Time::max();
  for (const auto& line : lines) {
    begin = std::max(begin, line.tokens.front());
    end = std::min(end, line.tokens.back());
  }
  double tokens = 0;
  std::vector<double> gaps;
  for (const auto& line : lines)
    for (size_t i = 1; i < line.tokens.size(); ++i) {
      if (line.tokens[i] > begin && line.tokens[i] <= end) ++tokens;
      gaps.push_back(Seconds(line.tokens[i] - line.tokens[i - 1]));
    }
  decode.tokens_per_s = end > begin ? tokens / Seconds(end - begin) : 0;
  decode.step_p50 = Quantile(gaps, 0.5);
  decode.step_p99 = Quantile(gaps, 0.99);
}

void MeasureBusy(const Loaded& loaded, size_t ranks, Decode& decode) {
  const BusySample &begin = loaded.all_decode, &end = loaded.first_ends;
  if (end.at <= begin.at) return;
  for (size_t r = 0; r < ranks; ++r)
    decode.busy.push_back(static_cast<double>(end.busy[r] - begin.busy[r]) /
                          static_cast<double>((end.at - begin.at).count()));
}

Result<Prefill> MeasurePrefill(Engine& engine, const BenchFlags& flags) {
  std::vector<double> first;
  for (int round = 0; round < flags.rounds; ++round) {
    SHOAL_ASSIGN(const auto loaded, Load(engine, 1, flags.prompt, 1, 100 + static_cast<uint64_t>(round)));
    const Timeline& line = loaded.lines[0];
    first.push_back(Seconds(line.tokens.front() - line.submitted));
  }
  const double median = Quantile(first, 0.5);
  return Prefill{flags.prompt / median, median, std::ranges::max(first)};
}

// The round in the middle.
Result<Decode> MeasureDecode(Engine& engine, const BenchFlags& flags, int sequences, const MemoryReader& memory) {
  std::vector<Decode> rounds;
  double before = memory.Measure();
  for (int round = 0; round < flags.rounds && flags.generate > 1; ++round) {
    SHOAL_ASSIGN(const auto loaded, Load(engine, sequences, std::min(flags.prompt, 32), flags.generate,
                                         200 + static_cast<uint64_t>(round)));
    Decode decode;
    decode.sequences = sequences;
    MeasureSteps(loaded.lines, decode);
    MeasureBusy(loaded, engine.group().ranks.size(), decode);
    const double after = memory.Measure();
    decode.bandwidth = std::max(std::exchange(before, after), after);
    rounds.push_back(std::move(decode));
  }
  if (rounds.empty()) {  // --generate 1
    Decode none;
    none.sequences = sequences;
    none.bandwidth = before;
    return none;
  }
  std::ranges::sort(rounds, {}, &Decode::tokens_per_s);
  return std::move(rounds[rounds.size() / 2]);
}

Result<Figures> Measure(Engine& engine, const BenchFlags& flags) {
  SHOAL_RETURN_IF_ERROR(Load(engine, 1, std::min(flags.prompt, 16), 2, 0));  // touch every weight once
  int threads = 0;
  for (const auto& rank : engine.group().ranks) threads += rank.threads;
  const MemoryReader memory(threads);
  Figures figures;
  SHOAL_ASSIGN(figures.prefill, MeasurePrefill(engine, flags));
  for (const int sequences : flags.sequences) {
    SHOAL_ASSIGN(auto decode, MeasureDecode(engine, flags, sequences, memory));
    figures.decode.push_back(std::move(decode));
  }
  return figures;
}

struct Weights {
  uint64_t resident = 0;
  uint64_t step = 0;  // of these, what a step reads at least
};

Weights WeightsOf(const Session& session, int stages) {
  Weights weights;
  for (const auto& rank : session.engine->group().ranks) weights.resident += rank.weight_bytes;
  weights.step = weights.resident - std::min(weights.resident - 1, UnreadWeightBytes(session.engine->spec(), stages));
  return weights;
}

// One step of a batch reads its weights once: no decoder can be faster than this. In a pipeline the sequences are in so many
// batches. 0: not known.
double BoundOf(const Decode& decode, const Weights& weights, int stages) {
  const double batch = static_cast<double>(decode.sequences) / std::min(decode.sequences, stages);
  return decode.bandwidth / static_cast<double>(weights.step) * batch;
}

nlohmann::ordered_json JsonOf(const Decode& decode, const Weights& weights, int stages) {
  nlohmann::ordered_json rate;  // null where it was not measured
  if (decode.tokens_per_s > 0) rate = decode.tokens_per_s;
  return {
      {"sequences", decode.sequences},
      {"decode_tokens_per_s", rate},
      {"step_ms_p50", decode.step_p50 * 1e3},
      {"step_ms_p99", decode.step_p99 * 1e3},
      {"busy", decode.busy},
      {"bounds", {{"read_bytes_per_s", decode.bandwidth}, {"decode_tokens_per_s", BoundOf(decode, weights, stages)}}}};
}

void PrintJson(const BenchFlags& flags, const Session& session, const Figures& figures) {
  const int stages = flags.engine.stages;
  const Weights weights = WeightsOf(session, stages);
  nlohmann::ordered_json json = {{"model", session.engine->spec().name},
                                 {"kernel", session.engine->group().kernel},
                                 {"threads", session.engine->group().ranks.front().threads},
                                 {"workers", flags.engine.workers},
                                 {"stages", stages},
                                 {"kv_type", ToString(flags.engine.kv_type)},
                                 {"overlap", ToString(flags.engine.overlap)},
                                 {"load_ms", Seconds(session.load_time) * 1e3},
                                 {"weight_bytes", weights.resident},
                                 {"step_bytes", weights.step},
                                 {"prompt", flags.prompt},
                                 {"generate", flags.generate},
                                 {"prefill_tokens_per_s", figures.prefill.tokens_per_s},
                                 {"time_to_first_token_ms", figures.prefill.first_p50 * 1e3},
                                 {"time_to_first_token_ms_max", figures.prefill.first_max * 1e3}};
  json.update(JsonOf(figures.decode.front(), weights, stages));
  for (const Decode& decode : figures.decode) json["batches"].push_back(JsonOf(decode, weights, stages));
  std::cout << json.dump() << std::endl;
}

void PrintText(const BenchFlags& flags, const Session& session, const Figures& figures) {
  const Weights weights = WeightsOf(session, flags.engine.stages);
  std::printf("%s\n", Summary(session.engine->spec()).c_str());
  std::printf("  prefill %9.1f tokens/s   (%d tokens; the first token comes after %.1f ms, %.1f ms at most)\n\n",
              figures.prefill.tokens_per_s, flags.prompt, figures.prefill.first_p50 * 1e3,
              figures.prefill.first_max * 1e3);
  std::printf(
      "  decode   tokens/s   a step takes, p50      p99   at most tokens/s   (%.2f GB of weights read a step)\n",
      static_cast<double>(weights.step) / 1e9);
  for (const Decode& decode : figures.decode) {
    const double bound = BoundOf(decode, weights, flags.engine.stages);
    if (decode.tokens_per_s <= 0) {
      std::printf("  %6d  not measured: the first ended before the last began; give a larger --generate\n",
                  decode.sequences);
      continue;
    }
    std::printf("  %6d  %9.1f          %9.2f ms %8.2f ms", decode.sequences, decode.tokens_per_s, decode.step_p50 * 1e3,
                decode.step_p99 * 1e3);
    if (bound > 0)
      std::printf("  %9.1f   (memory gives %.1f GB/s: %.0f %% of it reached)", bound, decode.bandwidth / 1e9,
                  decode.tokens_per_s / bound * 100);
    std::printf("\n");
    if (decode.busy.size() < 2) continue;
    std::printf("         busy:");
    for (const double busy : decode.busy) std::printf(" %.0f %%", busy * 100);
    std::printf(" of the time that each rank had\n");
  }
}

}  // namespace

int BenchCommand(const BenchFlags& flags) {
  setenv("SHOAL_LOG", "warn", 0);  // for the worker processes too
  EngineFlags engine = flags.engine;
  // The machine is measured, not how well random text can be guessed or remembered.
  engine.speculate = false;
  engine.prefix_cache = false;
  engine.mixed_rows = 0;  // all sequences are to decode together soon
  const int most = std::ranges::max(flags.sequences);
  engine.sequences = std::max(engine.sequences, most);
  // Prompts get the rows that decoding sequences leave: with many of those the last would begin when the first have ended.
  engine.step_rows = std::min(limits::kMaxStepRows, std::max(engine.step_rows, 2 * most));
  auto session = StartSession(engine);
  if (!session) return ReportError(session.error());
  if (const int context = (*session)->engine->spec().context_length;
      flags.prompt + 1 > context || 32 + flags.generate > context)
    return ReportError(MakeError(
        Code::kInvalidArgument, reasons::kUsage,
        "the model's context of " + std::to_string(context) + " tokens is too small for --prompt and --generate"));
  auto figures = Measure(*(*session)->engine, flags);
  if (!figures) return ReportError(figures.error());
  flags.json ? PrintJson(flags, **session, *figures) : PrintText(flags, **session, *figures);
  return kExitOk;
}

}  // namespace shoal
