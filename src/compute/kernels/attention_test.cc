// The same list as in attention.cc, so that only instruction sets it is compiled for are tried.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#include "compute/kernels/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/limits.h"

namespace shoal::kernels {
namespace {

constexpr int kBlock = limits::kBlockTokens;

uint16_t HalfBits(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}
float Rounded(float x) { return static_cast<float>(static_cast<_Float16>(x)); }

struct Model {
  int heads = 4;
  int kv_heads = 2;
  int k_dim = 16;
  int v_dim = 16;
  int window = 0;
  float softcap = 0;
  KvType type = KvType::kF16;
  int group() const { return heads / kv_heads; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(k_dim)); }
};

std::string Name(const Model& m) {
  return "heads " + std::to_string(m.heads) + "/" + std::to_string(m.kv_heads) + " dims " + std::to_string(m.k_dim) +
         "/" + std::to_string(m.v_dim) + " window " + std::to_string(m.window) + " softcap " +
         std::to_string(m.softcap) + " " + std::string(ToString(m.type));
}

// One row of the cache as attention reads it.
std::vector<float> Stored(KvType type, std::span<const float> row) {
  std::vector<float> out;
  if (type == KvType::kF16) {
    for (const float x : row) out.push_back(Rounded(x));
    return out;
  }
  if (type == KvType::kF32) return {row.begin(), row.end()};
  for (size_t begin = 0; begin < row.size(); begin += kScaledValues) {
    const auto group = row.subspan(begin, std::min<size_t>(kScaledValues, row.size() - begin));
    float largest = 0;
    for (const float x : group) largest = std::max(largest, std::abs(x));
    const float scale = Rounded(largest / 127);
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (const float x : group) out.push_back(std::clamp(std::nearbyint(x * inverse), -127.0f, 127.0f) * scale);
  }
  return out;
}

// All rows [..][dim] of keys or values.
std::vector<float> StoredRows(KvType type, const std::vector<float>& rows, int dim) {
  std::vector<float> out;
  for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(dim)) {
    const auto stored = Stored(type, std::span(rows).subspan(at, static_cast<size_t>(dim)));
    out.insert(out.end(), stored.begin(), stored.end());
  }
  return out;
}

// The pools of a layer, with the same 16 bits everywhere.
class Pools {
 public:
  Pools(const Model& m, int blocks, int kv_heads, uint16_t fill)
      : k_(Cells(blocks, kv_heads) * CellBytes(m.type, m.k_dim) / 2, fill),
        v_(Cells(blocks, kv_heads) * CellBytes(m.type, m.v_dim) / 2, fill) {
    layer = {.k = Bytes(k_), .v = Bytes(v_), .kv_heads = kv_heads, .k_dim = m.k_dim, .v_dim = m.v_dim, .type = m.type};
  }
  KvLayer layer;
  // The keys (or values) of a KV head in a block.
  const std::byte* Keys(int block, int head) const {
    return layer.k + Cells(block, layer.kv_heads, head) * CellBytes(layer.type, layer.k_dim);
  }
  const std::byte* Values(int block, int head) const {
    return layer.v + Cells(block, layer.kv_heads, head) * CellBytes(layer.type, layer.v_dim);
  }
  const std::vector<uint16_t>& values() const { return v_; }

 private:
  static size_t Cells(int blocks, int kv_heads, int more = 0) { return static_cast<size_t>(blocks * kv_heads + more); }
  static std::byte* Bytes(std::vector<uint16_t>& pool) { return reinterpret_cast<std::byte*>(pool.data()); }
  std::vector<uint16_t> k_, v_;
};

// A sequence's q, k, v for every position.
struct Sequence {
  int length = 0;
  std::vector<float> q, k, v;
};

Sequence MakeSequence(const Model& m, int length, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Sequence s{.length = length, .q = {}, .k = {}, .v = {}};
  const auto fill = [&](std::vector<float>& x, int heads, int dim) {
    x.resize(static_cast<size_t>(length) * heads * dim);
    for (float& value : x) value = 1.5f * normal(random);
  };
  fill(s.q, m.heads, m.k_dim);
  fill(s.k, m.kv_heads, m.k_dim);
  fill(s.v, m.kv_heads, m.v_dim);
  return s;
}

