#include "app/tokenize.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <format>
#include <string>
#include <string_view>
#include <vector>

#include "app/exit_codes.h"
#include "base/result.h"
#include "core/limits.h"
#include "core/reasons.h"
#include "model/gguf.h"
#include "model/printable.h"
#include "model/tokenizer.h"

namespace shoal {
namespace {

Result<std::string> ReadAllInput() {
  std::string out;
  std::vector<char> chunk(64 << 10);
  for (;;) {
    const ssize_t got = ::read(STDIN_FILENO, chunk.data(), chunk.size());
    if (got == 0) return out;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Fail(Code::kInternal, reasons::kIo, "cannot read stdin", std::strerror(errno));
    if (out.size() + static_cast<size_t>(got) > limits::kMaxInputBytes) {
      return Fail(Code::kInvalidArgument, reasons::kUsage,
                  std::format("stdin holds more than {} MiB; cut the text into parts", limits::kMaxInputBytes >> 20));
    }
    out.append(chunk.data(), static_cast<size_t>(got));
  }
}

Status WriteAll(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(STDOUT_FILENO, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Fail(Code::kInternal, reasons::kIo, "cannot write to stdout", std::strerror(errno));
    bytes.remove_prefix(static_cast<size_t>(put));
  }
  return {};
}

bool IsDivider(char c) { return c == ' ' || c == ',' || (c >= '\t' && c <= '\r'); }

Result<std::vector<TokenId>> ParseIds(std::string_view text, int vocabulary_size) {
  std::vector<TokenId> ids;
  for (size_t i = 0; i < text.size();) {
    if (IsDivider(text[i])) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < text.size() && !IsDivider(text[end])) ++end;
    TokenId id = -1;
    const auto [stop, error] = std::from_chars(text.data() + i, text.data() + end, id);
    if (error != std::errc() || stop != text.data() + end || id < 0 || id >= vocabulary_size) {
      return Fail(Code::kInvalidArgument, reasons::kUsage,
                  std::format("'{}' is not a token id; ids of this model are numbers from 0 to {}",
                              Printable(text.substr(i, end - i), 40), vocabulary_size - 1));
    }
    ids.push_back(id);
    i = end;
  }
  return ids;
}

Status Run(const std::filesystem::path& model, bool no_special, bool decode) {
  SHOAL_ASSIGN(const auto file, GgufFile::Open(model));
  SHOAL_ASSIGN(const auto tokenizer, Tokenizer::Load(*file));
  SHOAL_ASSIGN(const std::string input, ReadAllInput());
  if (decode) {
    SHOAL_ASSIGN(const auto ids, ParseIds(input, tokenizer->vocabulary_size()));
    return WriteAll(tokenizer->Decode(ids));
  }
  SHOAL_ASSIGN(const auto ids, tokenizer->Encode(input, {.add_special = !no_special, .parse_special = !no_special}));
  std::string out;
  for (const TokenId id : ids) {
    if (!out.empty()) out += ' ';
    out += std::to_string(id);
  }
  out += '\n';
  return WriteAll(out);
}

}  // namespace

int TokenizeCommand(const std::filesystem::path& model, bool no_special, bool decode) {
  const Status status = Run(model, no_special, decode);
  return status ? kExitOk : ReportError(status.error());
}

}  // namespace shoal
