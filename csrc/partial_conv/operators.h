// Host side of the partial convolution, the same for every device: check, allocate, launch kernels around the library's
// convolution, or hand over to the device's own. `Kernels` supplies both; its functions are listed where they are
// called.
#pragma once

#include "../common/tensor.h"
#include "params.h"

namespace msa::partial_conv {

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

inline Window window_of(const Tensor& input, const Tensor& weight, const Ints& stride, const Ints& padding,
                        const Ints& dilation, const char* where) {
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, "msa_ops::", where,
                  ": stride, padding and dilation must hold two integers each");
  for (int d = 0; d < 2; ++d) {
    // The upper bounds keep the products below from overflowing.
    STD_TORCH_CHECK(stride[d] > 0 && padding[d] >= 0 && dilation[d] > 0 && stride[d] <= INT32_MAX &&
                        padding[d] <= INT32_MAX && dilation[d] <= INT32_MAX && weight.size(2 + d) <= INT32_MAX,
                    "msa_ops::", where, ": stride and dilation must be positive, padding not negative, all below 2^31");
    STD_TORCH_CHECK(dilation[d] * (weight.size(2 + d) - 1) + 1 <= input.size(2 + d) + 2 * padding[d],
                    "msa_ops::", where, ": the dilated kernel is larger than the padded input");
  }
  return {weight.size(2), weight.size(3), stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
}

inline void check_map(const Tensor& t, const Tensor& like, const char* where, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, "msa_ops::", where, ": ", name, " must have 4 dimensions, got shape ", shape_of(t));
  STD_TORCH_CHECK(t.device() == like.device() && t.scalar_type() == like.scalar_type(), "msa_ops::", where, ": ", name,
                  " must have the device and dtype of the input");
}

inline void check_floating(const Tensor& t, const char* where) {
  dispatch_floating(t.scalar_type(), where, [](auto) {});
}

inline void check_mask(const Tensor& mask, const Tensor& map, int64_t planes, const char* where, const char* name) {
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool && mask.device() == map.device(), "msa_ops::", where, ": ",
                  name, " must be a bool tensor on the input's device");
  STD_TORCH_CHECK(has_shape(mask, {map.size(0), planes, map.size(2), map.size(3)}), "msa_ops::", where, ": ", name,
                  " must have shape (", map.size(0), ", ", planes, ", ", map.size(2), ", ", map.size(3), "), got ",
                  shape_of(mask));
}

inline void check_bias(const std::optional<Tensor>& bias, const Tensor& weight, const char* where) {
  if (!bias) return;
  STD_TORCH_CHECK(has_shape(*bias, {weight.size(0)}) && bias->device() == weight.device() &&
                      bias->scalar_type() == weight.scalar_type() && bias->stride(0) == 1,
                  "msa_ops::", where, ": bias must be a contiguous (", weight.size(0),
                  ") tensor with the weight's device and dtype, got ", shape_of(*bias));
}

// A map and the plane of its holes; without one the map is 0 there already, or its values are not asked for.
struct Masked {
  const Tensor& map;
  const Tensor* mask;
};

// For a device without convolutions of its own: it takes nothing, so the rest is never called.
// (See cpu_convolution.h for the other.)
struct LibraryConvolution {
  static bool takes(const Tensor&, const Tensor&, const Window&, int64_t) { return false; }
  static bool takes_upcat(const Tensor&, const Tensor&, const Tensor&) { return false; }
  static bool takes_upcat_backward(const Tensor&, const Tensor&, const Tensor&) { return false; }
  static void convolve(const Masked&, const Tensor&, const Window&, const Tensor&, const std::optional<Tensor>&,
                       Tensor&) {
    refuse();
  }
  static void convolve_backward(const Tensor&, const Masked&, const Tensor&, const Window&, const Tensor&,
                                const Tensor&, const Tensor&) {
    refuse();
  }
  static void convolve_upcat(const Masked&, const Masked&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                             Tensor&) {
    refuse();
  }
  static void convolve_upcat_backward(const Tensor&, const Masked&, const Masked&, const Tensor&, const Tensor&,
                                      const Tensor&, const Tensor&, const Tensor&) {
    refuse();
  }

 private:
  static void refuse() { STD_TORCH_CHECK(false, "msa_ops: this device has no convolution of its own"); }
};

