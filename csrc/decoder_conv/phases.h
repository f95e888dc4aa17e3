// The decoder identity, for host and device code. A 3x3 convolution (padding 1) of a nearest-upsampled map is, for
// output pixel (2i+a, 2j+b), a 2x2 convolution of the small map: output row 2i+a reads upsampled rows 2i+a-1 .. 2i+a+1,
// which are small rows i+a-1 and i+a. So the kernels of the four phases (a, b) are sums of taps of the 3x3 kernel, and
// all four are one 2x2 convolution with padding 1 and 4 * C_out channels, whose output (h+1, w+1) holds phase (a, b) of
// pixel (i, j) at channel block 2a+b, position (i+a, j+b).
#pragma once

#include "common/masked_conv/window.h"

namespace msa::decoder_conv {

// Whether tap k of the 3x3 kernel falls on the first (0) or the second (1) small row under an output row of this phase.
MSA_HOST_DEVICE int64_t phase_tap(int64_t phase, int64_t k) { return (k + 1 - phase) / 2; }

}  // namespace msa::decoder_conv
