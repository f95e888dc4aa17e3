// partial_conv2d on a CUDA device: the sums of Eq. 4 for masks of any planes. All else is common/masked_conv/cuda.
#include "common/masked_conv/cuda/kernels.h"
#include "common/masked_conv/cuda/windows.cuh"
#include "partial_conv/operators.h"

namespace msa::partial_conv {

using masked_conv::PlaneChannels;

// Valid entries of all channels at one pixel, for masks of one plane and of several.
struct PlaneCounts {
  MaskView mask;
  int32_t channels;
  __device__ __forceinline__ int32_t at(int64_t n, int64_t y, int64_t x) const {
    return *address(mask, n, 0, y, x) != 0 ? channels : 0;
  }
};

struct GroupCounts {
  MaskView mask;
  PlaneChannels channels;
  __device__ __forceinline__ int32_t at(int64_t n, int64_t y, int64_t x) const {
    const MaskByte* plane = address(mask, n, 0, y, x);
    int32_t sum = 0;
    if (channels.uniform != 0) {
#pragma unroll 8
      for (int64_t g = 0; g < mask.c; ++g) sum += plane[g * mask.sc] != 0;
      return sum * static_cast<int32_t>(channels.uniform);
    }
    for (int64_t g = 0; g < mask.c; ++g)
      sum += plane[g * mask.sc] != 0 ? static_cast<int32_t>(channels.width_of(g)) : 0;
    return sum;
  }
};

namespace {

struct CudaKernels : masked_conv::CudaKernels {
  static void window_ratios(const Tensor& mask, const Ints& plane_channels, const Window& window, int64_t numerator,
                            Tensor& ratio, Tensor& new_mask) {
    const auto m = view<const MaskByte>(mask);
    const masked_conv::WindowPlane plane{window, m.n, m.h, m.w, ratio.size(2), ratio.size(3)};
    const auto run = [&](auto taps, const auto& counts) {
      masked_conv::launch_window_kernel<taps>(counts, plane, numerator, ratio, new_mask, current_stream(mask));
    };
    using std::integral_constant;
    if (plane_channels.size() > 1)
      return run(integral_constant<int, 0>(), GroupCounts{m, masked_conv::plane_channels_of(plane_channels)});
    const PlaneCounts counts{m, static_cast<int32_t>(plane_channels[0])};
    switch (window.kernel_h == window.kernel_w ? window.kernel_h : 0) {
      case 3:
        return run(integral_constant<int, 3>(), counts);
      case 5:
        return run(integral_constant<int, 5>(), counts);
      case 7:
        return run(integral_constant<int, 7>(), counts);
      default:
        run(integral_constant<int, 0>(), counts);
    }
  }
};
static_assert(Kernels<CudaKernels>);

using Operators = PartialConv<CudaKernels>;

}  // namespace
}  // namespace msa::partial_conv

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CUDA, library) {
  library.impl("partial_conv2d_forward", MSA_BOX(msa::partial_conv::Operators::forward));
  library.impl("partial_conv2d_backward", MSA_BOX(msa::partial_conv::Operators::backward));
}
