// Eq. 2 after a convolution, and the gradients of it. Maps are walked "pixel by pixel" where the channel is their
// fastest dimension (channels_last), else "row by row" within a channel plane.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/masked_conv/window.h"
#include "common/parallel.h"
#include "common/tensor.h"

namespace msa::masked_conv {
namespace {

template <typename T>
bool channel_fastest(const View<T>& map) {
  return map.sc == 1;
}

template <typename T>
void scale_and_shift_map(const View<T>& map, const Accumulator<T>* ratio, const T* bias) {
  using R = Accumulator<T>;
  if (channel_fastest(map)) {
    parallel_rows(map.n * map.h, map.w * map.c, [&](int64_t row) {
      const int64_t n = row / map.h, y = row % map.h;
      for (int64_t x = 0; x < map.w; ++x) {
        T* __restrict pixel = map.data + n * map.sn + y * map.sh + x * map.sw;
        const R r = ratio[row * map.w + x];
        if (r == R(0)) {
          std::memset(static_cast<void*>(pixel), 0, map.c * sizeof(T));
        } else if (bias != nullptr) {
          for (int64_t c = 0; c < map.c; ++c)
            pixel[c] = static_cast<T>(static_cast<R>(pixel[c]) * r + static_cast<R>(bias[c]));
        } else if (r != R(1)) {
          for (int64_t c = 0; c < map.c; ++c) pixel[c] = static_cast<T>(static_cast<R>(pixel[c]) * r);
        }
      }
    });
    return;
  }
  parallel_rows(map.n * map.c * map.h, map.w, [&](int64_t row) {
    const int64_t n = row / (map.c * map.h), c = row / map.h % map.c, y = row % map.h;
    T* pixels = map.data + n * map.sn + c * map.sc + y * map.sh;
    const R* r = ratio + (n * map.h + y) * map.w;
    const R shift = bias != nullptr ? static_cast<R>(bias[c]) : R(0);
    for (int64_t x = 0; x < map.w; ++x)
      pixels[x * map.sw] = static_cast<T>(renormalise<R>(static_cast<R>(pixels[x * map.sw]), r[x], shift));
  });
}

// dst(n, c, y, x) = f(n, c, y, x), with dst walked in the order of its memory.
template <typename T, typename F>
void fill_map(const View<T>& dst, const F& f) {
  if (channel_fastest(dst)) {
    parallel_rows(dst.n * dst.h, dst.w * dst.c, [&](int64_t row) {
      const int64_t n = row / dst.h, y = row % dst.h;
      for (int64_t x = 0; x < dst.w; ++x) {
        T* pixel = dst.data + n * dst.sn + y * dst.sh + x * dst.sw;
        f.pixel(n, y, x, pixel);
      }
    });
    return;
  }
  parallel_rows(dst.n * dst.c * dst.h, dst.w, [&](int64_t row) {
    const int64_t n = row / (dst.c * dst.h), c = row / dst.h % dst.c, y = row % dst.h;
    T* pixels = dst.data + n * dst.sn + c * dst.sc + y * dst.sh;
    for (int64_t x = 0; x < dst.w; ++x) pixels[x * dst.sw] = f.element(n, c, y, x);
  });
}

// grad · ratio. Where the ratio is 0 the result is 0 even if the incoming gradient is inf or NaN there.
template <typename T>
struct ScaledGradient {
  using R = Accumulator<T>;
  View<const T> grad;
  const R* ratio;

  T element(int64_t n, int64_t c, int64_t y, int64_t x) const {
    const T g = grad.data[n * grad.sn + c * grad.sc + y * grad.sh + x * grad.sw];
    return static_cast<T>(renormalise<R>(static_cast<R>(g), ratio[(n * grad.h + y) * grad.w + x], R(0)));
  }
  void pixel(int64_t n, int64_t y, int64_t x, T* __restrict out) const {
    const R r = ratio[(n * grad.h + y) * grad.w + x];
    const T* __restrict g = grad.data + n * grad.sn + y * grad.sh + x * grad.sw;
    if (r == R(0)) {
      std::memset(static_cast<void*>(out), 0, grad.c * sizeof(T));
    } else if (grad.sc == 1) {
      for (int64_t c = 0; c < grad.c; ++c) out[c] = static_cast<T>(static_cast<R>(g[c]) * r);
    } else {
      for (int64_t c = 0; c < grad.c; ++c) out[c] = static_cast<T>(static_cast<R>(g[c * grad.sc]) * r);
    }
  }
};

// db = Σ grad over valid positions: sums of short stretches of rows first, so that the result does not depend on the
// number of threads and a long row loses no digits; these are added in double.
template <typename T>
void bias_gradient_sum(const View<const T>& grad, const Accumulator<T>* ratio, T* result) {
  using R = Accumulator<T>;
  constexpr int64_t kStretch = 128;
  const int64_t per_row = (grad.w + kStretch - 1) / kStretch, stretches = grad.n * grad.h * per_row;
  std::vector<R> sums(stretches * grad.c, R(0));
  parallel_rows(stretches, kStretch * grad.c, [&](int64_t i) {
    const int64_t row = i / per_row, first = i % per_row * kStretch, last = std::min(grad.w, first + kStretch);
    const T* g = grad.data + row / grad.h * grad.sn + row % grad.h * grad.sh;
    const R* r = ratio + row * grad.w;
    R* __restrict sum = sums.data() + i * grad.c;
    if (channel_fastest(grad)) {
      for (int64_t x = first; x < last; ++x) {
        if (r[x] == R(0)) continue;
        const T* __restrict pixel = g + x * grad.sw;
        for (int64_t c = 0; c < grad.c; ++c) sum[c] += static_cast<R>(pixel[c]);
      }
    } else {
      for (int64_t c = 0; c < grad.c; ++c) {
        R total = R(0);
        for (int64_t x = first; x < last; ++x)
          total += r[x] > R(0) ? static_cast<R>(g[c * grad.sc + x * grad.sw]) : R(0);
        sum[c] = total;
      }
    }
  });
  std::vector<double> totals(grad.c, 0.0);
  for (int64_t i = 0; i < stretches; ++i)
    for (int64_t c = 0; c < grad.c; ++c) totals[c] += static_cast<double>(sums[i * grad.c + c]);
  for (int64_t c = 0; c < grad.c; ++c) result[c] = static_cast<T>(static_cast<R>(totals[c]));
}

}  // namespace
}  // namespace msa::masked_conv
