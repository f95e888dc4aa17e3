// What the CPU has of the kernels of a masked convolution, its own convolutions included.
#pragma once

#include "common/masked_conv/kernels.h"

namespace msa::masked_conv {

struct CpuKernels {
  using Guard = HostGuard;

  static void select(const Tensor& src, const Tensor& mask, const Ints& plane_channels, Tensor& dst);
  static void clear(Tensor& map, const Tensor& mask, const Ints& plane_channels);
  static void scale_and_shift(Tensor& map, const Tensor& ratio, const std::optional<Tensor>& bias);
  static void epilogue_backward(const Tensor& grad, const Tensor& ratio, Tensor& scaled, Tensor& grad_bias);

  static bool is_all_valid(const Tensor& mask);
  static Tensor convert_mask(const Tensor& mask, ScalarType dtype);

  static bool is_finite(const Tensor& t);
  static bool convolves(const Tensor& input, const Tensor& weight, const Window& window, int64_t groups);
  static void convolve(const Masked& input, const Tensor& weight, const Window& window, const Tensor& ratio,
                       const std::optional<Tensor>& bias, Tensor& output);
  static void convolve_backward(const Tensor& grad_output, const Masked& input, const Tensor& weight,
                                const Window& window, const Tensor& ratio, const Tensor& grad_input,
                                const Tensor& grad_weight);
};
static_assert(Kernels<CpuKernels> && ReadsMasks<CpuKernels> && ConvertsMasks<CpuKernels> && HasConvolution<CpuKernels>);

}  // namespace msa::masked_conv
