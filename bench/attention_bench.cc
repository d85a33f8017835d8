// Attention over the paged cache: one row (decode) and 128 rows (a prompt chunk), 32 query heads, 4 KV heads,
// dimension 64. Beside each time stands its bound: fused multiply-adds at the rate one core reaches here from
// registers (BM_FmaPeak), as share_of_peak; and bytes of K and V read from memory per second.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "compute/kernels/attention.h"
#include "core/limits.h"

namespace shoal::kernels {
namespace {

constexpr int kBlock = limits::kBlockTokens;

struct Setup {
  Setup(int heads, int kv_heads, int dim, int rows, int context, KvType type) {
    const int blocks = (context + kBlock - 1) / kBlock;
    const size_t bytes = static_cast<size_t>(blocks) * kv_heads * CellBytes(type, dim);
    k_pool.resize(bytes / sizeof(uint16_t));
    v_pool.resize(bytes / sizeof(uint16_t));
    table.resize(static_cast<size_t>(blocks));
    std::iota(table.begin(), table.end(), 0);
    layer = {.k = reinterpret_cast<std::byte*>(k_pool.data()),
             .v = reinterpret_cast<std::byte*>(v_pool.data()),
             .kv_heads = kv_heads,
             .k_dim = dim,
             .v_dim = dim,
             .type = type};
    shape = {.heads = heads,
             .first_head = 0,
             .first_kv_head = 0,
             .group = heads / kv_heads,
             .scale = 0.125f,
             .softcap = 0,
             .window = 0};
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int n) {
      x.resize(static_cast<size_t>(n));
      for (float& value : x) value = normal(random);
    };
    fill(q, rows * heads * dim);
    fill(k, context * kv_heads * dim);
    fill(v, context * kv_heads * dim);
    out.resize(q.size());
    const Segment all{.first_row = 0, .rows = context, .first_position = 0, .blocks = table};
    StoreKv(layer, {&all, 1}, k.data(), 0, v.data(), 0, 0, 1);
    segment = {.first_row = 0, .rows = rows, .first_position = context - rows, .blocks = table};
  }
  std::vector<uint16_t> k_pool, v_pool;
  std::vector<BlockId> table;
  std::vector<float> q, k, v, out;
  KvLayer layer;
  AttentionShape shape;
  Segment segment;
};

// What one core reaches on registers alone; multiply-adds per second of processor time (others may share the
// core).
double FmaPeak();

void BM_Attend(benchmark::State& state) {
  const int heads = 32, kv_heads = static_cast<int>(state.range(2)), dim = static_cast<int>(state.range(3));
  const int rows = static_cast<int>(state.range(0)), context = static_cast<int>(state.range(1));
  const auto type = static_cast<KvType>(state.range(4));
  Setup setup(heads, kv_heads, dim, rows, context, type);
  for (auto _ : state) {
    Attend(setup.layer, setup.shape, {&setup.segment, 1}, setup.q.data(), 0, setup.out.data(), 0, 0, 1);
    benchmark::DoNotOptimize(setup.out.data());
  }
  const double seen = 0.5 * rows * (context - rows + 1 + context);
  const double multiply_adds = seen * heads * dim * 2;
  state.counters["GFMA/s"] = benchmark::Counter(multiply_adds * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["share_of_peak"] =
      benchmark::Counter(multiply_adds / FmaPeak(), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["KV_GB/s"] = benchmark::Counter(
      static_cast<double>(context) * kv_heads * static_cast<double>(CellBytes(type, dim)) * 2 / kBlock * 1e-9,
      benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_Attend)
    ->ArgNames({"rows", "context", "kv", "dim", "q8"})
    ->ArgsProduct({{1, 128}, {128, 256, 512, 2048}, {4}, {64}, {0, 1}})
    ->ArgsProduct({{1, 128}, {2048}, {32}, {64}, {0, 1}})
    ->ArgsProduct({{1}, {2048}, {8}, {128}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);

void BM_StoreKv(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0));
  Setup setup(32, 4, 64, rows, 512, static_cast<KvType>(state.range(1)));
  for (auto _ : state) {
    StoreKv(setup.layer, {&setup.segment, 1}, setup.k.data(), 0, setup.v.data(), 0, 0, 1);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(BM_StoreKv)->ArgNames({"rows", "q8"})->ArgsProduct({{1, 128}, {0, 1}})->Unit(benchmark::kMicrosecond);

double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Twelve independent chains hide the latency of four cycles on two ports.
#define SHOAL_FMA(r, i) "vfmadd231ps %%" r "12, %%" r "13, %%" r #i "\n\t"
// clang-format off
#define SHOAL_FMAS(r) \
  SHOAL_FMA(r, 0) SHOAL_FMA(r, 1) SHOAL_FMA(r, 2) SHOAL_FMA(r, 3) SHOAL_FMA(r, 4) SHOAL_FMA(r, 5) \
  SHOAL_FMA(r, 6) SHOAL_FMA(r, 7) SHOAL_FMA(r, 8) SHOAL_FMA(r, 9) SHOAL_FMA(r, 10) SHOAL_FMA(r, 11)
// clang-format on
#define SHOAL_CLOBBERS \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13"

double FmaPeak() {
#if defined(__x86_64__)
  static const double peak = [] {
    constexpr int64_t kRounds = 1'000'000;
    const bool wide = __builtin_cpu_supports("avx512f");
    double best = 0;
    for (int i = 0; i < 10; ++i) {
      const double begin = ThreadSeconds();
      asm volatile("vzeroall" ::: SHOAL_CLOBBERS);
      for (int64_t n = 0; n < kRounds; ++n) {
        if (wide) {
          asm volatile(SHOAL_FMAS("zmm")::: SHOAL_CLOBBERS);
        } else {
          asm volatile(SHOAL_FMAS("ymm")::: SHOAL_CLOBBERS);
        }
      }
      asm volatile("vzeroupper" ::: SHOAL_CLOBBERS);
      best = std::max(best, static_cast<double>(kRounds) * 12 * (wide ? 16 : 8) / (ThreadSeconds() - begin));
    }
    return best;
  }();
  return peak;
#else
  return 0;  // no bound known: the share reads as infinite
#endif
}

void BM_FmaPeak(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(FmaPeak());
  state.counters["GFMA/s"] = FmaPeak() * 1e-9;
}
BENCHMARK(BM_FmaPeak)->Iterations(1);

}  // namespace
}  // namespace shoal::kernels

BENCHMARK_MAIN();
