#include "model/gguf_lookalike.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace shoal {
namespace {

using namespace std::string_view_literals;

struct Magic {
  std::string_view bytes;
  std::string_view meaning;
};

constexpr Magic kMagics[] = {
    {"version https://git-lfs"sv, "a Git-LFS pointer, not the file itself; fetch the file with `git lfs pull`"},
    {"PK\x03\x04"sv, "a zip archive (PyTorch checkpoints are such files); unpack it, or convert the model to GGUF"},
    {"PK\x05\x06"sv, "an empty zip archive"},
    {"\x1f\x8b"sv, "gzip-compressed; unpack it with gunzip"},
    {"\x28\xb5\x2f\xfd"sv, "zstd-compressed; unpack it with unzstd"},
    {"\xfd"
     "7zXZ\0"sv,
     "xz-compressed; unpack it with unxz"},
    {"BZh"sv, "bzip2-compressed; unpack it with bunzip2"},
    {"7z\xbc\xaf\x27\x1c"sv, "a 7z archive; unpack it"},
    {"\x89HDF\r\n"sv, "an HDF5 (Keras) file; convert the model to GGUF"},
    {"\x93NUMPY"sv, "a NumPy array file; convert the model to GGUF"},
    {"\x7f"
     "ELF"sv,
     "a program (ELF)"},
    {"%PDF-"sv, "a PDF document"},
    // The old formats wrote a little-endian number; both readings are recognised.
    {"lmgg"sv, "an old GGML file (before GGUF); convert the model again with a current converter"},
    {"ggml"sv, "an old GGML file (before GGUF); convert the model again with a current converter"},
    {"GGML"sv, "an old GGML file (before GGUF); convert the model again with a current converter"},
    {"fmgg"sv, "an old GGMF file (before GGUF); convert the model again with a current converter"},
    {"ggmf"sv, "an old GGMF file (before GGUF); convert the model again with a current converter"},
    {"GGMF"sv, "an old GGMF file (before GGUF); convert the model again with a current converter"},
    {"tjgg"sv, "an old GGJT file (before GGUF); convert the model again with a current converter"},
    {"ggjt"sv, "an old GGJT file (before GGUF); convert the model again with a current converter"},
    {"GGJT"sv, "an old GGJT file (before GGUF); convert the model again with a current converter"},
    {"algg"sv, "an old GGLA adapter file (before GGUF); convert the adapter again with a current converter"},
};

bool StartsWithIgnoringCase(std::string_view text, std::string_view lower) {
  if (text.size() < lower.size()) return false;
  return std::equal(lower.begin(), lower.end(), text.begin(), [](char want, char is) {
    return want == (is >= 'A' && is <= 'Z' ? static_cast<char>(is - 'A' + 'a') : is);
  });
}

std::string_view TextLookAlike(std::string_view text) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  while (!text.empty() && (text[0] == ' ' || text[0] == '\n' || text[0] == '\r' || text[0] == '\t'))
    text.remove_prefix(1);
  for (const std::string_view tag : {"<!doctype"sv, "<html"sv, "<head"sv, "<body"sv, "<!--"sv}) {
    if (StartsWithIgnoringCase(text, tag))
      return "an HTML page (an error or log-in page saved as a model?); download it again";
  }
  if (StartsWithIgnoringCase(text, "<?xml"))
    return "an XML document (an error message saved as a model?); download it again";
  if (text.size() > 1 && (text[0] == '{' || text[0] == '[') && std::strchr("\"{[ \n\r\t", text[1]) != nullptr) {
    return "JSON text (a configuration or an error message), not a model";
  }
  return {};
}

}  // namespace

std::string_view LookAlike(std::span<const std::byte> start, uint64_t file_size) {
  const std::string_view text(reinterpret_cast<const char*>(start.data()), start.size());
  for (const Magic& magic : kMagics) {
    if (text.starts_with(magic.bytes)) return magic.meaning;
  }
  if (text.size() >= 9 && text[8] == '{') {
    uint64_t length = 0;
    std::memcpy(&length, text.data(), sizeof(length));
    if (length >= 2 && length <= file_size - 8) return "a safetensors file; convert the model to GGUF";
  }
  if (text.size() >= 2 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5) {
    return "a Python pickle (an old PyTorch checkpoint); convert the model to GGUF";
  }
  if (text.size() >= 263 && text.substr(257, 5) == "ustar") return "a tar archive; unpack it";
  if (text.size() >= 8 && text.substr(4, 4) == "TFL3") return "a TensorFlow Lite file; convert the model to GGUF";
  // ONNX: a protobuf that begins with ir_version (field 1, a small number), then the producer's name or
  // version, or the graph.
  if (text.size() >= 4 && text[0] == '\x08' && text[1] > 0 && text[1] < 32 &&
      std::strchr("\x12\x1a\x22\x3a", text[2]) != nullptr && text[2] != 0) {
    return "a protobuf file, perhaps ONNX; convert the model to GGUF";
  }
  if (const auto found = TextLookAlike(text); !found.empty()) return found;
  if (text.size() >= 16 && std::all_of(text.begin(), text.end(), [](char c) { return c == 0; })) {
    return "only zeros at its start (an unfinished download?); download it again";
  }
  return {};
}

}  // namespace shoal
