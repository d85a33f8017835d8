// What: what the commands were asked to do, after flags, SHOAL_* variables and the configuration file are merged (the first
// of them goes first). Plain values; app/cli.cc fills them in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/kv_type.h"
#include "core/overlap.h"

namespace shoal {

// How a model is opened and split; shared by run, serve and bench.
struct EngineFlags {
  std::string model;
  int threads = 0;             // per rank; 0 = the machine's cores, shared out over local workers
  int workers = 0;             // local worker processes; 0 = inside this process
  int stages = 1;              // pipeline stages that the workers form; each is tensor parallel over its workers
  int wait_for = 0;            // workers from elsewhere to wait for (`shoal worker --join`)
  std::vector<double> shares;  // weights of the workers; empty = equal
  int step_rows = 256;         // tokens in one step: prompts are computed in chunks of at most this
  int sequences = 64;          // sequences running at once
  int context = 0;             // positions of one sequence; 0 = the model's
  bool prefix_cache = true;    // shared prefixes are computed once
  bool speculate = true;       // guess tokens from a sequence's own history where that pays
  int mixed_rows = -1;         // prompt rows beside decoding sequences at most; -1 = by measured time, 0 = all
  uint64_t kv_memory = 0;      // bytes of KV cache per rank; 0 = a quarter of the memory
  KvType kv_type = KvType::kF16;
  Overlap overlap = Overlap::kAuto;  // parts of big steps compute and meet in turns
  std::string cluster_host = "127.0.0.1";
  int cluster_port = -1;   // -1: only when workers are waited for; 0 = chosen by the system
  std::string token_file;  // join token; made when the file is missing
};

struct RunFlags {
  EngineFlags engine;
  std::optional<std::string> prompt;  // absent: a prompt on a terminal, else standard input
  int tokens = 128;
  float temperature = 0.8f;
  int top_k = 40;
  float top_p = 0.95f;
  float min_p = 0.05f;
  float repeat_penalty = 1.0f;
  std::optional<uint64_t> seed;  // absent: drawn, and shown by --json
  bool ignore_eos = false;
  bool json = false;
};

struct BenchFlags {
  EngineFlags engine;
  std::vector<int> sequences = {1, 4, 16};  // decoding at once; measured one after the other
  int prompt = 128;                         // tokens of the prefill measurement
  int generate = 64;                        // tokens of each sequence of the decode measurement
  int rounds = 5;                           // the median of these is printed
  bool json = false;
};

struct ServeFlags {
  EngineFlags engine;
  std::string host = "127.0.0.1";
  int port = 7462;
  bool insecure = false;  // plain text on addresses other than loopback
  std::string api_key_file;
  std::string model_name;  // what clients call the model; the file's name by default
  int drain_seconds = 30;
  bool demo = false;  // print a sample completion, or open a prompt on a terminal
};

struct WorkerFlags {
  std::string join;  // HOST:PORT
  std::string token;
  std::string token_file;
  int threads = 0;
  uint64_t memory = 0;  // bytes this worker may use; 0 = what is available
  std::string cache;    // reserved for the weight cache
  std::string name;
};

}  // namespace shoal
