// Host side of partial_conv2d_upcat, the same for every device and in two forms: the four phases, and a concatenation.
#pragma once

#include "common/masked_conv/host.h"

namespace msa::decoder_conv {

using masked_conv::Masked;
using masked_conv::Outputs;
using masked_conv::Window;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr Window kWindow{3, 3, 1, 1, 1, 1, 1, 1};  // kernel 3, stride 1, padding 1

// What this operator needs of a device's kernels besides those of every masked convolution.
template <class K>
concept Kernels =
    masked_conv::Kernels<K> &&
    requires(const Tensor& low, const Tensor& mask, int64_t number, Tensor& ratio, Tensor& new_mask, const Masked& part,
             const Tensor* maybe_mask, const Tensor& grad, Tensor& output, Tensor& maybe_undefined,
             const std::optional<Tensor>& bias, const Tensor& weight, bool channels_last) {
      // Eqs. 4 and 5 for the concatenation: (low_mask, low_channels, skip_mask, skip_channels, numerator, ratio,
      // mask'), the last two contiguous (N, 1, 2h, 2w).
      { K::window_ratios(mask, number, mask, number, number, ratio, new_mask) } -> std::same_as<void>;

      // The concatenation: output = cat(nearest_up2(low), skip), 0 in the holes.
      { K::concatenate(part, part, output) } -> std::same_as<void>;
      // Its transpose: (gradient, low_mask, skip_mask, grad_low, grad_skip). Fills the gradients that are defined, with
      // 0 in the holes of the masks that are not null.
      { K::divide_concatenation(grad, maybe_mask, maybe_mask, maybe_undefined, maybe_undefined) } -> std::same_as<void>;

      // The phases (see phases.h): the weights of the four phases, (4 C_out, C1, 2, 2), and those of the skip's
      // channels, (C_out, C2, 3, 3).
      { K::phase_weights(weight, low, channels_last) } -> std::same_as<std::pair<Tensor, Tensor>>;
      // Its transpose, (grad_phases, grad_skip, grad_weight): fills the last.
      { K::fold_phase_weights(grad, grad, output) } -> std::same_as<void>;
      // Adds the phases to the convolution of skip, in place, then Eq. 2.
      { K::add_phases_scale_and_shift(output, grad, ratio, bias) } -> std::same_as<void>;
      // The transpose of adding phases: fills the gradient of the phases, (N, 4 C_out, h+1, w+1).
      { K::split_phases(grad, output) } -> std::same_as<void>;
    };

// Optional: this operator by a convolution of our own, in place of the library's for the phases.
template <class K>
concept HasConvolution = requires(const Masked& part, const Tensor& map, const Tensor& weight, const Tensor& ratio,
                                  const std::optional<Tensor>& bias, Tensor& output, const Tensor& maybe_undefined) {
  // Whether it runs for these sizes and strides: (low, skip, weight), in the forward and in the backward.
  { K::convolves_upcat(map, map, weight) } -> std::same_as<bool>;
  { K::convolves_upcat_backward(map, map, weight) } -> std::same_as<bool>;
  // Eqs. 1 and 2 into `output`, from (low, skip, …).
  { K::convolve_upcat(part, part, weight, ratio, bias, output) } -> std::same_as<void>;
  // (grad_output, low, skip, weight, ratio, grad_low, grad_skip, grad_weight): fills the gradients that are
  // defined, with 0 in the holes.
  {
    K::convolve_upcat_backward(map, part, part, weight, ratio, maybe_undefined, maybe_undefined, maybe_undefined)
  } -> std::same_as<void>;
};

inline void check(const Tensor& low, const Tensor& low_mask, const Tensor& skip, const Tensor& skip_mask,
                  const Tensor& weight, const char* where) {
  check_floating(low.scalar_type(), where);
  masked_conv::check_map(low, low, where, "low");
  masked_conv::check_map(skip, low, where, "skip");
  masked_conv::check_map(weight, low, where, "weight");
  STD_TORCH_CHECK(has_shape(skip, {low.size(0), skip.size(1), 2 * low.size(2), 2 * low.size(3)}), "msa_ops::", where,
                  ": skip must be twice as high and wide as low, got ", shape_of(skip), " and ", shape_of(low));
  STD_TORCH_CHECK(low.size(2) > 0 && low.size(3) > 0, "msa_ops::", where,
                  ": low must have at least one row and column, got ", shape_of(low));
  STD_TORCH_CHECK(low.size(1) > 0 && skip.size(1) > 0 && weight.size(0) > 0 &&
                      has_shape(weight, {weight.size(0), low.size(1) + skip.size(1), 3, 3}),
                  "msa_ops::", where, ": weight must have shape (C_out, ", low.size(1) + skip.size(1), ", 3, 3), got ",
                  shape_of(weight));
  masked_conv::check_mask(low_mask, low, 1, where, "low_mask");
  masked_conv::check_mask(skip_mask, skip, 1, where, "skip_mask");
}

// The partial convolution of cat(nearest_up2(low), skip), kernel 3, stride 1, padding 1. `phases` says which form runs.
// With it neither the upsampled map nor the concatenation is built (see phases.h; or the device's own convolution
// takes over). Without, one kernel writes the concatenation, 0 in its holes, and one divides its gradient: for maps so
// small that sums of the taps, which are as large as the weight, cost more than they save.
template <Kernels K>
struct DecoderConv {
  using Base = masked_conv::MaskedConv<K>;
  inline static const Ints one{1, 1};

