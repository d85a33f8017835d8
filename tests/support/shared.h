// What: where tests find reference data. It lies in `shared` beside the checkout, or where SHOAL_SHARED points; without it the
// tests that need it report themselves as skipped.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

namespace shoal::testing {

// An absolute path below the shared folder; the file may be missing.
std::filesystem::path SharedPath(const std::string& relative);

// A folder that is removed with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::string ReadFile(const std::filesystem::path& path);
void WriteFile(const std::filesystem::path& path, std::string_view bytes);

}  // namespace shoal::testing

#define SHOAL_REQUIRE_SHARED(path) \
  if (!std::filesystem::exists(path)) GTEST_SKIP() << (path) << " is not there"
