// Host side of a masked convolution, the same for every device and for both operators: checks, and Eqs. 1 and 2 with
// their gradients by kernels around the library's convolution, or by the device's own.
#pragma once

#include "common/masked_conv/kernels.h"

namespace msa::masked_conv {

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

// ---- checks --------------------

inline void check_map(const Tensor& t, const Tensor& like, const char* where, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, "msa_ops::", where, ": ", name, " must have 4 dimensions, got shape ", shape_of(t));
  STD_TORCH_CHECK(t.device() == like.device() && t.scalar_type() == like.scalar_type(), "msa_ops::", where, ": ", name,
                  " must have the device and dtype of the input");
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
                      bias->scalar_type() == weight.scalar_type() && bias->is_contiguous(),
                  "msa_ops::", where, ": bias must be a contiguous (", weight.size(0),
                  ") tensor with the weight's device and dtype, got ", shape_of(*bias));
}

inline void check_gradient(const Tensor& grad_output, const Tensor& ratio, int64_t n, int64_t c, int64_t h, int64_t w,
                           const char* where) {
  STD_TORCH_CHECK(has_shape(grad_output, {n, c, h, w}) && has_shape(ratio, {n, 1, h, w}) && ratio.is_contiguous() &&
                      ratio.scalar_type() == accumulator_dtype(grad_output.scalar_type()) &&
                      ratio.device() == grad_output.device(),
                  "msa_ops::", where, ": grad_output and ratio must be those of the forward, got ",
                  shape_of(grad_output), " and ", shape_of(ratio));
}

// ---- tensors --------------------

// The layout of a call's output and of its weight's gradient, as torch's convolutions choose it in all but odd cases.
// Gradients of maps have the layout of their map.
inline bool is_channels_last_call(const Tensor& input, const Tensor& weight) {
  return wants_channels_last(input) || torch_sees_channels_last(weight);
}

// The ratio of Eq. 4 and mask' of Eq. 5, both (N, 1, H', W'), to be filled.
struct Windows {
  Tensor ratio, new_mask;

  Windows(const Tensor& like, int64_t n, int64_t h, int64_t w)
      : ratio(empty_on(like, {n, 1, h, w}, accumulator_dtype(like.scalar_type()))),
        new_mask(empty_on(like, {n, 1, h, w}, ScalarType::Bool)) {}
};

// A uint8 or floating mask as bool. Where the device cannot convert, check_mask refuses what is left.
template <class K>
Tensor as_bool(const Tensor& mask) {
  if constexpr (ConvertsMasks<K>) {
    const bool converts = mask.scalar_type() == ScalarType::Byte || is_floating(mask.scalar_type());
    if (converts && mask.dim() == 4) return K::convert_mask(mask, ScalarType::Bool);
  }
  return mask;
}

// mask' in the dtype of the mask that came.
template <class K>
Tensor in_dtype_of(const Tensor& mask, const Tensor& new_mask) {
  if constexpr (ConvertsMasks<K>) {
    if (mask.scalar_type() != ScalarType::Bool) return K::convert_mask(new_mask, mask.scalar_type());
  }
  return new_mask;
}

// The gradient of a weight, in the layout that is_channels_last_call promises.
inline Tensor empty_weight(const Tensor& weight, bool channels_last) {
  return empty_map(weight, channels_last, weight.size(0), weight.size(1), weight.size(2), weight.size(3));
}

// The gradients of weight and bias where there is no output: zeros, or undefined where they are not needed.
inline std::pair<Tensor, Tensor> zero_parameter_gradients(const Tensor& weight, bool channels_last, bool needs_weight,
                                                          bool needs_bias) {
  std::pair<Tensor, Tensor> grads;
  if (needs_weight) torch::stable::zero_(grads.first = empty_weight(weight, channels_last));
  if (needs_bias) torch::stable::zero_(grads.second = empty_on(weight, {weight.size(0)}, weight.scalar_type()));
  return grads;
}

// ---- Eqs. 1 and 2 --------------------

template <Kernels K>
struct MaskedConv {
  // How one convolution runs.
  struct Call {
    Window window;
    int64_t groups;
    bool is_own;         // by the device's own code, else by the library
    bool channels_last;  // see is_channels_last_call
  };

  // `layout`: the map by which is_channels_last_call is decided.
  static Call call_of(const Tensor& input, const Tensor& layout, const Tensor& weight, const Window& window,
                      int64_t groups) {
    bool is_own = false;
    if constexpr (HasConvolution<K>) is_own = K::convolves(input, weight, window, groups);
    return {window, groups, is_own, is_channels_last_call(layout, weight)};
  }

