// What: every limit of the program in one place, with the reason where it is not plain.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace shoal::limits {

// Model files.
inline constexpr uint64_t kMaxMetadataBytes = 256ull << 20;
inline constexpr uint64_t kMaxKeys = 1 << 20;  // far above any real file; bounds what a header makes us allocate
inline constexpr uint32_t kMaxKeyBytes = 65535;
inline constexpr uint64_t kMaxTensors = 1 << 20;  // 512 layers of 512 experts of 3 matrices
inline constexpr uint32_t kMaxTensorNameBytes = 64;
inline constexpr uint32_t kMaxDimensions = 4;
inline constexpr uint32_t kMaxAlignment = 1u << 20;
inline constexpr int kMaxArrayDepth = 4;
inline constexpr int kMaxLayers = 512;
inline constexpr int kMaxExperts = 512;
inline constexpr int kMaxWidth = 1 << 20;  // values in a vector of the model
inline constexpr int kMaxHeads = 1 << 14;
inline constexpr int kMaxHeadDim = 1 << 12;
inline constexpr int kMaxVocabulary = 4 << 20;
inline constexpr int kMaxContext = 1 << 24;
inline constexpr size_t kMaxTokenBytes = 64 << 10;
inline constexpr size_t kMaxMerges = kMaxVocabulary;
inline constexpr int kMaxSplitFiles = 1024;

// Groups.
inline constexpr int kMaxRanks = 16;  // = virtual slices (core/slices.h)
inline constexpr int kMaxThreads = 256;

// Text.
inline constexpr size_t kMaxTextBytes = size_t{1} << 30;  // to one Tokenizer::Encode; offsets into it are 32 bits wide
inline constexpr size_t kMaxInputBytes = size_t{64} << 20;  // standard input of `shoal tokenize`

// Requests (research: limits table of the reliability survey).
inline constexpr size_t kMaxBodyBytes = 8 << 20;
inline constexpr size_t kMaxHeaderBytes = 16 << 10;
inline constexpr size_t kMaxUrlBytes = 8 << 10;
inline constexpr int kMaxJsonDepth = 64;
inline constexpr int kMaxPromptsPerRequest = 64;
inline constexpr int kMaxChoices = 16;  // n; a huge n was an out-of-memory attack elsewhere
inline constexpr int kMaxStops = 16;
inline constexpr size_t kMaxStopBytes = 1024;
inline constexpr size_t kMaxCacheSaltBytes = 1024;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr int kMaxLogprobs = 20;
inline constexpr size_t kMaxQueuedRequests = 512;
inline constexpr int kMaxConnections = 4096;
inline constexpr size_t kMaxUnsentBytes = 1 << 20;  // a stream's bytes that its reader has not taken yet

// HTTP (serve/).
inline constexpr int kMaxHeaderFields = 128;
inline constexpr int kMaxConnectionsPerPeer = 64;         // per address; loopback is exempt
inline constexpr int kMaxRequestsPerConnection = 10'000;  // then the connection is closed in good order
inline constexpr int kMaxChoicesPerRequest = 256;         // prompts * n
inline constexpr int kMaxJsonValues = 1 << 20;            // in one body: bounds what parsing it can allocate
inline constexpr size_t kMaxBodyBytesHeld = 256 << 20;    // bodies of all connections that are not parsed yet
inline constexpr size_t kMaxResponseBytes = 64 << 20;     // an answer that is not streamed
inline constexpr size_t kMaxModelNameBytes = 1024;
inline constexpr size_t kMaxApiKeys = 10'000;

// Steps.
inline constexpr int kBlockTokens = 16;   // positions in one KV block
inline constexpr int kMaxStepRows = 512;  // rows (tokens) in one step
inline constexpr int kMaxStepSequences = 256;

// Wire.
inline constexpr uint32_t kMaxFrameBytes = 64u << 20;

// Time.
inline constexpr std::chrono::seconds kHandshakeTimeout{10};
inline constexpr std::chrono::seconds kStepTimeout{120};
inline constexpr std::chrono::seconds kLoadTimeout{300};  // between two signs of life of a loading worker
inline constexpr std::chrono::seconds kHeaderTimeout{10};
inline constexpr std::chrono::seconds kStalledReaderTimeout{120};
inline constexpr std::chrono::seconds kIdleConnectionTimeout{75};
inline constexpr std::chrono::seconds kBodyStallTimeout{10};    // between two pieces of a body
inline constexpr std::chrono::seconds kBodyTimeout{120};        // for all of it
inline constexpr std::chrono::seconds kStreamPingInterval{15};  // a stream is never silent for longer

}  // namespace shoal::limits
