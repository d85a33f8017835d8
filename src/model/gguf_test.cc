// Each hostile file is a valid one with one thing wrong, and must give exactly its reason (research catalogue
// 3a, G1-G32).
#include "model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "core/limits.h"
#include "core/reasons.h"
#include "model/gguf_types.h"
#include "model/gguf_writer.h"
#include "model/printable.h"
#include "model/tiny_model.h"
#include "tests/support/shared.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::SharedPath;

template <class T>
std::string Raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string Patched(std::string bytes, size_t offset, const std::string& with) {
  EXPECT_LE(offset + with.size(), bytes.size());
  bytes.replace(offset, with.size(), with);
  return bytes;
}

// Where `text` lies in `bytes`; it must be there once.
size_t Place(const std::string& bytes, const std::string& text) {
  const size_t at = bytes.find(text);
  EXPECT_NE(at, std::string::npos) << text;
  EXPECT_EQ(bytes.find(text, at + 1), std::string::npos) << text;
  return at;
}

std::string Floats(size_t count) { return std::string(count * 4, '\0'); }

// Two tensors: a [32, 2] in F32 (256 bytes) and b [8] in F32 (32 bytes).
GgufWriter Small() {
  GgufWriter writer;
  writer.SetString("general.architecture", "llama");
  writer.SetU32("llama.block_count", 7);
  writer.AddRaw("a.weight", 0, {32, 2}, Floats(64));
  writer.AddRaw("b.weight", 0, {8}, Floats(8));
  return writer;
}

// After a tensor's name: dimensions, sizes, type, offset.
size_t Behind(const std::string& bytes, const std::string& name) { return Place(bytes, name) + name.size(); }

Result<std::shared_ptr<const GgufFile>> Parse(std::string_view bytes) {
  const GgufFile::Header header{std::as_bytes(std::span(bytes)), bytes.size()};
  return GgufFile::ParseHeaders(std::span(&header, 1));
}

// From the disk and from memory, the same answer.
void ExpectRefused(const std::string& bytes, Reason reason, const std::string& what) {
  const testing::TemporaryFolder folder;
  const auto path = folder.path() / "hostile.gguf";
  testing::WriteFile(path, bytes);
  const auto opened = GgufFile::Open(path);
  ASSERT_FALSE(opened.has_value()) << what;
  EXPECT_EQ(opened.error().reason.name(), reason.name()) << ToString(opened.error());
  EXPECT_THAT(opened.error().message, HasSubstr(what));
  EXPECT_THAT(opened.error().message, HasSubstr("hostile.gguf"));
  const auto parsed = Parse(bytes);
  ASSERT_FALSE(parsed.has_value());
  EXPECT_EQ(parsed.error().reason.name(), reason.name()) << ToString(parsed.error());
}

void ExpectCorrupt(const std::string& bytes, const std::string& what) {
  ExpectRefused(bytes, reasons::kModelCorrupt, what);
}

std::string WithValue(GgufType type, const std::string& raw) {
  GgufWriter writer = Small();
  writer.SetRaw("odd.key", type, raw);
  return writer.Build();
}

