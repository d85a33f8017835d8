// What: the fixed catalogue of failure reasons. Scripts and metrics rely on the names; add, never rename.
#pragma once

#include "base/error.h"

namespace shoal::reasons {

// Model files (model/).
inline constexpr Reason kModelNotFound{"model_not_found"};
inline constexpr Reason kModelCorrupt{"model_corrupt"};
inline constexpr Reason kModelIncomplete{"model_incomplete"};      // a split file is missing
inline constexpr Reason kUnsupportedFormat{"unsupported_format"};  // not a GGUF file; the message says what it is
inline constexpr Reason kUnsupportedVersion{"unsupported_version"};
inline constexpr Reason kUnsupportedEndianness{"unsupported_endianness"};
inline constexpr Reason kUnsupportedType{"unsupported_type"};
inline constexpr Reason kUnsupportedArch{"unsupported_arch"};
inline constexpr Reason kUnsupportedModel{"unsupported_model"};  // a known architecture, beyond a limit of ours
inline constexpr Reason kUnsupportedTokenizer{"unsupported_tokenizer"};
inline constexpr Reason kModelProducedNan{"model_produced_nan"};

// Requests (serve/, engine/).
inline constexpr Reason kInvalidJson{"invalid_json"};
inline constexpr Reason kInvalidValue{"invalid_value"};
inline constexpr Reason kContextLengthExceeded{"context_length_exceeded"};
inline constexpr Reason kQueueFull{"queue_full"};
inline constexpr Reason kShuttingDown{"shutting_down"};
inline constexpr Reason kCancelled{"cancelled"};
inline constexpr Reason kOutOfBlocks{"out_of_blocks"};

// HTTP (serve/).
inline constexpr Reason kBadRequest{"bad_request"};  // not HTTP as we speak it
inline constexpr Reason kRouteNotFound{"not_found"};
inline constexpr Reason kMethodNotAllowed{"method_not_allowed"};
inline constexpr Reason kRequestTimeout{"request_timeout"};
inline constexpr Reason kBodyTooLarge{"body_too_large"};
inline constexpr Reason kUrlTooLong{"url_too_long"};
inline constexpr Reason kHeadersTooLarge{"headers_too_large"};
inline constexpr Reason kUnsupportedMediaType{"unsupported_media_type"};
inline constexpr Reason kExpectationFailed{"expectation_failed"};
inline constexpr Reason kUnsupportedValue{"unsupported_value"};  // well-formed, but not offered here
inline constexpr Reason kInvalidApiKey{"invalid_api_key"};
inline constexpr Reason kForbiddenHost{"forbidden_host"};
inline constexpr Reason kTooManyConnections{"too_many_connections"};
inline constexpr Reason kOverloaded{"overloaded"};  // too many request bytes held at once
inline constexpr Reason kResponseTooLarge{"response_too_large"};

// Cluster (net/, comm/, cluster/, engine/).
inline constexpr Reason kPeerLost{"peer_lost"};
inline constexpr Reason kPeerTimeout{"peer_timeout"};
inline constexpr Reason kBadFrame{"bad_frame"};
inline constexpr Reason kBadHandshake{"bad_handshake"};
inline constexpr Reason kBadToken{"bad_token"};
inline constexpr Reason kVersionMismatch{"version_mismatch"};
inline constexpr Reason kStaleEpoch{"stale_epoch"};
inline constexpr Reason kGroupClosed{"group_closed"};
inline constexpr Reason kBadShares{"bad_shares"};
inline constexpr Reason kMeetingMismatch{"meeting_mismatch"};  // ranks met with different sizes or operations

// The machine.
inline constexpr Reason kIo{"io"};
inline constexpr Reason kOutOfMemory{"out_of_memory"};
inline constexpr Reason kInternal{"internal"};
inline constexpr Reason kUsage{"usage"};
inline constexpr Reason kBadConfig{"bad_config"};

}  // namespace shoal::reasons