  // low (N,C1,h,w), skip (N,C2,2h,2w), masks (N,1,·,·) bool, weight (O,C1+C2,3,3). Returns the output, mask'
  // (N,1,2h,2w) bool, and the ratio of Eq. 4 (N,1,2h,2w) that the backward needs.
  static Outputs forward(Tensor low, Tensor low_mask, Tensor skip, Tensor skip_mask, Tensor weight,
                         std::optional<Tensor> bias, int64_t numerator, bool low_is_masked, bool skip_is_masked,
                         bool phases) {
    const char* where = "partial_conv2d_upcat_forward";
    check(low, low_mask, skip, skip_mask, weight, where);
    masked_conv::check_bias(bias, weight, where);
    const typename K::Guard guard(low);
    const int64_t n = skip.size(0), h = skip.size(2), w = skip.size(3);

    const bool channels_last = masked_conv::is_channels_last_call(skip, weight);
    masked_conv::Windows windows(skip, n, h, w);
    auto& [ratio, new_mask] = windows;
    if (n == 0) return {empty_map(skip, channels_last, n, weight.size(0), h, w), new_mask, ratio};
    K::window_ratios(low_mask, low.size(1), skip_mask, skip.size(1), numerator, ratio, new_mask);
    const Masked low_part{low, low_is_masked ? nullptr : &low_mask};
    const Masked skip_part{skip, skip_is_masked ? nullptr : &skip_mask};
    if (phases) {
      const Tensor output = phases_forward(low_part, skip_part, weight, ratio, bias);
      if (is_usable(output)) return {output, new_mask, ratio};
    }
    const Tensor image = concatenation(low_part, skip_part, true);
    return {Base::convolve(call_of(image, skip, weight), {image, nullptr}, weight, ratio, bias), new_mask, ratio};
  }

  // Gradients of low, skip, weight and bias; those not in `needed` come back undefined.
  static Gradients backward(Tensor grad_output, Tensor low, Tensor low_mask, Tensor skip, Tensor skip_mask,
                            Tensor weight, Tensor ratio, bool low_is_masked, bool skip_is_masked, bool phases,
                            std::vector<bool> needed) {
    const char* where = "partial_conv2d_upcat_backward";
    check(low, low_mask, skip, skip_mask, weight, where);
    masked_conv::check_map(grad_output, skip, where, "grad_output");
    STD_TORCH_CHECK(needed.size() == 4, "msa_ops::", where, ": needed must hold four flags");
    masked_conv::check_gradient(grad_output, ratio, skip.size(0), weight.size(0), skip.size(2), skip.size(3), where);
    const typename K::Guard guard(low);

    const bool channels_last = masked_conv::is_channels_last_call(skip, weight);
    if (skip.size(0) == 0) {
      const auto [grad_weight, grad_bias] =
          masked_conv::zero_parameter_gradients(weight, channels_last, needed[2], needed[3]);
      return {needed[0] ? empty_map_like(low) : Tensor(), needed[1] ? empty_map_like(skip) : Tensor(), grad_weight,
              grad_bias};
    }
    const Masked low_part{low, low_is_masked ? nullptr : &low_mask};
    const Masked skip_part{skip, skip_is_masked ? nullptr : &skip_mask};
    if (phases) {
      Gradients grads = phases_backward(grad_output, low_part, skip_part, weight, ratio, needed);
      if (is_usable(std::get<0>(grads)) && is_usable(std::get<1>(grads)) && is_usable(std::get<2>(grads))) return grads;
    }
    return concatenation_backward(grad_output, low_part, skip_part, weight, ratio, needed);
  }

 private:
  // Whether the result of the phases can be kept. They sum taps and, in parts, the low map's contribution, which may
  // overflow where the definition's sum does not; see masked_conv::HasConvolution. A device whose results can only be
  // read by waiting keeps them all.
  static bool is_usable(const Tensor& result) {
    if constexpr (masked_conv::HasConvolution<K>) return K::is_finite(result);
    return true;
  }