// The fused partial convolution of Eqs. 1-5.
template <class Kernels>
struct PartialConv {
  // input (N,C,H,W), mask (N,G,H,W) bool whose plane g covers plane_channels[g] channels. Returns the output, mask'
  // (N,1,H',W') bool, and the ratio of Eq. 4 (N,1,H',W') that the backward needs.
  static Outputs forward(Tensor input, Tensor mask, Tensor weight, std::optional<Tensor> bias, Ints plane_channels,
                         Ints stride, Ints padding, Ints dilation, int64_t groups, int64_t numerator,
                         bool input_is_masked) {
    const char* where = "partial_conv2d_forward";
    check(input, mask, weight, plane_channels, groups, where);
    check_bias(bias, weight, where);
    const Window window = window_of(input, weight, stride, padding, dilation, where);
    const int64_t n = input.size(0), h = window.output_h(input.size(2)), w = window.output_w(input.size(3));
    const typename Kernels::Guard guard(input);

    Tensor ratio = empty_on(input, {n, 1, h, w}, accumulator_dtype(input.scalar_type()));
    Tensor new_mask = empty_on(input, {n, 1, h, w}, ScalarType::Bool);
    if (ratio.numel() > 0) {
      Tensor counts = empty_on(input, {n, 1, input.size(2), input.size(3)}, ScalarType::Int);
      Kernels::count_valid(mask, plane_channels, counts);
      Kernels::window_ratios(counts, window, numerator, ratio, new_mask);
    }
    const bool is_ours = Kernels::takes(input, weight, window, groups);
    const bool reads_mask = is_ours && plane_channels.size() == 1 && !input_is_masked;
    const Tensor masked = reads_mask ? input : select(input, mask, plane_channels, input_is_masked);
    if (is_ours) {
      Tensor output = empty_map(input, n, weight.size(0), h, w);
      Kernels::convolve({masked, reads_mask ? &mask : nullptr}, weight, window, ratio, bias, output);
      return {output, new_mask, ratio};
    }
    Tensor output = convolution(masked, weight, stride, padding, dilation, groups);
    if (output.numel() > 0) Kernels::scale_and_shift(output, ratio, bias);
    return {output, new_mask, ratio};
  }

  // Gradients of input, weight and bias; those not in `needed` come back undefined.
  static Outputs backward(Tensor grad_output, Tensor input, Tensor mask, Tensor weight, Tensor ratio,
                          Ints plane_channels, Ints stride, Ints padding, Ints dilation, int64_t groups,
                          bool input_is_masked, std::vector<bool> needed) {
    const char* where = "partial_conv2d_backward";
    check(input, mask, weight, plane_channels, groups, where);
    check_map(grad_output, input, where, "grad_output");
    const Window window = window_of(input, weight, stride, padding, dilation, where);
    check_gradient(grad_output, ratio, input.size(0), weight.size(0), window.output_h(input.size(2)),
                   window.output_w(input.size(3)), needed, where);
    const typename Kernels::Guard guard(input);

    Tensor grad_input, grad_weight;
    if (needed[0] || needed[1]) {
      const bool is_ours = Kernels::takes(input, weight, window, groups);
      const bool reads_mask = is_ours && plane_channels.size() == 1 && !input_is_masked;
      const Tensor masked = needed[1] && !reads_mask ? select(input, mask, plane_channels, input_is_masked) : input;
      if (is_ours) {
        if (needed[0]) grad_input = empty_map(input, input.size(0), input.size(1), input.size(2), input.size(3));
        if (needed[1]) grad_weight = empty_map(input, weight.size(0), weight.size(1), weight.size(2), weight.size(3));
        Kernels::convolve_backward(grad_output, {masked, reads_mask ? &mask : nullptr}, weight, window, ratio,
                                   grad_input, grad_weight);
      } else {
        std::tie(grad_input, grad_weight) = convolution_backward(
            scale(grad_output, ratio, input), masked, weight, stride, padding, dilation, groups, needed[0], needed[1]);
      }
      if (needed[0] && !reads_mask) select_in_place(grad_input, mask, plane_channels, input_is_masked);
    }
    return {grad_input, grad_weight, needed[2] ? Kernels::bias_gradient(grad_output, ratio) : Tensor()};
  }

  // x ⊙ m: the one product of the input's size that the operator makes, and only where it changes something.
  static Tensor select(const Tensor& input, const Tensor& mask, const Ints& plane_channels, bool is_masked) {
    if (is_masked) return input;
    // Only where the copy would not differ in layout, so that shapes and strides never depend on the mask's values.
    if (is_laid_out_as_its_copy(input) && Kernels::known_all_valid(mask)) return input;
    Tensor masked = empty_map(input, input.size(0), input.size(1), input.size(2), input.size(3));
    if (input.numel() > 0) Kernels::select(input, mask, plane_channels, masked);
    return masked;
  }

  static void select_in_place(Tensor& grad, const Tensor& mask, const Ints& plane_channels, bool is_masked) {
    if (!is_masked && grad.numel() > 0) Kernels::select(grad, mask, plane_channels, grad);
  }

