// CPU kernels of the partial convolution. Every map is walked in the order of its memory: "pixel by pixel" where the
// channel is the fastest dimension (channels_last), else "row by row" within a channel plane.
#include <type_traits>

#include "../common/clones.h"
#include "../common/parallel.h"
#include "cpu_convolution.h"
#include "cpu_epilogue.h"
#include "operators.h"

namespace msa::partial_conv {
namespace {

// ---- masks --------------------

// counts(p) = Σ_g channels_g · mask_g(p): valid entries of all channels at one pixel.
void count_row(const View<const bool>& mask, const Ints& channels, int64_t n, int64_t y, int32_t* counts) {
  const bool* row = mask.data + n * mask.sn + y * mask.sh;
  if (mask.c > 1 && channel_fastest(mask)) {
    for (int64_t x = 0; x < mask.w; ++x) {
      int32_t sum = 0;
      for (int64_t g = 0; g < mask.c; ++g) sum += static_cast<int32_t>(channels[g]) * row[x * mask.sw + g];
      counts[x] = sum;
    }
    return;
  }
  std::fill(counts, counts + mask.w, 0);
  for (int64_t g = 0; g < mask.c; ++g) {
    const bool* plane = row + g * mask.sc;
    const int32_t weight = static_cast<int32_t>(channels[g]);
    for (int64_t x = 0; x < mask.w; ++x) counts[x] += weight * plane[x * mask.sw];
  }
}

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

// dst = mask ? src : 0. T stands for the element's bits: zero is all zero bits in every dtype. In place (dst == src)
// valid elements are not touched.
template <typename T>
void select_map(const View<const T>& src, const View<const bool>& mask, const Ints& channels, const View<T>& dst) {
  const bool in_place = src.data == dst.data;
  const bool elementwise = mask.c == src.c && src.c > 1;
  if (channel_fastest(dst)) {
    parallel_rows(dst.n * dst.h, dst.w * dst.c, [&](int64_t row) {
      const int64_t n = row / dst.h, y = row % dst.h;
      for (int64_t x = 0; x < dst.w; ++x) {
        const T* from = src.data + n * src.sn + y * src.sh + x * src.sw;
        T* to = dst.data + n * dst.sn + y * dst.sh + x * dst.sw;
        const bool* valid = mask.data + n * mask.sn + y * mask.sh + x * mask.sw;
        if (elementwise) {
          for (int64_t c = 0; c < dst.c; ++c) to[c] = valid[c * mask.sc] ? from[c * src.sc] : T(0);
          continue;
        }
        if (mask.c == 1 && dst.c == 3 && src.sc == 1 && !in_place) {  // an image: too few channels for a branch
          for (int64_t c = 0; c < 3; ++c) to[c] = *valid ? from[c] : T(0);
          continue;
        }
        for (int64_t g = 0, c = 0; g < mask.c; c += channels[g++]) {
          const int64_t end = c + channels[g];
          if (!valid[g * mask.sc]) {
            for (int64_t i = c; i < end; ++i) to[i] = T(0);
          } else if (!in_place && src.sc == 1) {
            for (int64_t i = c; i < end; ++i) to[i] = from[i];
          } else if (!in_place) {
            for (int64_t i = c; i < end; ++i) to[i] = from[i * src.sc];
          }
        }
      }
    });
    return;
  }
  std::vector<int64_t> plane_of(dst.c);
  for (int64_t g = 0, c = 0; g < mask.c; ++g)
    for (int64_t i = 0; i < channels[g]; ++i) plane_of[c++] = g;
  parallel_rows(dst.n * dst.c * dst.h, dst.w, [&](int64_t row) {
    const int64_t n = row / (dst.c * dst.h), c = row / dst.h % dst.c, y = row % dst.h;
    const T* from = src.data + n * src.sn + c * src.sc + y * src.sh;
    T* to = dst.data + n * dst.sn + c * dst.sc + y * dst.sh;
    const bool* valid = mask.data + n * mask.sn + plane_of[c] * mask.sc + y * mask.sh;
    for (int64_t x = 0; x < dst.w; ++x) to[x * dst.sw] = valid[x * mask.sw] ? from[x * src.sw] : T(0);
  });
}

// ---- decoder weights --------------------

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

// ---- the interface that operators.h calls --------------------

struct CpuKernels : OwnConvolution {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static void count_valid(const Tensor& mask, const Ints& plane_channels, Tensor& counts) {
    const auto m = view<const bool>(mask);
    int32_t* out = static_cast<int32_t*>(counts.mutable_data_ptr());
    parallel_rows(m.n * m.h, m.w * m.c,
                  [&](int64_t row) { count_row(m, plane_channels, row / m.h, row % m.h, out + row * m.w); });
  }