// What attention should give, and how far a result may be from it: a weight that lies so near the middle of two
// halves that float arithmetic may round it to either counts with the distance of the two.
struct Expected {
  std::vector<double> out, allowed;
};

Expected Reference(const Model& m, const Sequence& s) {
  constexpr double kWeightError = 5e-6;
  std::vector<double> out(static_cast<size_t>(s.length) * m.heads * m.v_dim), allowed(out.size());
  const std::vector<float> keys = StoredRows(m.type, s.k, m.k_dim), values = StoredRows(m.type, s.v, m.v_dim);
  const auto rounded = [](double x) { return static_cast<double>(static_cast<_Float16>(x)); };
  for (int row = 0; row < s.length; ++row) {
    for (int h = 0; h < m.heads; ++h) {
      const int kv = h / m.group();
      const int begin = m.window > 0 ? std::max(0, row - m.window + 1) : 0;
      std::vector<double> score;
      for (int j = begin; j <= row; ++j) {
        double dot = 0;
        for (int i = 0; i < m.k_dim; ++i) {
          dot += double{s.q[(static_cast<size_t>(row) * m.heads + h) * m.k_dim + i]} *
                 double{keys[(static_cast<size_t>(j) * m.kv_heads + kv) * m.k_dim + i]};
        }
        dot *= m.scale();
        if (m.softcap > 0) dot = m.softcap * std::tanh(dot / m.softcap);
        score.push_back(dot);
      }
      const double highest = *std::max_element(score.begin(), score.end());
      double sum = 0;
      for (double& x : score) sum += x = std::exp(x - highest);
      std::vector<double> distance;
      for (double& x : score) {
        const double weight = x / sum;
        if (m.type == KvType::kF32) {
          x = weight;
          distance.push_back(0);
          continue;
        }
        x = rounded(weight);
        distance.push_back(rounded(weight * (1 + kWeightError)) - rounded(weight * (1 - kWeightError)));
      }
      for (int i = 0; i < m.v_dim; ++i) {
        double value = 0, unsure = 0;
        for (int j = begin; j <= row; ++j) {
          const double v = double{values[(static_cast<size_t>(j) * m.kv_heads + kv) * m.v_dim + i]};
          value += score[static_cast<size_t>(j - begin)] * v;
          unsure += distance[static_cast<size_t>(j - begin)] * std::abs(v);
        }
        out[(static_cast<size_t>(row) * m.heads + h) * m.v_dim + i] = value;
        allowed[(static_cast<size_t>(row) * m.heads + h) * m.v_dim + i] = 1e-5 + unsure;
      }
    }
  }
  return {std::move(out), std::move(allowed)};
}

// How the same work is carried out; none of it may change a bit.
struct Way {
  int chunk = 1 << 20;  // rows of a sequence per step
  int threads = 1;
  uint32_t shuffle = 0;       // seed of the pool block ids
  int first_head = 0;         // heads [first_head, first_head + heads) on this rank
  int heads = 0;              // 0 = all
  uint16_t garbage = 0x7e00;  // what unwritten cells hold: NaN
};