TEST(Gguf, ReadsWhatTheWriterWrote) {
  for (const uint32_t version : {2u, 3u}) {
    for (const uint32_t alignment : {8u, 32u, 4096u}) {
      GgufWriter writer(version, alignment);
      writer.SetString("general.architecture", "llama");
      writer.SetU16("u16", 65535);
      writer.SetI32("i32", -5);
      writer.SetU64("u64", 1ull << 40);
      writer.SetF32("f32", 0.5f);
      writer.SetBool("yes", true);
      writer.SetStrings("words", std::vector<std::string>{"one", "", "three"});
      writer.SetFloats("floats", std::vector<float>{1.0f, -2.0f});
      writer.SetInts("ints", std::vector<int32_t>{3, -4});
      writer.AddF32("x", {2, 2}, std::vector<float>{1, 2, 3, 4});
      writer.AddF32("y", {1}, std::vector<float>{9});
      const testing::TemporaryFolder folder;
      const auto path = folder.path() / "model.gguf";
      testing::WriteFile(path, writer.Build());
      const auto opened = GgufFile::Open(path);
      ASSERT_TRUE(opened.has_value()) << ToString(opened.error());
      const GgufFile& file = **opened;
      EXPECT_EQ(file.version(), static_cast<int>(version));
      EXPECT_EQ(file.file_count(), 1);
      EXPECT_EQ(file.name(), path.string());
      EXPECT_THAT(file.warnings(), IsEmpty());
      EXPECT_EQ(file.GetString("general.architecture").value(), "llama");
      EXPECT_EQ(file.GetInt("u16", 0, 100000).value(), 65535);
      EXPECT_EQ(file.GetInt("i32", -5, 5).value(), -5);
      EXPECT_EQ(file.GetInt("u64", 0, INT64_MAX).value(), 1ll << 40);
      EXPECT_EQ(file.GetFloat("f32").value(), 0.5);
      EXPECT_EQ(file.GetBool("yes").value(), true);
      EXPECT_THAT(*file.GetStrings("words").value(), ElementsAre("one", "", "three"));
      EXPECT_THAT(*file.GetFloats("floats").value(), ElementsAre(1.0f, -2.0f));
      EXPECT_THAT(*file.GetInts("ints", -10, 10).value(), ElementsAre(3, -4));
      EXPECT_EQ(file.GetString("not.there").value(), std::nullopt);
      ASSERT_EQ(file.tensors().size(), 2u);
      const TensorInfo* y = file.FindTensor("y");
      ASSERT_NE(y, nullptr);
      EXPECT_EQ(y, &file.tensors()[1]);
      EXPECT_EQ(y->offset % alignment, 0u);
      EXPECT_EQ(file.FindTensor("z"), nullptr);
      float read[4];
      ASSERT_TRUE(file.Read({0, 0, 16, 0, 1}, std::as_writable_bytes(std::span(read))).has_value());
      EXPECT_THAT(read, ElementsAre(1, 2, 3, 4));
      ASSERT_TRUE(file.Read({1, 0, 4, 0, 1}, std::as_writable_bytes(std::span(read).first(1))).has_value());
      EXPECT_EQ(read[0], 9.0f);
    }
  }
}

TEST(Gguf, AccessorsNameTheKeyAndTheValue) {
  GgufWriter writer;
  writer.SetU32("count", 700);
  writer.SetU64("huge", std::numeric_limits<uint64_t>::max());
  writer.SetF32("nan", std::numeric_limits<float>::quiet_NaN());
  writer.SetInts("list", std::vector<int32_t>{1, 99});
  writer.SetRaw("flags", GgufType::kArray, Raw(7u) + Raw<uint64_t>(3) + std::string("\1\0\1", 3));
  const std::string bytes = writer.Build();
  const auto file = Parse(bytes).value();
  const auto message = [](const auto& result) {
    EXPECT_EQ(result.error().reason.name(), "model_corrupt");
    return result.error().message;
  };
  EXPECT_THAT(message(file->GetInt("count", 1, 512)), HasSubstr("key count: 700 is not in the range from 1 to 512"));
  EXPECT_THAT(message(file->GetInt("huge", 0, INT64_MAX)), HasSubstr("18446744073709551615 is not in the range"));
  EXPECT_THAT(message(file->GetInt("nan", 0, 1)), HasSubstr("key nan: is float32, must be an integer"));
  EXPECT_THAT(message(file->GetInt("list", 0, 1)), HasSubstr("is array of int32, must be an integer"));
  EXPECT_THAT(message(file->GetFloat("nan")), HasSubstr("key nan: nan is not a finite number"));
  EXPECT_THAT(message(file->GetFloat("count")), HasSubstr("must be a floating-point number"));
  EXPECT_THAT(message(file->GetBool("count")), HasSubstr("must be a truth value"));
  EXPECT_THAT(message(file->GetString("count")), HasSubstr("must be a string"));
  EXPECT_THAT(message(file->GetStrings("list")), HasSubstr("must be an array of strings"));
  EXPECT_THAT(message(file->GetFloats("list")), HasSubstr("must be an array of floating-point numbers"));
  EXPECT_THAT(message(file->GetInts("count", 0, 1)), HasSubstr("must be an array of integers"));
  EXPECT_THAT(message(file->GetInts("list", 0, 50)), HasSubstr("key list[1]: 99 is not in the range from 0 to 50"));
  EXPECT_THAT(*file->GetInts("flags", 0, 1).value(), ElementsAre(1, 0, 1));
}

