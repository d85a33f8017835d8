// What: the small number types everyone speaks.
#pragma once

#include <cstdint>

namespace shoal {

using TokenId = int32_t;      // index into the vocabulary
using SequenceId = uint64_t;  // one running generation; never reused within a head's life
using BlockId = int32_t;      // index into the KV block pool; the same on every rank of a group
using StepId = uint64_t;      // counts the steps of one group, from 1
using Epoch = uint64_t;       // which membership is in force; messages of older epochs are dropped

}  // namespace shoal
