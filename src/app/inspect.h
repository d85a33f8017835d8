// What: `shoal inspect`: what a GGUF file says of itself, for people (tables) or scripts (--json, one object).
// Fails: a missing or corrupt model is told on stderr and gives exit code 4. stdout is data only.
//
// The object of --json: file, version, files, file_bytes, architecture (null when not said), parameters, bytes (of
// all tensors), metadata {key: value} (whole arrays; a number that JSON cannot hold is null), tensors [{name,
// type, shape, bytes, offset, file}] (shape innermost first, as in the file; offset from the start of part `file`,
// counted from 0), layers [{layer, tensors, bytes}], other {tensors, bytes} (what belongs to no layer), types
// [{type, tensors, parameters, bytes}], warnings.
#pragma once

#include <cstdio>
#include <filesystem>
#include <string>

namespace shoal {

class GgufFile;

int InspectCommand(const std::filesystem::path& path, bool json);

// The two forms, for InspectCommand and its tests.
std::string InspectText(const GgufFile& file);
std::string InspectJson(const GgufFile& file);

}  // namespace shoal
