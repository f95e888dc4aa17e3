// partial_conv2d_upcat on a CUDA device: the concatenation of small maps, and the phases of large ones around cuDNN's
// convolutions.
#include "common/masked_conv/cuda/kernels.h"
#include "common/masked_conv/cuda/windows.cuh"
#include "decoder_conv/cuda/concatenation.cuh"
#include "decoder_conv/cuda/phases.cuh"
#include "decoder_conv/operators.h"

namespace msa::decoder_conv {

// Valid entries of all channels at one pixel of the concatenation.
struct UpcatCounts {
  MaskView low, skip;
  int32_t low_channels, skip_channels;
  __device__ __forceinline__ int32_t at(int64_t n, int64_t y, int64_t x) const {
    const MaskByte from_low = *address(low, n, 0, y >> 1, x >> 1), from_skip = *address(skip, n, 0, y, x);
    return (from_low ? low_channels : 0) + (from_skip ? skip_channels : 0);
  }
};

namespace {

struct CudaKernels : masked_conv::CudaKernels {
  static void window_ratios(const Tensor& low_mask, int64_t low_channels, const Tensor& skip_mask,
                            int64_t skip_channels, int64_t numerator, Tensor& ratio, Tensor& new_mask) {
    const UpcatCounts counts{view<const MaskByte>(low_mask), view<const MaskByte>(skip_mask),
                             static_cast<int32_t>(low_channels), static_cast<int32_t>(skip_channels)};
    const int64_t h = ratio.size(2), w = ratio.size(3);
    const masked_conv::WindowPlane plane{kWindow, ratio.size(0), h, w, h, w};
    masked_conv::launch_window_kernel<3>(counts, plane, numerator, ratio, new_mask, current_stream(skip_mask));
  }

  // ---- the concatenation

  static void concatenate(const Masked& low, const Masked& skip, Tensor& image) {
    dispatch_bits(image.element_size(), [&](auto bits) {
      using T = decltype(bits);
      const Concatenate<T> work{part<const T>(low.map, low.mask), part<const T>(skip.map, skip.mask), view<T>(image)};
      const Fastest fastest = fastest_of(work.image);
      // Along rows, only the image is packed: neighbours there come from one pixel of low.
      const bool packed = fastest == Fastest::kChannel ? all_pack<T>(fastest, work.low.map, work.skip.map, work.image)
                                                       : all_pack<T>(fastest, work.image);
      walk<T>(extent_of(work.image), fastest, packed, work, current_stream(image));
    });
  }

  static void divide_concatenation(const Tensor& grad, const Tensor* low_mask, const Tensor* skip_mask,
                                   Tensor& grad_low, Tensor& grad_skip) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const auto g = view<const T>(grad);
      MaskedView<T> low{}, skip{};
      if (grad_low.defined()) low = part<T>(grad_low, low_mask);
      if (grad_skip.defined()) skip = part<T>(grad_skip, skip_mask);
      const int64_t low_channels = grad_low.defined() ? low.map.c : g.c - skip.map.c;
      const int64_t first = grad_low.defined() ? 0 : low_channels, last = grad_skip.defined() ? g.c : low_channels;
      const Fastest fastest = fastest_of(g);
      const bool packed = all_pack<T>(fastest, g) && low_channels % kPack<T> == 0 &&
                          (!grad_low.defined() || all_pack<T>(fastest, low.map)) &&
                          (!grad_skip.defined() || all_pack<T>(fastest, skip.map));
      walk_channels<T>({g.n, last - first, g.h / 2, g.w / 2}, fastest, packed,
                       DivideConcatenation<T>{g, low, skip, low_channels, first}, current_stream(grad));
    });
  }

  // ---- the phases

  // The weights of the phases, and of the skip's channels alone.
  static std::pair<Tensor, Tensor> phase_weights(const Tensor& weight, const Tensor& low, bool channels_last) {
    const int64_t outputs = weight.size(0), low_channels = low.size(1), skip_channels = weight.size(1) - low_channels;
    Tensor phases = empty_map(low, 4 * outputs, low_channels, 2, 2);
    Tensor skip = empty_map(weight, channels_last, outputs, skip_channels, 3, 3);
    dispatch_floating(weight.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const PhaseWeights<T> work{view<const T>(weight), view<T>(phases), view<T>(skip)};
      walk_weights<T>(work, all_pack<T>(Fastest::kChannel, work.weight, work.phases, work.skip),
                      current_stream(weight));
    });
    return {phases, skip};
  }

  static void fold_phase_weights(const Tensor& grad_phases, const Tensor& grad_skip, Tensor& grad_weight) {
    dispatch_floating(grad_weight.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const FoldPhaseWeights<T> work{view<const T>(grad_phases), view<const T>(grad_skip), view<T>(grad_weight)};
      walk_weights<T>(work, all_pack<T>(Fastest::kChannel, work.weight, work.phases, work.skip),
                      current_stream(grad_weight));
    });
  }

  static void add_phases_scale_and_shift(Tensor& map, const Tensor& phases, const Tensor& ratio,
                                         const std::optional<Tensor>& bias) {
    dispatch_floating(map.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const auto m = view<T>(map);
      const auto p = view<const T>(phases);
      const T* shift = bias ? data_of<const T>(*bias) : nullptr;
      const Fastest fastest = fastest_of(m);
      walk_channels<T>(extent_of(m), fastest, all_pack<T>(fastest, m, p) && masked_conv::packs_bias(shift),
                       AddPhases<T>{m, p, masked_conv::ratio_of<T>(ratio), {shift}}, current_stream(map));
    });
  }

  static void split_phases(const Tensor& grad, Tensor& phases) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const auto g = view<const T>(grad);
      const auto p = view<T>(phases);
      const Fastest fastest = fastest_of(p);
      walk_channels<T>(extent_of(p), fastest, all_pack<T>(fastest, g, p), SplitPhases<T>{g, p, Divider(g.c)},
                       current_stream(grad));
    });
  }

 private:
  // Pairs of an output and some input channels, all taps of which a thread takes.
  template <typename T, typename Work>
  static void walk_weights(const Work& work, bool packed, cudaStream_t stream) {
    walk_channels<T>({work.weight.n, work.weight.c, 1, 1}, Fastest::kChannel, packed, work, stream);
  }

  template <typename T>
  static MaskedView<T> part(const Tensor& map, const Tensor* mask) {
    return {view<T>(map), mask != nullptr ? view<const MaskByte>(*mask) : MaskView{}};
  }
};
static_assert(Kernels<CudaKernels> && !HasConvolution<CudaKernels>);

using Operators = DecoderConv<CudaKernels>;

}  // namespace
}  // namespace msa::decoder_conv

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CUDA, library) {
  library.impl("partial_conv2d_upcat_forward", MSA_BOX(msa::decoder_conv::Operators::forward));
  library.impl("partial_conv2d_upcat_backward", MSA_BOX(msa::decoder_conv::Operators::backward));
}
