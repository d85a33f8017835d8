// Split sets (catalogue 3a, G28).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <format>

#include "core/reasons.h"
#include "model/file_source.h"
#include "model/gguf.h"
#include "model/gguf_writer.h"
#include "tests/support/shared.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct PartOptions {
  int number = 0;  // from 0
  int count = 3;
  int tensors = 3;
  std::string architecture = {};  // only the first part says it, unless given
  std::string tensor = {};        // name; "t<number>.weight" unless given
};

std::string Part(const PartOptions& options) {
  GgufWriter writer;
  if (options.number == 0 || !options.architecture.empty()) {
    writer.SetString("general.architecture", options.architecture.empty() ? "llama" : options.architecture);
  }
  if (options.number == 0) writer.SetU32("llama.block_count", 9);
  writer.SetU16("split.no", static_cast<uint16_t>(options.number));
  writer.SetU16("split.count", static_cast<uint16_t>(options.count));
  writer.SetI32("split.tensors.count", options.tensors);
  const std::vector<float> values = {static_cast<float>(options.number), 0.5f};
  writer.AddF32(options.tensor.empty() ? std::format("t{}.weight", options.number) : options.tensor, {2}, values);
  return writer.Build();
}

class GgufSplit : public ::testing::Test {
 protected:
  // number as in the name, from 1
  std::filesystem::path Path(int number, int count = 3) const {
    return folder_.path() / std::format("model-{:05}-of-{:05}.gguf", number, count);
  }
  void WriteAll() const {
    for (int i = 0; i < 3; ++i) testing::WriteFile(Path(i + 1), Part({.number = i}));
  }
  void ExpectRefused(const std::filesystem::path& path, Reason reason, const std::string& what) const {
    const auto opened = GgufFile::Open(path);
    ASSERT_FALSE(opened.has_value());
    EXPECT_EQ(opened.error().reason.name(), reason.name()) << ToString(opened.error());
    EXPECT_THAT(opened.error().message, HasSubstr(what));
  }

  const testing::TemporaryFolder folder_;
};

TEST_F(GgufSplit, AnyPartOpensTheSet) {
  WriteAll();
  for (int part = 1; part <= 3; ++part) {
    const auto opened = GgufFile::Open(Path(part));
    ASSERT_TRUE(opened.has_value()) << ToString(opened.error());
    const GgufFile& file = **opened;
    EXPECT_EQ(file.file_count(), 3);
    EXPECT_EQ(file.GetInt("llama.block_count", 1, 10).value(), 9);
    EXPECT_THAT(file.warnings(), IsEmpty());
    ASSERT_EQ(file.tensors().size(), 3u);
    FileSource source(*opened);
    for (uint32_t i = 0; i < 3; ++i) {
      const TensorInfo& tensor = file.tensors()[i];
      EXPECT_EQ(tensor.name, std::format("t{}.weight", i));
      EXPECT_EQ(tensor.file, i);
      float values[2];
      ASSERT_TRUE(source.Read({i, 0, 8, 0, 1}, std::as_writable_bytes(std::span(values))).has_value());
      EXPECT_EQ(values[0], static_cast<float>(i));
    }
  }
}

TEST_F(GgufSplit, HeadersRoundTrip) {
  WriteAll();
  const auto file = GgufFile::Open(Path(2)).value();
  std::vector<GgufFile::Header> headers;
  for (int i = 0; i < file->file_count(); ++i) headers.push_back(file->header(i));
  const auto again = GgufFile::ParseHeaders(headers).value();
  ASSERT_EQ(again->tensors().size(), 3u);
  EXPECT_EQ(again->tensors()[2].file, 2u);
  EXPECT_EQ(again->tensors()[2].offset, file->tensors()[2].offset);
  headers.pop_back();
  EXPECT_EQ(GgufFile::ParseHeaders(headers).error().reason, reasons::kModelCorrupt);
  EXPECT_EQ(GgufFile::ParseHeaders(std::span(headers).first(1)).error().reason, reasons::kModelCorrupt);
  headers.push_back(headers[0]);
  EXPECT_EQ(GgufFile::ParseHeaders(headers).error().reason, reasons::kModelCorrupt);
}

