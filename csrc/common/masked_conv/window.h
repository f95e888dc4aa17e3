// Sizes and arithmetic of a partial convolution (Eqs. 1-5 of the paper), for host and device code.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MSA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MSA_HOST_DEVICE inline
#endif

namespace msa::masked_conv {

// The sampling window of a convolution along both axes, which fits into the padded map.
struct Window {
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t padding_h, padding_w;
  int64_t dilation_h, dilation_w;

  int64_t output_h(int64_t h) const { return (h + 2 * padding_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
  int64_t output_w(int64_t w) const { return (w + 2 * padding_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
};

// f_s of Eq. 4: E/s where the window holds a valid entry, 0 elsewhere. Selecting by s > 0 instead of adding an epsilon
// is what keeps every mask free of inf and NaN. The result is positive exactly where mask' (Eq. 5) is 1.
template <typename R>
MSA_HOST_DEVICE R window_ratio(int64_t numerator, int64_t valid_entries) {
  return valid_entries > 0 ? static_cast<R>(numerator) / static_cast<R>(valid_entries) : R(0);
}

// Eq. 2 on one element: the convolution's value renormalised plus bias, and 0 where no entry was valid.
template <typename R>
MSA_HOST_DEVICE R renormalise(R convolved, R ratio, R bias) {
  return ratio > R(0) ? convolved * ratio + bias : R(0);
}

}  // namespace msa::masked_conv
