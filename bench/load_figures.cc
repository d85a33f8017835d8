#include "load_figures.h"

#include <algorithm>
#include <cmath>

namespace shoal::load {
namespace {

double Seconds(Nanos time) { return std::chrono::duration<double>(time).count(); }
double Millis(Nanos time) { return Seconds(time) * 1e3; }

Spread InMillis(Spread spread) {
  for (double* value : {&spread.mean, &spread.p50, &spread.p90, &spread.p99, &spread.max}) *value *= 1e3;
  return spread;
}

double SortedPercentile(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return 0;
  const double at = p * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], at - static_cast<double>(below));
}

}  // namespace

double Outcome::InterTokenSeconds() const {
  return tokens > 1 && last_token > first_token ? Seconds(last_token - first_token) / (tokens - 1) : 0;
}

void Samples::Add(double value) {
  ++count_;
  if (values_.size() < most_) {
    values_.push_back(value);
    return;
  }
  state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
  if (const size_t place = (state_ >> 16) % count_; place < most_) values_[place] = value;
}

double Percentile(std::vector<double> values, double p) {
  std::ranges::sort(values);
  return SortedPercentile(values, p);
}

Spread SpreadOf(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  double sum = 0;
  for (const double value : values) sum += value;
  return {.mean = sum / static_cast<double>(values.size()),
          .p50 = SortedPercentile(values, 0.5),
          .p90 = SortedPercentile(values, 0.9),
          .p99 = SortedPercentile(values, 0.99),
          .max = values.back()};
}

bool Meets(const Outcome& outcome, const Slo& slo) {
  if (!outcome.ok()) return false;
  if (slo.first_token_ms > 0 && (outcome.first_token < Nanos(0) || Millis(outcome.first_token) > slo.first_token_ms))
    return false;
  return slo.inter_token_ms <= 0 || outcome.InterTokenSeconds() * 1e3 <= slo.inter_token_ms;
}

Figures Summarize(const std::vector<Outcome>& outcomes, const Samples& gap_seconds, const Slo& slo) {
  Figures figures;
  figures.requests = static_cast<int>(outcomes.size());
  figures.counted_by_server = true;
  std::vector<double> first, inter, end;
  Nanos begun = Nanos::max(), ended{};
  int64_t events = 0;
  int good = 0;
  for (const Outcome& outcome : outcomes) {
    begun = std::min(begun, outcome.scheduled);
    ended = std::max(ended, outcome.scheduled + outcome.end);
    if (!outcome.ok()) {
      ++figures.failures[outcome.failure];
      continue;
    }
    ++figures.ok;
    good += Meets(outcome, slo) ? 1 : 0;
    figures.prompt_tokens += outcome.prompt_tokens;
    figures.tokens += outcome.tokens;
    figures.counted_by_server = figures.counted_by_server && outcome.counted_by_server;
    events += outcome.events;
    if (outcome.first_token >= Nanos(0)) first.push_back(Seconds(outcome.first_token));
    if (outcome.tokens > 1) inter.push_back(outcome.InterTokenSeconds());
    end.push_back(Seconds(outcome.end));
  }
  if (outcomes.empty() || ended <= begun) return figures;
  figures.seconds = Seconds(ended - begun);
  figures.requests_per_s = figures.ok / figures.seconds;
  figures.goodput_per_s = good / figures.seconds;
  figures.tokens_per_s = static_cast<double>(figures.tokens) / figures.seconds;
  figures.tokens_per_event = events > 0 ? static_cast<double>(figures.tokens) / static_cast<double>(events) : 0;
  figures.first_token_ms = InMillis(SpreadOf(std::move(first)));
  figures.gap_ms = InMillis(SpreadOf(gap_seconds.values()));
  figures.inter_token_ms = InMillis(SpreadOf(std::move(inter)));
  figures.end_ms = InMillis(SpreadOf(std::move(end)));
  return figures;
}

}  // namespace shoal::load