TEST_F(GgufSplit, NamesTheMissingFile) {
  WriteAll();
  std::filesystem::remove(Path(2));
  ExpectRefused(Path(1), reasons::kModelIncomplete, "model-00002-of-00003.gguf is missing");
  ExpectRefused(Path(3), reasons::kModelIncomplete, "model-00002-of-00003.gguf is missing");
}

TEST_F(GgufSplit, CountMoreThanTheFiles) {
  for (int i = 0; i < 2; ++i) testing::WriteFile(Path(i + 1, 2), Part({.number = i, .count = 3}));
  ExpectRefused(Path(1, 2), reasons::kModelIncomplete, "00003-of-00003.gguf is missing");
}

TEST_F(GgufSplit, CountLessThanTheFiles) {
  for (int i = 0; i < 3; ++i) testing::WriteFile(Path(i + 1), Part({.number = i, .count = 2}));
  ExpectRefused(Path(1), reasons::kModelCorrupt, "split.count: 2");
}

TEST_F(GgufSplit, NumbersFromZero) {
  for (int i = 0; i < 3; ++i) testing::WriteFile(Path(i), Part({.number = i}));
  ExpectRefused(Path(0), reasons::kModelIncomplete, "model-00003-of-00003.gguf is missing");
}

TEST_F(GgufSplit, WrongNumber) {
  WriteAll();
  testing::WriteFile(Path(2), Part({.number = 2}));
  ExpectRefused(Path(1), reasons::kModelCorrupt, "key split.no: 2, but this is part 1 of the set");
}

TEST_F(GgufSplit, PartsOfAnotherModel) {
  WriteAll();
  testing::WriteFile(Path(3), Part({.number = 2, .architecture = "qwen2"}));
  ExpectRefused(Path(1), reasons::kModelCorrupt, "model-00003-of-00003.gguf: key general.architecture: differs");
  testing::WriteFile(Path(3), Part({.number = 2, .count = 4}));
  ExpectRefused(Path(1), reasons::kModelCorrupt, "split.count: 4");
  testing::WriteFile(Path(3), Part({.number = 2, .tensors = 4}));
  ExpectRefused(Path(1), reasons::kModelCorrupt, "split.tensors.count: 4");
  testing::WriteFile(Path(3), Part({.number = 2, .tensor = "t0.weight"}));
  ExpectRefused(Path(1), reasons::kModelCorrupt, "the tensor t0.weight is in two files");
  testing::WriteFile(Path(3), "not a model at all, whatever its name may say");
  ExpectRefused(Path(1), reasons::kUnsupportedFormat, "model-00003-of-00003.gguf");
}

TEST_F(GgufSplit, OtherTensorSet) {
  for (int i = 0; i < 3; ++i) testing::WriteFile(Path(i + 1), Part({.number = i, .tensors = 5}));
  ExpectRefused(Path(1), reasons::kModelCorrupt, "split.tensors.count: 5, but the 3 files of the set hold 3 tensors");
}

TEST_F(GgufSplit, PartUnderAnotherName) {
  testing::WriteFile(folder_.path() / "model.gguf", Part({.number = 0}));
  ExpectRefused(folder_.path() / "model.gguf", reasons::kModelIncomplete, "one part of 3");
  GgufWriter writer;
  writer.SetU32("split.count", 4000000000u);
  testing::WriteFile(folder_.path() / "model.gguf", writer.Build());
  ExpectRefused(folder_.path() / "model.gguf", reasons::kModelCorrupt, "split.count");
}

TEST_F(GgufSplit, WholeFiles) {
  testing::WriteFile(folder_.path() / "merged.gguf", Part({.number = 0, .count = 0}));  // merging tools leave a 0
  EXPECT_EQ(GgufFile::Open(folder_.path() / "merged.gguf").value()->file_count(), 1);
  testing::WriteFile(Path(1, 1), Part({.number = 0, .count = 1}));
  EXPECT_THAT(GgufFile::Open(Path(1, 1)).value()->warnings(), IsEmpty());
  GgufWriter writer;
  writer.SetString("general.architecture", "llama");
  testing::WriteFile(Path(1), writer.Build());
  EXPECT_EQ(GgufFile::Open(Path(1)).value()->warnings().size(), 1u);
}

}  // namespace
}  // namespace shoal