  // ---- the concatenation

  // The image has the layout of skip.
  static typename Base::Call call_of(const Tensor& image, const Tensor& skip, const Tensor& weight) {
    return Base::call_of(image, skip, weight, kWindow, 1);
  }

  // cat(nearest_up2(low), skip), 0 in the holes; or, where only its shape is wanted, uninitialised.
  static Tensor concatenation(const Masked& low, const Masked& skip, bool filled) {
    const Tensor& s = skip.map;
    Tensor image = empty_map(s, s.size(0), low.map.size(1) + s.size(1), s.size(2), s.size(3));
    if (filled) K::concatenate(low, skip, image);
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
    if (needs_image) K::divide_concatenation(grad_image, low.mask, skip.mask, grad_low, grad_skip);
    return {grad_low, grad_skip, grad_weight, grad_bias};
  }

  // ---- the phases, by the device's own convolution or around the library's

  static Tensor phases_forward(const Masked& low, const Masked& skip, const Tensor& weight, const Tensor& ratio,
                               const std::optional<Tensor>& bias) {
    if constexpr (HasConvolution<K>) {
      if (K::convolves_upcat(low.map, skip.map, weight)) {
        Tensor output = empty_map(skip.map, ratio.size(0), weight.size(0), ratio.size(2), ratio.size(3));
        K::convolve_upcat(low, skip, weight, ratio, bias, output);
        return output;
      }
    }
    const bool channels_last = masked_conv::is_channels_last_call(skip.map, weight);
    const Tensor masked_low = Base::selected(low), masked_skip = Base::selected(skip);
    const auto [phase_weight, skip_weight] = K::phase_weights(weight, low.map, channels_last);
    const Tensor sums = convolution(masked_low, phase_weight, one, one, one, 1);
    Tensor output = laid_out(convolution(masked_skip, skip_weight, one, one, one, 1), channels_last);
    K::add_phases_scale_and_shift(output, sums, ratio, bias);
    return output;
  }

  static Gradients phases_backward(const Tensor& grad_output, const Masked& low, const Masked& skip,
                                   const Tensor& weight, const Tensor& ratio, const std::vector<bool>& needed) {
    const bool channels_last = masked_conv::is_channels_last_call(skip.map, weight);
    const bool skip_channels_last = wants_channels_last(skip.map);
    Tensor grad_low, grad_skip, grad_weight, grad_phase_weight, grad_skip_weight, scaled;
    const bool needs_maps = needed[0] || needed[1] || needed[2];
    if constexpr (HasConvolution<K>) {
      if (K::convolves_upcat_backward(low.map, skip.map, weight)) {
        if (needed[0]) grad_low = empty_map_like(low.map);
        if (needed[1]) grad_skip = empty_map_like(skip.map);
        if (needed[2]) grad_weight = masked_conv::empty_weight(weight, channels_last);
        if (needs_maps)
          K::convolve_upcat_backward(grad_output, low, skip, weight, ratio, grad_low, grad_skip, grad_weight);
        return {grad_low, grad_skip, grad_weight, Base::epilogue_backward(grad_output, ratio, scaled, needed[3])};
      }
    }
    if (needs_maps) scaled = Base::scaled_like(grad_output, skip_channels_last);
    const Tensor grad_bias = Base::epilogue_backward(grad_output, ratio, scaled, needed[3]);
    if (!needs_maps) return {grad_low, grad_skip, grad_weight, grad_bias};

    const auto [phase_weight, skip_weight] = K::phase_weights(weight, low.map, channels_last);
    if (needed[0] || needed[2]) {
      const Tensor& map = low.map;
      Tensor grad_phases = empty_map(map, map.size(0), 4 * weight.size(0), map.size(2) + 1, map.size(3) + 1);
      K::split_phases(scaled, grad_phases);
      std::tie(grad_low, grad_phase_weight) = convolution_backward(
          grad_phases, needed[2] ? Base::selected(low) : map, phase_weight, one, one, one, 1, needed[0], needed[2]);
      grad_low = Base::cleared(grad_low, low, wants_channels_last(low.map));
    }
    if (needed[1] || needed[2]) {
      std::tie(grad_skip, grad_skip_weight) = convolution_backward(scaled, needed[2] ? Base::selected(skip) : skip.map,
                                                                   skip_weight, one, one, one, 1, needed[1], needed[2]);
      grad_skip = Base::cleared(grad_skip, skip, skip_channels_last);
    }
    if (needed[2]) {
      grad_weight = masked_conv::empty_weight(weight, channels_last);
      K::fold_phase_weights(grad_phase_weight, grad_skip_weight, grad_weight);
    }
    return {grad_low, grad_skip, grad_weight, grad_bias};
  }
};

}  // namespace msa::decoder_conv
