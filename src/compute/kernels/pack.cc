#include "compute/kernels/pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/checked.h"
#include "core/reasons.h"

namespace shoal::kernels {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

std::byte* Allocate(size_t bytes) {
  if (bytes < kHugePage) return static_cast<std::byte*>(std::aligned_alloc(64, bytes));
  void* memory = nullptr;
  if (posix_memalign(&memory, kHugePage, bytes) != 0) return nullptr;
  // Streaming over small pages costs a TLB miss every 4 KiB. Only an advice: failure changes nothing but speed.
  (void)madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return static_cast<std::byte*>(memory);
}

uint32_t Load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void Store32(uint8_t* p, uint32_t v) { std::memcpy(p, &v, sizeof v); }

constexpr size_t kGroupBytes = 4 * kPanelRows;  // a word of four codes of each row

// 32 codes of one row into their places: words of four codes, 64 bytes apart. `at` is the row's first word in the record.
template <Format f>
void PlaceCodes(const Codes& c, uint8_t* at) {
  uint32_t word[8];
  std::memcpy(word, c.q, sizeof word);
  if constexpr (f.bits == CodeBits::k8) {
    for (size_t g = 0; g < 8; ++g) Store32(at + g * kGroupBytes, word[g]);
    return;
  }
  constexpr uint32_t kLow = 0x0f0f0f0f;
  constexpr RecordShape shape = ShapeOf(f);
  for (size_t g = 0; g < 4; ++g) Store32(at + g * kGroupBytes, (word[g] & kLow) | ((word[g + 4] & kLow) << 4));
  if constexpr (f.bits == CodeBits::k5) {  // bit g of a byte belongs to group g
    uint32_t plane = 0;
    for (int g = 0; g < 8; ++g) plane |= ((word[g] >> 4) & 0x01010101u) << g;
    Store32(at + shape.plane, plane);
  } else if constexpr (f.bits == CodeBits::k6) {  // planes for groups 0..3 and 4..7; bits 2g, 2g+1 belong to group g
    for (size_t p = 0; p < 2; ++p) {
      uint32_t plane = 0;
      for (size_t g = 0; g < 4; ++g) plane |= ((word[4 * p + g] >> 4) & 0x03030303u) << (2 * g);
      Store32(at + shape.plane + kGroupBytes * p, plane);
    }
  }
}

// The inverse.
template <Format f>
void TakeCodes(const uint8_t* at, Codes& c) {
  uint32_t word[8];
  if constexpr (f.bits == CodeBits::k8) {
    for (size_t g = 0; g < 8; ++g) word[g] = Load32(at + g * kGroupBytes);
  } else {
    constexpr uint32_t kLow = 0x0f0f0f0f;
    constexpr RecordShape shape = ShapeOf(f);
    for (size_t g = 0; g < 4; ++g) {
      const uint32_t both = Load32(at + g * kGroupBytes);
      word[g] = both & kLow;
      word[g + 4] = (both >> 4) & kLow;
    }
    if constexpr (f.bits == CodeBits::k5) {
      const uint32_t plane = Load32(at + shape.plane);
      for (int g = 0; g < 8; ++g) word[g] |= ((plane >> g) & 0x01010101u) << 4;
    } else if constexpr (f.bits == CodeBits::k6) {
      for (size_t g = 0; g < 8; ++g)
        word[g] |= ((Load32(at + shape.plane + kGroupBytes * (g / 4)) >> (2 * (g % 4))) & 0x03030303u) << 4;
    }
  }
  std::memcpy(c.q, word, sizeof word);
}

// Calls copy(place in the record, the part of Codes) for every byte string of a row's scales and mins; those of super-blocks
// lie in the header before the record.
template <Format f, class Copy>
void EachScale(uint8_t* record, size_t row, Codes& c, bool header, Copy&& copy) {
  constexpr RecordShape shape = ShapeOf(f);
  if constexpr (!f.super) {
    copy(record + shape.scales + 2 * row, &c.scale, 2);
    if constexpr (f.min != 0) copy(record + shape.mins + 2 * row, &c.min, 2);
    return;
  }
  for (size_t h = 0; h < (f.halves ? 2 : 1); ++h) {
    copy(record + shape.scales + kPanelRows * h + row, &c.scales[h], 1);
    if constexpr (f.min != 0) copy(record + shape.mins + kPanelRows * h + row, &c.mins[h], 1);
  }
  if (!header) return;
  copy(record - shape.header + 2 * row, &c.scale, 2);
  if constexpr (f.min != 0) copy(record - shape.header + 2 * kPanelRows + 2 * row, &c.min, 2);
}

// Calls f.template operator()<type>() for a quantised type.
template <class F>
void WithType(WeightType type, F&& f) {
  switch (type) {
    case WeightType::kQ4_0:
      return f.template operator()<WeightType::kQ4_0>();
    case WeightType::kQ4_1:
      return f.template operator()<WeightType::kQ4_1>();
    case WeightType::kQ5_0:
      return f.template operator()<WeightType::kQ5_0>();
    case WeightType::kQ5_1:
      return f.template operator()<WeightType::kQ5_1>();
    case WeightType::kQ8_0:
      return f.template operator()<WeightType::kQ8_0>();
    case WeightType::kQ2_K:
      return f.template operator()<WeightType::kQ2_K>();
    case WeightType::kQ3_K:
      return f.template operator()<WeightType::kQ3_K>();
    case WeightType::kQ4_K:
      return f.template operator()<WeightType::kQ4_K>();
    case WeightType::kQ5_K:
      return f.template operator()<WeightType::kQ5_K>();
    case WeightType::kQ6_K:
      return f.template operator()<WeightType::kQ6_K>();
    case WeightType::kIQ4_NL:
      return f.template operator()<WeightType::kIQ4_NL>();
    case WeightType::kIQ4_XS:
      return f.template operator()<WeightType::kIQ4_XS>();
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  SHOAL_CHECK(false && "not a quantised type");
}

// The codes of one row into a record. The words of the commonest types lie in the file as in a panel, but for their order.
template <WeightType kType>
void PackBlock(const std::byte* block, int part, uint8_t* record, size_t row, bool header) {
  constexpr Format f = FormatOf(kType);
  const auto* b = reinterpret_cast<const uint8_t*>(block);
  uint8_t* at = record + 4 * row;
  Codes codes;
  if constexpr (kType == WeightType::kQ4_0 || kType == WeightType::kIQ4_NL) {
    for (size_t g = 0; g < 4; ++g) Store32(at + g * kGroupBytes, Load32(b + 2 + 4 * g));
    std::memcpy(&codes.scale, b, 2);
  } else if constexpr (kType == WeightType::kQ8_0) {
    for (size_t g = 0; g < 8; ++g) Store32(at + g * kGroupBytes, Load32(b + 2 + 4 * g) ^ 0x80808080u);
    std::memcpy(&codes.scale, b, 2);
  } else {
    ReadCodes(kType, block, part, codes);
    PlaceCodes<f>(codes, at);
  }
  EachScale<f>(record, row, codes, header, [](uint8_t* to, void* from, size_t n) { std::memcpy(to, from, n); });
}

// Whether a super-block's header comes before the record.
bool HasHeader(const Format& f, int64_t first_block, int64_t block) {
  return f.super && (block == first_block || block % kSuperBlocks == 0);
}

template <WeightType kType>
void PackQuantisedPanel(const PackSource& source, int64_t first, int64_t last, const std::byte* rows, size_t count,
                        uint8_t* out) {
  constexpr Format f = FormatOf(kType);
  constexpr RecordShape shape = ShapeOf(f);
  constexpr int64_t kParts = f.super ? kSuperBlocks : 1;
  const size_t block_bytes = FindType(kType)->block_bytes;
  const int64_t first_block = first / kBlock;
  const int64_t end_block = CeilDiv(last, kBlock);
  // Block by block, so that a record is written while it is in the cache; the rows are as many streams.
  for (int64_t b = first_block; b < end_block; ++b) {
    const int64_t at = b - source.first_column / kBlock;
    const std::byte* from = rows + static_cast<size_t>(at / kParts) * block_bytes;
    uint8_t* record = out + RecordOffset(shape, first_block, b);
    const bool header = HasHeader(f, first_block, b);
    for (size_t row = 0; row < count; ++row)
      PackBlock<kType>(from + row * source.row_bytes, static_cast<int>(at % kParts), record, row, header);
  }
}

template <WeightType kType>
void WidenQuantised(uint8_t* panel, size_t row, int64_t first, int64_t last, float* out) {
  constexpr Format f = FormatOf(kType);
  constexpr RecordShape shape = ShapeOf(f);
  const int64_t first_block = first / kBlock;
  const int64_t end_block = CeilDiv(last, kBlock);
  Codes codes{};
  for (int64_t b = first_block; b < end_block; ++b) {
    uint8_t* record = panel + RecordOffset(shape, first_block, b);
    TakeCodes<f>(record + 4 * row, codes);
    EachScale<f>(record, row, codes, HasHeader(f, first_block, b),
                 [](const uint8_t* from, void* to, size_t n) { std::memcpy(to, from, n); });
    if constexpr (f.super && !f.halves) {
      codes.scales[1] = codes.scales[0];
      codes.mins[1] = codes.mins[0];
    }
    float values[kBlock];
    Widen(f, codes, values);
    const int64_t begin = std::max(first, b * kBlock), end = std::min(last, (b + 1) * kBlock);
    std::memcpy(out + (begin - first), values + (begin - b * kBlock), static_cast<size_t>(end - begin) * sizeof(float));
  }
}

template <class T>
void PackFloatPanel(const PackSource& source, int64_t first, int64_t last, const std::byte* rows, size_t count,
                    uint8_t* out) {
  const int64_t columns = last - first;
  // A few columns of all rows at a time: the source is read by cache lines, the panel written in order.
  constexpr int64_t kStep = 64 / sizeof(T);
  for (int64_t c0 = 0; c0 < columns; c0 += kStep) {
    const int64_t width = std::min(kStep, columns - c0);
    for (size_t row = 0; row < count; ++row) {
      const std::byte* from =
          rows + row * source.row_bytes + static_cast<size_t>(first - source.first_column + c0) * sizeof(T);
      for (int64_t c = 0; c < width; ++c) {
        std::memcpy(out + (static_cast<size_t>(c0 + c) * kPanelRows + row) * sizeof(T),
                    from + static_cast<size_t>(c) * sizeof(T), sizeof(T));
      }
    }
  }
}

// `rows` points at the first of `count` source rows.
void PackPanel(const PackSource& source, int64_t first, int64_t last, const std::byte* rows, size_t count,
               std::byte* to) {
  auto* out = reinterpret_cast<uint8_t*>(to);
  switch (source.type) {
    case WeightType::kF32:
      return PackFloatPanel<uint32_t>(source, first, last, rows, count, out);
    case WeightType::kF16:
    case WeightType::kBF16:
      return PackFloatPanel<uint16_t>(source, first, last, rows, count, out);
    default:
      return WithType(source.type,
                      [&]<WeightType kType>() { PackQuantisedPanel<kType>(source, first, last, rows, count, out); });
  }
}

// Packs the panels that threads take from it, some at a time.
class Packer {
 public:
  Packer(const PackSource& source, int64_t first, int64_t last, size_t panel_bytes, int64_t panels, int64_t threads,
         std::byte* to)
      : source_(source),
        first_(first),
        last_(last),
        panel_bytes_(panel_bytes),
        panels_(panels),
        at_once_(std::clamp<int64_t>(static_cast<int64_t>(kReadBytes / (kPanelRows * source.row_bytes + 1)), 1,
                                     CeilDiv(panels, threads))),
        to_(to) {}

  // On each thread. Never throws: it runs on threads of its own.
  void Run() {
    try {
      std::vector<std::byte> buffer;
      for (int64_t p = next_.fetch_add(at_once_); p < panels_; p = next_.fetch_add(at_once_)) {
        if (auto status = Pack(p, std::min(p + at_once_, panels_), buffer); !status) return Fail(std::move(status));
      }
    } catch (const std::bad_alloc&) {
      Fail(shoal::Fail(Code::kResourceExhausted, reasons::kOutOfMemory, "no memory for reading weights"));
    }
  }
  Status Take() { return std::move(status_); }

 private:
  static constexpr size_t kReadBytes = size_t{1} << 20;  // stays in a core's cache between the reading and the packing

  Status Pack(int64_t begin, int64_t end, std::vector<std::byte>& buffer) {
    const int64_t first_row = begin * kPanelRows, rows = std::min(end * kPanelRows, source_.rows) - first_row;
    const std::byte* from = source_.data;
    if (source_.read) {
      if (buffer.empty()) buffer.resize(static_cast<size_t>(at_once_ * kPanelRows) * source_.row_bytes);
      const auto bytes = std::span(buffer).first(static_cast<size_t>(rows) * source_.row_bytes);
      SHOAL_RETURN_IF_ERROR(source_.read(first_row, rows, bytes));
      from = buffer.data();
    } else if (from != nullptr) {
      from += static_cast<size_t>(first_row) * source_.row_bytes;
    }
    for (int64_t p = begin; p < end; ++p) {
      std::byte* to = to_ + static_cast<size_t>(p) * panel_bytes_;
      const int64_t count = std::min<int64_t>(kPanelRows, source_.rows - p * kPanelRows);
      if (count < kPanelRows || first_ == last_) std::memset(to, 0, panel_bytes_);
      if (first_ < last_)
        PackPanel(source_, first_, last_, from + static_cast<size_t>((p - begin) * kPanelRows) * source_.row_bytes,
                  static_cast<size_t>(count), to);
    }
    return {};
  }

  void Fail(Status status) {
    next_ = panels_;  // the others need not go on
    const std::lock_guard lock(mutex_);
    if (status_) status_ = std::move(status);
  }

  const PackSource& source_;
  const int64_t first_, last_;
  const size_t panel_bytes_;
  const int64_t panels_, at_once_;
  std::byte* const to_;
  std::atomic<int64_t> next_ = 0;
  std::mutex mutex_;
  Status status_;
};

size_t PanelBytes(WeightType type, int64_t first, int64_t last) {
  if (last == first) return 64;
  size_t bytes;
  if (ActivationKindOf(type) == ActivationKind::kF32) {
    bytes = static_cast<size_t>(last - first) * kPanelRows * FindType(type)->block_bytes;
  } else {
    const RecordShape shape = ShapeOf(FormatOf(type));
    const int64_t end = CeilDiv(last, kBlock);
    bytes = RecordOffset(shape, first / kBlock, end - 1) + shape.bytes;
  }
  return (bytes + 63) / 64 * 64;
}

}  // namespace

double PackedRatio(WeightType type) {
  const TypeInfo* info = FindType(type);
  if (info == nullptr) return 1;
  constexpr int64_t kColumns = 4096;  // whole blocks of every type; enough of them that rounding does not show
  const size_t blocks = kColumns / static_cast<size_t>(info->block_columns) * info->block_bytes;
  return static_cast<double>(PanelBytes(type, 0, kColumns)) / static_cast<double>(blocks * kPanelRows);
}

Panels::Panels(Panels&& other) noexcept { *this = std::move(other); }

Panels& Panels::operator=(Panels&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(panel_bytes_, other.panel_bytes_);
  std::swap(count_, other.count_);
  return *this;
}

Panels::~Panels() { std::free(data_); }

Result<Panels> Panels::Pack(const PackSource& source, int64_t first, int64_t last, int threads) {
  const TypeInfo* info = FindType(source.type);
  if (info == nullptr) {
    return Fail(Code::kUnsupported, reasons::kUnsupportedType,
                "weight type " + std::to_string(static_cast<uint32_t>(source.type)) + " is not supported");
  }
  // The caller cut the rows from a validated tensor table; a mismatch here is our own bug.
  constexpr int64_t kMost = int64_t{1} << 40;
  SHOAL_CHECK(source.rows >= 0 && source.rows < kMost && source.columns >= 0 && source.columns < kMost);
  SHOAL_CHECK(source.first_column >= 0 && source.first_column % info->block_columns == 0);
  SHOAL_CHECK(source.columns % info->block_columns == 0 && first <= last);
  SHOAL_CHECK(first == last || (source.first_column <= first && last <= source.first_column + source.columns));
  Panels panels;
  panels.count_ = CeilDiv<int64_t>(source.rows, kPanelRows);
  panels.panel_bytes_ = PanelBytes(source.type, first, last);
  const auto bytes = CheckedMul(static_cast<size_t>(panels.count_), panels.panel_bytes_);
  if (!bytes) return Fail(Code::kResourceExhausted, reasons::kOutOfMemory, "a weight matrix is too large to pack");
  if (*bytes == 0) return panels;
  panels.data_ = Allocate(*bytes);
  if (panels.data_ == nullptr) {
    return Fail(Code::kResourceExhausted, reasons::kOutOfMemory,
                "no memory for " + std::to_string(*bytes) + " bytes of packed weights");
  }
  panels.bytes_ = *bytes;
  constexpr size_t kBytesPerThread = 256 << 10;  // below this, starting a thread costs more than it saves
  const auto wanted = static_cast<int64_t>(*bytes / kBytesPerThread) + 1;
  const int64_t parts = std::clamp<int64_t>(std::min<int64_t>(wanted, threads), 1, panels.count_);
  Packer packer(source, first, last, panels.panel_bytes_, panels.count_, parts, panels.data_);
  {
    std::vector<std::jthread> pool;
    try {
      for (int64_t t = 1; t < parts; ++t) pool.emplace_back([&packer] { packer.Run(); });
    } catch (const std::system_error&) {  // no more threads to be had: the others do it
    }
    packer.Run();
  }
  SHOAL_RETURN_IF_ERROR(packer.Take());
  return panels;
}

void Panels::Row(WeightType type, int64_t first, int64_t last, int64_t row, float* out) const {
  auto* panel = reinterpret_cast<uint8_t*>(data_) + static_cast<size_t>(row / kPanelRows) * panel_bytes_;
  const auto lane = static_cast<size_t>(row % kPanelRows);
  if (ActivationKindOf(type) == ActivationKind::kI8)
    return WithType(type, [&]<WeightType kType>() { WidenQuantised<kType>(panel, lane, first, last, out); });
  const size_t each = FindType(type)->block_bytes;
  for (int64_t c = 0; c < last - first; ++c)
    Dequantize(type, reinterpret_cast<const std::byte*>(panel) + (static_cast<size_t>(c) * kPanelRows + lane) * each, 1,
               out + c);
}

}  // namespace shoal::kernels