// Outputs of each sequence for the heads of the rank, all sequences stepping together.
std::vector<std::vector<float>> RunTogether(const Model& m, const std::vector<Sequence>& sequences, const Way& way) {
  const int heads = way.heads == 0 ? m.heads : way.heads;
  const int first_kv = way.first_head / m.group();
  const int kv_heads = (way.first_head + heads - 1) / m.group() - first_kv + 1;
  int blocks = 3;
  for (const Sequence& s : sequences) blocks += (s.length + kBlock - 1) / kBlock;
  std::vector<BlockId> ids(static_cast<size_t>(blocks));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(way.shuffle));
  const Pools pools(m, blocks, kv_heads, way.garbage);
  const KvLayer& layer = pools.layer;
  const AttentionShape shape{.heads = heads,
                             .first_head = way.first_head,
                             .first_kv_head = first_kv,
                             .group = m.group(),
                             .scale = m.scale(),
                             .softcap = m.softcap,
                             .window = m.window};
  std::vector<std::vector<BlockId>> tables(sequences.size());
  std::vector<std::vector<float>> outs(sequences.size());
  std::vector<int> computed(sequences.size(), 0);
  for (;;) {
    std::vector<Segment> segments;
    std::vector<size_t> who;
    int rows = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int n = std::min(way.chunk, sequences[i].length - computed[i]);
      if (n == 0) continue;
      while (static_cast<int>(tables[i].size()) * kBlock < computed[i] + n) {
        tables[i].push_back(ids.back());
        ids.pop_back();
      }
      segments.push_back({.first_row = rows, .rows = n, .first_position = computed[i], .blocks = tables[i]});
      who.push_back(i);
      rows += n;
    }
    if (rows == 0) return outs;
    std::vector<float> q, k, v;
    for (size_t x = 0; x < segments.size(); ++x) {
      const Sequence& s = sequences[who[x]];
      for (int p = segments[x].first_position; p < segments[x].first_position + segments[x].rows; ++p) {
        const auto take = [&](std::vector<float>& to, const std::vector<float>& from, int all, int first, int n,
                              int dim) {
          const auto begin = from.begin() + (static_cast<ptrdiff_t>(p) * all + first) * dim;
          to.insert(to.end(), begin, begin + static_cast<ptrdiff_t>(n) * dim);
        };
        take(q, s.q, m.heads, way.first_head, heads, m.k_dim);
        take(k, s.k, m.kv_heads, first_kv, kv_heads, m.k_dim);
        take(v, s.v, m.kv_heads, first_kv, kv_heads, m.v_dim);
      }
    }
    std::vector<float> out(static_cast<size_t>(rows) * heads * m.v_dim, -77.0f);
    for (int t = way.threads - 1; t >= 0; --t) StoreKv(layer, segments, k.data(), 0, v.data(), 0, t, way.threads);
    for (int t = way.threads - 1; t >= 0; --t)
      Attend(layer, shape, segments, q.data(), 0, out.data(), 0, t, way.threads);
    const size_t row = static_cast<size_t>(heads) * m.v_dim;
    for (size_t x = 0; x < segments.size(); ++x) {
      const auto begin = out.begin() + static_cast<ptrdiff_t>(segments[x].first_row * row);
      outs[who[x]].insert(outs[who[x]].end(), begin, begin + static_cast<ptrdiff_t>(segments[x].rows * row));
      computed[who[x]] += segments[x].rows;
    }
  }
}

