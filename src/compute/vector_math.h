// What: the element-wise and per-row arithmetic between the matrix products. Every function treats a value the same way
// wherever it lies in its vector, and sums in an order that depends on the length alone (docs/design.md D4).
// Threads: pure.
#pragma once

#include <cstddef>

#include "core/model_spec.h"

namespace shoal::vec {

void Scale(float* x, float by, size_t n);
void Add(float* x, const float* y, size_t n);                  // x += y
void AddScaled(float* x, const float* y, float by, size_t n);  // x += by * y, rounded twice
void Clamp(float* x, float limit, size_t n);                   // to [-limit, limit]
void SoftCap(float* x, float cap, size_t n);                   // cap * tanh(x / cap)
void RoundToHalf(float* x, size_t n);                          // to the nearest f16 value
float SumOfSquares(const float* x, size_t n);

// out = normalised x, times weight, plus bias; weight and bias may be null. out may be x.
void Norm(NormKind kind, const float* x, const float* weight, const float* bias, float eps, size_t n, float* out);

// gate = activation(gate), times up unless null.
void Activate(Activation activation, float* gate, const float* up, size_t n);

// Turns the first 2 * half values of a head.
void Rotate(RopeKind kind, float* head, const float* cos, const float* sin, size_t half);

}  // namespace shoal::vec
