// What: every entry of core/reasons.h, for net/codec.cc. A test compares the two.
// Threads: constants.
reasons::kModelNotFound, reasons::kModelCorrupt, reasons::kModelIncomplete, reasons::kUnsupportedFormat,
    reasons::kUnsupportedVersion, reasons::kUnsupportedEndianness, reasons::kUnsupportedType, reasons::kUnsupportedArch,
    reasons::kUnsupportedModel, reasons::kUnsupportedTokenizer, reasons::kModelProducedNan, reasons::kInvalidJson,
    reasons::kInvalidValue, reasons::kContextLengthExceeded, reasons::kQueueFull, reasons::kShuttingDown,
    reasons::kCancelled, reasons::kOutOfBlocks, reasons::kBadRequest, reasons::kRouteNotFound,
    reasons::kMethodNotAllowed, reasons::kRequestTimeout, reasons::kBodyTooLarge, reasons::kUrlTooLong,
    reasons::kHeadersTooLarge, reasons::kUnsupportedMediaType, reasons::kExpectationFailed, reasons::kUnsupportedValue,
    reasons::kInvalidApiKey, reasons::kForbiddenHost, reasons::kTooManyConnections, reasons::kOverloaded,
    reasons::kResponseTooLarge, reasons::kPeerLost, reasons::kPeerTimeout, reasons::kBadFrame, reasons::kBadHandshake,
    reasons::kBadToken, reasons::kVersionMismatch, reasons::kStaleEpoch, reasons::kGroupClosed, reasons::kBadShares,
    reasons::kMeetingMismatch, reasons::kIo, reasons::kOutOfMemory, reasons::kInternal, reasons::kUsage,
    reasons::kBadConfig, kNoReason,