std::vector<float> RunAlone(const Model& m, const Sequence& s, const Way& way) { return RunTogether(m, {s}, way)[0]; }

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Calls `body` once per instruction set that this machine has, and returns to the best one.
template <class Body>
void ForEachTarget(Body&& body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body(target);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

const std::vector<Model>& Models() {
  constexpr KvType kQ8_0 = KvType::kQ8_0, kF32 = KvType::kF32;
  static const auto& models = *new std::vector<Model>{
      {.heads = 4, .kv_heads = 2, .k_dim = 16, .v_dim = 16},
      {.heads = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8},
      {.heads = 3, .kv_heads = 3, .k_dim = 12, .v_dim = 20, .window = 7},
      {.heads = 8, .kv_heads = 1, .k_dim = 64, .v_dim = 64},
      {.heads = 16, .kv_heads = 1, .k_dim = 80, .v_dim = 80, .window = 33, .softcap = 5},
      {.heads = 14, .kv_heads = 2, .k_dim = 96, .v_dim = 96},
      {.heads = 10, .kv_heads = 2, .k_dim = 128, .v_dim = 7},
      {.heads = 2, .kv_heads = 1, .k_dim = 256, .v_dim = 256, .window = 64},
      {.heads = 6, .kv_heads = 2, .k_dim = 13, .v_dim = 80, .window = 1, .softcap = 30},
      {.heads = 4, .kv_heads = 4, .k_dim = 32, .v_dim = 48, .softcap = 0.5f},
      {.heads = 8, .kv_heads = 1, .k_dim = 64, .v_dim = 64, .type = kQ8_0},
      {.heads = 3, .kv_heads = 3, .k_dim = 12, .v_dim = 20, .window = 7, .type = kQ8_0},
      {.heads = 16, .kv_heads = 1, .k_dim = 80, .v_dim = 80, .window = 33, .softcap = 5, .type = kQ8_0},
      {.heads = 10, .kv_heads = 2, .k_dim = 128, .v_dim = 7, .type = kQ8_0},
      {.heads = 6, .kv_heads = 2, .k_dim = 45, .v_dim = 96, .window = 64, .type = kQ8_0},
      {.heads = 4, .kv_heads = 4, .k_dim = 32, .v_dim = 48, .type = kQ8_0},
      {.heads = 8, .kv_heads = 1, .k_dim = 64, .v_dim = 64, .type = kF32},
      {.heads = 3, .kv_heads = 3, .k_dim = 12, .v_dim = 20, .window = 7, .type = kF32},
      {.heads = 16, .kv_heads = 1, .k_dim = 80, .v_dim = 80, .window = 33, .softcap = 5, .type = kF32},
      {.heads = 10, .kv_heads = 2, .k_dim = 128, .v_dim = 7, .type = kF32},
  };
  return models;
}

TEST(Attention, AgreesWithDoublePrecisionOnEveryInstructionSet) {
  for (const Model& m : Models()) {
    SCOPED_TRACE(Name(m));
    const Sequence s = MakeSequence(m, 150, 1);
    const Expected expected = Reference(m, s);
    EXPECT_LT(std::ranges::count_if(expected.allowed, [](double x) { return x > 2e-5; }),
              static_cast<ptrdiff_t>(expected.allowed.size() / 2));
    ForEachTarget([&](int64_t) {
      const std::vector<float> got = RunAlone(m, s, {});
      ASSERT_EQ(got.size(), expected.out.size());
      double worst = 0;
      for (size_t i = 0; i < got.size(); ++i)
        worst = std::max(worst, std::abs(got[i] - expected.out[i]) / expected.allowed[i]);
      EXPECT_LT(worst, 1);
    });
  }
}

TEST(Attention, SameBitsForEveryVectorWidthWithFusedMultiplyAdd) {
  for (const Model& m : Models()) {
    if (m.softcap > 0) continue;  // tanh comes from the library, whose operations may differ between targets
    SCOPED_TRACE(Name(m));
    const Sequence s = MakeSequence(m, 90, 2);
    std::vector<float> first;
    ForEachTarget([&](int64_t target) {
      if (target == HWY_SSE4 || target == HWY_SSE2) return;
      const std::vector<float> got = RunAlone(m, s, {});
      if (first.empty()) first = got;
      EXPECT_TRUE(SameBits(got, first));
    });
  }
}

TEST(Attention, SameBitsForEveryChunkingThreadCountAndPlaceInThePool) {
  ForEachTarget([&](int64_t target) {
    if (target == HWY_SSE2) return;  // as SSE4, only slower
    for (const Model& m : Models()) {
      SCOPED_TRACE(Name(m));
      const Sequence s = MakeSequence(m, 150, 3);
      const std::vector<float> whole = RunAlone(m, s, {});
      for (const int chunk : {1, 7, 16, 64, 149}) {
        for (const int threads : {1, 2, 5}) {
          const Way way{.chunk = chunk, .threads = threads, .shuffle = static_cast<uint32_t>(chunk + threads)};
          EXPECT_TRUE(SameBits(RunAlone(m, s, way), whole)) << "chunk " << chunk << " threads " << threads;
        }
      }
    }
  });
}

TEST(Attention, SameBitsAloneAndInABatch) {
  for (const Model& m : Models()) {
    SCOPED_TRACE(Name(m));
    std::vector<Sequence> sequences;
    for (const int length : {1, 15, 16, 17, 64, 65, 131, 5}) {
      sequences.push_back(MakeSequence(m, length, static_cast<uint32_t>(length)));
    }
    for (const Way& way : {Way{}, Way{.chunk = 1, .threads = 3}, Way{.chunk = 9, .threads = 2, .shuffle = 4}}) {
      const auto batch = RunTogether(m, sequences, way);
      for (size_t i = 0; i < sequences.size(); ++i) {
        EXPECT_TRUE(SameBits(batch[i], RunAlone(m, sequences[i], {}))) << "sequence " << i;
      }
    }
  }
}

TEST(Attention, SameBitsForEverySplitOfTheHeads) {
  for (const Model& m : Models()) {
    SCOPED_TRACE(Name(m));
    const Sequence s = MakeSequence(m, 70, 5);
    const std::vector<float> whole = RunAlone(m, s, {});
    for (int first = 0; first < m.heads; ++first) {
      for (int heads = 1; first + heads <= m.heads; heads += 2) {
        const auto part = RunAlone(m, s, {.chunk = 23, .threads = 2, .first_head = first, .heads = heads});
        for (int row = 0; row < s.length; ++row) {
          const size_t n = static_cast<size_t>(heads) * m.v_dim;
          ASSERT_EQ(
              0, std::memcmp(part.data() + row * n,
                             whole.data() + (static_cast<size_t>(row) * m.heads + first) * m.v_dim, n * sizeof(float)))
              << "heads " << first << "+" << heads << " row " << row;
        }
      }
    }
  }
}

TEST(Attention, UnwrittenCellsDoNotMatter) {
  for (const Model& m : Models()) {
    SCOPED_TRACE(Name(m));
    const Sequence s = MakeSequence(m, 83, 6);
    const std::vector<float> clean = RunAlone(m, s, {.chunk = 20, .garbage = 0});
    for (const float x : clean) ASSERT_TRUE(std::isfinite(x));
    for (const int garbage : {0x7e00, 0xffff, 0x7c00, 0xfc00, 0x7bff}) {
      EXPECT_TRUE(SameBits(RunAlone(m, s, {.chunk = 20, .garbage = static_cast<uint16_t>(garbage)}), clean));
    }
  }
}

// Rows that share registers must not share a fault: an infinite value is seen by later rows only.
TEST(Attention, ABadValueReachesOnlyRowsThatSeeIt) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const bool in_key : {false, true}) {
      const Model m{.heads = 4, .kv_heads = 4, .k_dim = 16, .v_dim = 16, .window = 20};
      Sequence s = MakeSequence(m, 60, 7);
      const std::vector<float> good = RunAlone(m, s, {});
      const size_t at = (static_cast<size_t>(30) * 4 + 2) * 16 + 5;  // position 30, head 2, dimension 5
      (in_key ? s.k : s.v)[at] = bad;
      const std::vector<float> got = RunAlone(m, s, {});
      for (int row = 0; row < 60; ++row) {
        for (int head = 0; head < 4; ++head) {
          for (int i = 0; i < 16; ++i) {
            const size_t x = (static_cast<size_t>(row) * 4 + head) * 16 + i;
            const bool sees = head == 2 && row >= 30 && row < 50;
            if (sees && !std::isfinite(got[x])) continue;
            if (sees && std::isinf(bad) && in_key) continue;  // a score of -inf is a weight of 0
            if (sees && !in_key && i != 5) {
              ASSERT_EQ(got[x], good[x]);
              continue;
            }
            ASSERT_FALSE(sees) << row << " " << head << " " << i;
            ASSERT_EQ(got[x], good[x]) << row << " " << head << " " << i;
          }
        }
      }
    }
  }
}

