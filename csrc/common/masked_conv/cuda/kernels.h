// What a CUDA device has of the kernels of a masked convolution. The convolution itself is cuDNN's; and looking at a
// mask would synchronise with the device, so no mask is read on the host.
#pragma once

#include "common/launch.cuh"
#include "common/masked_conv/kernels.h"

namespace msa::masked_conv {

struct CudaKernels {
  using Guard = CudaGuard;

  static void select(const Tensor& src, const Tensor& mask, const Ints& plane_channels, Tensor& dst);
  static void clear(Tensor& map, const Tensor& mask, const Ints& plane_channels);
  static void scale_and_shift(Tensor& map, const Tensor& ratio, const std::optional<Tensor>& bias);
  static void epilogue_backward(const Tensor& grad, const Tensor& ratio, Tensor& scaled, Tensor& grad_bias);
};
static_assert(Kernels<CudaKernels> && !ReadsMasks<CudaKernels> && !HasConvolution<CudaKernels>);

}  // namespace msa::masked_conv