TEST(GgufHostile, G1ShorterThanAHeader) {
  ExpectCorrupt("", "shorter than a GGUF header");
  ExpectCorrupt("GG", "shorter than a GGUF header");
  ExpectCorrupt(Small().Build().substr(0, 23), "shorter than a GGUF header");
  ExpectCorrupt(std::string(15, 'x'), "shorter than a GGUF header");
}

TEST(GgufHostile, G2LookAlikesAreNamed) {
  const auto refused = [](std::string bytes, const std::string& what) {
    bytes.resize(std::max<size_t>(bytes.size(), 600), ' ');
    ExpectRefused(bytes, reasons::kUnsupportedFormat, what);
  };
  refused("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git-LFS pointer");
  refused("PK\x03\x04junk", "zip archive");
  refused("\x1f\x8b\x08", "gzip");
  refused("\n <!DOCTYPE html><html>", "HTML page");
  refused("<HTML lang=en>", "HTML page");
  refused("<?xml version=\"1.0\"?><Error>", "XML");
  refused("{\"error\":\"not found\"}", "JSON");
  refused(std::string("\x80\x02}q\0(", 6), "pickle");
  refused(Raw<uint64_t>(300) + "{\"__metadata__\":{}", "safetensors");
  refused("lmgg" + Raw(1u), "old GGML");
  refused("fmgg" + Raw(1u), "old GGMF");
  refused("tjgg" + Raw(3u), "old GGJT");
  refused("GGML" + Raw(1u), "old GGML");
  refused("GGJT" + Raw(1u), "old GGJT");
  refused("\x28\xb5\x2f\xfd", "zstd");
  refused(std::string("\x08\x07\x12\x07pytorch", 11), "ONNX");
  refused(std::string(600, '\0'), "only zeros");
  refused("\x1b[2Jxx", "begins with \"\\x1b[2J\"");  // nothing known; and the terminal is safe
  // A pointer is shorter than 512 bytes.
  ExpectRefused("version https://git-lfs.github.com/spec/v1\n", reasons::kUnsupportedFormat, "git lfs pull");
}

TEST(GgufHostile, G3Versions) {
  for (const uint32_t version : {0u, 1u, 4u, 1000u}) {
    ExpectRefused(Patched(Small().Build(), 4, Raw(version)), reasons::kUnsupportedVersion,
                  "version " + std::to_string(version) + " is not supported");
  }
}

TEST(GgufHostile, G4BigEndian) {
  ExpectRefused(Patched(Small().Build(), 4, std::string("\0\0\0\3", 4)), reasons::kUnsupportedEndianness,
                "big-endian GGUF file (version 3)");
  ExpectRefused(Patched(Small().Build(), 0, "FUGG"), reasons::kUnsupportedEndianness, "byte-swapped");
}

TEST(GgufHostile, G5Counts) {
  for (const uint64_t count : {~0ull, 1ull << 63, 1ull << 40, 1000ull}) {
    ExpectCorrupt(Patched(Small().Build(), 8, Raw(count)), "tensors cannot be in the");
    ExpectCorrupt(Patched(Small().Build(), 16, Raw(count)), "keys cannot be in the");
  }
  // Some more than there are: what follows is read as what it is not.
  for (const uint64_t count : {3ull, 4ull, 5ull}) {
    EXPECT_EQ(Parse(Patched(Small().Build(), 8, Raw(count))).error().reason, reasons::kModelCorrupt);
    EXPECT_FALSE(Parse(Patched(Small().Build(), 16, Raw(count))).has_value());
  }
}

