// Which of our own convolutions takes which inputs: minimal filtering where there are tiles enough, patches where there
// are few outputs; the rest is the library's.
#pragma once

#include "cpu_decoder_image.h"
#include "cpu_epilogue.h"
#include "cpu_patches.h"
#include "cpu_winograd.h"
#include "operators.h"

namespace msa::partial_conv {
namespace {

struct OwnConvolution {
  static bool takes(const Tensor& input, const Tensor& weight, const Window& window, int64_t groups) {
    return way_of(input, weight, window, groups) != Way::kLibrary;
  }

  static bool takes_upcat(const Tensor& low, const Tensor& skip, const Tensor& weight) {
    return makes_image(low, skip, weight) || takes_upcat_backward(low, skip, weight);
  }

  static bool takes_upcat_backward(const Tensor& low, const Tensor& skip, const Tensor& weight) {
    return fits(low, weight) && fits(skip, weight) && low.size(0) * low.size(2) * low.size(3) >= kLeastTilesUpcat;
  }

  // Eqs. 1 and 2.
  static void convolve(const Masked& input, const Tensor& weight, const Window& window, const Tensor& ratio,
                       const std::optional<Tensor>& bias, Tensor& output) {
    run(weight, [&](auto type) {
      using T = decltype(type);
      const T* shift = bias ? data<T>(*bias) : nullptr;
      if (way_of(input.map, weight, window, 1) == Way::kTiles)
        return winograd<T>(input, weight, window, ratio).forward(shift, view<T>(output));
      patches<T>(input, weight, window, ratio).forward(static_cast<T*>(output.mutable_data_ptr()));
      scale_and_shift_map<T>(view<T>(output), data<T>(ratio), shift);
    });
  }

  // Fills the gradients that are defined.
  static void convolve_backward(const Tensor& grad_output, const Masked& input, const Tensor& weight,
                                const Window& window, const Tensor& ratio, const Tensor& grad_input,
                                const Tensor& grad_weight) {
    run(weight, [&](auto type) {
      using T = decltype(type);
      if (way_of(input.map, weight, window, 1) == Way::kTiles)
        return backward<T>(winograd<T>(input, weight, window, ratio), grad_output, ratio, {grad_input}, grad_weight);
      const Tensor scaled = scaled_gradient<T>(grad_output, ratio);
      const Patches<T> convolution = patches<T>(input, weight, window, ratio);
      if (grad_input.defined()) convolution.input_gradient(data<T>(scaled), view<T>(grad_input));
      if (grad_weight.defined()) convolution.weight_gradient(data<T>(scaled), view<T>(grad_weight));
    });
  }

  static void convolve_upcat(const Masked& low, const Masked& skip, const Tensor& weight, const Tensor& ratio,
                             const std::optional<Tensor>& bias, Tensor& output) {
    run(weight, [&](auto type) {
      using T = decltype(type);
      const T* shift = bias ? data<T>(*bias) : nullptr;
      if (!makes_image(low.map, skip.map, weight))
        return winograd_upcat<T>(low, skip, weight, ratio).forward(shift, view<T>(output));
      DecoderImage<T>(view<const T>(low.map), plane(low), view<const T>(skip.map), plane(skip), view<const T>(weight),
                      data<T>(ratio))
          .forward(shift, view<T>(output));
    });
  }

  static void convolve_upcat_backward(const Tensor& grad_output, const Masked& low, const Masked& skip,
                                      const Tensor& weight, const Tensor& ratio, const Tensor& grad_low,
                                      const Tensor& grad_skip, const Tensor& grad_weight) {
    run(weight, [&](auto type) {
      using T = decltype(type);
      backward<T>(winograd_upcat<T>(low, skip, weight, ratio), grad_output, ratio, {grad_skip, grad_low}, grad_weight);
    });
  }

 protected:
  template <typename T>
  static const T* data(const Tensor& t) {
    return static_cast<const T*>(t.const_data_ptr());
  }

 private:
  enum class Way { kLibrary, kTiles, kPatches };
  enum class Filter { kNone, kTaps3, kTaps3Stride2, kTaps5Stride2 };

  // Minimal filtering saves products with every tile and pays for the transformed weight, which is 16/9 to 25/9 of the
  // weight, once; so it wins from some number of tiles on. Up to some number of outputs patches win. Fewer channels
  // make products too thin. Measured on 2 CPU cores with AVX2.
  static constexpr int64_t kLeastChannels = 16, kMostPatches = 128, kLeastTilesUpcat = 32;

  static int64_t least_tiles(Filter filter) {
    switch (filter) {
      case Filter::kTaps3:
        return 48;
      case Filter::kTaps3Stride2:
        return 192;
      default:
        return 64;
    }
  }

  static Way way_of(const Tensor& input, const Tensor& weight, const Window& k, int64_t groups) {
    if (groups != 1 || !fits(input, weight)) return Way::kLibrary;
    const int64_t outputs = input.size(0) * k.output_h(input.size(2)) * k.output_w(input.size(3));
    if (outputs <= kMostPatches && row_order(view<const char>(weight)) != RowOrder::kNone) return Way::kPatches;
    const Filter filter = filter_of(k);
    return filter != Filter::kNone && outputs / 4 >= least_tiles(filter) ? Way::kTiles : Way::kLibrary;
  }