TEST(Attention, LargeScoresNeitherOverflowNorLoseTheMaximum) {
  const Model m{.heads = 2, .kv_heads = 1, .k_dim = 8, .v_dim = 8};
  Sequence s = MakeSequence(m, 130, 8);
  for (float& x : s.q) x *= 300;
  for (float& x : s.k) x *= 100;
  const std::vector<double> expected = Reference(m, s).out;
  const std::vector<float> got = RunAlone(m, s, {});
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 2e-2) << i;
}

// Long enough that a unit's scores would not fit: the cut then depends on the length, the bits must not.
TEST(Attention, SameBitsWhereTheScoresOfAllPairsDoNotFit) {
  for (const int window : {0, 900}) {
    const Model m{.heads = 16, .kv_heads = 1, .k_dim = 8, .v_dim = 16, .window = window};
    const Sequence s = MakeSequence(m, 2600, 12);
    const std::vector<float> whole = RunAlone(m, s, {.chunk = 512});
    EXPECT_TRUE(SameBits(RunAlone(m, s, {.chunk = 100, .threads = 3, .shuffle = 5}), whole));
    EXPECT_TRUE(SameBits(RunAlone(m, s, {.threads = 2}), whole));
  }
}

TEST(Attention, StoreRoundsToNearestEvenInTheDocumentedPlaces) {
  const Model m{.heads = 2, .kv_heads = 2, .k_dim = 70, .v_dim = 21};
  std::mt19937 random(9);
  const int rows = 37, first = 11;
  std::vector<float> k(static_cast<size_t>(rows) * 2 * m.k_dim), v(static_cast<size_t>(rows) * 2 * m.v_dim);
  const auto fill = [&](std::vector<float>& x) {
    for (float& value : x) {
      value = std::ldexp(static_cast<float>(random()) / 4294967296.0f - 0.5f, static_cast<int>(random() % 44) - 26);
    }
  };
  fill(k);
  fill(v);
  k[0] = 65519.9f;        // rounds to the largest finite value
  k[1] = 65520.0f;        // the first that rounds to infinity
  k[2] = 1.00048828125f;  // 1 + 2^-11: a tie, to even
  k[3] = -0.0f;
  k[4] = 2.98023224e-8f;  // half of the smallest subnormal: a tie, to 0
  const std::vector<BlockId> table{4, 0, 2};
  ForEachTarget([&](int64_t) {
    const Pools pools(m, 5, 2, 0xabcd);
    const Segment segment{.first_row = 0, .rows = rows, .first_position = first, .blocks = table};
    for (int t = 0; t < 3; ++t) StoreKv(pools.layer, {&segment, 1}, k.data(), 0, v.data(), 0, t, 3);
    size_t written = 0;
    for (int row = 0; row < rows; ++row) {
      const int position = first + row;
      const BlockId block = table[static_cast<size_t>(position / kBlock)];
      for (int h = 0; h < 2; ++h) {
        const auto* keys = reinterpret_cast<const uint16_t*>(pools.Keys(block, h));
        const auto* values = reinterpret_cast<const uint16_t*>(pools.Values(block, h));
        for (int i = 0; i < m.k_dim; ++i) {
          const float x = k[(static_cast<size_t>(row) * 2 + h) * m.k_dim + i];
          ASSERT_EQ(keys[i * kBlock + position % kBlock], HalfBits(x)) << x;
        }
        for (int i = 0; i < m.v_dim; ++i, ++written) {
          const float x = v[(static_cast<size_t>(row) * 2 + h) * m.v_dim + i];
          ASSERT_EQ(values[position % kBlock * m.v_dim + i], HalfBits(x)) << x;
        }
      }
    }
    EXPECT_EQ(std::ranges::count(pools.values(), 0xabcd), static_cast<ptrdiff_t>(pools.values().size() - written));
  });
}