TEST(GgufHostile, G6Keys) {
  const auto with_key = [](const std::string& key) {
    GgufWriter writer = Small();
    writer.SetU32(key, 1);
    return writer.Build();
  };
  ExpectCorrupt(with_key(""), "a key of 0 bytes");
  ExpectCorrupt(with_key(std::string(65536, 'k')), "a key of 65536 bytes");
  ExpectCorrupt(with_key(std::string("a\0b", 3)), "other than printable ASCII");
  ExpectCorrupt(with_key("sch\xc3\xb6n"), "other than printable ASCII");
  ExpectCorrupt(with_key("two words"), "other than printable ASCII");
  ExpectCorrupt(with_key("line\n"), "\"line\\n\"");
  EXPECT_TRUE(Parse(with_key("Mixed-Case.key:7")).has_value());  // real files have such keys
  EXPECT_TRUE(Parse(with_key(std::string(65535, 'k'))).has_value());
}

TEST(GgufHostile, G7Lengths) {
  const std::string good = Small().Build();
  for (const uint64_t length : {~0ull, 1ull << 63, 0ull + good.size()}) {
    EXPECT_EQ(Parse(Patched(good, 24, Raw(length))).error().reason,
              reasons::kModelCorrupt);  // of the first key
    ExpectCorrupt(Patched(good, Place(good, "llama\x11") - 8, Raw(length)),
                  "key general.architecture: the string needs");
  }
  // Cut anywhere, it is corrupt, and never read past its end.
  const std::string whole = Small().Build();
  for (size_t size = 24; size < whole.size() - 32; ++size) {
    const auto parsed = Parse(std::string(whole.data(), size));
    ASSERT_FALSE(parsed.has_value()) << size;
    EXPECT_EQ(parsed.error().reason, reasons::kModelCorrupt) << size;
  }
}

TEST(GgufHostile, G8ValueTypes) {
  ExpectCorrupt(WithValue(static_cast<GgufType>(13), Raw(1u)), "key odd.key: unknown value type 13");
  ExpectCorrupt(WithValue(static_cast<GgufType>(~0u), Raw(1u)), "unknown value type 4294967295");
  ExpectCorrupt(WithValue(GgufType::kBool, "\2"), "a truth value of 2");
  ExpectCorrupt(WithValue(GgufType::kArray, Raw(7u) + Raw<uint64_t>(2) + "\1\3"), "a truth value of 3");
}

TEST(GgufHostile, G9Arrays) {
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += Raw(9u) + Raw<uint64_t>(1);
  ExpectCorrupt(WithValue(GgufType::kArray, deep + Raw(0u) + Raw<uint64_t>(0)), "nested deeper than 4");
  ExpectCorrupt(WithValue(GgufType::kArray, Raw(99u) + Raw<uint64_t>(1)), "unknown array element type 99");
  ExpectCorrupt(WithValue(GgufType::kArray, Raw(99u) + Raw<uint64_t>(0)), "unknown array element type 99");
  std::string allowed;
  for (int i = 0; i < 3; ++i) allowed += Raw(9u) + Raw<uint64_t>(1);
  EXPECT_TRUE(Parse(WithValue(GgufType::kArray, allowed + Raw(0u) + Raw<uint64_t>(2) + "ab")).has_value());
}

TEST(GgufHostile, G10ArrayLengths) {
  for (const uint32_t element : {0u, 5u, 8u, 9u, 10u, 12u}) {
    for (const uint64_t count : {~0ull, 1ull << 61, (1ull << 61) + 1, 1ull << 63, 1000ull}) {
      ExpectCorrupt(WithValue(GgufType::kArray, Raw(element) + Raw(count)), "elements cannot be in the");
    }
  }
  ExpectCorrupt(WithValue(GgufType::kArray, Raw(8u) + Raw<uint64_t>(2) + Raw<uint64_t>(~0ull)),
                "a string of the array needs");
}

TEST(GgufHostile, G11Duplicates) {
  GgufWriter keys = Small();
  keys.SetU32("llama.block_count", 7);
  ExpectCorrupt(keys.Build(), "the key llama.block_count is there twice");
  GgufWriter tensors = Small();
  tensors.AddRaw("a.weight", 0, {8}, Floats(8));
  ExpectCorrupt(tensors.Build(), "the tensor a.weight is there twice");
}

