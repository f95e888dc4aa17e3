// partial_conv2d_upcat on the CPU.
#include "decoder_conv/operators.h"

#include "common/masked_conv/cpu/choice.h"
#include "common/masked_conv/cpu/kernels.h"
#include "common/masked_conv/cpu/windows.h"
#include "common/masked_conv/cpu/winograd_tensors.h"
#include "decoder_conv/cpu/concatenation.h"
#include "decoder_conv/cpu/image_layer.h"
#include "decoder_conv/cpu/phases.h"

namespace msa::decoder_conv {
namespace {

using masked_conv::Convolution;
using masked_conv::decoder_convolution_for;
using masked_conv::plane_of;
using masked_conv::Winograd;

template <typename T>
Winograd<T> winograd(const Masked& low, const Masked& skip, const Tensor& weight, const Tensor& ratio) {
  using masked_conv::Part, masked_conv::Taps3, masked_conv::Taps3Upsampled;
  const auto& steps = masked_conv::input_steps<Taps3, T>();
  const auto& upsampled = masked_conv::input_steps<Taps3Upsampled, T>();
  // The skip has all products, so it comes first, though its channels come last.
  const Part<T> large{steps, view<const T>(skip.map), plane_of(skip), 1, 1, low.map.size(1)};
  const Part<T> small{upsampled, view<const T>(low.map), plane_of(low), 1, 1, 0};
  return Winograd<T>(masked_conv::output_steps<Taps3, T>(), {large, small}, view<const T>(weight),
                     data_of<const T>(ratio), ratio.size(0), ratio.size(2), ratio.size(3));
}

struct CpuKernels : masked_conv::CpuKernels {
  static void window_ratios(const Tensor& low_mask, int64_t low_channels, const Tensor& skip_mask,
                            int64_t skip_channels, int64_t numerator, Tensor& ratio, Tensor& new_mask) {
    const auto low = view<const MaskByte>(low_mask);
    const auto skip = view<const MaskByte>(skip_mask);
    Tensor counts = empty_on(skip_mask, {skip.n, 1, skip.h, skip.w}, ScalarType::Int);
    int32_t* out = data_of<int32_t>(counts);
    const int32_t low_weight = static_cast<int32_t>(low_channels);
    const int32_t skip_weight = static_cast<int32_t>(skip_channels);
    parallel_rows(skip.n * skip.h, skip.w, [&](int64_t row) {
      const int64_t n = row / skip.h, y = row % skip.h;
      const MaskByte* from_low = low.data + n * low.sn + y / 2 * low.sh;
      const MaskByte* from_skip = skip.data + n * skip.sn + y * skip.sh;
      for (int64_t x = 0; x < skip.w; ++x)
        out[row * skip.w + x] = low_weight * from_low[x / 2 * low.sw] + skip_weight * from_skip[x * skip.sw];
    });
    masked_conv::ratios_of_counts(counts, kWindow, numerator, ratio, new_mask);
  }

  // ---- the concatenation

  static void concatenate(const Masked& low, const Masked& skip, Tensor& image) {
    dispatch_bits(image.element_size(), [&](auto bits) {
      using T = decltype(bits);
      concatenate_maps<T>(part<const T>(low.map, low.mask), part<const T>(skip.map, skip.mask), view<T>(image));
    });
  }

