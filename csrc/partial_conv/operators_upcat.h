// Host side of the decoder form, in two forms of its own: the four phases, and a concatenation.
#pragma once

#include "operators.h"

namespace msa::partial_conv {

// The partial convolution of cat(nearest_up2(low), skip), kernel 3, stride 1, padding 1. `phases` says which form runs.
// With it neither the upsampled map nor the concatenation is built (see params.h; or the device's own convolution
// takes over). Without, one kernel writes the concatenation, 0 in its holes, and one divides its gradient: for maps so
// small that sums of the taps, which are as large as the weight, cost more than they save.
template <class Kernels>
struct PartialConvUpcat {
  using Base = PartialConv<Kernels>;
  using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
  inline static const Ints one{1, 1};
  static constexpr Window kWindow{3, 3, 1, 1, 1, 1, 1, 1};

  // low (N,C1,h,w), skip (N,C2,2h,2w), masks (N,1,·,·) bool, weight (O,C1+C2,3,3). Returns as PartialConv::forward.
  static Outputs forward(Tensor low, Tensor low_mask, Tensor skip, Tensor skip_mask, Tensor weight,
                         std::optional<Tensor> bias, int64_t numerator, bool low_is_masked, bool skip_is_masked,
                         bool phases) {
    const char* where = "partial_conv2d_upcat_forward";
    check(low, low_mask, skip, skip_mask, weight, where);
    check_bias(bias, weight, where);
    const typename Kernels::Guard guard(low);
    const int64_t n = skip.size(0), h = skip.size(2), w = skip.size(3);

    Tensor ratio = empty_on(skip, {n, 1, h, w}, accumulator_dtype(skip.scalar_type()));
    Tensor new_mask = empty_on(skip, {n, 1, h, w}, ScalarType::Bool);
    if (ratio.numel() > 0)
      Kernels::window_ratios_upcat(low_mask, low.size(1), skip_mask, skip.size(1), numerator, ratio, new_mask);
    const Masked low_part{low, low_is_masked ? nullptr : &low_mask};
    const Masked skip_part{skip, skip_is_masked ? nullptr : &skip_mask};
    if (!phases) {
      const Tensor image = concatenation(low_part, skip_part, true);
      return {Base::convolve(call_of(image, skip, weight), {image, nullptr}, weight, ratio, bias), new_mask, ratio};
    }
    const bool channels_last = is_channels_last_call(skip, weight);
    if (Kernels::takes_upcat(low, skip, weight)) {
      Tensor output = empty_map(skip, n, weight.size(0), h, w);
      Kernels::convolve_upcat(low_part, skip_part, weight, ratio, bias, output);
      return {output, new_mask, ratio};
    }
    const Tensor masked_low = Base::select(low, low_mask, {low.size(1)}, low_is_masked);
    const Tensor masked_skip = Base::select(skip, skip_mask, {skip.size(1)}, skip_is_masked);
    const auto [phase_weight, skip_weight] = Kernels::decoder_weights(weight, low, channels_last);
    const Tensor sums = convolution(masked_low, phase_weight, one, one, one, 1);
    Tensor output = laid_out(convolution(masked_skip, skip_weight, one, one, one, 1), channels_last);
    if (output.numel() > 0) Kernels::add_phases_scale_and_shift(output, sums, ratio, bias);
    return {output, new_mask, ratio};
  }