TEST(GgufHostile, G12Alignment) {
  for (const uint32_t alignment : {0u, 1u, 3u, 4u, 48u, 1u << 21, 1u << 31}) {
    GgufWriter writer = Small();
    writer.SetU32("general.alignment", alignment);
    ExpectCorrupt(writer.Build(), "key general.alignment: " + std::to_string(alignment));
  }
  GgufWriter writer = Small();
  writer.SetI32("general.alignment", 32);
  ExpectCorrupt(writer.Build(), "key general.alignment: is int32, must be uint32");
}

TEST(GgufHostile, G13TensorNames) {
  const auto with_name = [](const std::string& name) {
    GgufWriter writer = Small();
    writer.AddRaw(name, 0, {8}, Floats(8));
    return writer.Build();
  };
  ExpectCorrupt(with_name(""), "a tensor name of 0 bytes");
  ExpectCorrupt(with_name(std::string(65, 't')), "a tensor name of 65 bytes");
  ExpectCorrupt(with_name(std::string("t\0t", 3)), "control characters");
  ExpectCorrupt(with_name("t\x1b[2J"), "\"t\\x1b[2J\"");
  EXPECT_TRUE(Parse(with_name(std::string(64, 't'))).has_value());
}

TEST(GgufHostile, G14Dimensions) {
  const std::string good = Small().Build();
  for (const uint32_t dimensions : {0u, 5u, ~0u}) {
    ExpectCorrupt(Patched(good, Behind(good, "b.weight"), Raw(dimensions)),
                  "tensor b.weight: " + std::to_string(dimensions) + " dimensions");
  }
}

TEST(GgufHostile, G15Sizes) {
  const std::string good = Small().Build();
  const size_t sizes = Behind(good, "a.weight") + 4;
  ExpectCorrupt(Patched(good, sizes, Raw<uint64_t>(0)), "tensor a.weight: dimension 0 is 0");
  ExpectCorrupt(Patched(good, sizes + 8, Raw<int64_t>(-2)), "tensor a.weight: dimension 1 is -2");
  ExpectCorrupt(Patched(good, sizes, Raw<uint64_t>(1ull << 62) + Raw<uint64_t>(1ull << 62)),
                "number of its values overflows");
  ExpectCorrupt(Patched(good, sizes, Raw<uint64_t>(1ull << 31) + Raw<uint64_t>(1ull << 31)),
                "number of its bytes overflows");
  ExpectCorrupt(Patched(good, sizes, Raw<uint64_t>(1ull << 32) + Raw<uint64_t>(1ull << 32)),
                "number of its values overflows");
}

TEST(GgufHostile, G16Types) {
  const std::string good = Small().Build();
  const size_t type = Behind(good, "b.weight") + 4 + 8;
  for (const uint32_t removed : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u}) {
    ExpectRefused(Patched(good, type, Raw(removed)), reasons::kUnsupportedType,
                  "tensor b.weight: weight type " + std::string(TensorTypeOf(removed).name) + " (");
  }
  ExpectRefused(Patched(good, type, Raw(43u)), reasons::kUnsupportedType, "unknown weight type 43");
  ExpectRefused(Patched(good, type, Raw(-1)), reasons::kUnsupportedType, "unknown weight type 4294967295");
}

TEST(GgufHostile, G17Blocks) {
  const std::string good = Small().Build();
  const size_t type = Behind(good, "b.weight") + 4 + 8;
  ExpectCorrupt(Patched(good, type, Raw(2u)), "rows of 8 values are not whole blocks of 32 (Q4_0)");
  ExpectCorrupt(Patched(good, type, Raw(12u)), "rows of 8 values are not whole blocks of 256 (Q4_K)");
}

