#include "serve/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <format>
#include <fstream>
#include <sstream>
#include <string>

#include "core/limits.h"
#include "core/reasons.h"

namespace shoal::serve {
namespace {

constexpr size_t kMaxFileBytes = 4 << 20;

Result<KeyHash> ParseHash(std::string_view hex) {
  KeyHash hash{};
  if (hex.size() != 2 * hash.size())
    return Fail(Code::kConfig, reasons::kBadConfig, "a sha256: line needs 64 hex digits");
  for (size_t i = 0; i < hex.size(); ++i) {
    const char c = hex[i];
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return Fail(Code::kConfig, reasons::kBadConfig, "a sha256: line has a digit that is not hex");
    hash[i / 2] = static_cast<unsigned char>(hash[i / 2] * 16 + digit);
  }
  return hash;
}

}  // namespace

KeyHash HashKey(std::string_view key) {
  KeyHash hash;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), hash.data());
  return hash;
}

Result<std::vector<KeyHash>> LoadApiKeys(const std::string& path) {
  std::ifstream file(path);
  if (!file) return Fail(Code::kConfig, reasons::kBadConfig, std::format("cannot read the API key file {}", path));
  // A bounded piece of it first: the path may name a device without an end.
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes)
    return Fail(Code::kConfig, reasons::kBadConfig,
                std::format("the API key file {} is longer than {} bytes", path, kMaxFileBytes));
  std::vector<KeyHash> keys;
  std::string line;
  std::istringstream lines(text);
  for (int number = 1; std::getline(lines, line); ++number) {
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos || line[first] == '#') continue;
    const std::string_view key = std::string_view(line).substr(first, line.find_last_not_of(" \t\r") - first + 1);
    if (keys.size() >= limits::kMaxApiKeys)
      return Fail(Code::kConfig, reasons::kBadConfig,
                  std::format("{} has more than {} keys", path, limits::kMaxApiKeys));
    if (!key.starts_with("sha256:")) {
      keys.push_back(HashKey(key));
      continue;
    }
    auto hash = ParseHash(key.substr(7));
    if (!hash) {
      hash.error().message = std::format("{}:{}: {}", path, number, hash.error().message);
      return Fail(std::move(hash).error());
    }
    keys.push_back(*hash);
  }
  // An empty file must not open the door.
  if (keys.empty())
    return Fail(Code::kConfig, reasons::kBadConfig, std::format("the API key file {} has no key", path));
  return keys;
}

bool IsKnownKey(const KeyHash& key, const std::vector<KeyHash>& known) {
  unsigned found = 0;
  for (const KeyHash& one : known)
    found |= static_cast<unsigned>(CRYPTO_memcmp(key.data(), one.data(), key.size()) == 0);
  return found != 0;
}

}  // namespace shoal::serve
