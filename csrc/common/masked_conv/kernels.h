// What the host code of a masked convolution needs of a device's kernels: static members of a class K.
#pragma once

#include <concepts>

#include "common/masked_conv/window.h"
#include "common/tensor.h"

namespace msa::masked_conv {

// A map and the plane of its holes. Without a plane the map is 0 in its holes already, or its values are not read.
struct Masked {
  const Tensor& map;
  const Tensor* mask;
};

// Every device has these. Maps and masks have any strides; outputs are allocated by the caller and not empty.
template <class K>
concept Kernels = requires(const Tensor& map, const Tensor& mask, const Ints& plane_channels, const Tensor& ratio,
                           const std::optional<Tensor>& bias, Tensor& output, Tensor& maybe_undefined) {
  // As long as one lives, allocations and launches go to the device of the tensor it was made from.
  requires std::constructible_from<typename K::Guard, const Tensor&>;
  // output = map where the mask is valid, 0 elsewhere. Plane g of the mask covers plane_channels[g] channels.
  { K::select(map, mask, plane_channels, output) } -> std::same_as<void>;
  // The same in place: 0 in the holes.
  { K::clear(output, mask, plane_channels) } -> std::same_as<void>;
  // Eq. 2 in place, on the result of a convolution.
  { K::scale_and_shift(output, ratio, bias) } -> std::same_as<void>;
  // The gradient of Eq. 2. Writes map * ratio to the first tensor and the sum of map over the valid positions, which is
  // the gradient of the bias, to the second; either may be undefined.
  { K::epilogue_backward(map, ratio, maybe_undefined, maybe_undefined) } -> std::same_as<void>;
};

// Optional, where the device can read a mask without waiting: whether a mask has no hole. The product with the mask is
// then left out.
template <class K>
concept ReadsMasks = requires(const Tensor& mask) {
  { K::is_all_valid(mask) } -> std::same_as<bool>;
};

// Optional: conversion of a mask between bool, uint8 and the floating dtypes, any value but 0 being valid, and 1
// standing for valid. The result is contiguous.
template <class K>
concept ConvertsMasks = requires(const Tensor& mask, ScalarType dtype) {
  { K::convert_mask(mask, dtype) } -> std::same_as<Tensor>;
};

// Optional: convolutions of our own, which run where they are faster than the library's. They may form sums of inputs
// or of weights that the definition does not have. Near the largest number such a sum can overflow where the result
// would be finite, and an inf or NaN in one window spreads to its neighbours. Neither can leave a result finite, so a
// result that is not is thrown away, and the library, which sums each window by itself, computes it again.
template <class K>
concept HasConvolution =
    requires(const Tensor& map, const Masked& input, const Tensor& weight, const Window& window, int64_t groups,
             const Tensor& ratio, const std::optional<Tensor>& bias, Tensor& output, const Tensor& maybe_undefined) {
      // Whether the device's own convolution runs for these sizes and strides.
      { K::convolves(map, weight, window, groups) } -> std::same_as<bool>;
      // Eqs. 1 and 2 into `output`.
      { K::convolve(input, weight, window, ratio, bias, output) } -> std::same_as<void>;
      // The gradients of the map (0 in the holes of its mask) and of the weight, from that of the output; either may be
      // undefined.
      {
        K::convolve_backward(map, input, weight, window, ratio, maybe_undefined, maybe_undefined)
      } -> std::same_as<void>;
      // Whether all elements of a dense tensor are finite; true where it is undefined.
      { K::is_finite(maybe_undefined) } -> std::same_as<bool>;
    };

}  // namespace msa::masked_conv
