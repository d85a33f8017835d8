#include "engine/shard_server.h"

#include <gtest/gtest.h>

#include <thread>

#include "core/reasons.h"
#include "engine/remote_source.h"
#include "model/spec_reader.h"
#include "net/codec.h"
#include "net/wire.pb.h"
#include "tests/support/link_pair.h"
#include "tests/support/tiny_model.h"

namespace shoal {
namespace {

using testing::LinkPair;
using testing::Soon;

// A model file and a head that serves it over a link of this process.
struct Served {
  Served() : path(testing::WriteTinyModel(folder.path())), links(LinkPair()) {
    file = *GgufFile::Open(path);
    server =
        std::thread([this] { result = ServeShard(links.first, *file, [this](uint64_t bytes) { sent += bytes; }); });
  }
  ~Served() {
    links.second.Shutdown();
    if (server.joinable()) server.join();
  }
  Link& worker() { return links.second; }
  // The end of the load: what the head makes of it.
  Result<LoadedShard> Finish() {
    wire::Message message;
    message.mutable_loaded()->set_weight_bytes(11);
    message.mutable_loaded()->set_kv_bytes(7);
    (void)worker().Send(message, Soon());
    server.join();
    return result;
  }

  testing::TemporaryFolder folder;
  std::filesystem::path path;
  std::shared_ptr<const GgufFile> file;
  std::pair<Link, Link> links;
  uint64_t sent = 0;
  Result<LoadedShard> result = LoadedShard{};
  std::thread server;
};

TEST(ShardServer, AnswersWithTheBytesOfTheFile) {
  Served served;
  RemoteSource source(served.worker());
  uint64_t asked = 0;
  for (uint32_t t = 0; t < served.file->tensors().size(); ++t) {
    const TensorInfo& tensor = served.file->tensors()[t];
    std::vector<std::byte> whole(tensor.bytes), wanted(tensor.bytes);
    ASSERT_TRUE(source.Read({t, 0, tensor.bytes, 0, 1}, whole).has_value());
    ASSERT_TRUE(served.file->Read({t, 0, tensor.bytes, 0, 1}, wanted).has_value());
    EXPECT_EQ(whole, wanted) << tensor.name;
    // The middle of every row.
    const TensorRange middle{t, tensor.row_bytes() / 4, tensor.row_bytes() / 2, tensor.row_bytes(),
                             static_cast<uint64_t>(tensor.rows())};
    std::vector<std::byte> pieces(middle.bytes()), wanted_pieces(middle.bytes());
    ASSERT_TRUE(source.Read(middle, pieces).has_value());
    ASSERT_TRUE(served.file->Read(middle, wanted_pieces).has_value());
    EXPECT_EQ(pieces, wanted_pieces) << tensor.name;
    asked += whole.size() + pieces.size();
  }
  const auto header = served.file->header(0).bytes;
  std::vector<std::byte> head(header.size());
  ASSERT_TRUE(source.ReadHeader(0, 0, head).has_value());
  EXPECT_TRUE(std::ranges::equal(head, header));
  EXPECT_TRUE(source.Read({0, 0, 0, 0, 0}, {}).has_value());  // nothing is asked for nothing
  EXPECT_EQ(source.bytes_read(), asked + header.size());
  const auto loaded = served.Finish();
  ASSERT_TRUE(loaded.has_value());
  EXPECT_EQ(loaded->weight_bytes, 11u);
  EXPECT_EQ(loaded->kv_bytes, 7u);
  EXPECT_EQ(served.sent, asked + header.size());
}

// The head refuses, tells the worker, and gives the load up.
void ExpectRefused(const wire::Message& read) {
  Served served;
  ASSERT_TRUE(served.worker().Send(read, Soon()).has_value());
  const auto answer = served.worker().Receive(Soon());
  ASSERT_TRUE(answer.has_value()) << ToString(answer.error());
  EXPECT_TRUE(answer->has_failed()) << answer->ShortDebugString();
  EXPECT_EQ(answer->failed().request(), 9u);
  served.server.join();
  ASSERT_FALSE(served.result.has_value());
  EXPECT_EQ(served.result.error().reason, reasons::kBadFrame) << ToString(served.result.error());
  EXPECT_EQ(served.sent, 0u);
}

TEST(ShardServer, RefusesReadsOfWhatIsNotThere) {
  constexpr uint64_t kHuge = ~uint64_t{0};
  Served model;
  const uint64_t bytes = model.file->tensors()[0].bytes;
  const auto tensor = [](uint32_t index, uint64_t offset, uint64_t length, uint64_t stride, uint64_t count) {
    wire::Message message;
    auto& read = *message.mutable_read_tensor();
    read.set_request(9);
    read.set_tensor(index);
    read.set_offset(offset);
    read.set_length(length);
    read.set_stride(stride);
    read.set_count(count);
    return message;
  };
  const auto count = static_cast<uint32_t>(model.file->tensors().size());
  for (const auto& read :
       {tensor(count, 0, 1, 0, 1), tensor(~0u, 0, 1, 0, 1), tensor(0, 0, bytes + 1, 0, 1), tensor(0, bytes, 1, 0, 1),
        tensor(0, 1, bytes, 0, 1), tensor(0, kHuge, 1, 0, 1), tensor(0, kHuge, kHuge, 0, 1), tensor(0, 0, 0, 0, 1),
        tensor(0, 0, 1, 1, 0), tensor(0, 0, 8, 4, 2), tensor(0, 0, 8, 0, 2), tensor(0, 0, 8, bytes, 2),
        tensor(0, 8, 8, kHuge / 2, 3), tensor(0, 0, 1, 1, bytes + 1), tensor(0, 0, kHuge, kHuge, 2)})
    ExpectRefused(read);
}

TEST(ShardServer, RefusesHeadersThatAreNotThere) {
  Served model;
  const uint64_t bytes = model.file->header(0).bytes.size();
  const auto header = [](uint32_t file, uint64_t offset, uint64_t length) {
    wire::Message message;
    message.mutable_read_header()->set_request(9);
    message.mutable_read_header()->set_file(file);
    message.mutable_read_header()->set_offset(offset);
    message.mutable_read_header()->set_length(length);
    return message;
  };
  for (const auto& read : {header(1, 0, 1), header(~0u, 0, 1), header(0, 0, bytes + 1), header(0, bytes, 1),
                           header(0, 0, 0), header(0, ~uint64_t{0}, 1), header(0, ~uint64_t{0}, ~uint64_t{0})})
    ExpectRefused(read);
}

TEST(ShardServer, OtherMessagesEndTheLoad) {
  Served served;
  wire::Message message;
  message.mutable_pong()->set_number(1);
  ASSERT_TRUE(served.worker().Send(message, Soon()).has_value());
  served.server.join();
  EXPECT_EQ(served.result.error().reason, reasons::kBadFrame);
}

TEST(ShardServer, AWorkersFailureIsItsOwn) {
  Served served;
  wire::Message message;
  EncodeError(MakeError(Code::kResourceExhausted, reasons::kOutOfMemory, "too small"),
              message.mutable_failed()->mutable_error());
  ASSERT_TRUE(served.worker().Send(message, Soon()).has_value());
  served.server.join();
  EXPECT_EQ(served.result.error().reason, reasons::kOutOfMemory);
}

// A head that answers a read of eight bytes with these pieces.
struct Piece {
  uint64_t request, offset;
  std::string data;
  bool last;
};
Status ReadFrom(const std::vector<Piece>& pieces) {
  auto [head, worker] = LinkPair();
  for (const Piece& piece : pieces) {
    wire::Message message;
    message.mutable_bytes()->set_request(piece.request);
    message.mutable_bytes()->set_offset(piece.offset);
    message.mutable_bytes()->set_data(piece.data);
    message.mutable_bytes()->set_last(piece.last);
    EXPECT_TRUE(head.Send(message, Soon()).has_value());
  }
  RemoteSource source(worker);
  std::byte out[8];
  return source.Read({0, 0, 8, 0, 1}, out);
}

TEST(RemoteSource, TakesNothingButTheAnswer) {
  EXPECT_TRUE(ReadFrom({{1, 0, "12345678", true}}).has_value());
  EXPECT_TRUE(ReadFrom({{1, 0, "123", false}, {1, 3, "45678", true}}).has_value());
  for (const auto& pieces : std::vector<std::vector<Piece>>{
           {{1, 0, "", false}},                           // brings nothing: could go on for ever
           {{1, 0, "123", false}, {1, 3, "", false}},     //
           {{1, 0, "123456789", true}},                   // too much
           {{1, 0, "1234", true}},                        // too little
           {{1, 0, "12345678", false}},                   // no end
           {{2, 0, "12345678", true}},                    // another read's
           {{1, 1, "12345678", true}},                    // from elsewhere
           {{1, 0, "1234", false}, {1, 0, "5678", true}}  // again
       }) {
    const Status read = ReadFrom(pieces);
    ASSERT_FALSE(read.has_value()) << pieces.size();
    EXPECT_EQ(read.error().reason, reasons::kBadFrame) << ToString(read.error());
  }
}

}  // namespace
}  // namespace shoal