TEST(GgufHostile, G18Offsets) {
  const std::string good = Small().Build();
  const size_t a = Behind(good, "a.weight") + 4 + 16 + 4;
  const size_t b = Behind(good, "b.weight") + 4 + 8 + 4;
  ExpectCorrupt(Patched(good, b, Raw<uint64_t>(257)), "tensor b.weight: its data offset 257 is not a multiple");
  ExpectCorrupt(Patched(good, b, Raw<uint64_t>(1ull << 40)), "tensor b.weight: its 32 bytes at data offset");
  ExpectCorrupt(Patched(good, b, Raw<uint64_t>(~31ull)), "do not fit in the file");
  ExpectCorrupt(Patched(good, b, Raw<uint64_t>(224)), "tensor b.weight: its data overlaps that of a.weight");
  ExpectCorrupt(Patched(good, b, Raw<uint64_t>(0)), "overlaps");
  ExpectCorrupt(Patched(good, a, Raw<uint64_t>(32)), "overlaps");
}

TEST(Gguf, GapsAndTailsAreWarnings) {
  std::string good = Small().Build();
  const size_t b = Behind(good, "b.weight") + 4 + 8 + 4;
  const std::string gap = Patched(good + std::string(64, '\0'), b, Raw<uint64_t>(320));
  EXPECT_THAT(Parse(gap).value()->warnings(), ElementsAre(HasSubstr("64 bytes between tensors")));
  EXPECT_THAT(Parse(good + std::string(100, '\0')).value()->warnings(),
              ElementsAre(HasSubstr("100 bytes after the last")));
  EXPECT_THAT(Parse(good + std::string(31, '\0')).value()->warnings(), IsEmpty());
  // Tensors may lie in any order.
  std::string swapped = Patched(good, Behind(good, "a.weight") + 4 + 16 + 4, Raw<uint64_t>(32));
  swapped = Patched(swapped, b, Raw<uint64_t>(0));
  EXPECT_THAT(Parse(swapped).value()->warnings(), IsEmpty());
}

TEST(GgufHostile, G19MoreThanTheFileHas) {
  const std::string good = Small().Build();
  const size_t sizes = Behind(good, "a.weight") + 4;
  ExpectCorrupt(Patched(good, sizes + 8, Raw<uint64_t>(1 << 20)), "tensor a.weight: its 134217728 bytes");
  ExpectCorrupt(good.substr(0, good.size() - 1), "tensor b.weight: its 32 bytes");
}

TEST(GgufHostile, G20CutWhileOpen) {
  const testing::TemporaryFolder folder;
  const auto path = folder.path() / "model.gguf";
  const std::string bytes = MakeTinyModel();
  testing::WriteFile(path, bytes);
  const auto file = GgufFile::Open(path).value();
  const auto last = static_cast<uint32_t>(file->tensors().size() - 1);
  std::vector<std::byte> out(file->tensors()[last].bytes);
  ASSERT_TRUE(file->Read({last, 0, out.size(), 0, 1}, out).has_value());
  std::filesystem::resize_file(path, 4096);
  EXPECT_EQ(file->Read({last, 0, out.size(), 0, 1}, out).error().reason, reasons::kIo);
  EXPECT_EQ(file->Read({last, 0, 32, 64, out.size() / 64}, std::span(out).first(out.size() / 64 * 32)).error().reason,
            reasons::kIo);
  EXPECT_EQ(file->GetString("general.architecture").value(), "llama");  // the header is our own copy
  // Written anew in place: the size is right, the time is not.
  testing::WriteFile(path, bytes);
  std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_THAT(ToString(file->Read({last, 0, out.size(), 0, 1}, out).error()), HasSubstr("was changed"));
}

TEST(Gguf, G26LongStringsAreCutInMessages) {
  EXPECT_EQ(Printable("a\x1b[31m\n\xff\xc2\x9b \xe2\x80\xae ok"), "a\\x1b[31m\\n\\xff\\x9b \\u202e ok");
  EXPECT_EQ(Printable(std::string(1 << 20, 'x'), 10), "xxxxxxxxxx...");
  EXPECT_EQ(Printable("schön 漢字"), "schön 漢字");
  GgufWriter writer;
  writer.SetU32(std::string(60000, 'k'), 1);
  writer.SetString("general.architecture", std::string(1 << 20, 'x'));
  const std::string bytes = writer.Build();
  const auto error = Parse(bytes).value()->GetInt(std::string(60000, 'k'), 5, 6).error();
  EXPECT_LT(error.message.size(), 300u);
}

