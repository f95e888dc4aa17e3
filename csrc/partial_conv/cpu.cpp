// CPU kernels of the partial convolution. Every map is walked in the order of its memory: "pixel by pixel" where the
// channel is the fastest dimension (channels_last), else "row by row" within a channel plane.
#include <type_traits>

#include "../common/clones.h"
#include "../common/parallel.h"
#include "cpu_convolution.h"
#include "cpu_decoder.h"
#include "cpu_epilogue.h"
#include "operators_upcat.h"

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

// ---- the interface that operators.h calls --------------------

struct CpuKernels : OwnConvolution {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static void window_ratios(const Tensor& mask, const Ints& plane_channels, const Window& window, int64_t numerator,
                            Tensor& ratio, Tensor& new_mask) {
    const auto m = view<const bool>(mask);
    Tensor counts = empty_on(mask, {m.n, 1, m.h, m.w}, ScalarType::Int);
    int32_t* out = static_cast<int32_t*>(counts.mutable_data_ptr());
    parallel_rows(m.n * m.h, m.w * m.c,
                  [&](int64_t row) { count_row(m, plane_channels, row / m.h, row % m.h, out + row * m.w); });
    ratios_of_counts(counts, window, numerator, ratio, new_mask);
  }

  static void window_ratios_upcat(const Tensor& low_mask, int64_t low_channels, const Tensor& skip_mask,
                                  int64_t skip_channels, int64_t numerator, Tensor& ratio, Tensor& new_mask) {
    const auto low = view<const bool>(low_mask);
    const auto skip = view<const bool>(skip_mask);
    Tensor counts = empty_on(skip_mask, {skip.n, 1, skip.h, skip.w}, ScalarType::Int);
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
    ratios_of_counts(counts, {3, 3, 1, 1, 1, 1, 1, 1}, numerator, ratio, new_mask);
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
    dispatch_bits(src.element_size(), [&](auto bits) {
      using T = decltype(bits);
      select_map<T>(view<const T>(src), m, plane_channels, view<T>(dst));
    });
  }

  static void clear(Tensor& map, const Tensor& mask, const Ints& plane_channels) {
    select(map, mask, plane_channels, map);
  }

  static void concatenate(const Masked& low, const Masked& skip, Tensor& image) {
    dispatch_bits(image.element_size(), [&](auto bits) {
      using T = decltype(bits);
      concatenate_maps<T>(part<const T>(low.map, low.mask), part<const T>(skip.map, skip.mask), view<T>(image));
    });
  }

  // Fills the gradients that are defined.
  static void divide_concatenation(const Tensor& grad, const Tensor* low_mask, const Tensor* skip_mask,
                                   Tensor& grad_low, Tensor& grad_skip) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const auto from = view<const T>(grad);
      if (grad_low.defined()) sum_upsampled<T>(from, part<T>(grad_low, low_mask));
      if (grad_skip.defined()) copy_skip<T>(from, part<T>(grad_skip, skip_mask));
    });
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

  // grad · ratio into `scaled`, and its sum over the valid positions into `grad_bias`: those that are defined.
  static void epilogue_backward(const Tensor& grad, const Tensor& ratio, Tensor& scaled, Tensor& grad_bias) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d", [&](auto type) {
      using T = decltype(type);
      const auto from = view<const T>(grad);
      const auto* r = data<Accumulator<T>>(ratio);
      if (scaled.defined()) fill_map<T>(view<T>(scaled), ScaledGradient<T>{from, r});
      if (grad_bias.defined()) bias_gradient_sum<T>(from, r, static_cast<T*>(grad_bias.mutable_data_ptr()));
    });
  }

  static void split_phases(const Tensor& grad, Tensor& phases) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      fill_map<T>(view<T>(phases), PhaseGradient<T>{view<const T>(grad)});
    });
  }

  // The weights of the phases, and of the skip's channels (read in place).
  static std::pair<Tensor, Tensor> decoder_weights(const Tensor& weight, const Tensor& low, bool) {
    Tensor phases = empty_map(low, 4 * weight.size(0), low.size(1), 2, 2);
    dispatch_floating(weight.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      phase_weight_sum<T>(view<const T>(channels_of(weight, 0, low.size(1))), view<T>(phases));
    });
    return {phases, channels_of(weight, low.size(1), weight.size(1) - low.size(1))};
  }

  static void fold_decoder_weights(const Tensor& grad_phases, const Tensor& grad_skip, Tensor& grad_weight) {
    const int64_t low_channels = grad_phases.size(1);
    Tensor low_part = channels_of(grad_weight, 0, low_channels);
    Tensor skip_part = channels_of(grad_weight, low_channels, grad_skip.size(1));
    dispatch_floating(grad_weight.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      fold_phase_gradient<T>(view<const T>(grad_phases), view<T>(low_part));
    });
    torch::stable::copy_(skip_part, grad_skip);
  }

 private:
  static Tensor channels_of(const Tensor& weight, int64_t start, int64_t length) {
    Tensor whole = weight;
    return torch::stable::narrow(whole, 1, start, length);
  }

  template <typename T>
  static MaskedView<T> part(const Tensor& map, const Tensor* mask) {
    return {view<T>(map), mask != nullptr ? std::optional(view<const bool>(*mask)) : std::nullopt};
  }

  static void ratios_of_counts(const Tensor& counts, const Window& window, int64_t numerator, Tensor& ratio,
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
};

}  // namespace
}  // namespace msa::partial_conv

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CPU, library) { MSA_REGISTER_PARTIAL_CONV(library, msa::partial_conv::CpuKernels); }