  // Gradients of low, skip, weight and bias; those not in `needed` come back undefined.
  static Gradients backward(Tensor grad_output, Tensor low, Tensor low_mask, Tensor skip, Tensor skip_mask,
                            Tensor weight, Tensor ratio, bool low_is_masked, bool skip_is_masked, bool phases,
                            std::vector<bool> needed) {
    const char* where = "partial_conv2d_upcat_backward";
    check(low, low_mask, skip, skip_mask, weight, where);
    check_map(grad_output, skip, where, "grad_output");
    STD_TORCH_CHECK(needed.size() == 4, "msa_ops::", where, ": needed must hold four flags");
    Base::check_gradient(grad_output, ratio, skip.size(0), weight.size(0), skip.size(2), skip.size(3), where);
    const typename Kernels::Guard guard(low);

    const Masked low_part{low, low_is_masked ? nullptr : &low_mask};
    const Masked skip_part{skip, skip_is_masked ? nullptr : &skip_mask};
    if (!phases) return concatenation_backward(grad_output, low_part, skip_part, weight, ratio, needed);
    if (Kernels::takes_upcat_backward(low, skip, weight)) {
      Tensor grad_low, grad_skip, grad_weight, no_map;
      if (needed[0]) grad_low = empty_map_like(low);
      if (needed[1]) grad_skip = empty_map_like(skip);
      if (needed[2])
        grad_weight = empty_map(weight, is_channels_last_call(skip, weight), weight.size(0), weight.size(1), 3, 3);
      if (needed[0] || needed[1] || needed[2])
        Kernels::convolve_upcat_backward(grad_output, low_part, skip_part, weight, ratio, grad_low, grad_skip,
                                         grad_weight);
      return {grad_low, grad_skip, grad_weight, Base::epilogue_backward(grad_output, ratio, no_map, needed[3])};
    }
    return phases_backward(grad_output, low_part, skip_part, weight, ratio, needed);
  }

 private:
  // ---- the concatenation

  static typename Base::Call call_of(const Tensor& image, const Tensor& skip, const Tensor& weight) {
    return {kWindow, 1, Kernels::takes(image, weight, kWindow, 1), is_channels_last_call(skip, weight)};
  }

  // cat(nearest_up2(low), skip), 0 in the holes; or, where only its shape is wanted, uninitialised.
  static Tensor concatenation(const Masked& low, const Masked& skip, bool filled) {
    const Tensor& s = skip.map;
    Tensor image = empty_map(s, s.size(0), low.map.size(1) + s.size(1), s.size(2), s.size(3));
    if (filled && image.numel() > 0) Kernels::concatenate(low, skip, image);
    return image;
  }

  static Gradients concatenation_backward(const Tensor& grad_output, const Masked& low, const Masked& skip,
                                          const Tensor& weight, const Tensor& ratio, const std::vector<bool>& needed) {
    const bool needs_image = needed[0] || needed[1];
    Tensor grad_low, grad_skip;
    if (!needs_image && !needed[2]) {
      Tensor no_map;
      return {grad_low, grad_skip, Tensor(), Base::epilogue_backward(grad_output, ratio, no_map, needed[3])};
    }
    const Tensor image = concatenation(low, skip, needed[2]);
    const auto [grad_image, grad_weight, grad_bias] =
        Base::convolve_backward(call_of(image, skip.map, weight), grad_output, {image, nullptr}, weight, ratio,
                                wants_channels_last(skip.map), {needs_image, needed[2], needed[3]});
    if (needed[0]) grad_low = empty_map_like(low.map);
    if (needed[1]) grad_skip = empty_map_like(skip.map);
    if (needs_image && grad_image.numel() > 0)
      Kernels::divide_concatenation(grad_image, low.mask, skip.mask, grad_low, grad_skip);
    return {grad_low, grad_skip, grad_weight, grad_bias};
  }

  // ---- the phases, by the library's convolutions

