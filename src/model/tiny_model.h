// What: a small model with random weights, as the bytes of a GGUF file: for tests, and for a first run without a
// real model. It has every tensor and key of a llama-type model and a working SentencePiece-style tokenizer; what
// it writes is noise. The same options give the same bytes on every machine.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace shoal {

struct TinyModelOptions {
  std::string arch = "llama";  // also the prefix of the keys; the tensors are those of llama whatever it says
  std::string name = "tiny random model";
  uint64_t seed = 1;
  int dim = 64;
  int layers = 2;
  int heads = 4;
  int kv_heads = 2;
  int ffn = 128;
  int context = 512;
  int vocabulary = 300;  // 3 special, 256 byte, then word tokens; at least 300
  bool q8_0 = false;     // matrices in Q8_0 (those whose rows are whole blocks of 32), else F32
  bool tied = false;     // no output matrix: the embedding is used
};

// What is wrong with the options, if anything.
Status CheckTinyModel(const TinyModelOptions& options);
// CHECKs the options.
std::string MakeTinyModel(const TinyModelOptions& options = {});

}  // namespace shoal
