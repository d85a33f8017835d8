// What: the error that a peer sent instead of an answer.
#pragma once

#include "base/error.h"
#include "net/codec.h"
#include "net/wire.pb.h"

namespace shoal {

inline Error SentError(const wire::Failed& failed) {
  auto error = DecodeError(failed.error());
  return error ? *std::move(error) : error.error();
}

}  // namespace shoal
