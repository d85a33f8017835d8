// What: names what a file that is not GGUF seems to be, from its first bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace shoal {

// "a Git-LFS pointer, ..." with the advice that fits; empty when it looks like nothing known.
std::string_view LookAlike(std::span<const std::byte> start, uint64_t file_size);

}  // namespace shoal