  static Gradients phases_backward(const Tensor& grad_output, const Masked& low, const Masked& skip,
                                   const Tensor& weight, const Tensor& ratio, const std::vector<bool>& needed) {
    const bool channels_last = is_channels_last_call(skip.map, weight);
    const bool skip_channels_last = wants_channels_last(skip.map);
    Tensor grad_low, grad_skip, grad_weight, grad_phase_weight, grad_skip_weight, scaled;
    const bool needs_maps = needed[0] || needed[1] || needed[2];
    if (needs_maps) scaled = Base::scaled_like(grad_output, skip_channels_last);
    const Tensor grad_bias = Base::epilogue_backward(grad_output, ratio, scaled, needed[3]);
    if (!needs_maps) return {grad_low, grad_skip, grad_weight, grad_bias};

    const auto [phase_weight, skip_weight] = Kernels::decoder_weights(weight, low.map, channels_last);
    if (needed[0] || needed[2]) {
      const Tensor& map = low.map;
      Tensor grad_phases = empty_map(map, map.size(0), 4 * weight.size(0), map.size(2) + 1, map.size(3) + 1);
      if (grad_phases.numel() > 0) Kernels::split_phases(scaled, grad_phases);
      std::tie(grad_low, grad_phase_weight) = convolution_backward(
          grad_phases, needed[2] ? masked(low) : map, phase_weight, one, one, one, 1, needed[0], needed[2]);
      grad_low = cleared(grad_low, low);
    }
    if (needed[1] || needed[2]) {
      std::tie(grad_skip, grad_skip_weight) = convolution_backward(scaled, needed[2] ? masked(skip) : skip.map,
                                                                   skip_weight, one, one, one, 1, needed[1], needed[2]);
      grad_skip = cleared(grad_skip, skip);
    }
    if (needed[2]) {
      grad_weight = empty_map(weight, channels_last, weight.size(0), weight.size(1), 3, 3);
      Kernels::fold_decoder_weights(grad_phase_weight, grad_skip_weight, grad_weight);
    }
    return {grad_low, grad_skip, grad_weight, grad_bias};
  }

  static Tensor masked(const Masked& part) {
    return part.mask != nullptr ? Base::select(part.map, *part.mask, {part.map.size(1)}, false) : part.map;
  }

  // The gradient of a map, where there is one, in the map's layout and 0 in its holes.
  static Tensor cleared(const Tensor& grad, const Masked& part) {
    Tensor result = laid_out(grad, wants_channels_last(part.map));
    if (result.defined() && part.mask != nullptr && result.numel() > 0)
      Kernels::clear(result, *part.mask, {part.map.size(1)});
    return result;
  }

  static void check(const Tensor& low, const Tensor& low_mask, const Tensor& skip, const Tensor& skip_mask,
                    const Tensor& weight, const char* where) {
    check_floating(low, where);
    check_map(low, low, where, "low");
    check_map(skip, low, where, "skip");
    check_map(weight, low, where, "weight");
    STD_TORCH_CHECK(has_shape(skip, {low.size(0), skip.size(1), 2 * low.size(2), 2 * low.size(3)}), "msa_ops::", where,
                    ": skip must be twice as high and wide as low, got ", shape_of(skip), " and ", shape_of(low));
    STD_TORCH_CHECK(low.size(2) > 0 && low.size(3) > 0, "msa_ops::", where,
                    ": low must have at least one row and column, got ", shape_of(low));
    STD_TORCH_CHECK(low.size(1) > 0 && skip.size(1) > 0 && weight.size(0) > 0 &&
                        has_shape(weight, {weight.size(0), low.size(1) + skip.size(1), 3, 3}),
                    "msa_ops::", where, ": weight must have shape (C_out, ", low.size(1) + skip.size(1),
                    ", 3, 3), got ", shape_of(weight));
    check_mask(low_mask, low, 1, where, "low_mask");
    check_mask(skip_mask, skip, 1, where, "skip_mask");
  }
};

// Ties a device's kernels to the schemas of library.cpp.
#define MSA_REGISTER_PARTIAL_CONV(library, Kernels)                                                             \
  library.impl("partial_conv2d_forward", MSA_BOX(msa::partial_conv::PartialConv<Kernels>::forward));            \
  library.impl("partial_conv2d_backward", MSA_BOX(msa::partial_conv::PartialConv<Kernels>::backward));          \
  library.impl("partial_conv2d_upcat_forward", MSA_BOX(msa::partial_conv::PartialConvUpcat<Kernels>::forward)); \
  library.impl("partial_conv2d_upcat_backward", MSA_BOX(msa::partial_conv::PartialConvUpcat<Kernels>::backward))

}  // namespace msa::partial_conv
