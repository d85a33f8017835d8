#include "model/gguf_writer.h"

#include <utility>

namespace shoal {
namespace {

template <class T>
void Append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendString(std::string& out, std::string_view text) {
  Append<uint64_t>(out, text.size());
  out += text;
}

template <class T>
std::string Bytes(T value) {
  std::string out;
  Append(out, value);
  return out;
}

std::string ArrayStart(GgufType element, uint64_t count) {
  std::string out;
  Append(out, static_cast<uint32_t>(element));
  Append(out, count);
  return out;
}

template <class T>
std::string ArrayBytes(GgufType element, std::span<const T> values) {
  std::string out = ArrayStart(element, values.size());
  out.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  return out;
}

void Pad(std::string& out, uint32_t alignment) {
  out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
}

}  // namespace

GgufWriter::GgufWriter(uint32_t version, uint32_t alignment) : version_(version), alignment_(alignment) {
  if (alignment != 32) SetU32("general.alignment", alignment);
}

void GgufWriter::SetRaw(std::string_view key, GgufType type, std::string_view bytes) {
  AppendString(metadata_, key);
  Append(metadata_, static_cast<uint32_t>(type));
  metadata_ += bytes;
  ++keys_;
}

void GgufWriter::SetU16(std::string_view key, uint16_t value) { SetRaw(key, GgufType::kUint16, Bytes(value)); }
void GgufWriter::SetU32(std::string_view key, uint32_t value) { SetRaw(key, GgufType::kUint32, Bytes(value)); }
void GgufWriter::SetI32(std::string_view key, int32_t value) { SetRaw(key, GgufType::kInt32, Bytes(value)); }
void GgufWriter::SetU64(std::string_view key, uint64_t value) { SetRaw(key, GgufType::kUint64, Bytes(value)); }
void GgufWriter::SetF32(std::string_view key, float value) { SetRaw(key, GgufType::kFloat32, Bytes(value)); }
void GgufWriter::SetBool(std::string_view key, bool value) { SetRaw(key, GgufType::kBool, Bytes<uint8_t>(value)); }

void GgufWriter::SetString(std::string_view key, std::string_view value) {
  std::string bytes;
  AppendString(bytes, value);
  SetRaw(key, GgufType::kString, bytes);
}

void GgufWriter::SetStrings(std::string_view key, std::span<const std::string> values) {
  std::string bytes = ArrayStart(GgufType::kString, values.size());
  for (const std::string& value : values) AppendString(bytes, value);
  SetRaw(key, GgufType::kArray, bytes);
}

void GgufWriter::SetFloats(std::string_view key, std::span<const float> values) {
  SetRaw(key, GgufType::kArray, ArrayBytes(GgufType::kFloat32, values));
}

void GgufWriter::SetInts(std::string_view key, std::span<const int32_t> values) {
  SetRaw(key, GgufType::kArray, ArrayBytes(GgufType::kInt32, values));
}

void GgufWriter::AddRaw(std::string_view name, uint32_t type, std::vector<int64_t> dims, std::string bytes) {
  tensors_.push_back({std::string(name), type, std::move(dims), std::move(bytes)});
}

void GgufWriter::AddF32(std::string_view name, std::vector<int64_t> dims, std::span<const float> values) {
  AddRaw(name, 0, std::move(dims), std::string(reinterpret_cast<const char*>(values.data()), values.size_bytes()));
}

std::string GgufWriter::Build() const {
  std::string out = "GGUF";
  Append(out, version_);
  Append<uint64_t>(out, tensors_.size());
  Append(out, keys_);
  out += metadata_;
  uint64_t offset = 0;
  uint64_t total = out.size();
  for (const Tensor& tensor : tensors_) {
    AppendString(out, tensor.name);
    Append(out, static_cast<uint32_t>(tensor.dims.size()));
    for (const int64_t size : tensor.dims) Append(out, size);
    Append(out, tensor.type);
    Append(out, offset);
    offset += (tensor.bytes.size() + alignment_ - 1) / alignment_ * alignment_;
    total += tensor.bytes.size() + 256;
  }
  out.reserve(total + offset);
  for (const Tensor& tensor : tensors_) {
    Pad(out, alignment_);
    out += tensor.bytes;
  }
  if (!tensors_.empty()) Pad(out, alignment_);
  return out;
}

}  // namespace shoal
