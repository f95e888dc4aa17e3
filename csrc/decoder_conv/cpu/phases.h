// The phases of the decoder form on the CPU: their weights, and adding them to the convolution of the skip connection.
#pragma once

#include <cstring>
#include <vector>

#include "common/masked_conv/cpu/epilogue.h"
#include "common/parallel.h"
#include "common/tensor.h"
#include "decoder_conv/phases.h"

namespace msa::decoder_conv {
namespace {

using masked_conv::channel_fastest;
using masked_conv::renormalise;

// ---- the weights --------------------

// phases[block 2a+b][u][v] = Σ of the 3x3 taps that fall on row u and column v of the small map.
template <typename T>
void phase_weight_sum(const View<const T>& weight, const View<T>& phases) {
  using R = Accumulator<T>;
  parallel_rows(weight.n, 16 * weight.c, [&](int64_t o) {
    for (int64_t block = 0; block < 4; ++block)
      for (int64_t u = 0; u < 2; ++u)
        for (int64_t v = 0; v < 2; ++v) {
          const T* taps[4];
          int count = 0;
          for (int64_t ky = 0; ky < 3; ++ky)
            for (int64_t kx = 0; kx < 3; ++kx)
              if (phase_tap(block / 2, ky) == u && phase_tap(block % 2, kx) == v)
                taps[count++] = weight.data + o * weight.sn + ky * weight.sh + kx * weight.sw;
          T* __restrict out = phases.data + (block * weight.n + o) * phases.sn + u * phases.sh + v * phases.sw;
          const auto sum_taps = [&](auto known_count) {
            for (int64_t i = 0; i < weight.c; ++i) {
              R sum = R(0);
              for (int t = 0; t < known_count; ++t) sum += static_cast<R>(taps[t][i * weight.sc]);
              out[i * phases.sc] = static_cast<T>(sum);
            }
          };
          if (count == 1) sum_taps(std::integral_constant<int, 1>());
          if (count == 2) sum_taps(std::integral_constant<int, 2>());
          if (count == 4) sum_taps(std::integral_constant<int, 4>());
        }
  });
}

// The transpose: every 3x3 tap gathers the gradient of the four phase taps it was summed into.
template <typename T>
void fold_phase_gradient(const View<const T>& phases, const View<T>& grad) {
  using R = Accumulator<T>;
  parallel_rows(grad.n, 9 * grad.c, [&](int64_t o) {
    for (int64_t ky = 0; ky < 3; ++ky)
      for (int64_t kx = 0; kx < 3; ++kx) {
        const T* taps[4];
        for (int64_t block = 0; block < 4; ++block)
          taps[block] = phases.data + (block * grad.n + o) * phases.sn + phase_tap(block / 2, ky) * phases.sh +
                        phase_tap(block % 2, kx) * phases.sw;
        T* __restrict out = grad.data + o * grad.sn + ky * grad.sh + kx * grad.sw;
        for (int64_t i = 0; i < grad.c; ++i) {
          const int64_t at = i * phases.sc;
          out[i * grad.sc] = static_cast<T>((static_cast<R>(taps[0][at]) + static_cast<R>(taps[1][at])) +
                                            (static_cast<R>(taps[2][at]) + static_cast<R>(taps[3][at])));
        }
      }
  });
}

// ---- the maps --------------------

// map(2i+a, 2j+b) += phases(block 2a+b, i+a, j+b), then Eq. 2; see decoder_conv/phases.h.
template <typename T>
void add_phases_map(const View<T>& map, const View<const T>& phases, const Accumulator<T>* ratio, const T* bias) {
  using R = Accumulator<T>;
  const auto phase_at = [&](int64_t n, int64_t y, int64_t x) {
    const int64_t a = y & 1, b = x & 1;
    return phases.data + n * phases.sn + (2 * a + b) * map.c * phases.sc + (y / 2 + a) * phases.sh +
           (x / 2 + b) * phases.sw;
  };
  if (channel_fastest(map) && channel_fastest(phases)) {
    const std::vector<T> no_bias(bias == nullptr ? map.c : 0, T(0));
    const T* shift = bias != nullptr ? bias : no_bias.data();
    parallel_rows(map.n * map.h, map.w * map.c, [&](int64_t row) {
      const int64_t n = row / map.h, y = row % map.h;
      for (int64_t x = 0; x < map.w; ++x) {
        T* __restrict pixel = map.data + n * map.sn + y * map.sh + x * map.sw;
        const T* __restrict phase = phase_at(n, y, x);
        const R r = ratio[row * map.w + x];
        if (r == R(0)) {
          std::memset(static_cast<void*>(pixel), 0, map.c * sizeof(T));
          continue;
        }
        for (int64_t c = 0; c < map.c; ++c)
          pixel[c] =
              static_cast<T>((static_cast<R>(pixel[c]) + static_cast<R>(phase[c])) * r + static_cast<R>(shift[c]));
      }
    });
    return;
  }
  parallel_rows(map.n * map.c * map.h, map.w, [&](int64_t row) {
    const int64_t n = row / (map.c * map.h), c = row / map.h % map.c, y = row % map.h;
    T* pixels = map.data + n * map.sn + c * map.sc + y * map.sh;
    const R* r = ratio + (n * map.h + y) * map.w;
    const R shift = bias != nullptr ? static_cast<R>(bias[c]) : R(0);
    for (int64_t x = 0; x < map.w; ++x) {
      const R sum = static_cast<R>(pixels[x * map.sw]) + static_cast<R>(phase_at(n, y, x)[c * phases.sc]);
      pixels[x * map.sw] = static_cast<T>(renormalise<R>(sum, r[x], shift));
    }
  });
}

// The transpose of adding phases: phase block 2a+b at (i+a, j+b) takes pixel (2i+a, 2j+b), the rest is 0.
template <typename T>
struct PhaseGradient {
  View<const T> grad;

  const T* source(int64_t n, int64_t block, int64_t y, int64_t x) const {
    const int64_t i = y - block / 2, j = x - block % 2;
    if (i < 0 || j < 0 || i >= grad.h / 2 || j >= grad.w / 2) return nullptr;
    return grad.data + n * grad.sn + (2 * i + block / 2) * grad.sh + (2 * j + block % 2) * grad.sw;
  }
  T element(int64_t n, int64_t c, int64_t y, int64_t x) const {
    const T* from = source(n, c / grad.c, y, x);
    return from != nullptr ? from[c % grad.c * grad.sc] : T(0);
  }
  void pixel(int64_t n, int64_t y, int64_t x, T* out) const {
    for (int64_t block = 0; block < 4; ++block, out += grad.c) {
      const T* from = source(n, block, y, x);
      if (from == nullptr) {
        std::memset(static_cast<void*>(out), 0, grad.c * sizeof(T));
      } else {
        for (int64_t c = 0; c < grad.c; ++c) out[c] = from[c * grad.sc];
      }
    }
  }
};

}  // namespace
}  // namespace msa::decoder_conv
