// Host side of the partial convolution, the same for every device: check, allocate, launch kernels around the library's
// convolution, or hand over to the device's own. `Kernels` supplies both; its functions are listed where they are
// called. (operators_upcat.h has the decoder form.)
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

// The layout of a call's output and of its weight's gradient, as torch's convolutions choose it in all but odd cases.
// Gradients of maps have the layout of their map.
inline bool is_channels_last_call(const Tensor& input, const Tensor& weight) {
  return wants_channels_last(input) || torch_sees_channels_last(weight);
}

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
    if (ratio.numel() > 0) Kernels::window_ratios(mask, plane_channels, window, numerator, ratio, new_mask);
    const Call call{window, groups, Kernels::takes(input, weight, window, groups),
                    is_channels_last_call(input, weight)};
    const bool reads_mask = call.is_ours && plane_channels.size() == 1 && !input_is_masked;
    const Tensor masked = reads_mask ? input : select(input, mask, plane_channels, input_is_masked);
    return {convolve(call, {masked, reads_mask ? &mask : nullptr}, weight, ratio, bias), new_mask, ratio};
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
                   window.output_w(input.size(3)), where);
    STD_TORCH_CHECK(needed.size() == 3, "msa_ops::", where, ": needed must hold three flags");
    const typename Kernels::Guard guard(input);

    const Call call{window, groups, Kernels::takes(input, weight, window, groups),
                    is_channels_last_call(input, weight)};
    const bool reads_mask = call.is_ours && plane_channels.size() == 1 && !input_is_masked;
    const bool needs_masked = needed[1] && !reads_mask;
    const Tensor masked = needs_masked ? select(input, mask, plane_channels, input_is_masked) : input;
    Outputs grads = convolve_backward(call, grad_output, {masked, reads_mask ? &mask : nullptr}, weight, ratio,
                                      wants_channels_last(input), needed);
    Tensor& grad_input = std::get<0>(grads);
    if (needed[0] && !reads_mask && !input_is_masked && grad_input.numel() > 0)
      Kernels::clear(grad_input, mask, plane_channels);
    return grads;
  }

  // How one convolution runs: by our own code or the library's, and the layout that is_channels_last_call promises.
  struct Call {
    Window window;
    int64_t groups;
    bool is_ours, channels_last;
  };

  // Eqs. 1 and 2. Without a mask the map is 0 in its holes; with one our own convolution reads it as such.
  static Tensor convolve(const Call& call, const Masked& input, const Tensor& weight, const Tensor& ratio,
                         const std::optional<Tensor>& bias) {
    const Window& k = call.window;
    if (call.is_ours) {
      Tensor output = empty_map(input.map, ratio.size(0), weight.size(0), ratio.size(2), ratio.size(3));
      Kernels::convolve(input, weight, k, ratio, bias, output);
      return output;
    }
    Tensor output = laid_out(convolution(input.map, weight, strides(k), paddings(k), dilations(k), call.groups),
                             call.channels_last);
    if (output.numel() > 0) Kernels::scale_and_shift(output, ratio, bias);
    return output;
  }

  // Gradients of the map (not yet 0 in its holes, unless a mask comes along), weight and bias.
  static Outputs convolve_backward(const Call& call, const Tensor& grad_output, const Masked& input,
                                   const Tensor& weight, const Tensor& ratio, bool map_channels_last,
                                   const std::vector<bool>& needed) {
    const Tensor& map = input.map;
    const Window& k = call.window;
    Tensor grad_input, grad_weight, grad_bias, scaled;
    if (call.is_ours) {
      if (needed[0]) grad_input = empty_map_like(map);
      if (needed[1]) grad_weight = empty_map(map, weight.size(0), weight.size(1), weight.size(2), weight.size(3));
      if (needed[0] || needed[1])
        Kernels::convolve_backward(grad_output, input, weight, k, ratio, grad_input, grad_weight);
      return {grad_input, grad_weight, needed[2] ? epilogue_backward(grad_output, ratio, scaled, true) : Tensor()};
    }
    if (needed[0] || needed[1]) scaled = scaled_like(grad_output, map_channels_last);
    grad_bias = epilogue_backward(grad_output, ratio, scaled, needed[2]);
    std::tie(grad_input, grad_weight) = convolution_backward(scaled, map, weight, strides(k), paddings(k), dilations(k),
                                                             call.groups, needed[0], needed[1]);
    return {laid_out(grad_input, map_channels_last), laid_out(grad_weight, call.channels_last), grad_bias};
  }

  // x ⊙ m: the one product of the input's size that the operator makes, and only where it changes something.
  static Tensor select(const Tensor& input, const Tensor& mask, const Ints& plane_channels, bool is_masked) {
    if (is_masked) return input;
    // Only where the copy would not differ in layout, so that shapes and strides never depend on the mask's values.
    if (is_laid_out_as_its_copy(input) && Kernels::known_all_valid(mask)) return input;
    Tensor masked = empty_map_like(input);
    if (input.numel() > 0) Kernels::select(input, mask, plane_channels, masked);
    return masked;
  }

  // An uninitialised map for dL/d(convolution) = grad_output · ratio.
  static Tensor scaled_like(const Tensor& grad_output, bool channels_last) {
    return empty_map(grad_output, channels_last, grad_output.size(0), grad_output.size(1), grad_output.size(2),
                     grad_output.size(3));
  }

  // Fills `scaled` where it is defined, and returns the bias' gradient where it is needed: one pass over grad_output.
  static Tensor epilogue_backward(const Tensor& grad_output, const Tensor& ratio, Tensor& scaled, bool needs_bias) {
    Tensor grad_bias = needs_bias ? empty_on(grad_output, {grad_output.size(1)}, grad_output.scalar_type()) : Tensor();
    if (needs_bias || (scaled.defined() && scaled.numel() > 0))
      Kernels::epilogue_backward(grad_output, ratio, scaled, grad_bias);
    return grad_bias;
  }

  static void check_gradient(const Tensor& grad_output, const Tensor& ratio, int64_t n, int64_t c, int64_t h, int64_t w,
                             const char* where) {
    STD_TORCH_CHECK(has_shape(grad_output, {n, c, h, w}) && has_shape(ratio, {n, 1, h, w}) && ratio.is_contiguous() &&
                        ratio.scalar_type() == accumulator_dtype(grad_output.scalar_type()) &&
                        ratio.device() == grad_output.device(),
                    "msa_ops::", where, ": grad_output and ratio must be those of the forward, got ",
                    shape_of(grad_output), " and ", shape_of(ratio));
  }

 private:
  static Ints strides(const Window& k) { return {k.stride_h, k.stride_w}; }
  static Ints paddings(const Window& k) { return {k.padding_h, k.padding_w}; }
  static Ints dilations(const Window& k) { return {k.dilation_h, k.dilation_w}; }

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

}  // namespace msa::partial_conv
