// partial_conv2d on the CPU: the sums of Eq. 4 for masks of any planes. All else is common/masked_conv/cpu.
#include "partial_conv/operators.h"

#include "common/masked_conv/cpu/kernels.h"
#include "common/masked_conv/cpu/windows.h"

namespace msa::partial_conv {
namespace {

// counts(p) = Σ_g channels_g · mask_g(p): valid entries of all channels at one pixel.
void count_row(const MaskView& mask, const Ints& channels, int64_t n, int64_t y, int32_t* counts) {
  const MaskByte* row = mask.data + n * mask.sn + y * mask.sh;
  if (mask.c > 1 && mask.sc == 1) {
    for (int64_t x = 0; x < mask.w; ++x) {
      int32_t sum = 0;
      for (int64_t g = 0; g < mask.c; ++g) sum += static_cast<int32_t>(channels[g]) * row[x * mask.sw + g];
      counts[x] = sum;
    }
    return;
  }
  std::fill(counts, counts + mask.w, 0);
  for (int64_t g = 0; g < mask.c; ++g) {
    const MaskByte* plane = row + g * mask.sc;
    const int32_t weight = static_cast<int32_t>(channels[g]);
    for (int64_t x = 0; x < mask.w; ++x) counts[x] += weight * plane[x * mask.sw];
  }
}

struct CpuKernels : masked_conv::CpuKernels {
  static void window_ratios(const Tensor& mask, const Ints& plane_channels, const Window& window, int64_t numerator,
                            Tensor& ratio, Tensor& new_mask) {
    const auto m = view<const MaskByte>(mask);
    Tensor counts = empty_on(mask, {m.n, 1, m.h, m.w}, ScalarType::Int);
    int32_t* out = data_of<int32_t>(counts);
    parallel_rows(m.n * m.h, m.w * m.c,
                  [&](int64_t row) { count_row(m, plane_channels, row / m.h, row % m.h, out + row * m.w); });
    masked_conv::ratios_of_counts(counts, window, numerator, ratio, new_mask);
  }
};
static_assert(Kernels<CpuKernels>);

using Operators = PartialConv<CpuKernels>;

}  // namespace
}  // namespace msa::partial_conv

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CPU, library) {
  library.impl("partial_conv2d_forward", MSA_BOX(msa::partial_conv::Operators::forward));
  library.impl("partial_conv2d_backward", MSA_BOX(msa::partial_conv::Operators::backward));
}
