// Sizes and arithmetic of the partial convolution (SPEC: Eqs. 1-5 of the paper), shared by host and device code.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MSA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MSA_HOST_DEVICE inline
#endif

namespace msa::partial_conv {

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

// Decoder identity. A 3x3 convolution (padding 1) of a nearest-upsampled map is, for output pixel (2i+a, 2j+b), a 2x2
// convolution of the small map: output row 2i+a reads upsampled rows 2i+a-1 .. 2i+a+1, which are small rows
// i+a-1 and i+a. Tap k of the 3x3 kernel falls on the first (0) or second (1) of these two rows:
MSA_HOST_DEVICE int64_t phase_tap(int64_t phase, int64_t k) { return (k + 1 - phase) / 2; }
// so the phases' kernels are sums of taps, and all four are one 2x2 convolution with padding 1 and 4*C_out channels
// whose output (h+1, w+1) holds phase (a, b) of pixel (i, j) at channel block 2a+b, position (i+a, j+b).

}  // namespace msa::partial_conv