  static void count_valid_upcat(const Tensor& low_mask, int64_t low_channels, const Tensor& skip_mask,
                                int64_t skip_channels, Tensor& counts) {
    const auto low = view<const bool>(low_mask);
    const auto skip = view<const bool>(skip_mask);
    int32_t* out = static_cast<int32_t*>(counts.mutable_data_ptr());
    const int32_t low_weight = static_cast<int32_t>(low_channels);
    const int32_t skip_weight = static_cast<int32_t>(skip_channels);
    parallel_rows(skip.n * skip.h, skip.w, [&](int64_t row) {
      const int64_t n = row / skip.h, y = row % skip.h;
      const bool* from_low = low.data + n * low.sn + y / 2 * low.sh;
      const bool* from_skip = skip.data + n * skip.sn + y * skip.sh;
      for (int64_t x = 0; x < skip.w; ++x)
        out[row * skip.w + x] = low_weight * from_low[x / 2 * low.sw] + skip_weight * from_skip[x * skip.sw];
    });
  }

  static void window_ratios(const Tensor& counts, const Window& window, int64_t numerator, Tensor& ratio,
                            Tensor& new_mask) {
    const auto in = view<const int32_t>(counts);
    const int64_t out_h = ratio.size(2), out_w = ratio.size(3);
    bool* valid = static_cast<bool*>(new_mask.mutable_data_ptr());
    const auto run = [&](auto* ratios) {
      parallel_rows(in.n * out_h, in.w * window.kernel_h, [&](int64_t row) {
        std::vector<int32_t> columns(in.w + 2 * window.padding_w + out_w, 0);
        window_ratio_row(in, window, numerator, row / out_h, row % out_h, out_w, columns.data(), ratios + row * out_w,
                         valid + row * out_w);
      });
    };
    if (ratio.scalar_type() == ScalarType::Double) {
      run(static_cast<double*>(ratio.mutable_data_ptr()));
    } else {
      run(static_cast<float*>(ratio.mutable_data_ptr()));
    }
  }

  // On the CPU a look at the mask costs next to nothing, and deep in a network every mask is all valid.
  static bool known_all_valid(const Tensor& mask) {
    const auto m = view<const bool>(mask);
    for (int64_t n = 0; n < m.n; ++n)
      for (int64_t c = 0; c < m.c; ++c)
        for (int64_t y = 0; y < m.h; ++y) {
          const bool* row = m.data + n * m.sn + c * m.sc + y * m.sh;
          bool all = true;
          for (int64_t x = 0; x < m.w; ++x) all &= row[x * m.sw];
          if (!all) return false;
        }
    return true;
  }

  static void select(const Tensor& src, const Tensor& mask, const Ints& plane_channels, Tensor& dst) {
    const auto m = view<const bool>(mask);
    const auto run = [&](auto bits) {
      using T = decltype(bits);
      select_map<T>(view<const T>(src), m, plane_channels, view<T>(dst));
    };
    switch (src.element_size()) {
      case 2:
        return run(uint16_t());
      case 4:
        return run(uint32_t());
      default:
        return run(uint64_t());
    }
  }

  static void scale_and_shift(Tensor& map, const Tensor& ratio, const std::optional<Tensor>& bias) {
    dispatch_floating(map.scalar_type(), "partial_conv2d", [&](auto type) {
      using T = decltype(type);
      scale_and_shift_map<T>(view<T>(map), data<Accumulator<T>>(ratio), bias ? data<T>(*bias) : nullptr);
    });
  }

  static void add_phases_scale_and_shift(Tensor& map, const Tensor& phases, const Tensor& ratio,
                                         const std::optional<Tensor>& bias) {
    dispatch_floating(map.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      add_phases_map<T>(view<T>(map), view<const T>(phases), data<Accumulator<T>>(ratio),
                        bias ? data<T>(*bias) : nullptr);
    });
  }

  static void scale(const Tensor& grad, const Tensor& ratio, Tensor& scaled) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d", [&](auto type) {
      using T = decltype(type);
      fill_map<T>(view<T>(scaled), ScaledGradient<T>{view<const T>(grad), data<Accumulator<T>>(ratio)});
    });
  }

  static void split_phases(const Tensor& grad, Tensor& phases) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      fill_map<T>(view<T>(phases), PhaseGradient<T>{view<const T>(grad)});
    });
  }

  static Tensor bias_gradient(const Tensor& grad, const Tensor& ratio) {
    Tensor result = empty_on(grad, {grad.size(1)}, grad.scalar_type());
    dispatch_floating(grad.scalar_type(), "partial_conv2d", [&](auto type) {
      using T = decltype(type);
      bias_gradient_sum<T>(view<const T>(grad), data<Accumulator<T>>(ratio),
                           static_cast<T*>(result.mutable_data_ptr()));
    });
    return result;
  }

  static void phase_weight(const Tensor& weight, Tensor& phases) {
    dispatch_floating(weight.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      phase_weight_sum<T>(view<const T>(weight), view<T>(phases));
    });
  }

  static void fold_phase_weight(const Tensor& phases, Tensor& grad) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      fold_phase_gradient<T>(view<const T>(phases), view<T>(grad));
    });
  }
};

}  // namespace
}  // namespace msa::partial_conv

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CPU, library) { MSA_REGISTER_PARTIAL_CONV(library, msa::partial_conv::CpuKernels); }
