// What: how long a step takes, from the steps that were measured: a line, base + row · rows, fitted by least squares of the
// relative error, older steps counting less and less. A step reads all weights once whatever its rows (the base), and computes
// for each row. Where all measured steps had the same number of rows, a row is taken to cost 1/8 of the base, which is what
// decoding on processors looks like.
// Owns: five sums. Threads: none. Pure: times come in as values.
// Limits: O(1). Fails: never; Observe leaves out what makes no sense.
#pragma once

#include <cstdint>

namespace shoal {

class StepCost {
 public:
  void Observe(int rows, int64_t ns);

  bool known() const { return weight_ > 0; }
  double base() const { return Fit().base; }  // ns
  double row() const { return Fit().row; }    // ns
  double Of(double rows) const;

 private:
  struct Line {
    double base = 8;
    double row = 1;
  };
  Line Fit() const;

  double weight_ = 0, rows_ = 0, rows2_ = 0, ns_ = 0, rows_ns_ = 0;
};

}  // namespace shoal
