#include "compute/vector_math.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/vector_math.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
// After highway.h, once per target.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shoal::vec {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// Applies f to whole vectors, then to the rest in a padded one: each lane computes the same everywhere.
template <class F>
HWY_INLINE void Each(float* x, size_t n, F&& f) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(f(hn::LoadU(d, x + i), i, lanes), d, x + i);
  if (i < n) hn::StoreN(f(hn::LoadN(d, x + i, n - i), i, n - i), d, x + i, n - i);
}

// To the nearest half and back.
HWY_INLINE V RoundToHalf(V v) {
  const D d;
  const hn::Rebind<hwy::float16_t, D> half;
  return hn::PromoteTo(d, hn::DemoteTo(half, v));
}

void ScaleImpl(float* x, float by, size_t n) {
  const auto factor = hn::Set(D(), by);
  Each(x, n, [&](V v, size_t, size_t) { return hn::Mul(v, factor); });
}

void AddImpl(float* x, const float* y, size_t n) {
  Each(x, n, [&](V v, size_t i, size_t left) { return hn::Add(v, hn::LoadN(D(), y + i, left)); });
}

void AddScaledImpl(float* x, const float* y, float by, size_t n) {
  const auto factor = hn::Set(D(), by);
  Each(x, n, [&](V v, size_t i, size_t left) { return hn::Add(v, hn::Mul(factor, hn::LoadN(D(), y + i, left))); });
}

void ClampImpl(float* x, float limit, size_t n) {
  const auto high = hn::Set(D(), limit), low = hn::Set(D(), -limit);
  Each(x, n, [&](V v, size_t, size_t) { return hn::Min(hn::Max(v, low), high); });
}

void SoftCapImpl(float* x, float cap, size_t n) {
  const D d;
  const auto factor = hn::Set(d, cap), inverse = hn::Set(d, 1 / cap);
  Each(x, n, [&](V v, size_t, size_t) { return hn::Mul(factor, hn::Tanh(d, hn::Mul(v, inverse))); });
}

void RoundToHalfImpl(float* x, size_t n) {
  Each(x, n, [](V v, size_t, size_t) { return RoundToHalf(v); });
}

// Four accumulators, added pairwise, then the lanes: one order for a given n.
template <class F>
HWY_INLINE float Reduce(const float* x, size_t n, F&& f) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  auto a = hn::Zero(d), b = hn::Zero(d), c = hn::Zero(d), e = hn::Zero(d);
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    a = f(hn::LoadU(d, x + i), a);
    b = f(hn::LoadU(d, x + i + lanes), b);
    c = f(hn::LoadU(d, x + i + 2 * lanes), c);
    e = f(hn::LoadU(d, x + i + 3 * lanes), e);
  }
  for (; i + lanes <= n; i += lanes) a = f(hn::LoadU(d, x + i), a);
  float tail = 0;
  for (; i < n; ++i) tail = hn::GetLane(f(hn::Set(d, x[i]), hn::Set(d, tail)));
  return hn::ReduceSum(d, hn::Add(hn::Add(a, b), hn::Add(c, e))) + tail;
}

float SumOfSquaresImpl(const float* x, size_t n) {
  return Reduce(x, n, [](V v, V sum) { return hn::MulAdd(v, v, sum); });
}

void NormImpl(NormKind kind, const float* x, const float* weight, const float* bias, float eps, size_t n, float* out) {
  const D d;
  float mean = 0;
  if (kind == NormKind::kLayer) mean = Reduce(x, n, [](V v, V sum) { return hn::Add(v, sum); }) / static_cast<float>(n);
  const auto centre = hn::Set(d, mean);
  const float squares = Reduce(x, n, [&](V v, V sum) {
    const auto away = hn::Sub(v, centre);
    return hn::MulAdd(away, away, sum);
  });
  const auto factor = hn::Set(d, 1.0f / std::sqrt(squares / static_cast<float>(n) + eps));
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < n; i += lanes) {
    const size_t left = n - i < lanes ? n - i : lanes;
    auto v = hn::Mul(hn::Sub(hn::LoadN(d, x + i, left), centre), factor);
    if (weight != nullptr) v = hn::Mul(v, hn::LoadN(d, weight + i, left));
    if (bias != nullptr) v = hn::Add(v, hn::LoadN(d, bias + i, left));
    hn::StoreN(v, d, out + i, left);
  }
}

struct Silu {
  HWY_INLINE V operator()(V v) const {
    const D d;
    return hn::Div(v, hn::Add(hn::Set(d, 1.0f), hn::Exp(d, hn::Neg(v))));
  }
};

// The reference reads this function from a table over halves; models are judged by its values, so the argument and the
// result are rounded as there. Beyond 10 it is the identity or 0.
struct GeluTanh {
  HWY_INLINE V operator()(V x) const {
    const D d;
    const auto v = RoundToHalf(x);
    const auto inside = RoundToHalf(Exact(v));
    const auto ten = hn::Set(d, 10.0f);
    return hn::IfThenElse(hn::Ge(x, ten), x, hn::IfThenZeroElse(hn::Le(x, hn::Neg(ten)), inside));
  }
  HWY_INLINE V Exact(V v) const {
    const D d;
    const auto cube = hn::MulAdd(hn::Mul(hn::Set(d, 0.044715f), hn::Mul(v, v)), v, v);
    // 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)).
    const auto u2 = hn::Mul(hn::Set(d, -2.0f * 0.79788456080286535588f), cube);
    return hn::Div(v, hn::Add(hn::Set(d, 1.0f), hn::Exp(d, u2)));
  }
};