  // Eqs. 1 and 2. A mask may come along only where the device's own convolution runs, which reads it.
  static Tensor convolve(const Call& call, const Masked& input, const Tensor& weight, const Tensor& ratio,
                         const std::optional<Tensor>& bias) {
    const Window& k = call.window;
    if constexpr (HasConvolution<K>) {
      if (call.is_own) {
        Tensor output = empty_map(input.map, ratio.size(0), weight.size(0), ratio.size(2), ratio.size(3));
        K::convolve(input, weight, k, ratio, bias, output);
        if (K::is_finite(output)) return output;
      }
    }
    Tensor output = laid_out(convolution(selected(input), weight, strides(k), paddings(k), dilations(k), call.groups),
                             call.channels_last);
    K::scale_and_shift(output, ratio, bias);
    return output;
  }

  // Gradients of the map (not yet 0 in its holes, unless a mask comes along), weight and bias.
  static Outputs convolve_backward(const Call& call, const Tensor& grad_output, const Masked& input,
                                   const Tensor& weight, const Tensor& ratio, bool map_channels_last,
                                   const std::vector<bool>& needed) {
    const Window& k = call.window;
    Tensor grad_input, grad_weight, grad_bias, scaled;
    if constexpr (HasConvolution<K>) {
      if (call.is_own) {
        if (needed[0]) grad_input = empty_map_like(input.map);
        if (needed[1]) grad_weight = empty_weight(weight, wants_channels_last(input.map));
        if (needed[0] || needed[1]) K::convolve_backward(grad_output, input, weight, k, ratio, grad_input, grad_weight);
        if (K::is_finite(grad_input) && K::is_finite(grad_weight))
          return {grad_input, grad_weight, epilogue_backward(grad_output, ratio, scaled, needed[2])};
      }
    }
    if (needed[0] || needed[1]) scaled = scaled_like(grad_output, map_channels_last);
    grad_bias = epilogue_backward(grad_output, ratio, scaled, needed[2]);
    std::tie(grad_input, grad_weight) =
        convolution_backward(scaled, needed[1] ? selected(input) : input.map, plainly_laid_out(weight), strides(k),
                             paddings(k), dilations(k), call.groups, needed[0], needed[1]);
    return {cleared(grad_input, input, map_channels_last), laid_out(grad_weight, call.channels_last), grad_bias};
  }

  // x ⊙ m: the one product of the input's size that the operator makes, and only where it changes something.
  static Tensor select(const Tensor& input, const Tensor& mask, const Ints& plane_channels, bool is_masked) {
    if (is_masked) return input;
    // Only where the copy would not differ in layout, so that shapes and strides never depend on the mask's values.
    if constexpr (ReadsMasks<K>) {
      if (is_laid_out_as_its_copy(input) && K::is_all_valid(mask)) return input;
    }
    Tensor masked = empty_map_like(input);
    if (input.numel() > 0) K::select(input, mask, plane_channels, masked);
    return masked;
  }

  // The same for a map whose mask, if there is one, is a plane.
  static Tensor selected(const Masked& part) {
    return part.mask != nullptr ? select(part.map, *part.mask, {part.map.size(1)}, false) : part.map;
  }

  // The gradient of that map, where there is one, in the given layout and 0 in the holes.
  static Tensor cleared(const Tensor& grad, const Masked& part, bool channels_last) {
    Tensor result = laid_out(grad, channels_last);
    if (result.defined() && part.mask != nullptr && result.numel() > 0)
      K::clear(result, *part.mask, {part.map.size(1)});
    return result;
  }

  // An uninitialised map for dL/d(convolution) = grad_output · ratio.
  static Tensor scaled_like(const Tensor& grad_output, bool channels_last) {
    return empty_map(grad_output, channels_last, grad_output.size(0), grad_output.size(1), grad_output.size(2),
                     grad_output.size(3));
  }

  // Fills `scaled` where it is defined, and returns the bias' gradient where it is needed: one pass over grad_output.
  static Tensor epilogue_backward(const Tensor& grad_output, const Tensor& ratio, Tensor& scaled, bool needs_bias) {
    Tensor grad_bias = needs_bias ? empty_on(grad_output, {grad_output.size(1)}, grad_output.scalar_type()) : Tensor();
    if (needs_bias || scaled.defined()) K::epilogue_backward(grad_output, ratio, scaled, grad_bias);
    return grad_bias;
  }

 private:
  static Ints strides(const Window& k) { return {k.stride_h, k.stride_w}; }
  static Ints paddings(const Window& k) { return {k.padding_h, k.padding_w}; }
  static Ints dilations(const Window& k) { return {k.dilation_h, k.dilation_w}; }
};

}  // namespace msa::masked_conv