  static bool fits(const Tensor& map, const Tensor& weight) {
    return is_wide_type(map) && is_channels_last(map) && map.size(1) >= kLeastChannels &&
           weight.size(0) >= kLeastChannels;
  }

  static bool makes_image(const Tensor& low, const Tensor& skip, const Tensor& weight) {
    return is_wide_type(low) && is_channels_last(low) && low.size(1) >= kLeastChannels && is_channels_last(skip) &&
           skip.size(1) <= kMostImageChannels && weight.size(0) <= kMostImageChannels;
  }

  // As torch itself sees it, so that a result has the layout that the library's convolution would give it: no empty
  // maps, no repeated rows, not the ambiguous map of one pixel.
  static bool is_channels_last(const Tensor& map) {
    if (map.numel() == 0 || map.size(1) < 2 || map.stride(1) != 1) return false;
    int64_t least = 1;
    for (const int64_t d : {1, 3, 2, 0}) {
      if (map.stride(d) < least || (d == 0 && least == 1)) return false;
      least = map.size(d) > 1 ? map.stride(d) * map.size(d) : map.stride(d);
    }
    return true;
  }

  static bool is_wide_type(const Tensor& map) {
    return map.scalar_type() == ScalarType::Float || map.scalar_type() == ScalarType::Double;
  }

  static Filter filter_of(const Window& k) {
    if (k.kernel_h != k.kernel_w || k.stride_h != k.stride_w || k.dilation_h != 1 || k.dilation_w != 1)
      return Filter::kNone;
    if (k.kernel_h == 3 && k.stride_h == 1) return Filter::kTaps3;
    if (k.kernel_h == 3 && k.stride_h == 2) return Filter::kTaps3Stride2;
    return k.kernel_h == 5 && k.stride_h == 2 ? Filter::kTaps5Stride2 : Filter::kNone;
  }

  template <typename F>
  static void run(const Tensor& weight, const F& f) {
    weight.scalar_type() == ScalarType::Double ? f(double()) : f(float());
  }

  static std::optional<View<const bool>> plane(const Masked& map) {
    return map.mask != nullptr ? std::optional(view<const bool>(*map.mask)) : std::nullopt;
  }

  template <typename T>
  static Patches<T> patches(const Masked& input, const Tensor& weight, const Window& window, const Tensor& ratio) {
    return {view<const T>(input.map), plane(input), view<const T>(weight), window, ratio.size(2), ratio.size(3)};
  }

  template <typename T>
  static Winograd<T> winograd(const Masked& input, const Tensor& weight, const Window& window, const Tensor& ratio) {
    const auto make = [&](const InputSteps<T>& steps, const OutputSteps<T>& output) {
      const Part<T> part{steps, view<const T>(input.map), plane(input), window.padding_h, window.padding_w, 0};
      return Winograd<T>(output, {part}, view<const T>(weight), data<T>(ratio), ratio.size(0), ratio.size(2),
                         ratio.size(3));
    };
    switch (filter_of(window)) {
      case Filter::kTaps3Stride2:
        return make(kInputSteps<Taps3Stride2, T>, kOutputSteps<Taps3Stride2, T>);
      case Filter::kTaps5Stride2:
        return make(kInputSteps<Taps5Stride2, T>, kOutputSteps<Taps5Stride2, T>);
      default:
        return make(kInputSteps<Taps3, T>, kOutputSteps<Taps3, T>);
    }
  }

  template <typename T>
  static Winograd<T> winograd_upcat(const Masked& low, const Masked& skip, const Tensor& weight, const Tensor& ratio) {
    // The skip has all products, so it comes first, though its channels come last.
    const Part<T> large{kInputSteps<Taps3, T>, view<const T>(skip.map), plane(skip), 1, 1, low.map.size(1)};
    const Part<T> small{kInputSteps<Taps3Upsampled, T>, view<const T>(low.map), plane(low), 1, 1, 0};
    return Winograd<T>(kOutputSteps<Taps3, T>, {large, small}, view<const T>(weight), data<T>(ratio), ratio.size(0),
                       ratio.size(2), ratio.size(3));
  }

  template <typename T>
  static void backward(const Winograd<T>& winograd, const Tensor& grad_output, const Tensor& ratio,
                       const std::vector<Tensor>& grads, const Tensor& grad_weight) {
    std::vector<std::optional<View<T>>> maps;
    for (const Tensor& grad : grads) maps.push_back(grad.defined() ? std::optional(view<T>(grad)) : std::nullopt);
    const auto weight = grad_weight.defined() ? std::optional(view<T>(grad_weight)) : std::nullopt;
    const bool is_read_in_place = grad_output.stride(1) == 1;
    const Tensor grad = is_read_in_place ? grad_output : scaled_gradient<T>(grad_output, ratio);
    winograd.backward(view<const T>(grad), !is_read_in_place, maps, weight);
  }

  // grad_output · ratio, dense, the channel its fastest dimension.
  template <typename T>
  static Tensor scaled_gradient(const Tensor& grad_output, const Tensor& ratio) {
    Tensor scaled = torch::stable::empty(grad_output.sizes(), grad_output.scalar_type(), std::nullopt,
                                         grad_output.device(), std::nullopt, MemoryFormat::ChannelsLast);
    fill_map<T>(view<T>(scaled), ScaledGradient<T>{view<const T>(grad_output), data<T>(ratio)});
    return scaled;
  }
};

}  // namespace
}  // namespace msa::partial_conv