TEST(Attention, FloatsAreKeptAsTheyAre) {
  const Model m{.heads = 2, .kv_heads = 2, .k_dim = 70, .v_dim = 21, .type = KvType::kF32};
  const int rows = 37, first = 11;
  Sequence s = MakeSequence(m, rows, 15);
  s.k[0] = 1e30f;
  s.k[1] = -0.0f;
  s.v[0] = std::numeric_limits<float>::denorm_min();
  const std::vector<BlockId> table{4, 0, 2};
  ForEachTarget([&](int64_t) {
    const Pools pools(m, 5, 2, 0xabcd);
    const Segment segment{.first_row = 0, .rows = rows, .first_position = first, .blocks = table};
    for (int t = 0; t < 3; ++t) StoreKv(pools.layer, {&segment, 1}, s.k.data(), 0, s.v.data(), 0, t, 3);
    for (int row = 0; row < rows; ++row) {
      const int cell = (first + row) % kBlock;
      const BlockId block = table[static_cast<size_t>((first + row) / kBlock)];
      for (int h = 0; h < 2; ++h) {
        const auto* keys = reinterpret_cast<const float*>(pools.Keys(block, h));
        const auto* values = reinterpret_cast<const float*>(pools.Values(block, h));
        for (int i = 0; i < m.k_dim; ++i)
          ASSERT_EQ(std::bit_cast<uint32_t>(keys[i * kBlock + cell]),
                    std::bit_cast<uint32_t>(s.k[static_cast<size_t>((row * 2 + h) * m.k_dim + i)]));
        for (int i = 0; i < m.v_dim; ++i)
          ASSERT_EQ(values[cell * m.v_dim + i], s.v[static_cast<size_t>((row * 2 + h) * m.v_dim + i)]);
      }
    }
  });
}