struct GeluErf {
  HWY_INLINE V operator()(V v) const {
    // No vector erf at hand: lane by lane.
    const D d;
    HWY_ALIGN float lane[hn::MaxLanes(D())];
    hn::Store(v, d, lane);
    for (size_t i = 0; i < hn::Lanes(d); ++i)
      lane[i] = 0.5f * lane[i] * (1.0f + std::erf(lane[i] * 0.70710678118654752440f));
    return hn::Load(d, lane);
  }
};

struct Relu {
  HWY_INLINE V operator()(V v) const { return hn::Max(v, hn::Zero(D())); }
};

struct ReluSquared {
  HWY_INLINE V operator()(V v) const {
    const auto positive = hn::Max(v, hn::Zero(D()));
    return hn::Mul(positive, positive);
  }
};

template <class F>
HWY_INLINE void ActivateWith(F f, float* gate, const float* up, size_t n) {
  if (up == nullptr) {
    Each(gate, n, [&](V v, size_t, size_t) { return f(v); });
  } else {
    Each(gate, n, [&](V v, size_t i, size_t left) { return hn::Mul(f(v), hn::LoadN(D(), up + i, left)); });
  }
}

void ActivateImpl(Activation activation, float* gate, const float* up, size_t n) {
  switch (activation) {
    case Activation::kSilu:
      return ActivateWith(Silu{}, gate, up, n);
    case Activation::kGelu:
      return ActivateWith(GeluTanh{}, gate, up, n);
    case Activation::kGeluErf:
      return ActivateWith(GeluErf{}, gate, up, n);
    case Activation::kRelu:
      return ActivateWith(Relu{}, gate, up, n);
    case Activation::kReluSquared:
      return ActivateWith(ReluSquared{}, gate, up, n);
  }
}

void RotateImpl(RopeKind kind, float* head, const float* cos, const float* sin, size_t half) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const size_t whole = half / lanes * lanes;
  if (kind == RopeKind::kHalves) {
    for (size_t i = 0; i < half; i += lanes) {
      const size_t left = half - i < lanes ? half - i : lanes;
      const auto a = hn::LoadN(d, head + i, left), b = hn::LoadN(d, head + half + i, left);
      const auto c = hn::LoadN(d, cos + i, left), s = hn::LoadN(d, sin + i, left);
      hn::StoreN(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), d, head + i, left);
      hn::StoreN(hn::Add(hn::Mul(a, s), hn::Mul(b, c)), d, head + half + i, left);
    }
    return;
  }
  for (size_t i = 0; i < whole; i += lanes) {
    V a, b;
    hn::LoadInterleaved2(d, head + 2 * i, a, b);
    const auto c = hn::LoadU(d, cos + i), s = hn::LoadU(d, sin + i);
    hn::StoreInterleaved2(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), hn::Add(hn::Mul(a, s), hn::Mul(b, c)), d,
                          head + 2 * i);
  }
  for (size_t i = whole; i < half; ++i) {
    const float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cos[i] - b * sin[i];
    head[2 * i + 1] = a * sin[i] + b * cos[i];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::vec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace shoal::vec {

HWY_EXPORT(ScaleImpl);
HWY_EXPORT(AddImpl);
HWY_EXPORT(AddScaledImpl);
HWY_EXPORT(ClampImpl);
HWY_EXPORT(SoftCapImpl);
HWY_EXPORT(RoundToHalfImpl);
HWY_EXPORT(SumOfSquaresImpl);
HWY_EXPORT(NormImpl);
HWY_EXPORT(ActivateImpl);
HWY_EXPORT(RotateImpl);

void Scale(float* x, float by, size_t n) { HWY_DYNAMIC_DISPATCH(ScaleImpl)(x, by, n); }
void Add(float* x, const float* y, size_t n) { HWY_DYNAMIC_DISPATCH(AddImpl)(x, y, n); }
void AddScaled(float* x, const float* y, float by, size_t n) { HWY_DYNAMIC_DISPATCH(AddScaledImpl)(x, y, by, n); }
void Clamp(float* x, float limit, size_t n) { HWY_DYNAMIC_DISPATCH(ClampImpl)(x, limit, n); }
void SoftCap(float* x, float cap, size_t n) { HWY_DYNAMIC_DISPATCH(SoftCapImpl)(x, cap, n); }
void RoundToHalf(float* x, size_t n) { HWY_DYNAMIC_DISPATCH(RoundToHalfImpl)(x, n); }
float SumOfSquares(const float* x, size_t n) { return HWY_DYNAMIC_DISPATCH(SumOfSquaresImpl)(x, n); }
void Norm(NormKind kind, const float* x, const float* weight, const float* bias, float eps, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(NormImpl)(kind, x, weight, bias, eps, n, out);
}
void Activate(Activation activation, float* gate, const float* up, size_t n) {
  HWY_DYNAMIC_DISPATCH(ActivateImpl)(activation, gate, up, n);
}
void Rotate(RopeKind kind, float* head, const float* cos, const float* sin, size_t half) {
  HWY_DYNAMIC_DISPATCH(RotateImpl)(kind, head, cos, sin, half);
}

}  // namespace shoal::vec
#endif  // HWY_ONCE
