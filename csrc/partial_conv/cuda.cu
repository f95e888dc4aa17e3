// CUDA kernels of the partial convolution: what operators.h calls around cuDNN's convolutions. All are bound by memory
// traffic or, in small maps, by its latency.
#include <type_traits>

#include "cuda_decoder.cuh"
#include "cuda_epilogue.cuh"
#include "cuda_gradient.cuh"
#include "cuda_masks.cuh"
#include "operators_upcat.h"

namespace msa::partial_conv {
namespace {

struct CudaKernels : LibraryConvolution {
  struct Guard {
    torch::stable::accelerator::DeviceGuard device;
    explicit Guard(const Tensor& t) : device(t.get_device_index()) {}
  };

  // ---- masks

  static void window_ratios(const Tensor& mask, const Ints& plane_channels, const Window& window, int64_t numerator,
                            Tensor& ratio, Tensor& new_mask) {
    const auto m = view<const uint8_t>(mask);
    const WindowPlane plane{window, m.n, m.h, m.w, ratio.size(2), ratio.size(3)};
    const cudaStream_t stream = current_stream(mask);
    if (plane_channels.size() > 1) {
      const GroupCounts counts{m, plane_channels_of(plane_channels)};
      return launch_window_kernel<0>(counts, plane, numerator, ratio, new_mask, stream);
    }
    const PlaneCounts counts{m, static_cast<int32_t>(plane_channels[0])};
    const int64_t taps = window.kernel_h == window.kernel_w ? window.kernel_h : 0;
    if (taps == 3) return launch_window_kernel<3>(counts, plane, numerator, ratio, new_mask, stream);
    if (taps == 5) return launch_window_kernel<5>(counts, plane, numerator, ratio, new_mask, stream);
    if (taps == 7) return launch_window_kernel<7>(counts, plane, numerator, ratio, new_mask, stream);
    launch_window_kernel<0>(counts, plane, numerator, ratio, new_mask, stream);
  }

  static void window_ratios_upcat(const Tensor& low_mask, int64_t low_channels, const Tensor& skip_mask,
                                  int64_t skip_channels, int64_t numerator, Tensor& ratio, Tensor& new_mask) {
    const UpcatCounts counts{view<const uint8_t>(low_mask), view<const uint8_t>(skip_mask),
                             static_cast<int32_t>(low_channels), static_cast<int32_t>(skip_channels)};
    const int64_t h = ratio.size(2), w = ratio.size(3);
    const WindowPlane plane{{3, 3, 1, 1, 1, 1, 1, 1}, ratio.size(0), h, w, h, w};
    launch_window_kernel<3>(counts, plane, numerator, ratio, new_mask, current_stream(skip_mask));
  }

  // Looking at the mask would synchronise with the device.
  static bool known_all_valid(const Tensor&) { return false; }

  static void select(const Tensor& src, const Tensor& mask, const Ints& plane_channels, Tensor& dst) {
    dispatch_bits(src.element_size(), [&](auto bits) {
      using T = decltype(bits);
      const auto from = view<const T>(src);
      const auto to = view<T>(dst);
      const Fastest fastest = fastest_of(to);
      with_planes(mask, plane_channels, [&](const auto& planes) {
        walk<T>(extent_of(to), fastest, all_pack<T>(fastest, from, to),
                Select<T, std::decay_t<decltype(planes)>>{from, planes, to}, current_stream(src));
      });
    });
  }

  static void clear(Tensor& map, const Tensor& mask, const Ints& plane_channels) {
    dispatch_bits(map.element_size(), [&](auto bits) {
      using T = decltype(bits);
      const auto m = view<T>(map);
      const Fastest fastest = fastest_of(m);
      with_planes(mask, plane_channels, [&](const auto& planes) {
        walk<T>(extent_of(m), fastest, all_pack<T>(fastest, m), Clear<T, std::decay_t<decltype(planes)>>{m, planes},
                current_stream(map));
      });
    });
  }

  // ---- Eq. 2 and its gradient

  static void scale_and_shift(Tensor& map, const Tensor& ratio, const std::optional<Tensor>& bias) {
    dispatch_floating(map.scalar_type(), "partial_conv2d", [&](auto type) {
      using T = decltype(type);
      const auto m = view<T>(map);
      const T* shift = bias ? data<T>(*bias) : nullptr;
      const Fastest fastest = fastest_of(m);
      walk<T>(extent_of(m), fastest, all_pack<T>(fastest, m) && packs_bias(shift),
              ScaleAndShift<T>{m, ratio_of<T>(ratio), {shift}}, current_stream(map));
    });
  }

