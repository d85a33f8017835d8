#include "tests/support/shared.h"

#include <stdlib.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace shoal::testing {

std::filesystem::path SharedPath(const std::string& relative) {
  const char* given = std::getenv("SHOAL_SHARED");
  const std::filesystem::path folder =
      given != nullptr ? std::filesystem::path(given) : std::filesystem::path(SHOAL_SOURCE_DIR) / ".." / "shared";
  return std::filesystem::weakly_canonical(folder / relative);
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "shoal-test-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) std::abort();
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return std::move(out).str();
}

void WriteFile(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace shoal::testing
