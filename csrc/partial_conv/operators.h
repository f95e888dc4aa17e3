// Host side of partial_conv2d (Eqs. 1-5), the same for every device.
#pragma once

#include "common/masked_conv/host.h"

namespace msa::partial_conv {

using masked_conv::Masked;
using masked_conv::Outputs;
using masked_conv::Window;

// What this operator needs of a device's kernels besides those of every masked convolution.
template <class K>
concept Kernels =
    masked_conv::Kernels<K> && requires(const Tensor& mask, const Ints& plane_channels, const Window& window,
                                        int64_t numerator, Tensor& ratio, Tensor& new_mask) {
      // Eqs. 4 and 5: the ratio, which is numerator / s(p) or 0, and mask', both contiguous (N, 1, H', W'). Plane g of
      // the mask counts plane_channels[g] times.
      { K::window_ratios(mask, plane_channels, window, numerator, ratio, new_mask) } -> std::same_as<void>;
    };

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

inline void check(const Tensor& input, const Tensor& mask, const Tensor& weight, const Ints& plane_channels,
                  int64_t groups, const char* where) {
  check_floating(input.scalar_type(), where);
  masked_conv::check_map(input, input, where, "input");
  masked_conv::check_map(weight, input, where, "weight");
  STD_TORCH_CHECK(
      groups > 0 && weight.size(1) * groups == input.size(1) && weight.size(0) % groups == 0 && weight.numel() > 0,
      "msa_ops::", where, ": weight ", shape_of(weight), " does not fit input ", shape_of(input),
      " with groups=", groups);
  masked_conv::check_mask(mask, input, static_cast<int64_t>(plane_channels.size()), where, "mask");
  int64_t covered = 0;
  for (int64_t channels : plane_channels) {
    STD_TORCH_CHECK(channels > 0 && channels <= input.size(1), "msa_ops::", where,
                    ": plane_channels must be positive and at most ", input.size(1), ", got ", channels);
    covered += channels;
  }
  STD_TORCH_CHECK(covered == input.size(1), "msa_ops::", where, ": plane_channels must add up to ", input.size(1),
                  ", got ", covered);
}

// The planes of a mask of one plane or of one plane per channel where the caller has not said which channels each
// covers; of an expanded mask the one plane that it has.
inline void resolve_planes(Tensor& mask, Ints& plane_channels, int64_t channels) {
  if (!plane_channels.empty() || mask.dim() != 4) return;
  const int64_t planes = mask.size(1);
  if (planes == channels && planes > 1 && mask.stride(1) == 0) mask = torch::stable::narrow(mask, 1, 0, 1);
  plane_channels = mask.size(1) == 1 ? Ints{channels} : Ints(planes == channels ? planes : 0, 1);
}

template <Kernels K>
struct PartialConv {
  using Base = masked_conv::MaskedConv<K>;

  // input (N,C,H,W), mask (N,G,H,W) bool whose plane g covers plane_channels[g] channels. Returns the output, mask'
  // (N,1,H',W') bool, and the ratio of Eq. 4 (N,1,H',W') that the backward needs. Without plane_channels the mask has
  // one plane or one per channel. Numerator 0 stands for the entries of a full window. On the CPU the mask may also be
  // uint8 or floating; mask' has its dtype.
  static Outputs forward(Tensor input, Tensor mask, Tensor weight, std::optional<Tensor> bias, Ints plane_channels,
                         Ints stride, Ints padding, Ints dilation, int64_t groups, int64_t numerator,
                         bool input_is_masked) {
    const char* where = "partial_conv2d_forward";
    const Tensor given = mask;
    resolve_planes(mask, plane_channels, input.dim() == 4 ? input.size(1) : 0);
    mask = masked_conv::as_bool<K>(mask);
    check(input, mask, weight, plane_channels, groups, where);
    masked_conv::check_bias(bias, weight, where);
    const Window window = window_of(input, weight, stride, padding, dilation, where);
    if (numerator == 0) numerator = window.kernel_h * window.kernel_w * input.size(1);
    const int64_t n = input.size(0), h = window.output_h(input.size(2)), w = window.output_w(input.size(3));
    const typename K::Guard guard(input);

    masked_conv::Windows windows(input, n, h, w);
    if (n == 0) {
      const bool channels_last = masked_conv::is_channels_last_call(input, weight);
      return {empty_map(input, channels_last, n, weight.size(0), h, w),
              masked_conv::in_dtype_of<K>(given, windows.new_mask), windows.ratio};
    }
    K::window_ratios(mask, plane_channels, window, numerator, windows.ratio, windows.new_mask);
    const auto call = Base::call_of(input, input, weight, window, groups);
    const bool reads_mask = call.is_own && plane_channels.size() == 1 && !input_is_masked;
    const Tensor masked = reads_mask ? input : Base::select(input, mask, plane_channels, input_is_masked);
    const Tensor output = Base::convolve(call, {masked, reads_mask ? &mask : nullptr}, weight, windows.ratio, bias);
    return {output, masked_conv::in_dtype_of<K>(given, windows.new_mask), windows.ratio};
  }

  // Gradients of input, weight and bias; those not in `needed` come back undefined.
  static Outputs backward(Tensor grad_output, Tensor input, Tensor mask, Tensor weight, Tensor ratio,
                          Ints plane_channels, Ints stride, Ints padding, Ints dilation, int64_t groups,
                          bool input_is_masked, std::vector<bool> needed) {
    const char* where = "partial_conv2d_backward";
    resolve_planes(mask, plane_channels, input.dim() == 4 ? input.size(1) : 0);
    mask = masked_conv::as_bool<K>(mask);
    check(input, mask, weight, plane_channels, groups, where);
    masked_conv::check_map(grad_output, input, where, "grad_output");
    const Window window = window_of(input, weight, stride, padding, dilation, where);
    masked_conv::check_gradient(grad_output, ratio, input.size(0), weight.size(0), window.output_h(input.size(2)),
                                window.output_w(input.size(3)), where);
    STD_TORCH_CHECK(needed.size() == 3, "msa_ops::", where, ": needed must hold three flags");
    const typename K::Guard guard(input);

    if (input.size(0) == 0) {
      const auto [grad_weight, grad_bias] = masked_conv::zero_parameter_gradients(
          weight, masked_conv::is_channels_last_call(input, weight), needed[1], needed[2]);
      return {needed[0] ? empty_map_like(input) : Tensor(), grad_weight, grad_bias};
    }
    const auto call = Base::call_of(input, input, weight, window, groups);
    const bool reads_mask = call.is_own && plane_channels.size() == 1 && !input_is_masked;
    const bool needs_masked = needed[1] && !reads_mask;
    const Tensor masked = needs_masked ? Base::select(input, mask, plane_channels, input_is_masked) : input;
    Outputs grads = Base::convolve_backward(call, grad_output, {masked, reads_mask ? &mask : nullptr}, weight, ratio,
                                            wants_channels_last(input), needed);
    Tensor& grad_input = std::get<0>(grads);
    if (needed[0] && !reads_mask && !input_is_masked && grad_input.numel() > 0)
      K::clear(grad_input, mask, plane_channels);
    return grads;
  }
};

}  // namespace msa::partial_conv