  static void divide_concatenation(const Tensor& grad, const Tensor* low_mask, const Tensor* skip_mask,
                                   Tensor& grad_low, Tensor& grad_skip) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const auto from = view<const T>(grad);
      if (grad_low.defined()) sum_upsampled<T>(from, part<T>(grad_low, low_mask));
      if (grad_skip.defined()) copy_skip<T>(from, part<T>(grad_skip, skip_mask));
    });
  }

  // ---- the phases

  // The weights of the skip's channels are read in place.
  static std::pair<Tensor, Tensor> phase_weights(const Tensor& weight, const Tensor& low, bool) {
    Tensor phases = empty_map(low, 4 * weight.size(0), low.size(1), 2, 2);
    dispatch_floating(weight.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      phase_weight_sum<T>(view<const T>(channels_of(weight, 0, low.size(1))), view<T>(phases));
    });
    return {phases, channels_of(weight, low.size(1), weight.size(1) - low.size(1))};
  }

  static void fold_phase_weights(const Tensor& grad_phases, const Tensor& grad_skip, Tensor& grad_weight) {
    const int64_t low_channels = grad_phases.size(1);
    Tensor low_part = channels_of(grad_weight, 0, low_channels);
    Tensor skip_part = channels_of(grad_weight, low_channels, grad_skip.size(1));
    dispatch_floating(grad_weight.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      fold_phase_gradient<T>(view<const T>(grad_phases), view<T>(low_part));
    });
    torch::stable::copy_(skip_part, grad_skip);
  }

  static void add_phases_scale_and_shift(Tensor& map, const Tensor& phases, const Tensor& ratio,
                                         const std::optional<Tensor>& bias) {
    dispatch_floating(map.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      add_phases_map<T>(view<T>(map), view<const T>(phases), data_of<const Accumulator<T>>(ratio),
                        bias ? data_of<const T>(*bias) : nullptr);
    });
  }

  static void split_phases(const Tensor& grad, Tensor& phases) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      masked_conv::fill_map<T>(view<T>(phases), PhaseGradient<T>{view<const T>(grad)});
    });
  }

  // ---- convolutions of our own

  static bool convolves_upcat(const Tensor& low, const Tensor& skip, const Tensor& weight) {
    return decoder_convolution_for(low, skip, weight) != Convolution::kLibrary;
  }

  static bool convolves_upcat_backward(const Tensor& low, const Tensor& skip, const Tensor& weight) {
    return decoder_convolution_for(low, skip, weight) == Convolution::kWinograd;
  }

  static void convolve_upcat(const Masked& low, const Masked& skip, const Tensor& weight, const Tensor& ratio,
                             const std::optional<Tensor>& bias, Tensor& output) {
    dispatch_accumulator(weight.scalar_type(), [&](auto type) {
      using T = decltype(type);
      const T* shift = bias ? data_of<const T>(*bias) : nullptr;
      if (decoder_convolution_for(low.map, skip.map, weight) == Convolution::kWinograd)
        return winograd<T>(low, skip, weight, ratio).forward(shift, view<T>(output));
      ImageLayer<T>(view<const T>(low.map), plane_of(low), view<const T>(skip.map), plane_of(skip),
                    view<const T>(weight), data_of<const T>(ratio))
          .forward(shift, view<T>(output));
    });
  }

  static void convolve_upcat_backward(const Tensor& grad_output, const Masked& low, const Masked& skip,
                                      const Tensor& weight, const Tensor& ratio, const Tensor& grad_low,
                                      const Tensor& grad_skip, const Tensor& grad_weight) {
    dispatch_accumulator(weight.scalar_type(), [&](auto type) {
      using T = decltype(type);
      masked_conv::winograd_backward<T>(winograd<T>(low, skip, weight, ratio), grad_output, ratio,
                                        {grad_skip, grad_low}, grad_weight);
    });
  }

 private:
  static Tensor channels_of(const Tensor& weight, int64_t start, int64_t length) {
    Tensor whole = weight;
    return torch::stable::narrow(whole, 1, start, length);
  }

  template <typename T>
  static MaskedView<T> part(const Tensor& map, const Tensor* mask) {
    return {view<T>(map), mask != nullptr ? std::optional(view<const MaskByte>(*mask)) : std::nullopt};
  }
};
static_assert(Kernels<CpuKernels> && HasConvolution<CpuKernels>);

using Operators = DecoderConv<CpuKernels>;

}  // namespace
}  // namespace msa::decoder_conv

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CPU, library) {
  library.impl("partial_conv2d_upcat_forward", MSA_BOX(msa::decoder_conv::Operators::forward));
  library.impl("partial_conv2d_upcat_backward", MSA_BOX(msa::decoder_conv::Operators::backward));
}
