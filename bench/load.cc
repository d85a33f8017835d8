// shoal-load: puts a server of OpenAI's completions API under load and says how it held: throughput, time to the first
// token, time between tokens, goodput. Any such server will do. bench/README.md has examples.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "load_client.h"

using namespace shoal;
using namespace shoal::load;

namespace {

constexpr int kExitSomeFailed = 1;
constexpr int kExitUsage = 2;

struct Flags {
  Plan plan;
  std::string url = "http://127.0.0.1:7462";
  std::string prompt_tokens = "32-512";
  std::string ids = "3-99";
  double timeout_s = 300, idle_s = 60, connect_s = 10, run_s = 1800;
  Slo slo;
  bool json = false;
  std::string csv;
};

void AddFlags(CLI::App& app, Flags& flags) {
  Plan& plan = flags.plan;
  app.add_option("url", flags.url, "http[s]://HOST[:PORT][/BASE]; the base is /v1 by default")->capture_default_str();
  app.add_option("--requests", plan.requests, "how many")->check(CLI::Range(1, kMaxRequests))->capture_default_str();
  app.add_option("--warmup", plan.warmup, "sent before, one by one, not counted")->check(CLI::Range(0, 1000));
  auto* rate = app.add_option("--rate", plan.rate, "open loop: Poisson arrivals, this many a second")
                   ->check(CLI::Range(1e-3, 1e6));
  app.add_option("--clients", plan.clients, "closed loop: so many clients, each asking again when answered")
      ->check(CLI::Range(1, kMaxInFlight))
      ->capture_default_str()
      ->excludes(rate);
  app.add_option("--prompt-tokens", flags.prompt_tokens, "LOW-HIGH, uniform by seed")->capture_default_str();
  auto* ids = app.add_flag("--token-ids", plan.token_ids, "prompts are arrays of random ids: their length is exact");
  app.add_option("--id-range", flags.ids, "LOW-HIGH that ids are drawn from")->capture_default_str()->needs(ids);
  app.add_flag("--chat", plan.chat, "ask /chat/completions instead of /completions")->excludes(ids);
  app.add_option("--max-tokens", plan.max_tokens, "of each answer")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--temperature", plan.temperature, "0: always the likeliest")->check(CLI::Range(0.0, 2.0));
  app.add_flag("--ignore-eos", plan.ignore_eos, "answers go on to --max-tokens");
  app.add_option("--model", plan.model, "what requests call the model (default: they do not)");
  app.add_option("--api-key", plan.api_key, "sent as a bearer token")->envname("OPENAI_API_KEY");
  auto* ca = app.add_option("--ca", plan.ca_file, "a PEM file: whom to trust with https (default: the system's list)");
  app.add_flag("!--no-verify", plan.verify, "take any certificate")->excludes(ca);
  app.add_option("--extra", plan.extra, "a JSON object whose fields every request gets too");
  app.add_option("--seed", plan.seed, "of lengths, prompts and arrivals")->capture_default_str();
  app.add_option("--slo-ttft", flags.slo.first_token_ms, "goodput: first token within MS")->check(CLI::Range(0.0, 1e9));
  app.add_option("--slo-itl", flags.slo.inter_token_ms, "goodput: a request's mean time between tokens within MS")
      ->check(CLI::Range(0.0, 1e9));
  app.add_option("--timeout", flags.timeout_s, "seconds for one request")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app.add_option("--idle-timeout", flags.idle_s, "seconds without a byte")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app.add_option("--connect-timeout", flags.connect_s, "seconds")->check(CLI::Range(0.001, 1e6))->capture_default_str();
  app.add_option("--run-timeout", flags.run_s, "seconds for the whole run")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app.add_flag("--json", flags.json, "print one JSON object");
  app.add_option("--csv", flags.csv, "write one line a request to this file");
}

Status Complete(Flags& flags) {
  Plan& plan = flags.plan;
  SHOAL_ASSIGN(plan.url, ParseUrl(flags.url));
  SHOAL_ASSIGN(plan.prompt_tokens, ParseRange(flags.prompt_tokens, 1, kMaxPromptTokens));
  SHOAL_ASSIGN(plan.ids, ParseRange(flags.ids, 0, 1 << 30));
  SHOAL_RETURN_IF_ERROR(CheckExtra(plan.extra));
  const auto nanos = [](double seconds) {
    return std::chrono::duration_cast<Nanos>(std::chrono::duration<double>(seconds));
  };
  plan.request_timeout = nanos(flags.timeout_s);
  plan.idle_timeout = nanos(flags.idle_s);
  plan.connect_timeout = nanos(flags.connect_s);
  plan.run_timeout = nanos(flags.run_s);
  return {};
}

double CpuSeconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

void PrintSpread(const char* name, const Spread& spread) {
  std::printf("  %-22s %9.1f %9.1f %9.1f %9.1f %9.1f\n", name, spread.p50, spread.p90, spread.p99, spread.max,
              spread.mean);
}

void PrintTable(const Flags& flags, const Figures& figures, const Report& report, double cpu) {
  const Plan& plan = flags.plan;
  if (plan.rate > 0)
    std::printf("open loop, %g requests/s (Poisson, seed %llu)\n", plan.rate,
                static_cast<unsigned long long>(plan.seed));
  else
    std::printf("closed loop, %d clients (seed %llu)\n", plan.clients, static_cast<unsigned long long>(plan.seed));
  std::printf("  requests  %d ok, %d failed, in %.2f s: %.2f requests/s\n", figures.ok, figures.requests - figures.ok,
              figures.seconds, figures.requests_per_s);
  for (const auto& [cause, count] : figures.failures)
    std::printf("    %d x %s: %s\n", count, cause.c_str(), report.examples.at(cause).c_str());
  std::printf("  tokens    %lld generated: %.1f tokens/s; %lld of prompts\n", static_cast<long long>(figures.tokens),
              figures.tokens_per_s, static_cast<long long>(figures.prompt_tokens));
  std::printf("            counted by %s; %.2f an event\n",
              figures.counted_by_server ? "the server's usage" : "events with text (the server sends no usage)",
              figures.tokens_per_event);
  if (flags.slo.first_token_ms > 0 || flags.slo.inter_token_ms > 0)
    std::printf("  goodput   %.2f requests/s (first token within %g ms, mean between tokens within %g ms; 0: any)\n",
                figures.goodput_per_s, flags.slo.first_token_ms, flags.slo.inter_token_ms);
  std::printf("  %-22s %9s %9s %9s %9s %9s\n", "milliseconds", "p50", "p90", "p99", "max", "mean");
  PrintSpread("first token", figures.first_token_ms);
  PrintSpread("between events", figures.gap_ms);
  PrintSpread("between tokens, mean", figures.inter_token_ms);
  PrintSpread("whole answer", figures.end_ms);
  std::printf("  this program used %.2f s of processor time\n", cpu);
}

nlohmann::ordered_json ToJson(const Spread& spread) {
  return {{"p50", spread.p50}, {"p90", spread.p90}, {"p99", spread.p99}, {"max", spread.max}, {"mean", spread.mean}};
}

void PrintJson(const Flags& flags, const Figures& figures, const Report& report, double cpu) {
  const nlohmann::ordered_json json = {{"rate", flags.plan.rate},
                                       {"clients", flags.plan.rate > 0 ? 0 : flags.plan.clients},
                                       {"seed", flags.plan.seed},
                                       {"requests", figures.requests},
                                       {"ok", figures.ok},
                                       {"failed", figures.requests - figures.ok},
                                       {"failures", figures.failures},
                                       {"failure_examples", report.examples},
                                       {"seconds", figures.seconds},
                                       {"requests_per_s", figures.requests_per_s},
                                       {"slo_ttft_ms", flags.slo.first_token_ms},
                                       {"slo_itl_ms", flags.slo.inter_token_ms},
                                       {"goodput_per_s", figures.goodput_per_s},
                                       {"prompt_tokens", figures.prompt_tokens},
                                       {"tokens", figures.tokens},
                                       {"tokens_per_s", figures.tokens_per_s},
                                       {"tokens_per_event", figures.tokens_per_event},
                                       {"tokens_by", figures.counted_by_server ? "usage" : "events"},
                                       {"ttft_ms", ToJson(figures.first_token_ms)},
                                       {"itl_ms", ToJson(figures.gap_ms)},
                                       {"mean_itl_ms", ToJson(figures.inter_token_ms)},
                                       {"e2e_ms", ToJson(figures.end_ms)},
                                       {"cpu_seconds", cpu}};
  std::cout << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
}

bool WriteCsv(const std::string& path, const Report& report) {
  std::ofstream file(path);
  const auto ms = [](Nanos time) { return std::chrono::duration<double, std::milli>(time).count(); };
  file << "request,scheduled_ms,ttft_ms,mean_itl_ms,longest_gap_ms,e2e_ms,prompt_tokens,tokens,events,failure\n";
  for (size_t i = 0; i < report.outcomes.size(); ++i) {
    const Outcome& outcome = report.outcomes[i];
    file << i << ',' << ms(outcome.scheduled) << ',';
    if (outcome.first_token >= Nanos(0)) file << ms(outcome.first_token);
    file << ',' << outcome.InterTokenSeconds() * 1e3 << ',' << ms(outcome.longest_gap) << ',' << ms(outcome.end) << ','
         << outcome.prompt_tokens << ',' << outcome.tokens << ',' << outcome.events << ',' << outcome.failure << '\n';
  }
  return static_cast<bool>(file.flush());
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Puts a server of OpenAI's completions API under load.", "shoal-load");
  AddFlags(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  if (const Status complete = Complete(flags); !complete) {
    std::fprintf(stderr, "shoal-load: %s\n", complete.error().message.c_str());
    return kExitUsage;
  }
  const auto report = Drive(flags.plan);
  if (!report) {
    std::fprintf(stderr, "shoal-load: %s\n", report.error().message.c_str());
    return kExitSomeFailed;
  }
  const double cpu = CpuSeconds();
  const Figures figures = Summarize(report->outcomes, report->gap_seconds, flags.slo);
  (flags.json ? PrintJson : PrintTable)(flags, figures, *report, cpu);
  if (!flags.csv.empty() && !WriteCsv(flags.csv, *report)) {
    std::fprintf(stderr, "shoal-load: cannot write %s\n", flags.csv.c_str());
    return kExitSomeFailed;
  }
  return figures.ok == figures.requests ? 0 : kExitSomeFailed;
}