TEST(Attention, CodesAndScalesLieInTheDocumentedPlaces) {
  const Model m{.heads = 2, .kv_heads = 2, .k_dim = 70, .v_dim = 21, .type = KvType::kQ8_0};
  std::mt19937 random(13);
  const int rows = 37, first = 11;
  std::vector<float> k(static_cast<size_t>(rows) * 2 * m.k_dim), v(static_cast<size_t>(rows) * 2 * m.v_dim);
  // Rows of every size, down to where scales are subnormal halves and to 0.
  const auto fill = [&](std::vector<float>& x, int dim) {
    for (size_t at = 0; at < x.size(); at += static_cast<size_t>(dim)) {
      const int size = static_cast<int>(random() % 44) - 26;
      for (int i = 0; i < dim; ++i)
        x[at + static_cast<size_t>(i)] = std::ldexp(static_cast<float>(random()) / 4294967296.0f - 0.5f, size);
    }
  };
  fill(k, m.k_dim);
  fill(v, m.v_dim);
  std::fill_n(k.begin(), 32, 0.0f);
  for (int i = 0; i < 32; ++i) k[32 + static_cast<size_t>(i)] = static_cast<float>(i) + 0.5f;  // ties, to even:
  k[63] = -127;                                                                                // the scale is 1
  k[64] = 8.3e6f;  // a scale just below the largest half
  const std::vector<BlockId> table{4, 0, 2};
  ForEachTarget([&](int64_t) {
    const Pools pools(m, 5, 2, 0xabcd);
    const Segment segment{.first_row = 0, .rows = rows, .first_position = first, .blocks = table};
    for (int t = 0; t < 3; ++t) StoreKv(pools.layer, {&segment, 1}, k.data(), 0, v.data(), 0, t, 3);
    for (int row = 0; row < rows; ++row) {
      const int cell = (first + row) % kBlock;
      const BlockId block = table[static_cast<size_t>((first + row) / kBlock)];
      for (int h = 0; h < 2; ++h) {
        const auto check = [&](const std::vector<float>& from, int dim, const std::byte* at, bool keys) {
          const auto wanted = Stored(
              m.type, std::span(from).subspan(static_cast<size_t>((row * 2 + h) * dim), static_cast<size_t>(dim)));
          const auto* codes = reinterpret_cast<const int8_t*>(at);
          const auto* scales = reinterpret_cast<const uint16_t*>(at + dim * kBlock);
          for (int i = 0; i < dim; ++i) {
            _Float16 scale;
            std::memcpy(&scale, &scales[i / kScaledValues * kBlock + cell], sizeof scale);
            const int8_t code = codes[keys ? i * kBlock + cell : cell * dim + i];
            ASSERT_EQ(static_cast<float>(code) * static_cast<float>(scale), wanted[static_cast<size_t>(i)]) << i;
          }
        };
        check(k, m.k_dim, pools.Keys(block, h), true);
        check(v, m.v_dim, pools.Values(block, h), false);
      }
    }
    const auto* codes = reinterpret_cast<const int8_t*>(pools.Keys(4, 0));
    for (const auto& [dimension, code] : {std::pair{32, 0}, {33, 2}, {34, 2}, {35, 4}, {62, 30}, {63, -127}, {64, 127}})
      EXPECT_EQ(codes[dimension * kBlock + first], code) << dimension;
  });
}

