#include "app/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <format>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "app/bench.h"
#include "app/commands.h"
#include "app/exit_codes.h"
#include "app/inspect.h"
#include "app/options.h"
#include "app/tokenize.h"
#include "compute/kernels/linear.h"
#include "core/limits.h"

namespace shoal {
namespace {

// What the chosen command does, once all it was told has been read and checked.
using Action = std::function<int()>;

std::string Variable(const std::string& flag) {
  std::string name = "SHOAL_";
  for (char c : flag) name += c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return name;
}

// What a variable is set to; null where it is not, or to nothing.
const char* ValueOf(const std::string& variable) {
  const char* value = std::getenv(variable.c_str());
  return value != nullptr && *value != '\0' ? value : nullptr;
}

// Every flag has a variable SHOAL_<NAME> and a key of that name in the command's section of the configuration file.
template <class... Args>
CLI::Option* Flag(CLI::App* command, const std::string& names, Args&&... args) {
  CLI::Option* option = command->add_option(names, std::forward<Args>(args)...);
  return option->envname(Variable(option->get_single_name()));
}

void Switch(CLI::App* command, const std::string& name, bool& value, const std::string& help) {
  CLI::Option* option = command->add_flag(name, value, help);
  option->envname(Variable(option->get_single_name()));
}

// CLI::Range lets NaN pass: every comparison with it fails.
CLI::Validator Between(double low, double high) {
  return CLI::Validator(
      [low, high](std::string& text) {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return std::string();
        return std::format("Value {} not in range [{} - {}]", text, low, high);
      },
      std::format("FLOAT in [{} - {}]", low, high));
}

void AddModel(CLI::App* command, std::string& model) {
  command->add_option("model", model, "a GGUF file (any part of a split set)")->required()->envname("SHOAL_MODEL");
}

// One of the names, which are an enum's in its order.
template <class Enum, size_t kCount>
void Choice(CLI::App* command, const std::string& name, Enum& value, const std::array<std::string_view, kCount>& names,
            const std::string& help) {
  const auto set = [&value, &names](const std::string& chosen) {
    value = static_cast<Enum>(std::ranges::find(names, chosen) - names.begin());
  };
  CLI::Option* option = command->add_option_function<std::string>(name, set, help);
  option->envname(Variable(option->get_single_name()))
      ->check(CLI::IsMember(std::vector<std::string>(names.begin(), names.end())))
      ->default_str(std::string(ToString(value)));
}

void AddKvType(CLI::App* command, KvType& type) {
  Choice(command, "--kv-type", type, kKvTypeNames,
         "what the KV cache holds; q8_0 takes half the memory, f32 twice as much");
}

void AddOverlap(CLI::App* command, Overlap& overlap) {
  Choice(command, "--overlap", overlap, kOverlapNames,
         "workers compute some rows of a prompt while the sums of others travel; "
         "auto: where that is measured to pay; output stays the same");
}

void AddEngineFlags(CLI::App* command, EngineFlags& flags) {
  AddModel(command, flags.model);
  Flag(command, "--threads", flags.threads, "compute threads of each rank (default: the cores, shared out)")
      ->check(CLI::Range(1, limits::kMaxThreads));
  Flag(command, "--workers", flags.workers, "split the model over this many local worker processes")
      ->check(CLI::Range(0, limits::kMaxRanks));
  Flag(command, "--stages", flags.stages, "pipeline stages that the workers form; each is split over its workers")
      ->check(CLI::Range(1, limits::kMaxRanks))
      ->capture_default_str();
  Flag(command, "--shares", flags.shares, "weights of the workers, e.g. 3,1 (default: equal)")
      ->delimiter(',')
      ->check(Between(1e-6, 1e6));
  Flag(command, "--step-rows", flags.step_rows, "tokens computed in one step; longer prompts go in chunks")
      ->check(CLI::Range(1, limits::kMaxStepRows))
      ->capture_default_str();
  Flag(command, "--sequences", flags.sequences, "sequences running at once")
      ->check(CLI::Range(1, limits::kMaxStepSequences))
      ->capture_default_str();
  Flag(command, "--context", flags.context, "positions of one sequence (default: the model's)")
      ->check(CLI::Range(1, limits::kMaxContext));
  Flag(command, "--kv-memory", flags.kv_memory, "KV cache of each rank, e.g. 2G (default: a quarter of the memory)")
      ->transform(CLI::AsSizeValue(false));
  AddKvType(command, flags.kv_type);
  AddOverlap(command, flags.overlap);
  Switch(command, "--prefix-cache,!--no-prefix-cache", flags.prefix_cache, "compute shared beginnings of prompts once");
  Switch(command, "--speculate,!--no-speculate", flags.speculate,
         "guess tokens from what was said before and verify them together; output stays the same");
}

void AddClusterFlags(CLI::App* command, EngineFlags& flags) {
  Flag(command, "--wait-for", flags.wait_for, "wait for this many `shoal worker --join` before loading")
      ->check(CLI::Range(0, limits::kMaxRanks));
  Flag(command, "--cluster-port", flags.cluster_port, "port for workers (7463 when workers are waited for; 0: any)")
      ->check(CLI::Range(0, 65535));
  Flag(command, "--token-file", flags.token_file, "the join token; made when the file is missing");
}

void AddRun(CLI::App& app, RunFlags& flags, Action& action) {
  CLI::App* command = app.add_subcommand("run", "complete a prompt");
  AddEngineFlags(command, flags.engine);
  Flag(command, "-p,--prompt", flags.prompt, "the prompt (default: asked for on a terminal, else standard input)");
  Flag(command, "-n,--tokens", flags.tokens, "tokens to generate at most")
      ->check(CLI::Range(1, limits::kMaxContext))
      ->capture_default_str();
  Flag(command, "--temp", flags.temperature, "temperature; 0 is greedy")
      ->check(Between(0.0, 2.0))
      ->capture_default_str();
  Flag(command, "--top-k", flags.top_k, "draw from the k most likely; 0 is all")
      ->check(CLI::Range(0, limits::kMaxVocabulary))
      ->capture_default_str();
  Flag(command, "--top-p", flags.top_p, "draw from the most likely with this probability together")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  Flag(command, "--min-p", flags.min_p, "leave out what is less likely than this times the best")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  Flag(command, "--repeat-penalty", flags.repeat_penalty, "above 1: repeat less")
      ->check(Between(0.1, 10.0))
      ->capture_default_str();
  Flag(command, "--seed", flags.seed, "the same seed gives the same text");
  Switch(command, "--ignore-eos", flags.ignore_eos, "go on after the end of the text");
  Switch(command, "--json", flags.json, "print one JSON object instead of text");
  command->footer("Example:\n  shoal run model.gguf -p \"Once upon a time\" -n 64 --temp 0");
  command->callback([&] { action = [&] { return RunCommand(flags); }; });
}

void AddBench(CLI::App& app, BenchFlags& flags, Action& action) {
  CLI::App* command = app.add_subcommand("bench", "measure prefill and decode, with the machine's bounds beside them");
  AddModel(command, flags.engine.model);
  Flag(command, "--threads", flags.engine.threads, "compute threads of each rank (default: the cores, shared out)")
      ->check(CLI::Range(1, limits::kMaxThreads));
  Flag(command, "--workers", flags.engine.workers, "split the model over this many local worker processes")
      ->check(CLI::Range(0, limits::kMaxRanks));
  Flag(command, "--stages", flags.engine.stages,
       "pipeline stages that the workers form; each is split over its workers")
      ->check(CLI::Range(1, limits::kMaxRanks))
      ->capture_default_str();
  Flag(command, "--shares", flags.engine.shares, "weights of the workers, e.g. 3,1 (default: equal)")
      ->delimiter(',')
      ->check(Between(1e-6, 1e6));
  AddKvType(command, flags.engine.kv_type);
  AddOverlap(command, flags.engine.overlap);
  command->add_option("--sequences", flags.sequences, "sequences decoding at once; several numbers are tried in turn")
      ->envname("SHOAL_BENCH_SEQUENCES")  // SHOAL_SEQUENCES is one number
      ->delimiter(',')
      ->check(CLI::Range(1, limits::kMaxStepSequences))
      ->default_str("1,4,16");
  command->add_option("--prompt", flags.prompt, "tokens of the prefill measurement")
      ->envname("SHOAL_BENCH_PROMPT")  // SHOAL_PROMPT is a text
      ->check(CLI::Range(1, limits::kMaxContext))
      ->capture_default_str();
  Flag(command, "--generate", flags.generate, "tokens of each decoding sequence")
      ->check(CLI::Range(1, limits::kMaxContext))
      ->capture_default_str();
  Flag(command, "--rounds", flags.rounds, "rounds; medians are printed")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  Switch(command, "--json", flags.json, "print one JSON object");
  command->footer("Example:\n  shoal bench model.gguf --workers 2 --sequences 1,8");
  command->callback([&] { action = [&] { return BenchCommand(flags); }; });
}

void AddServe(CLI::App& app, ServeFlags& flags, Action& action) {
  CLI::App* command = app.add_subcommand("serve", "serve a model over HTTP (OpenAI's API)");
  AddEngineFlags(command, flags.engine);
  AddClusterFlags(command, flags.engine);
  Flag(command, "--host", flags.host, "address to listen on")->capture_default_str();
  Flag(command, "--port", flags.port, "port to listen on; 0: any")->check(CLI::Range(0, 65535))->capture_default_str();
  Switch(command, "--insecure", flags.insecure, "allow plain-text HTTP on addresses other than loopback");
  Flag(command, "--api-key-file", flags.api_key_file, "one API key a line; without it the API is open");
  Flag(command, "--model-name", flags.model_name, "what clients call the model (default: the file's name)");
  Flag(command, "--drain-timeout", flags.drain_seconds, "seconds to let requests finish at the end")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str();
  Switch(command, "--demo", flags.demo, "show a sample completion, or open a prompt on a terminal");
  command->footer(
      "Example:\n  shoal serve model.gguf --workers 2\n  curl localhost:7462/v1/completions --json '{\"prompt\": "
      "\"Once "
      "upon a time\"}'");
  command->callback([&] { action = [&] { return ServeCommand(flags); }; });
}

void AddWorker(CLI::App& app, WorkerFlags& flags, Action& action) {
  CLI::App* command = app.add_subcommand("worker", "lend this machine to a head");
  Flag(command, "--join", flags.join, "the head's HOST:PORT")->required();
  Flag(command, "--token", flags.token, "the join token (better: --token-file, or SHOAL_TOKEN)");
  Flag(command, "--token-file", flags.token_file, "a file with the join token");
  Flag(command, "--threads", flags.threads, "compute threads (default: the cores)")
      ->check(CLI::Range(1, limits::kMaxThreads));
  Flag(command, "--memory", flags.memory, "memory to lend, e.g. 8G (default: what is available)")
      ->transform(CLI::AsSizeValue(false));
  Flag(command, "--cache", flags.cache, "folder for the cache of weights (reserved)");
  Flag(command, "--name", flags.name, "what the head calls this worker (default: the host's name)");
  command->footer("Example:\n  shoal worker --join 127.0.0.1:7463 --token-file token");
  command->callback([&] { action = [&] { return WorkerCommand(flags); }; });
}

struct ToolFlags {
  std::string tokenize_model;
  bool no_special = false;
  bool decode = false;
  std::string inspect_model;
  bool json = false;
};

void AddTools(CLI::App& app, ToolFlags& flags, Action& action) {
  CLI::App* tokenize = app.add_subcommand("tokenize", "text on stdin, token ids on stdout");
  AddModel(tokenize, flags.tokenize_model);
  Switch(tokenize, "--no-special", flags.no_special, "add no BOS or EOS, take control tokens in the text as text");
  Switch(tokenize, "--decode", flags.decode, "ids on stdin, text on stdout");
  tokenize->footer("Example:\n  echo -n 'Hello world' | shoal tokenize model.gguf");
  tokenize->callback(
      [&] { action = [&] { return TokenizeCommand(flags.tokenize_model, flags.no_special, flags.decode); }; });

  CLI::App* inspect = app.add_subcommand("inspect", "what is in a model file");
  AddModel(inspect, flags.inspect_model);
  Switch(inspect, "--json", flags.json, "print one JSON object");
  inspect->callback([&] { action = [&] { return InspectCommand(flags.inspect_model, flags.json); }; });
}

// Whether the flag that an error is about ("--temp: Value 9 not in range") was typed; if not, a variable or the configuration
// file brought it.
bool IsTyped(const CLI::App& app, const std::string& message, int argc, char** argv) {
  const std::string flag = message.substr(0, message.find_first_of(": "));
  if (!flag.starts_with("--")) return true;
  std::vector<std::string> names = {flag};
  for (const CLI::App* command : app.get_subcommands())
    if (const CLI::Option* option = command->get_option_no_throw(flag))
      for (const std::string& letter : option->get_snames()) names.push_back("-" + letter);
  return std::any_of(argv + 1, argv + argc, [&](const std::string& typed) {
    return std::ranges::any_of(names,
                               [&](const std::string& name) { return typed == name || typed.starts_with(name + "="); });
  });
}

// A variable that is set but was not taken: the parser passes over values that do not fit instead of refusing them.
std::string RefusedVariable(const CLI::App& app) {
  for (const CLI::App* command : app.get_subcommands())
    for (const CLI::Option* option : command->get_options())
      if (ValueOf(option->get_envname()) != nullptr && option->count() == 0) return option->get_envname();
  return {};
}

// A variable goes before the file: what is set there is passed over here.
class FileBehindVariables : public CLI::ConfigTOML {
 public:
  explicit FileBehindVariables(const CLI::App& app) : app_(app) {}
  std::vector<CLI::ConfigItem> from_config(std::istream& in) const override {
    auto read = CLI::ConfigTOML::from_config(in);
    std::erase_if(read, [&](const CLI::ConfigItem& item) {
      if (item.parents.size() != 1) return false;
      const auto commands =
          app_.get_subcommands([&](const CLI::App* one) { return one->get_name() == item.parents[0]; });
      const CLI::Option* option = nullptr;
      for (const char* const dashes : {"--", "-", ""})  // as the parser looks a key up
        if (option == nullptr && !commands.empty()) option = commands[0]->get_option_no_throw(dashes + item.name);
      return option != nullptr && ValueOf(option->get_envname()) != nullptr;
    });
    return read;
  }

