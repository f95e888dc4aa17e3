// Between maps and matrices: gathering pixels into rows, scattering rows to pixels, and sums of products.
#pragma once

#include "common/parallel.h"
#include "common/products.h"
#include "shift_attention/cpu/rows.h"

namespace msa::shift_attention {
namespace {

// out = a b where `first`, else out += a b; `scratch` has room for one product. (aten::addmm takes Scalars, which the
// stable interface has no form for.)
template <typename A, typename B, typename R>
void multiply(const A& a, const B& b, const Matrix<R>& out, bool first, R* scratch) {
  if (first) return multiply(a, b, out);
  const Matrix<R> product{scratch, out.rows, out.columns};
  multiply(a, b, product);
  parallel_rows(out.rows, out.columns, [&](int64_t i) { add_to(out.row(i), product.row(i), out.columns); });
}

// Calls move(i, pixel, first, last) for the listed positions (y · pitch + x) of sample n, i being the place in the list
// and `pixel` the address of channel 0, until all channels [first, last) are done. A tile of pixels by channels at a
// time: pixels that are neighbours share the cache lines of a channel, and these are used whole before the lines of
// other channels, which at a channel stride of a power of two compete for the same few places, push them out.
template <typename T, typename Move>
void for_pixels(const View<T>& map, int64_t n, int64_t pitch, const std::vector<int64_t>& positions, const Move& move) {
  constexpr int64_t kPixels = 16;
  const int64_t count = static_cast<int64_t>(positions.size()), channels = map.sc == 1 ? map.c : 8;
  parallel_rows((count + kPixels - 1) / kPixels, kPixels * map.c, [&](int64_t tile) {
    const int64_t begin = tile * kPixels, pixels = std::min(kPixels, count - begin);
    T* at[kPixels];
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t y = positions[begin + i] / pitch, x = positions[begin + i] % pitch;
      at[i] = map.data + n * map.sn + y * map.sh + x * map.sw;
    }
    for (int64_t c = 0; c < map.c; c += channels)
      for (int64_t i = 0; i < pixels; ++i) move(begin + i, at[i], c, std::min(map.c, c + channels));
  });
}

// Features of the listed positions as rows, row i times factor(i).
template <typename R, typename T, typename Factor>
void gather(const View<const T>& map, int64_t n, int64_t pitch, const std::vector<int64_t>& positions, R* rows,
            const Factor& factor) {
  for_pixels(map, n, pitch, positions, [&](int64_t i, const T* pixel, int64_t first, int64_t last) {
    const R by = factor(i);
    for (int64_t c = first; c < last; ++c) rows[i * map.c + c] = static_cast<R>(pixel[c * map.sc]) * by;
  });
}

template <typename R, typename T, typename Factor>
void scatter(const R* rows, const View<T>& map, int64_t n, int64_t pitch, const std::vector<int64_t>& positions,
             const Factor& factor) {
  for_pixels(map, n, pitch, positions, [&](int64_t i, T* pixel, int64_t first, int64_t last) {
    const R by = factor(i);
    for (int64_t c = first; c < last; ++c) pixel[c * map.sc] = static_cast<T>(rows[i * map.c + c] * by);
  });
}

}  // namespace
}  // namespace msa::shift_attention