  // dL/d(convolution) = grad_output · ratio, in the layout of the forward's maps.
  static Tensor scale(const Tensor& grad_output, const Tensor& ratio, const Tensor& layout) {
    Tensor scaled =
        empty_map(layout, grad_output.size(0), grad_output.size(1), grad_output.size(2), grad_output.size(3));
    if (scaled.numel() > 0) Kernels::scale(grad_output, ratio, scaled);
    return scaled;
  }

  static void check_gradient(const Tensor& grad_output, const Tensor& ratio, int64_t n, int64_t c, int64_t h, int64_t w,
                             const std::vector<bool>& needed, const char* where) {
    STD_TORCH_CHECK(has_shape(grad_output, {n, c, h, w}) && has_shape(ratio, {n, 1, h, w}) && ratio.is_contiguous() &&
                        ratio.scalar_type() == accumulator_dtype(grad_output.scalar_type()) &&
                        ratio.device() == grad_output.device(),
                    "msa_ops::", where, ": grad_output and ratio must be those of the forward, got ",
                    shape_of(grad_output), " and ", shape_of(ratio));
    STD_TORCH_CHECK(needed.size() == 3, "msa_ops::", where, ": needed must hold three flags");
  }

 private:
  static void check(const Tensor& input, const Tensor& mask, const Tensor& weight, const Ints& plane_channels,
                    int64_t groups, const char* where) {
    check_floating(input, where);
    check_map(input, input, where, "input");
    check_map(weight, input, where, "weight");
    STD_TORCH_CHECK(
        groups > 0 && weight.size(1) * groups == input.size(1) && weight.size(0) % groups == 0 && weight.numel() > 0,
        "msa_ops::", where, ": weight ", shape_of(weight), " does not fit input ", shape_of(input),
        " with groups=", groups);
    check_mask(mask, input, static_cast<int64_t>(plane_channels.size()), where, "mask");
    int64_t covered = 0;
    for (int64_t channels : plane_channels) {
      STD_TORCH_CHECK(channels > 0 && channels <= input.size(1), "msa_ops::", where,
                      ": plane_channels must be positive and at most ", input.size(1), ", got ", channels);
      covered += channels;
    }
    STD_TORCH_CHECK(covered == input.size(1), "msa_ops::", where, ": plane_channels must add up to ", input.size(1),
                    ", got ", covered);
  }
};

// The partial convolution of cat(nearest_up2(low), skip), kernel 3, stride 1, padding 1, with neither built.
template <class Kernels>
struct PartialConvUpcat {
  using Base = PartialConv<Kernels>;
  inline static const Ints one{1, 1};

  // low (N,C1,h,w), skip (N,C2,2h,2w), masks (N,1,·,·) bool, weight (O,C1+C2,3,3). Returns as PartialConv::forward.
  static Outputs forward(Tensor low, Tensor low_mask, Tensor skip, Tensor skip_mask, Tensor weight,
                         std::optional<Tensor> bias, int64_t numerator, bool low_is_masked, bool skip_is_masked) {
    const char* where = "partial_conv2d_upcat_forward";
    check(low, low_mask, skip, skip_mask, weight, where);
    check_bias(bias, weight, where);
    const typename Kernels::Guard guard(low);
    const int64_t n = skip.size(0), h = skip.size(2), w = skip.size(3);

    Tensor ratio = empty_on(skip, {n, 1, h, w}, accumulator_dtype(skip.scalar_type()));
    Tensor new_mask = empty_on(skip, {n, 1, h, w}, ScalarType::Bool);
    if (ratio.numel() > 0) {
      Tensor counts = empty_on(skip, {n, 1, h, w}, ScalarType::Int);
      Kernels::count_valid_upcat(low_mask, low.size(1), skip_mask, skip.size(1), counts);
      Kernels::window_ratios(counts, {3, 3, 1, 1, 1, 1, 1, 1}, numerator, ratio, new_mask);
    }
    if (Kernels::takes_upcat(low, skip, weight)) {
      Tensor output = empty_map(skip, n, weight.size(0), h, w);
      Kernels::convolve_upcat({low, low_is_masked ? nullptr : &low_mask}, {skip, skip_is_masked ? nullptr : &skip_mask},
                              weight, ratio, bias, output);
      return {output, new_mask, ratio};
    }
    const Tensor masked_low = Base::select(low, low_mask, {low.size(1)}, low_is_masked);
    const Tensor masked_skip = Base::select(skip, skip_mask, {skip.size(1)}, skip_is_masked);
    const Tensor phases = convolution(masked_low, phase_weight(weight, low), one, one, one, 1);
    Tensor output = convolution(masked_skip, skip_weight(weight, low), one, one, one, 1);
    if (output.numel() > 0) Kernels::add_phases_scale_and_shift(output, phases, ratio, bias);
    return {output, new_mask, ratio};
  }

