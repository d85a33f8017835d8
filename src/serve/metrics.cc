#include "serve/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

namespace shoal::serve {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Histogram;
using prometheus::MetricFamily;
using prometheus::MetricType;

const Histogram::BucketBoundaries kLongTimes = {0.005, 0.01, 0.02, 0.04,  0.08,  0.16,  0.32,  0.64,
                                                1.28,  2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84};
const Histogram::BucketBoundaries kShortTimes = {0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032,
                                                 0.064,  0.128, 0.256, 0.512, 1.024, 2.048, 4.096};

double Seconds(Nanos duration) { return std::chrono::duration<double>(duration).count(); }

// The engine's own numbers, read at the moment of the scrape.
class EngineFigures : public prometheus::Collectable {
 public:
  explicit EngineFigures(const Engine& engine) : engine_(engine) {}

  std::vector<MetricFamily> Collect() const override {
    const EngineStats stats = engine_.Stats();
    std::vector<MetricFamily> families;
    const auto add = [&](const char* name, const char* help, MetricType type, double value) {
      MetricFamily family;
      family.name = name;
      family.help = help;
      family.type = type;
      family.metric.push_back(Value(type, value));
      families.push_back(std::move(family));
    };
    const auto counter = [&](const char* name, const char* help, uint64_t value) {
      add(name, help, MetricType::Counter, static_cast<double>(value));
    };
    const auto gauge = [&](const char* name, const char* help, int value) {
      add(name, help, MetricType::Gauge, value);
    };
    counter("shoal_tokens_generated_total", "Tokens generated", stats.generated_tokens);
    counter("shoal_prompt_tokens_total", "Prompt tokens computed", stats.prompt_tokens);
    counter("shoal_prompt_tokens_cached_total", "Prompt tokens found in the prefix cache", stats.cached_tokens);
    counter("shoal_tokens_proposed_total", "Tokens guessed ahead and verified", stats.proposed_tokens);
    counter("shoal_tokens_accepted_total", "Guesses that were right", stats.accepted_tokens);
    counter("shoal_preemptions_total", "Sequences put back to wait for KV blocks", stats.preemptions);
    counter("shoal_steps_total", "Steps of the group", stats.steps);
    counter("shoal_steps_overlapped_total", "Steps computed in parts, one while others met", stats.steps_overlapped);
    gauge("shoal_requests_running", "Sequences in the running batch", stats.running);
    gauge("shoal_requests_waiting", "Sequences waiting for a place in the batch", stats.waiting);
    gauge("shoal_kv_blocks_total", "KV blocks of the pool", stats.kv_blocks);
    gauge("shoal_kv_blocks_free", "KV blocks not in use", stats.kv_blocks_free);
    gauge("shoal_kv_blocks_cached", "Free KV blocks that hold a known prefix", stats.kv_blocks_cached);
    gauge("shoal_ranks", "Ranks of the group", static_cast<int>(engine_.group().ranks.size()));
    gauge("shoal_healthy", "1 while the group can compute", engine_.failure() ? 0 : 1);
    MetricFamily finished;
    finished.name = "shoal_sequences_finished_total";
    finished.help = "Sequences that ended, by reason";
    finished.type = MetricType::Counter;
    const char* const names[] = {"stop", "length", "cancelled", "error"};
    for (size_t i = 0; i < std::size(names); ++i) {
      finished.metric.push_back(Value(MetricType::Counter, static_cast<double>(stats.finished[i])));
      finished.metric.back().label.push_back({"reason", names[i]});
    }
    families.push_back(std::move(finished));
    MetricFamily busy;
    busy.name = "shoal_rank_busy_seconds_total";
    busy.help = "Time that each rank has spent computing";
    busy.type = MetricType::Counter;
    for (size_t r = 0; r < engine_.group().ranks.size(); ++r) {
      busy.metric.push_back(Value(MetricType::Counter, static_cast<double>(stats.rank_busy_ns[r]) / 1e9));
      busy.metric.back().label.push_back({"rank", std::to_string(r)});
    }
    families.push_back(std::move(busy));
    return families;
  }

 private:
  static prometheus::ClientMetric Value(MetricType type, double value) {
    prometheus::ClientMetric metric;
    if (type == MetricType::Counter)
      metric.counter.value = value;
    else
      metric.gauge.value = value;
    return metric;
  }
  const Engine& engine_;
};

}  // namespace

struct Metrics::State {
  State(const Engine& engine, const std::string& model)
      : figures(engine),
        requests(
            BuildCounter().Name("shoal_requests_total").Help("HTTP requests answered, by status").Register(registry)),
        rejections(
            BuildCounter().Name("shoal_rejections_total").Help("Requests refused, by reason").Register(registry)),
        unknown_fields(BuildCounter()
                           .Name("shoal_unknown_fields_total")
                           .Help("Fields of requests that mean nothing here and were ignored")
                           .Register(registry)
                           .Add({})),
        broken(BuildCounter()
                   .Name("shoal_broken_streams_total")
                   .Help("Answers that did not reach their end")
                   .Register(registry)),
        first_token(BuildHistogram()
                        .Name("shoal_time_to_first_token_seconds")
                        .Help("From a request's arrival to its first token")
                        .Register(registry)
                        .Add({}, kLongTimes)),
        inter_token(BuildHistogram()
                        .Name("shoal_inter_token_seconds")
                        .Help("From one token of a choice to its next")
                        .Register(registry)
                        .Add({}, kShortTimes)),
        duration(BuildHistogram()
                     .Name("shoal_request_duration_seconds")
                     .Help("From a request's arrival to the end of its answer")
                     .Register(registry)
                     .Add({}, kLongTimes)),
        connections(BuildGauge().Name("shoal_connections").Help("Open client connections").Register(registry).Add({})) {
    BuildGauge()
        .Name("shoal_build_info")
        .Help("Always 1; says what runs")
        .Register(registry)
        .Add({{"version", SHOAL_VERSION}, {"model_name", model}, {"kernel", engine.group().kernel}})
        .Set(1);
  }

  EngineFigures figures;
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& requests;
  prometheus::Family<prometheus::Counter>& rejections;
  prometheus::Counter& unknown_fields;
  prometheus::Family<prometheus::Counter>& broken;
  Histogram& first_token;
  Histogram& inter_token;
  Histogram& duration;
  prometheus::Gauge& connections;
};

Metrics::Metrics(const Engine& engine, std::string model_name) : state_(std::make_unique<State>(engine, model_name)) {}
Metrics::~Metrics() = default;

void Metrics::OnRequest(int status, Nanos duration) {
  state_->requests.Add({{"status", std::to_string(status)}}).Increment();
  state_->duration.Observe(Seconds(duration));
}

void Metrics::OnRejection(Reason reason) {
  state_->rejections.Add({{"reason", std::string(reason.name())}}).Increment();
}
void Metrics::OnUnknownFields(int count) { state_->unknown_fields.Increment(count); }
void Metrics::OnBrokenStream(std::string_view why) { state_->broken.Add({{"reason", std::string(why)}}).Increment(); }
void Metrics::OnFirstToken(Nanos since_arrival) { state_->first_token.Observe(Seconds(since_arrival)); }

void Metrics::OnNextTokens(Nanos since_last, int tokens) {
  for (int i = 0; i < tokens; ++i) state_->inter_token.Observe(Seconds(since_last) / tokens);
}

void Metrics::SetConnections(int open) { state_->connections.Set(open); }

std::string Metrics::Text() const {
  std::vector<MetricFamily> families = state_->registry.Collect();
  for (MetricFamily& family : state_->figures.Collect()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace shoal::serve
