// The decoder's concatenation on the CPU, and its transpose.
#pragma once

#include <optional>

#include "common/parallel.h"
#include "common/tensor.h"

namespace msa::decoder_conv {
namespace {

template <typename T>
struct MaskedView {
  View<T> map;
  std::optional<MaskView> mask;

  bool valid(int64_t n, int64_t y, int64_t x) const {
    return !mask || mask->data[n * mask->sn + y * mask->sh + x * mask->sw];
  }
};

// Calls f(n, y, x, first channel, channels) so that a map is walked in the order of its memory: pixel by pixel where
// the channel is its fastest dimension, else one channel at a time.
template <typename T, typename F>
void walk_pixels(const View<T>& map, const F& f) {
  const bool by_pixel = map.sc == 1;
  const int64_t planes = by_pixel ? 1 : map.c, channels = by_pixel ? map.c : 1;
  parallel_rows(map.n * planes * map.h, map.w * channels, [&](int64_t row) {
    const int64_t n = row / (planes * map.h), c = row / map.h % planes, y = row % map.h;
    for (int64_t x = 0; x < map.w; ++x) f(n, y, x, c, channels);
  });
}

template <typename T>
T* address(const View<T>& map, int64_t n, int64_t c, int64_t y, int64_t x) {
  return map.data + n * map.sn + c * map.sc + y * map.sh + x * map.sw;
}

// image = cat(nearest_up2(low), skip), 0 in the holes. T stands for the element's bits.
template <typename T>
void concatenate_maps(const MaskedView<const T>& low, const MaskedView<const T>& skip, const View<T>& image) {
  const auto copy = [&](const MaskedView<const T>& part, int64_t first_channel, int64_t shift) {
    View<T> to = image;
    to.data += first_channel * image.sc;
    to.c = part.map.c;
    walk_pixels(to, [&](int64_t n, int64_t y, int64_t x, int64_t c, int64_t channels) {
      const int64_t from_y = y >> shift, from_x = x >> shift;
      T* out = address(to, n, c, y, x);
      const T* from = address(part.map, n, c, from_y, from_x);
      const bool valid = part.valid(n, from_y, from_x);
      for (int64_t i = 0; i < channels; ++i) out[i * to.sc] = valid ? from[i * part.map.sc] : T(0);
    });
  };
  copy(low, 0, 1);
  copy(skip, low.map.c, 0);
}

// The transpose for low: sums of the 2x2 pixels that a small one became.
template <typename T>
void sum_upsampled(const View<const T>& grad, const MaskedView<T>& low) {
  using R = Accumulator<T>;
  const View<T>& to = low.map;
  walk_pixels(to, [&](int64_t n, int64_t y, int64_t x, int64_t c, int64_t channels) {
    T* out = address(to, n, c, y, x);
    const T* from = address(grad, n, c, 2 * y, 2 * x);
    const bool valid = low.valid(n, y, x);
    for (int64_t i = 0; i < channels; ++i) {
      const T* at = from + i * grad.sc;
      const R sum = (static_cast<R>(at[0]) + static_cast<R>(at[grad.sw])) +
                    (static_cast<R>(at[grad.sh]) + static_cast<R>(at[grad.sh + grad.sw]));
      out[i * to.sc] = valid ? static_cast<T>(sum) : T(0);
    }
  });
}

// The transpose for skip, whose channels come last.
template <typename T>
void copy_skip(const View<const T>& grad, const MaskedView<T>& skip) {
  const View<T>& to = skip.map;
  const int64_t first = grad.c - to.c;
  walk_pixels(to, [&](int64_t n, int64_t y, int64_t x, int64_t c, int64_t channels) {
    T* out = address(to, n, c, y, x);
    const T* from = address(grad, n, first + c, y, x);
    const bool valid = skip.valid(n, y, x);
    for (int64_t i = 0; i < channels; ++i) out[i * to.sc] = valid ? from[i * grad.sc] : T(0);
  });
}

}  // namespace
}  // namespace msa::decoder_conv