  static void add_phases_scale_and_shift(Tensor& map, const Tensor& phases, const Tensor& ratio,
                                         const std::optional<Tensor>& bias) {
    dispatch_floating(map.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const auto m = view<T>(map);
      const auto p = view<const T>(phases);
      const T* shift = bias ? data<T>(*bias) : nullptr;
      const Fastest fastest = fastest_of(m);
      walk_channels<T>(extent_of(m), fastest, all_pack<T>(fastest, m, p) && packs_bias(shift),
                       AddPhases<T>{m, p, ratio_of<T>(ratio), {shift}}, current_stream(map));
    });
  }

  // grad · ratio into `scaled`, and its sum over the valid positions into `grad_bias`: those that are defined.
  static void epilogue_backward(const Tensor& grad, const Tensor& ratio, Tensor& scaled, Tensor& grad_bias) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d", [&](auto type) {
      using T = decltype(type);
      EpilogueGradient<T> work{view<const T>(grad), data<Accumulator<T>>(ratio), {}, nullptr, nullptr};
      if (scaled.defined()) work.scaled = view<T>(scaled);
      const Fastest fastest = scaled.defined() ? fastest_of(work.scaled) : fastest_of(work.grad);
      const bool packed =
          packs(work.grad, fastest, kPack<T>) && (!scaled.defined() || packs(work.scaled, fastest, kPack<T>));
      T* bias = grad_bias.defined() ? static_cast<T*>(grad_bias.mutable_data_ptr()) : nullptr;
      epilogue_gradient<T>(work, bias, fastest, packed, grad, current_stream(grad));
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

  // ---- the decoder

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

  // Fills the gradients that are defined.
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

  // The weights of the phases, and of the skip's channels alone.
  static std::pair<Tensor, Tensor> decoder_weights(const Tensor& weight, const Tensor& low, bool channels_last) {
    const int64_t outputs = weight.size(0), low_channels = low.size(1), skip_channels = weight.size(1) - low_channels;
    Tensor phases = empty_map(low, 4 * outputs, low_channels, 2, 2);
    Tensor skip = empty_map(weight, channels_last, outputs, skip_channels, 3, 3);
    dispatch_floating(weight.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const DecoderWeights<T> work{view<const T>(weight), view<T>(phases), view<T>(skip)};
      walk_weights<T>(work, all_pack<T>(Fastest::kChannel, work.weight, work.phases, work.skip),
                      current_stream(weight));
    });
    return {phases, skip};
  }

  static void fold_decoder_weights(const Tensor& grad_phases, const Tensor& grad_skip, Tensor& grad_weight) {
    dispatch_floating(grad_weight.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const FoldDecoderWeights<T> work{view<const T>(grad_phases), view<const T>(grad_skip), view<T>(grad_weight)};
      walk_weights<T>(work, all_pack<T>(Fastest::kChannel, work.weight, work.phases, work.skip),
                      current_stream(grad_weight));
    });
  }

 private:
  template <typename F>
  static void with_planes(const Tensor& mask, const Ints& plane_channels, const F& f) {
    const auto m = view<const uint8_t>(mask);
    plane_channels.size() == 1 ? f(OnePlane{m}) : f(ManyPlanes{m, plane_channels_of(plane_channels)});
  }

  template <typename T, typename... Views>
  static bool all_pack(Fastest fastest, const Views&... views) {
    return (packs(views, fastest, kPack<T>) && ...);
  }

  // Pairs of an output and some input channels, all taps of which a thread takes.
  template <typename T, typename Work>
  static void walk_weights(const Work& work, bool packed, cudaStream_t stream) {
    walk_channels<T>({work.weight.n, work.weight.c, 1, 1}, Fastest::kChannel, packed, work, stream);
  }

  template <typename T>
  static const T* data(const Tensor& t) {
    return static_cast<const T*>(t.const_data_ptr());
  }

  template <typename T>
  static Ratio<Accumulator<T>> ratio_of(const Tensor& ratio) {
    return {data<Accumulator<T>>(ratio), ratio.size(2), ratio.size(3)};
  }

  template <typename T>
  static MaskedView<T> part(const Tensor& map, const Tensor* mask) {
    return {view<T>(map), mask != nullptr ? view<const uint8_t>(*mask) : MaskView{}};
  }
};

}  // namespace
}  // namespace msa::partial_conv

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CUDA, library) {
  MSA_REGISTER_PARTIAL_CONV(library, msa::partial_conv::CudaKernels);
}