TEST(Gguf, G29UnknownKeysAndTensorsAreAccepted) {
  GgufWriter writer = Small();
  writer.SetU32("vendor.unknown", 1);
  writer.AddRaw("vendor.extra", 24, {8}, std::string(8, 'x'));
  EXPECT_THAT(Parse(writer.Build()).value()->warnings(), IsEmpty());
}

TEST(GgufHostile, G31NotARegularFile) {
  const testing::TemporaryFolder folder;
  const auto refused = [&](const std::filesystem::path& path, Reason reason) {
    const auto opened = GgufFile::Open(path);
    ASSERT_FALSE(opened.has_value()) << path;
    EXPECT_EQ(opened.error().reason.name(), reason.name()) << ToString(opened.error());
  };
  refused(folder.path(), reasons::kUnsupportedFormat);
  refused(folder.path() / "none.gguf", reasons::kModelNotFound);
  refused("", reasons::kModelNotFound);
  ASSERT_EQ(mkfifo((folder.path() / "pipe").c_str(), 0600), 0);
  refused(folder.path() / "pipe", reasons::kUnsupportedFormat);  // and does not wait for a writer
  std::filesystem::create_symlink("/dev/zero", folder.path() / "zero.gguf");
  refused(folder.path() / "zero.gguf", reasons::kUnsupportedFormat);
  std::filesystem::create_symlink("loop.gguf", folder.path() / "loop.gguf");
  refused(folder.path() / "loop.gguf", reasons::kModelNotFound);
  testing::WriteFile(folder.path() / "blob", Small().Build());
  std::filesystem::create_symlink("blob", folder.path() / "link.gguf");
  EXPECT_TRUE(GgufFile::Open(folder.path() / "link.gguf").has_value());  // download caches are made of links
}

TEST(GgufHostile, G32MetadataLimit) {
  // A sparse file: a string of 10 GB that the file really has, and an array of as much.
  for (const bool array : {false, true}) {
    GgufWriter writer;
    writer.SetRaw("big", array ? GgufType::kArray : GgufType::kString, (array ? Raw(0u) : "") + Raw(10ull << 30));
    const testing::TemporaryFolder folder;
    const auto path = folder.path() / "big.gguf";
    testing::WriteFile(path, writer.Build());
    std::filesystem::resize_file(path, 11ull << 30);
    const auto opened = GgufFile::Open(path);
    ASSERT_FALSE(opened.has_value());
    EXPECT_EQ(opened.error().reason, reasons::kModelCorrupt);
    EXPECT_THAT(opened.error().message, HasSubstr("larger than the limit of 256 MiB"));
  }
}

TEST(Gguf, HeadersAboveTheFirstReadAreReadWhole) {
  GgufWriter writer = Small();
  std::vector<std::string> words;
  for (int i = 0; i < 300000; ++i) words.push_back("word number " + std::to_string(i));
  writer.SetStrings("words", words);
  const testing::TemporaryFolder folder;
  testing::WriteFile(folder.path() / "big.gguf", writer.Build());
  const auto file = GgufFile::Open(folder.path() / "big.gguf").value();
  EXPECT_EQ(file->GetStrings("words").value()->back(), words.back());
}

