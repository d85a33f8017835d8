// The packed linear layer: products of n rows with weights of the shapes of a 1.1 B Llama model, by type. Beside each stands
// what the machine could do in the same run: bytes per second that one core reads from memory, int8 and f32
// multiply-adds per second from registers.
//
//   linear_bench [--types q4_0,q8_0,...] [--shapes 2048x2048,...] [--rows 1,4,8,16,128] [--megabytes 256] [--seconds 0.3] [--quantile 0.5]
//
// One thread, its own processor time (others may share the core), median over passes. `--megabytes` of distinct weights
// pass by in turn, so that they come from memory and not from a cache.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear_bench.cc"
#include "compute/kernels/linear_targets.h"
//
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "compute/kernels/linear.h"
//
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::linear_bench {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Multiply-adds per call, from registers; the sums are returned so that nothing is left out.
double Int8Work(int64_t rounds, int32_t& sink) {
  const hn::CappedTag<int32_t, 16> di;
  const hn::Repartition<uint8_t, decltype(di)> du8;
  const hn::Repartition<int8_t, decltype(di)> di8;
  const auto u = hn::Set(du8, uint8_t{3});
  const auto q = hn::Set(di8, int8_t{5});
  const auto from = [&](int32_t v) HWY_ATTR { return hn::Set(di, v + sink); };  // distinct, or they would be one
  auto a = from(0), b = from(1), c = from(2), d = from(3), e = from(4), f = from(5), g = from(6), h = from(7),
       i = from(8), j = from(9);
  for (int64_t r = 0; r < rounds; ++r) {
    a = hn::SumOfMulQuadAccumulate(di, u, q, a), b = hn::SumOfMulQuadAccumulate(di, u, q, b);
    c = hn::SumOfMulQuadAccumulate(di, u, q, c), d = hn::SumOfMulQuadAccumulate(di, u, q, d);
    e = hn::SumOfMulQuadAccumulate(di, u, q, e), f = hn::SumOfMulQuadAccumulate(di, u, q, f);
    g = hn::SumOfMulQuadAccumulate(di, u, q, g), h = hn::SumOfMulQuadAccumulate(di, u, q, h);
    i = hn::SumOfMulQuadAccumulate(di, u, q, i), j = hn::SumOfMulQuadAccumulate(di, u, q, j);
    __asm__ volatile("" : : : "memory");
  }
  a = hn::Add(hn::Add(hn::Add(a, b), hn::Add(c, d)), hn::Add(hn::Add(e, f), hn::Add(hn::Add(g, h), hn::Add(i, j))));
  sink = hn::GetLane(a);
  return static_cast<double>(rounds) * 10 * 4 * static_cast<double>(hn::Lanes(di));
}

double FloatWork(int64_t rounds, float& sink) {
  const hn::CappedTag<float, 16> df;
  const auto x = hn::Set(df, 1.0001f);
  const auto from = [&](float v) HWY_ATTR { return hn::Set(df, v + sink); };
  auto a = from(0), b = from(1), c = from(2), d = from(3), e = from(4), f = from(5), g = from(6), h = from(7),
       i = from(8), j = from(9);
  for (int64_t r = 0; r < rounds; ++r) {
    a = hn::MulAdd(x, x, a), b = hn::MulAdd(x, x, b), c = hn::MulAdd(x, x, c), d = hn::MulAdd(x, x, d);
    e = hn::MulAdd(x, x, e), f = hn::MulAdd(x, x, f), g = hn::MulAdd(x, x, g), h = hn::MulAdd(x, x, h);
    i = hn::MulAdd(x, x, i), j = hn::MulAdd(x, x, j);
    __asm__ volatile("" : : : "memory");
  }
  a = hn::Add(hn::Add(hn::Add(a, b), hn::Add(c, d)), hn::Add(hn::Add(e, f), hn::Add(hn::Add(g, h), hn::Add(i, j))));
  sink = hn::GetLane(a);
  return static_cast<double>(rounds) * 10 * static_cast<double>(hn::Lanes(df));
}

// `ahead`: how far ahead lines are asked for.
void ReadWork(const uint8_t* p, size_t bytes, size_t ahead, uint64_t& sink) {
  const hn::CappedTag<uint64_t, 8> d;
  const size_t step = hn::Lanes(d) * 8;
  auto a = hn::Zero(d), b = a;
  for (size_t i = 0; i + 2 * step <= bytes; i += 2 * step) {
    if (i % 128 == 0) {
      __builtin_prefetch(p + i + ahead, 0, 2);
      __builtin_prefetch(p + i + ahead + 64, 0, 2);
    }
    a = hn::Xor(a, hn::LoadU(d, reinterpret_cast<const uint64_t*>(p + i)));
    b = hn::Xor(b, hn::LoadU(d, reinterpret_cast<const uint64_t*>(p + i + step)));
  }
  sink = hn::GetLane(hn::Xor(a, b));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::linear_bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <sys/mman.h>

namespace shoal::kernels {
namespace linear_bench {
HWY_EXPORT(Int8Work);
HWY_EXPORT(FloatWork);
HWY_EXPORT(ReadWork);
}  // namespace linear_bench

namespace {

double Now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

double Quantile(std::vector<double> v, double q) {
  const auto at = static_cast<int64_t>(static_cast<double>(v.size() - 1) * q);
  std::nth_element(v.begin(), v.begin() + at, v.end());
  return v[static_cast<size_t>(at)];
}
double g_quantile = 0.5;

// Seconds of `work` (median, or --quantile), run for about `seconds`, at least three times.
template <class Work>
double Time(double seconds, Work&& work) {
  std::vector<double> times;
  for (double start = Now(); times.size() < 3 || Now() - start < seconds;) {
    const double at = Now();
    work();
    times.push_back(Now() - at);
  }
  return Quantile(times, g_quantile);
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<std::byte, Free>;

Bytes HugeBytes(size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;
  bytes = (bytes + kHuge - 1) / kHuge * kHuge;
  Bytes memory(static_cast<std::byte*>(std::aligned_alloc(kHuge, bytes)));
  (void)madvise(memory.get(), bytes, MADV_HUGEPAGE);
  std::memset(memory.get(), 1, bytes);
  return memory;
}

void PrintBounds(size_t megabytes, double seconds) {
  const size_t bytes = megabytes << 20;
  const Bytes memory = HugeBytes(bytes);
  uint64_t word = 0;
  double read = 0;  // the fastest way of asking for what comes next: which one that is depends on the processor
  for (const size_t ahead : {0, 1024, 16384}) {
    const double time = Time(seconds, [&] {
      HWY_DYNAMIC_DISPATCH(linear_bench::ReadWork)(reinterpret_cast<const uint8_t*>(memory.get()), bytes, ahead, word);
    });
    read = read == 0 ? time : std::min(read, time);
  }
  int32_t whole = 0;
  float real = 0;
  double int8 = 0, f32 = 0;
  const double int8_time = Time(seconds, [&] { int8 = HWY_DYNAMIC_DISPATCH(linear_bench::Int8Work)(200000, whole); });
  const double f32_time = Time(seconds, [&] { f32 = HWY_DYNAMIC_DISPATCH(linear_bench::FloatWork)(200000, real); });
  std::printf("# %s; one core: memory read %.1f GB/s, int8 %.0f G multiply-adds/s, f32 %.0f G multiply-adds/s\n",
              std::string(TargetName()).c_str(), static_cast<double>(bytes) / read * 1e-9, int8 / int8_time * 1e-9,
              f32 / f32_time * 1e-9);
  if (word == 1 && whole == 1 && real == 1) std::printf("#\n");
}

struct Options {
  std::string types = "q4_0,q8_0,q4_k,q6_k,f16";
  std::string shapes = "2048x2048,5632x2048,2048x5632,32000x2048";
  std::string rows = "1,4,8,16,128";
  size_t megabytes = 256;
  double seconds = 0.3;
};

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return parts;
}

WeightType TypeOf(const std::string& name) {
  for (uint32_t t = 0; t < 64; ++t) {
    const TypeInfo* info = FindType(static_cast<WeightType>(t));
    if (info != nullptr && info->name == name) return static_cast<WeightType>(t);
  }
  std::fprintf(stderr, "linear_bench: no type %s\n", name.c_str());
  std::exit(2);
}

void RunShape(WeightType type, int64_t out_rows, int64_t columns, const Options& options) {
  const TypeInfo& info = *FindType(type);
  const size_t row_bytes = static_cast<size_t>(columns / info.block_columns) * info.block_bytes;
  std::vector<std::byte> source(static_cast<size_t>(out_rows) * row_bytes);
  // 0x11 everywhere: small scales, no NaN.
  std::fill(source.begin(), source.end(), std::byte{0x11});
  const PackSource view{type, out_rows, 0, columns, row_bytes, source.data()};
  // The FFN down shape is cut in slices as it is in the model.
  const KLayout layout =
      columns > out_rows ? KLayout::Sliced({0, 16}, columns / 32, 32, columns) : KLayout::Whole(columns);
  std::vector<PackedMatrix> copies;
  size_t held = 0;
  double packing = 0;
  while (copies.empty() || held < options.megabytes << 20) {
    const double at = Now();
    auto packed = PackedMatrix::Pack(view, layout, 1);
    packing += Now() - at;
    if (!packed) std::exit(1);
    held += packed->resident_bytes();
    copies.push_back(std::move(*packed));
  }
  const double pack_rate = static_cast<double>(source.size() * copies.size()) / packing * 1e-9;
  for (const std::string& text : Split(options.rows)) {
    const int64_t n = std::atoll(text.c_str());
    std::vector<float> x(static_cast<size_t>(n * columns), 0.5f);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) - 8.0f;
    std::vector<float> out(static_cast<size_t>(n * out_rows));
    const ActivationKind kind = ActivationKindOf(type);
    const Bytes prepared = HugeBytes(PreparedBytes(kind, layout, n));
    const auto prepare = [&] { Prepare(kind, layout, x.data(), columns, n, prepared.get(), 0, 1); };
    const double prepare_time = Time(options.seconds / 10, prepare);
    size_t next = 0;
    const double time = Time(options.seconds, [&] {
      copies[next].Multiply(prepared.get(), n, nullptr, out.data(), static_cast<size_t>(out_rows), 0, 0, 1);
      next = (next + 1) % copies.size();
    });
    const double bytes = static_cast<double>(copies[0].resident_bytes());
    std::printf("%s,%ldx%ld,%ld,%.1f,%.1f,%.1f,%.1f,%.2f\n", std::string(info.name).c_str(),
                static_cast<long>(out_rows), static_cast<long>(columns), static_cast<long>(n), time * 1e6,
                prepare_time * 1e6, bytes / time * 1e-9, static_cast<double>(out_rows * columns * n) / time * 1e-9,
                pack_rate);
    std::fflush(stdout);
  }
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--types") options.types = argv[i + 1];
    if (name == "--shapes") options.shapes = argv[i + 1];
    if (name == "--rows") options.rows = argv[i + 1];
    if (name == "--megabytes") options.megabytes = static_cast<size_t>(std::atoll(argv[i + 1]));
    if (name == "--quantile") g_quantile = std::atof(argv[i + 1]);  // below 0.5: on a busy machine
    if (name == "--seconds") options.seconds = std::atof(argv[i + 1]);
  }
  PrintBounds(options.megabytes, options.seconds);
  std::printf("type,shape,rows,multiply_us,prepare_us,weight_gb_per_s,g_multiply_adds_per_s,pack_gb_per_s\n");
  for (const std::string& type : Split(options.types)) {
    for (const std::string& shape : Split(options.shapes)) {
      const size_t cross = shape.find('x');
      if (cross == std::string::npos) return 2;
      RunShape(TypeOf(type), std::atoll(shape.c_str()), std::atoll(shape.c_str() + cross + 1), options);
    }
  }
  return 0;
}

}  // namespace
}  // namespace shoal::kernels

int main(int argc, char** argv) { return shoal::kernels::Main(argc, argv); }
#endif