  // Gradients of low, skip, weight and bias; those not in `needed` come back undefined.
  static std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor low, Tensor low_mask,
                                                             Tensor skip, Tensor skip_mask, Tensor weight, Tensor ratio,
                                                             bool low_is_masked, bool skip_is_masked,
                                                             std::vector<bool> needed) {
    const char* where = "partial_conv2d_upcat_backward";
    check(low, low_mask, skip, skip_mask, weight, where);
    check_map(grad_output, skip, where, "grad_output");
    STD_TORCH_CHECK(needed.size() == 4, "msa_ops::", where, ": needed must hold four flags");
    Base::check_gradient(grad_output, ratio, skip.size(0), weight.size(0), skip.size(2), skip.size(3),
                         {true, true, true}, where);
    const typename Kernels::Guard guard(low);

    Tensor grad_low, grad_skip, grad_weight, grad_phase_weight, grad_skip_weight;
    if (Kernels::takes_upcat_backward(low, skip, weight)) {
      if (needed[0]) grad_low = empty_map(low, low.size(0), low.size(1), low.size(2), low.size(3));
      if (needed[1]) grad_skip = empty_map(skip, skip.size(0), skip.size(1), skip.size(2), skip.size(3));
      if (needed[2]) grad_weight = empty_map(weight, weight.size(0), weight.size(1), 3, 3);
      if (needed[0] || needed[1] || needed[2])
        Kernels::convolve_upcat_backward(grad_output, {low, low_is_masked ? nullptr : &low_mask},
                                         {skip, skip_is_masked ? nullptr : &skip_mask}, weight, ratio, grad_low,
                                         grad_skip, grad_weight);
      return {grad_low, grad_skip, grad_weight, needed[3] ? Kernels::bias_gradient(grad_output, ratio) : Tensor()};
    }
    const Tensor scaled = Base::scale(grad_output, ratio, skip);
    if (needed[0] || needed[2]) {
      Tensor grad_phases = empty_map(low, low.size(0), 4 * weight.size(0), low.size(2) + 1, low.size(3) + 1);
      if (grad_phases.numel() > 0) Kernels::split_phases(scaled, grad_phases);
      const Tensor masked = needed[2] ? Base::select(low, low_mask, {low.size(1)}, low_is_masked) : low;
      std::tie(grad_low, grad_phase_weight) =
          convolution_backward(grad_phases, masked, phase_weight(weight, low), one, one, one, 1, needed[0], needed[2]);
      if (needed[0]) Base::select_in_place(grad_low, low_mask, {low.size(1)}, low_is_masked);
    }
    if (needed[1] || needed[2]) {
      const Tensor masked = needed[2] ? Base::select(skip, skip_mask, {skip.size(1)}, skip_is_masked) : skip;
      std::tie(grad_skip, grad_skip_weight) =
          convolution_backward(scaled, masked, skip_weight(weight, low), one, one, one, 1, needed[1], needed[2]);
      if (needed[1]) Base::select_in_place(grad_skip, skip_mask, {skip.size(1)}, skip_is_masked);
    }
    if (needed[2]) {
      grad_weight = empty_map(weight, weight.size(0), weight.size(1), 3, 3);
      Tensor low_part = weight_slice(grad_weight, 0, low.size(1));
      Tensor skip_part = weight_slice(grad_weight, low.size(1), skip.size(1));
      Kernels::fold_phase_weight(grad_phase_weight, low_part);
      torch::stable::copy_(skip_part, grad_skip_weight);
    }
    return {grad_low, grad_skip, grad_weight, needed[3] ? Kernels::bias_gradient(grad_output, ratio) : Tensor()};
  }

 private:
  static Tensor weight_slice(const Tensor& weight, int64_t start, int64_t length) {
    Tensor whole = weight;
    return torch::stable::narrow(whole, 1, start, length);
  }

  static Tensor skip_weight(const Tensor& weight, const Tensor& low) {
    return weight_slice(weight, low.size(1), weight.size(1) - low.size(1));
  }

  static Tensor phase_weight(const Tensor& weight, const Tensor& low) {
    Tensor phases = empty_map(low, 4 * weight.size(0), low.size(1), 2, 2);
    Kernels::phase_weight(weight_slice(weight, 0, low.size(1)), phases);
    return phases;
  }

  static void check(const Tensor& low, const Tensor& low_mask, const Tensor& skip, const Tensor& skip_mask,
                    const Tensor& weight, const char* where) {
    check_floating(low, where);
    check_map(low, low, where, "low");
    check_map(skip, low, where, "skip");
    check_map(weight, low, where, "weight");
    STD_TORCH_CHECK(has_shape(skip, {low.size(0), skip.size(1), 2 * low.size(2), 2 * low.size(3)}), "msa_ops::", where,
                    ": skip must be twice as high and wide as low, got ", shape_of(skip), " and ", shape_of(low));
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
