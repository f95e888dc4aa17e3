// The sums s(p) of Eq. 4 on the CPU, from the number of valid entries at every pixel.
#pragma once

#include <vector>

#include "common/clones.h"
#include "common/masked_conv/window.h"
#include "common/parallel.h"
#include "common/tensor.h"

namespace msa::masked_conv {
namespace {

// E/s and mask' of a row of sums s.
template <typename R>
MSA_CLONES void ratios_of(const int32_t* sums, int64_t n, R numerator, R* __restrict ratio, bool* __restrict new_mask) {
  for (int64_t x = 0; x < n; ++x) {
    const R one = sums[x] > 0 ? static_cast<R>(sums[x]) : R(1);  // a division everywhere, as branches do not vectorise
    ratio[x] = sums[x] > 0 ? numerator / one : R(0);
    new_mask[x] = sums[x] > 0;
  }
}

// s(p) of Eq. 4 for one output row: a box filter, vertical sums first. `columns` holds the sums of the padded row,
// whose margins stay zero, and then `out_w` sums of windows, at most the entries of one output channel's weight.
template <typename R>
void window_ratio_row(const View<const int32_t>& counts, const Window& k, int64_t numerator, int64_t n, int64_t out_y,
                      int64_t out_w, int32_t* columns, R* ratio, bool* new_mask) {
  int32_t* __restrict inside = columns + k.padding_w;
  int32_t* __restrict sums = columns + counts.w + 2 * k.padding_w;
  for (int64_t ky = 0; ky < k.kernel_h; ++ky) {
    const int64_t y = out_y * k.stride_h - k.padding_h + ky * k.dilation_h;
    if (y < 0 || y >= counts.h) continue;
    const int32_t* row = counts.data + n * counts.sn + y * counts.sh;
    for (int64_t x = 0; x < counts.w; ++x) inside[x] += row[x];
  }
  for (int64_t kx = 0; kx < k.kernel_w; ++kx) {
    const int32_t* column = columns + kx * k.dilation_w;
    if (k.stride_w == 1) {
      for (int64_t x = 0; x < out_w; ++x) sums[x] += column[x];
    } else {
      for (int64_t x = 0; x < out_w; ++x) sums[x] += column[x * k.stride_w];
    }
  }
  ratios_of(sums, out_w, static_cast<R>(numerator), ratio, new_mask);
}

// The ratio of Eq. 4 and mask' of Eq. 5 from counts (N, 1, H, W) int32: the valid entries of all channels at a pixel.
inline void ratios_of_counts(const Tensor& counts, const Window& window, int64_t numerator, Tensor& ratio,
                             Tensor& new_mask) {
  const auto in = view<const int32_t>(counts);
  const int64_t out_h = ratio.size(2), out_w = ratio.size(3);
  bool* valid = data_of<bool>(new_mask);
  dispatch_accumulator(ratio.scalar_type(), [&](auto type) {
    auto* ratios = data_of<decltype(type)>(ratio);
    parallel_rows(in.n * out_h, in.w * window.kernel_h, [&](int64_t row) {
      std::vector<int32_t> columns(in.w + 2 * window.padding_w + out_w, 0);
      window_ratio_row(in, window, numerator, row / out_h, row % out_h, out_w, columns.data(), ratios + row * out_w,
                       valid + row * out_w);
    });
  });
}

}  // namespace
}  // namespace msa::masked_conv
