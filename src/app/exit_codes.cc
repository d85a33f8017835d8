#include "app/exit_codes.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "core/reasons.h"

namespace shoal {

int ExitCodeOf(const Error& error) {
  for (Reason reason :
       {reasons::kModelNotFound, reasons::kModelCorrupt, reasons::kModelIncomplete, reasons::kUnsupportedFormat,
        reasons::kUnsupportedVersion, reasons::kUnsupportedEndianness, reasons::kUnsupportedType,
        reasons::kUnsupportedArch, reasons::kUnsupportedTokenizer, reasons::kUnsupportedModel})
    if (error.reason == reason) return kExitModel;
  if (error.reason == reasons::kUsage) return kExitUsage;
  if (error.code == Code::kConfig) return kExitConfig;
  for (Reason reason : {reasons::kPeerLost, reasons::kPeerTimeout, reasons::kBadHandshake, reasons::kVersionMismatch,
                        reasons::kGroupClosed, reasons::kStaleEpoch})
    if (error.reason == reason) return kExitCluster;
  if (error.code == Code::kUnauthenticated) return kExitAuth;
  return kExitRunTime;
}

int ReportError(const Error& error) {
  const char* no_color = std::getenv("NO_COLOR");
  const bool color = isatty(STDERR_FILENO) != 0 && (no_color == nullptr || *no_color == '\0');
  std::fprintf(stderr, "%sshoal:%s %s\n", color ? "\033[31m" : "", color ? "\033[0m" : "", error.message.c_str());
  if (!error.detail.empty())
    std::fprintf(stderr, "%s       %s%s\n", color ? "\033[2m" : "", error.detail.c_str(), color ? "\033[0m" : "");
  return ExitCodeOf(error);
}

}  // namespace shoal
