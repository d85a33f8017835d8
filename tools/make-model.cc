// make-model OUT.gguf [--seed N] [--dim N] ...: writes a small model with random weights
// (src/model/tiny_model.h).
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>

#include "model/tiny_model.h"

namespace {

constexpr std::string_view kUsage =
    "usage: shoal-make-model OUT.gguf [--seed N] [--dim N] [--layers N] [--heads N] [--kv-heads N] [--ffn "
    "N]\n"
    "                        [--context N] [--vocabulary N] [--type f32|q8_0] [--arch NAME] [--name NAME] "
    "[--tied]\n";

template <class T>
bool Number(std::string_view text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

// One "--flag VALUE"; false when it is not understood.
bool TakeFlag(std::string_view flag, std::string_view value, shoal::TinyModelOptions& options) {
  const std::map<std::string_view, int*> numbers = {{"--dim", &options.dim},
                                                    {"--layers", &options.layers},
                                                    {"--heads", &options.heads},
                                                    {"--kv-heads", &options.kv_heads},
                                                    {"--ffn", &options.ffn},
                                                    {"--context", &options.context},
                                                    {"--vocabulary", &options.vocabulary}};
  if (const auto found = numbers.find(flag); found != numbers.end()) return Number(value, *found->second);
  if (flag == "--seed") return Number(value, options.seed);
  if (flag == "--arch") return options.arch = value, true;
  if (flag == "--name") return options.name = value, true;
  if (flag == "--type" && (value == "f32" || value == "q8_0")) return options.q8_0 = value == "q8_0", true;
  return false;
}

// The finished file appears at once or not at all.
bool Write(const std::string& path, const std::string& bytes) {
  const std::string part = path + ".part";
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(part, path, error);
  return out && !error;
}

}  // namespace

int main(int argc, char** argv) {
  shoal::TinyModelOptions options;
  std::string path;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--help") return std::fputs(kUsage.data(), stdout) < 0;
    if (argument == "--tied") {
      options.tied = true;
    } else if (argument.starts_with("--")) {
      if (i + 1 >= argc || !TakeFlag(argument, argv[i + 1], options)) {
        std::fprintf(stderr, "shoal-make-model: %s is not understood\n%s", argv[i], kUsage.data());
        return 2;
      }
      ++i;
    } else if (path.empty()) {
      path = argument;
    } else {
      path.clear();
      break;
    }
  }
  if (path.empty()) {
    std::fputs(kUsage.data(), stderr);
    return 2;
  }
  if (const auto status = shoal::CheckTinyModel(options); !status) {
    std::fprintf(stderr, "shoal-make-model: %s\n", status.error().message.c_str());
    return 2;
  }
  if (!Write(path, shoal::MakeTinyModel(options))) {
    std::fprintf(stderr, "shoal-make-model: cannot write %s\n", path.c_str());
    return 1;
  }
  return 0;
}
