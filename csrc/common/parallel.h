// Parallel loops over the rows of a map on the CPU.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace msa {

// Elements a thread should have before it is worth waking.
constexpr int64_t kElementsPerThread = 16384;

// Calls f(i) for i in [0, rows), in parallel where rows × elements_per_row is worth it. Each row must be independent;
// results then do not depend on the number of threads.
template <typename F>
void parallel_rows(int64_t rows, int64_t elements_per_row, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_per_row));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(row);
  });
}

}  // namespace msa