// What has no scale makes the results that see it NaN, on every instruction set.
TEST(Attention, WhatHasNoScaleIsNotANumber) {
  const Model m{.heads = 2, .kv_heads = 2, .k_dim = 48, .v_dim = 48, .window = 20, .type = KvType::kQ8_0};
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(), 8.4e6f}) {
    for (const bool in_key : {false, true}) {
      Sequence s = MakeSequence(m, 60, 14);
      (in_key ? s.k : s.v)[(static_cast<size_t>(30) * 2 + 1) * 48 + 40] = bad;  // position 30, head 1, dimension 40
      ForEachTarget([&](int64_t) {
        const std::vector<float> got = RunAlone(m, s, {});
        for (int row = 0; row < 60; ++row) {
          for (int head = 0; head < 2; ++head) {
            for (int i = 0; i < 48; ++i) {
              const bool sees = head == 1 && row >= 30 && row < 50 && (in_key || i >= 32);
              ASSERT_EQ(std::isnan(got[(static_cast<size_t>(row) * 2 + head) * 48 + i]), sees) << row << " " << i;
            }
          }
        }
      });
    }
  }
}

TEST(Attention, BytesOfACell) {
  EXPECT_EQ(CellBytes(KvType::kF16, 64), 16u * 64 * 2);
  EXPECT_EQ(CellBytes(KvType::kQ8_0, 64), 16u * (64 + 2 * 2));
  EXPECT_EQ(CellBytes(KvType::kQ8_0, 80), 16u * (80 + 3 * 2));
  EXPECT_EQ(CellBytes(KvType::kF32, 80), 16u * 80 * 4);
}

TEST(Attention, StridesWiderThanTheRows) {
  const Model m{.heads = 2, .kv_heads = 1, .k_dim = 8, .v_dim = 8};
  const Sequence s = MakeSequence(m, 20, 10);
  const std::vector<float> expected = RunAlone(m, s, {});
  const auto widen = [](const std::vector<float>& x, size_t row, size_t stride) {
    std::vector<float> wide(x.size() / row * stride, 3.0f);
    for (size_t i = 0; i < x.size(); ++i) wide[i / row * stride + i % row] = x[i];
    return wide;
  };
  const std::vector<float> q = widen(s.q, 16, 19), k = widen(s.k, 8, 11), v = widen(s.v, 8, 9);
  const Pools pools(m, 2, 1, 0);
  const KvLayer& layer = pools.layer;
  const std::vector<BlockId> table{1, 0};
  const Segment segment{.first_row = 0, .rows = 20, .first_position = 0, .blocks = table};
  const AttentionShape shape{
      .heads = 2, .first_head = 0, .first_kv_head = 0, .group = 2, .scale = m.scale(), .softcap = 0, .window = 0};
  std::vector<float> out(20 * 21, 5.0f);
  StoreKv(layer, {&segment, 1}, k.data(), 11, v.data(), 9, 0, 1);
  Attend(layer, shape, {&segment, 1}, q.data(), 19, out.data(), 21, 0, 1);
  EXPECT_EQ(out, [&] {
    std::vector<float> wide(20 * 21, 5.0f);
    for (size_t i = 0; i < expected.size(); ++i) wide[i / 16 * 21 + i % 16] = expected[i];
    return wide;
  }());
}

// Blocks that lie wholly before every window may already belong to others: their ids must not be touched.
TEST(Attention, BlocksBeforeTheWindowAreNotRead) {
  const Model m{.heads = 2, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .window = 10};
  const Pools pools(m, 2, 1, 0);
  const KvLayer& layer = pools.layer;
  const std::vector<BlockId> table{-1000000, -1000000, -1000000, -1000000, -1000000, 1, 0};
  const Segment segment{.first_row = 0, .rows = 3, .first_position = 89 + 5, .blocks = table};
  const Sequence s = MakeSequence(m, 3, 11);
  const AttentionShape shape{
      .heads = 2, .first_head = 0, .first_kv_head = 0, .group = 2, .scale = 1, .softcap = 0, .window = 10};
  std::vector<float> out(3 * 16);
  StoreKv(layer, {&segment, 1}, s.k.data(), 0, s.v.data(), 0, 0, 1);
  Attend(layer, shape, {&segment, 1}, s.q.data(), 0, out.data(), 0, 0, 1);
  for (const float x : out) EXPECT_TRUE(std::isfinite(x));
}

}  // namespace
}  // namespace shoal::kernels
