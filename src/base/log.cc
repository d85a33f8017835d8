#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace shoal {
namespace {

std::shared_ptr<spdlog::logger> MakeLogger() {
  const char* no_color = std::getenv("NO_COLOR");
  const bool color = isatty(STDERR_FILENO) && (no_color == nullptr || *no_color == '\0');
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(color ? spdlog::color_mode::automatic
                                                                          : spdlog::color_mode::never);
  auto logger = std::make_shared<spdlog::logger>("shoal", sink);
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  const char* wanted = std::getenv("SHOAL_LOG");
  const std::string name = wanted == nullptr ? "info" : wanted;
  const auto level = spdlog::level::from_str(name);  // "off" for what it does not know
  const bool known = level != spdlog::level::off || name == "off";
  logger->set_level(known ? level : spdlog::level::info);
  if (!known) logger->warn("SHOAL_LOG={} is no level (trace, debug, info, warn, error, off); using info", name);
  return logger;
}

}  // namespace

spdlog::logger& Log() {
  static const std::shared_ptr<spdlog::logger> logger = MakeLogger();
  return *logger;
}

}  // namespace shoal
