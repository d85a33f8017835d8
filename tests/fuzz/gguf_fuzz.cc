// Header bytes of one to three files of a set -> ParseHeaders, then everything that can be asked of what was
// accepted. Input: a byte (files - 1), four bytes (how much longer each file is than its header), then the
// headers, cut evenly. Seeds come from the mutator below: an input too short to be a header becomes a small
// valid one.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "app/inspect.h"
#include "base/check.h"
#include "model/gguf.h"
#include "model/gguf_types.h"
#include "model/gguf_writer.h"
#include "model/printable.h"

using namespace shoal;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

constexpr size_t kPrefix = 5;
constexpr size_t kFirstBytes = 576;  // of the first tensor: a multiple of the alignments below

// One part of a set of `files`, without its tensor data.
std::string Header(int part, int files, uint32_t version, uint32_t alignment) {
  GgufWriter writer(version, alignment);
  writer.SetString("general.architecture", "llama");
  writer.SetU16("split.no", static_cast<uint16_t>(part));
  writer.SetU16("split.count", static_cast<uint16_t>(files));
  writer.SetU64("u64", 1);
  writer.SetF32("f32", 1.0f);
  writer.SetBool("bool", true);
  writer.SetStrings("strings", std::vector<std::string>{"a", "<0x00>"});
  writer.SetFloats("floats", std::vector<float>{0.5f, -1.0f});
  writer.SetInts("ints", std::vector<int32_t>{1, 2});
  writer.SetRaw("nested", GgufType::kArray,
                std::string("\x09\0\0\0\1\0\0\0\0\0\0\0\x08\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0x", 33));
  const std::string suffix(1, static_cast<char>('a' + part));
  writer.AddRaw("blk.0.attn_q." + suffix, 12, {256, 4}, std::string(kFirstBytes, 0));
  writer.AddRaw("token_embd." + suffix, 0, {8}, std::string(32, 0));
  std::string bytes = writer.Build();
  bytes.resize(bytes.size() - kFirstBytes - alignment);
  return bytes;
}

std::string Seed(unsigned choice) {
  const int files = static_cast<int>(choice % 3) + 1;
  const uint32_t extra = 4096;
  std::string out(1, static_cast<char>(files - 1));
  out.append(reinterpret_cast<const char*>(&extra), sizeof(extra));
  for (int part = 0; part < files; ++part)
    out += Header(part, files, 2 + choice / 3 % 2, choice / 6 % 2 == 0 ? 32 : 64);
  return out;
}

void Ask(const GgufFile& file) {
  for (const std::string_view key : file.Keys()) {
    SHOAL_CHECK(file.Find(key) != nullptr);
    (void)file.GetString(key);
    (void)file.GetInt(key, 0, 1000);
    (void)file.GetFloat(key);
    (void)file.GetBool(key);
    (void)file.GetStrings(key);
    (void)file.GetInts(key, INT64_MIN, INT64_MAX);
    (void)file.GetFloats(key);
  }
  for (const TensorInfo& tensor : file.tensors()) {
    SHOAL_CHECK(file.FindTensor(tensor.name) == &tensor);
    SHOAL_CHECK(tensor.columns() > 0 && tensor.rows() > 0 && tensor.bytes > 0);
    SHOAL_CHECK(tensor.row_bytes() * static_cast<uint64_t>(tensor.rows()) == tensor.bytes);
    const uint64_t size = file.header(static_cast<int>(tensor.file)).file_size;
    SHOAL_CHECK(tensor.offset <= size && tensor.bytes <= size - tensor.offset);
  }
  (void)InspectText(file);
  (void)InspectJson(file);
  std::vector<GgufFile::Header> headers;
  for (int i = 0; i < file.file_count(); ++i) headers.push_back(file.header(i));
  const auto again = GgufFile::ParseHeaders(headers);
  SHOAL_CHECK(again.has_value() && (*again)->tensors().size() == file.tensors().size());
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  if (size >= kPrefix + 24) return LLVMFuzzerMutate(data, size, max_size);
  const std::string made = Seed(seed);
  const size_t length = std::min(made.size(), max_size);
  std::memcpy(data, made.data(), length);
  return length;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kPrefix) return 0;
  const size_t files = data[0] % 3 + 1;
  uint32_t extra = 0;
  std::memcpy(&extra, data + 1, sizeof(extra));
  const size_t each = (size - kPrefix) / files;
  std::vector<GgufFile::Header> headers;
  for (size_t i = 0; i < files; ++i) {
    headers.push_back({{reinterpret_cast<const std::byte*>(data) + kPrefix + i * each, each}, each + extra});
  }
  const auto file = GgufFile::ParseHeaders(headers);
  if (file) {
    Ask(**file);
  } else {
    SHOAL_CHECK(!file.error().message.empty() && file.error().message.size() < 2000);
  }
  return 0;
}
