// The CPU kernels of a masked convolution. Every map is walked in the order of its memory: "pixel by pixel" where the
// channel is the fastest dimension (channels_last), else "row by row" within a channel plane.
#include "common/masked_conv/cpu/kernels.h"

#include <atomic>

#include "common/clones.h"
#include "common/masked_conv/cpu/choice.h"
#include "common/masked_conv/cpu/epilogue.h"
#include "common/masked_conv/cpu/patches.h"
#include "common/masked_conv/cpu/winograd_tensors.h"

namespace msa::masked_conv {
namespace {

// dst = mask ? src : 0. T stands for the element's bits: zero is all zero bits in every dtype. In place (dst == src)
// valid elements are not touched.
template <typename T>
void select_map(const View<const T>& src, const MaskView& mask, const Ints& channels, const View<T>& dst) {
  const bool in_place = src.data == dst.data;
  const bool elementwise = mask.c == src.c && src.c > 1;
  if (channel_fastest(dst)) {
    parallel_rows(dst.n * dst.h, dst.w * dst.c, [&](int64_t row) {
      const int64_t n = row / dst.h, y = row % dst.h;
      for (int64_t x = 0; x < dst.w; ++x) {
        const T* from = src.data + n * src.sn + y * src.sh + x * src.sw;
        T* to = dst.data + n * dst.sn + y * dst.sh + x * dst.sw;
        const MaskByte* valid = mask.data + n * mask.sn + y * mask.sh + x * mask.sw;
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
    const MaskByte* valid = mask.data + n * mask.sn + plane_of[c] * mask.sc + y * mask.sh;
    for (int64_t x = 0; x < dst.w; ++x) to[x * dst.sw] = valid[x * mask.sw] ? from[x * src.sw] : T(0);
  });
}

// The values of a mask in each dtype that one may have. NaN is not 0, so it is valid, as in torch.
inline bool is_valid(MaskByte value) { return value; }
template <typename T>
bool is_valid(T value) {
  return static_cast<Accumulator<T>>(value) != 0;
}

template <typename T>
T mask_value(bool valid) {
  if constexpr (std::is_same_v<T, MaskByte>) {
    return {static_cast<uint8_t>(valid)};
  } else {
    return static_cast<T>(static_cast<Accumulator<T>>(valid));
  }
}

// Calls f with a value of the mask's element type.
template <typename F>
void dispatch_mask(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Bool || dtype == ScalarType::Byte) return f(MaskByte());
  dispatch_floating(dtype, "mask", f);
}

// The exponent's bits, all of which are set in inf and NaN, and an integer as wide as the element.
template <typename T>
struct Exponent;
template <>
struct Exponent<double> {
  using Bits = uint64_t;
  static constexpr Bits kMask = 0x7ff0000000000000;
};
template <>
struct Exponent<float> {
  using Bits = uint32_t;
  static constexpr Bits kMask = 0x7f800000;
};
template <>
struct Exponent<Half> {
  using Bits = uint16_t;
  static constexpr Bits kMask = 0x7c00;
};
template <>
struct Exponent<BFloat16> {
  using Bits = uint16_t;
  static constexpr Bits kMask = 0x7f80;
};

// On bits, because a sum of floats would not be vectorised.
template <typename Bits>
MSA_CLONES bool any_has_all(const Bits* x, int64_t n, Bits mask) {
  Bits found = 0;
  for (int64_t i = 0; i < n; ++i) found |= static_cast<Bits>((x[i] & mask) == mask);
  return found != 0;
}

template <typename T>
Patches<T> patches(const Masked& input, const Tensor& weight, const Window& window, const Tensor& ratio) {
  return {view<const T>(input.map), plane_of(input), view<const T>(weight), window, ratio.size(2), ratio.size(3)};
}

template <typename T>
Winograd<T> winograd(const Masked& input, const Tensor& weight, const Window& window, const Tensor& ratio) {
  const auto make = [&](const InputSteps<T>& steps, const OutputSteps<T>& output) {
    const Part<T> part{steps, view<const T>(input.map), plane_of(input), window.padding_h, window.padding_w, 0};
    return Winograd<T>(output, {part}, view<const T>(weight), data_of<const T>(ratio), ratio.size(0), ratio.size(2),
                       ratio.size(3));
  };
  switch (filter_of(window)) {
    case Filter::kTaps3Stride2:
      return make(input_steps<Taps3Stride2, T>(), output_steps<Taps3Stride2, T>());
    case Filter::kTaps5Stride2:
      return make(input_steps<Taps5Stride2, T>(), output_steps<Taps5Stride2, T>());
    default:
      return make(input_steps<Taps3, T>(), output_steps<Taps3, T>());
  }
}

}  // namespace

// ---- masks --------------------

void CpuKernels::select(const Tensor& src, const Tensor& mask, const Ints& plane_channels, Tensor& dst) {
  const auto m = view<const MaskByte>(mask);
  dispatch_bits(src.element_size(), [&](auto bits) {
    using T = decltype(bits);
    select_map<T>(view<const T>(src), m, plane_channels, view<T>(dst));
  });
}

void CpuKernels::clear(Tensor& map, const Tensor& mask, const Ints& plane_channels) {
  select(map, mask, plane_channels, map);
}

// A look at the mask costs next to nothing, and deep in a network every mask is all valid.
bool CpuKernels::is_all_valid(const Tensor& mask) {
  const auto m = view<const MaskByte>(mask);
  for (int64_t n = 0; n < m.n; ++n)
    for (int64_t c = 0; c < m.c; ++c)
      for (int64_t y = 0; y < m.h; ++y) {
        const MaskByte* row = m.data + n * m.sn + c * m.sc + y * m.sh;
        bool all = true;
        for (int64_t x = 0; x < m.w; ++x) all &= row[x * m.sw];
        if (!all) return false;
      }
  return true;
}

Tensor CpuKernels::convert_mask(const Tensor& mask, ScalarType dtype) {
  Tensor result = empty_on(mask, {mask.size(0), mask.size(1), mask.size(2), mask.size(3)}, dtype);
  dispatch_mask(mask.scalar_type(), [&](auto from) {
    dispatch_mask(dtype, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      const auto m = view<const From>(mask);
      To* out = data_of<To>(result);
      parallel_rows(m.n * m.c * m.h, m.w, [&](int64_t row) {
        const From* values = m.data + row / (m.c * m.h) * m.sn + row / m.h % m.c * m.sc + row % m.h * m.sh;
        for (int64_t x = 0; x < m.w; ++x) out[row * m.w + x] = mask_value<To>(is_valid(values[x * m.sw]));
      });
    });
  });
  return result;
}

// ---- Eq. 2 and its gradient --------------------

void CpuKernels::scale_and_shift(Tensor& map, const Tensor& ratio, const std::optional<Tensor>& bias) {
  dispatch_floating(map.scalar_type(), "partial_conv2d", [&](auto type) {
    using T = decltype(type);
    scale_and_shift_map<T>(view<T>(map), data_of<const Accumulator<T>>(ratio),
                           bias ? data_of<const T>(*bias) : nullptr);
  });
}

void CpuKernels::epilogue_backward(const Tensor& grad, const Tensor& ratio, Tensor& scaled, Tensor& grad_bias) {
  dispatch_floating(grad.scalar_type(), "partial_conv2d", [&](auto type) {
    using T = decltype(type);
    const auto from = view<const T>(grad);
    const auto* r = data_of<const Accumulator<T>>(ratio);
    if (scaled.defined()) fill_map<T>(view<T>(scaled), ScaledGradient<T>{from, r});
    if (grad_bias.defined()) bias_gradient_sum<T>(from, r, data_of<T>(grad_bias));
  });
}

// ---- convolutions of our own --------------------

bool CpuKernels::is_finite(const Tensor& t) {
  if (!t.defined()) return true;
  constexpr int64_t kStretch = 4096;
  const int64_t count = t.numel();
  std::atomic<bool> finite = true;
  dispatch_floating(t.scalar_type(), "partial_conv2d", [&](auto type) {
    using Of = Exponent<decltype(type)>;
    using Bits = typename Of::Bits;
    const Bits* data = data_of<const Bits>(t);
    parallel_rows((count + kStretch - 1) / kStretch, kStretch, [&](int64_t i) {
      if (any_has_all<Bits>(data + i * kStretch, std::min(kStretch, count - i * kStretch), Of::kMask))
        finite.store(false, std::memory_order_relaxed);
    });
  });
  return finite;
}

bool CpuKernels::convolves(const Tensor& input, const Tensor& weight, const Window& window, int64_t groups) {
  return convolution_for(input, weight, window, groups) != Convolution::kLibrary;
}

void CpuKernels::convolve(const Masked& input, const Tensor& weight, const Window& window, const Tensor& ratio,
                          const std::optional<Tensor>& bias, Tensor& output) {
  dispatch_accumulator(weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* shift = bias ? data_of<const T>(*bias) : nullptr;
    if (convolution_for(input.map, weight, window, 1) == Convolution::kWinograd)
      return winograd<T>(input, weight, window, ratio).forward(shift, view<T>(output));
    patches<T>(input, weight, window, ratio).forward(data_of<T>(output));
    scale_and_shift_map<T>(view<T>(output), data_of<const T>(ratio), shift);
  });
}

void CpuKernels::convolve_backward(const Tensor& grad_output, const Masked& input, const Tensor& weight,
                                   const Window& window, const Tensor& ratio, const Tensor& grad_input,
                                   const Tensor& grad_weight) {
  dispatch_accumulator(weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    if (convolution_for(input.map, weight, window, 1) == Convolution::kWinograd)
      return winograd_backward<T>(winograd<T>(input, weight, window, ratio), grad_output, ratio, {grad_input},
                                  grad_weight);
    const Tensor scaled = scaled_gradient<T>(grad_output, ratio);
    const Patches<T> convolution = patches<T>(input, weight, window, ratio);
    if (grad_input.defined()) convolution.input_gradient(data_of<const T>(scaled), view<T>(grad_input));
    if (grad_weight.defined()) convolution.weight_gradient(data_of<const T>(scaled), view<T>(grad_weight));
  });
}

}  // namespace msa::masked_conv
