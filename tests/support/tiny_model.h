// What: a tiny random model as a file in a folder, for tests that need a model and no more.
#pragma once

#include <filesystem>
#include <string>

#include "model/tiny_model.h"
#include "tests/support/shared.h"

namespace shoal::testing {

// Writes MakeTinyModel(options) to `folder`/`name` and gives the path.
inline std::filesystem::path WriteTinyModel(const std::filesystem::path& folder, const TinyModelOptions& options = {},
                                            const std::string& name = "tiny.gguf") {
  const std::filesystem::path path = folder / name;
  WriteFile(path, MakeTinyModel(options));
  return path;
}

}  // namespace shoal::testing
