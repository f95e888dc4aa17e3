// Parallel loops over the rows of a map on the CPU.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace msa {

// A thread is worth waking for this many elements.
constexpr int64_t kElementsPerThread = 16384;

// Calls f(begin, end) for ranges that cover [0, items), in parallel where items × elements_per_item is worth it.
template <typename F>
void parallel_ranges(int64_t items, int64_t elements_per_item, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_per_item));
  torch::stable::parallel_for(0, items, grain, f);
}

// Calls f(i) for i in [0, rows) likewise. Each row must be independent; results then do not depend on the number of
// threads.
template <typename F>
void parallel_rows(int64_t rows, int64_t elements_per_row, const F& f) {
  parallel_ranges(rows, elements_per_row, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(row);
  });
}

}  // namespace msa