TEST(Gguf, ReadsPiecesAsTheRangeSays) {
  GgufWriter writer;
  std::string bytes(3 << 20, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 2654435761u >> 13);
  writer.AddRaw("small", 24, {5}, "hello");
  writer.AddRaw("t", 24, {static_cast<int64_t>(bytes.size())}, bytes);
  const testing::TemporaryFolder folder;
  testing::WriteFile(folder.path() / "m.gguf", writer.Build());
  const auto file = GgufFile::Open(folder.path() / "m.gguf").value();
  const uint64_t size = bytes.size();
  const TensorRange ranges[] = {{1, 0, size, 0, 1},         {1, 7, 34, 68, 40000},     {1, 0, 3, 1000, 3000},
                                {1, 5, 700000, 1000000, 3}, {1, 0, 1024, 1024, 3072},  {1, size - 1, 1, 0, 1},
                                {1, 0, 100, 10, 200},       {1, 3, 600000, 600001, 5}, {1, size - 64, 16, 16, 4},
                                {1, size, 0, 0, 1},         {1, 0, 10, 0, 3}};
  for (const TensorRange& range : ranges) {
    std::string want;
    for (uint64_t i = 0; i < range.count; ++i) want += bytes.substr(range.offset + i * range.stride, range.length);
    std::string got(range.bytes(), '\0');
    const auto status = file->Read(range, std::as_writable_bytes(std::span(got)));
    ASSERT_TRUE(status.has_value()) << ToString(status.error());
    EXPECT_TRUE(got == want) << range.offset << " " << range.length << " " << range.stride << " " << range.count;
  }
  std::string out(64, '\0');
  const auto place = std::as_writable_bytes(std::span(out));
  const TensorRange wrong[] = {{2, 0, 64, 0, 1},     {1, size - 63, 64, 0, 1},  {1, ~0ull, 64, 0, 1},
                               {1, 0, 32, ~0ull, 2}, {1, 0, 63, 0, 1},          {1, 0, 1ull << 58, 0, 64},
                               {0, 0, 64, 0, 1},     {1, 64, 1, 1ull << 63, 64}};
  for (const TensorRange& range : wrong) EXPECT_FALSE(file->Read(range, place).has_value());
}

TEST(Gguf, HeadersAloneGiveTheSameTensors) {
  const testing::TemporaryFolder folder;
  testing::WriteFile(folder.path() / "m.gguf", MakeTinyModel());
  const auto file = GgufFile::Open(folder.path() / "m.gguf").value();
  const GgufFile::Header header = file->header(0);
  EXPECT_LT(header.bytes.size(), header.file_size / 2);
  const auto again = GgufFile::ParseHeaders(std::span(&header, 1)).value();
  ASSERT_EQ(again->tensors().size(), file->tensors().size());
  for (size_t i = 0; i < file->tensors().size(); ++i) {
    EXPECT_EQ(again->tensors()[i].name, file->tensors()[i].name);
    EXPECT_EQ(again->tensors()[i].offset, file->tensors()[i].offset);
    EXPECT_EQ(again->tensors()[i].bytes, file->tensors()[i].bytes);
  }
  EXPECT_EQ(again->Keys(), file->Keys());
  // Too short, or longer than its file.
  const GgufFile::Header cut{header.bytes.first(header.bytes.size() - 1), header.file_size};
  EXPECT_EQ(GgufFile::ParseHeaders(std::span(&cut, 1)).error().reason, reasons::kModelCorrupt);
  const GgufFile::Header odd{header.bytes, header.bytes.size() - 1};
  EXPECT_EQ(GgufFile::ParseHeaders(std::span(&odd, 1)).error().reason, reasons::kModelCorrupt);
  EXPECT_EQ(GgufFile::ParseHeaders({}).error().reason, reasons::kModelCorrupt);
}

TEST(Gguf, EveryReferenceFileOpensWithoutWarning) {
  int seen = 0;
  for (const char* place : {"golden/arch", "golden/quant", "models", "data/tokenizer-vectors"}) {
    const auto folder = SharedPath(place);
    SHOAL_REQUIRE_SHARED(folder);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      if (entry.path().extension() != ".gguf") continue;
      const auto file = GgufFile::Open(entry.path());
      ASSERT_TRUE(file.has_value()) << ToString(file.error());
      EXPECT_THAT((*file)->warnings(), IsEmpty()) << entry.path();
      EXPECT_TRUE((*file)->GetString("general.architecture").value().has_value());
      const GgufFile::Header header = (*file)->header(0);
      EXPECT_EQ(GgufFile::ParseHeaders(std::span(&header, 1)).value()->tensors().size(), (*file)->tensors().size());
      ++seen;
    }
  }
  EXPECT_GE(seen, 43);
}

}  // namespace
}  // namespace shoal