 private:
  const CLI::App& app_;
};

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string NearestCommand(const CLI::App& app, const std::string& typed) {
  std::string best;
  for (const auto* command : app.get_subcommands([](const CLI::App*) { return true; }))
    if (best.empty() || EditDistance(typed, command->get_name()) < EditDistance(typed, best))
      best = command->get_name();
  return best;
}

}  // namespace

int Main(int argc, char** argv) {
  CLI::App app{"Shoal makes the machines you have into one model server.", "shoal"};
  app.require_subcommand(1);
  app.fallthrough();  // --config and --version may stand behind the command too
  app.set_version_flag("--version", std::string("shoal ") + SHOAL_VERSION);
  app.set_config("--config", "", "a TOML file; each command has a section, each flag a key")->envname("SHOAL_CONFIG");
  app.config_formatter(std::make_shared<FileBehindVariables>(app));
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.footer(
      "Exit codes: 0 ok, 1 run time, 2 usage, 3 configuration, 4 model missing or corrupt, 5 cluster unreachable, 6 "
      "authentication.\n"
      "Every flag can be given as SHOAL_<FLAG> in the environment and as a key in --config FILE; the flag goes first, "
      "then the variable.");
  Action action;
  RunFlags run;
  ServeFlags serve;
  BenchFlags bench;
  WorkerFlags worker;
  ToolFlags tools;
  AddRun(app, run, action);
  AddServe(app, serve, action);
  AddBench(app, bench, action);
  AddWorker(app, worker, action);
  AddTools(app, tools, action);
  if (argc > 1 && argv[1][0] != '-') {
    const std::string nearest = NearestCommand(app, argv[1]);
    if (nearest != argv[1]) {
      std::fprintf(stderr, "shoal: there is no command '%s'; did you mean '%s'? (shoal --help lists them)\n", argv[1],
                   nearest.c_str());
      return kExitUsage;
    }
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& done) {  // --help, --version
    return app.exit(done);
  } catch (const CLI::FileError& error) {
    app.exit(error);
    return kExitConfig;
  } catch (const CLI::ConfigError& error) {
    app.exit(error);
    return kExitConfig;
  } catch (const CLI::ParseError& error) {
    app.exit(error);
    return IsTyped(app, error.what(), argc, argv) ? kExitUsage : kExitConfig;
  }
  if (const char* kernel = ValueOf("SHOAL_KERNEL"); kernel != nullptr && !kernels::UseTarget(kernel)) {
    std::string names;
    for (const std::string_view name : kernels::TargetNames()) names += std::format(" {}", name);
    std::fprintf(stderr, "shoal: there are no kernels for SHOAL_KERNEL=%s here; this machine can use%s\n", kernel,
                 names.c_str());
    return kExitConfig;
  }
  if (const std::string ignored = RefusedVariable(app); !ignored.empty()) {
    std::fprintf(stderr, "shoal: the environment variable %s has a value that its flag does not take\n",
                 ignored.c_str());
    return kExitConfig;
  }
  return action();
}

}  // namespace shoal
