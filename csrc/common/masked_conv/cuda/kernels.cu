// The CUDA kernels of a masked convolution: what host.h calls around cuDNN's convolutions. All are bound by memory
// traffic or, in small maps, by its latency.
#include <type_traits>

#include "common/masked_conv/cuda/epilogue.cuh"
#include "common/masked_conv/cuda/gradient.cuh"
#include "common/masked_conv/cuda/kernels.h"
#include "common/masked_conv/cuda/masks.cuh"

namespace msa::masked_conv {

namespace {

template <typename F>
void with_planes(const Tensor& mask, const Ints& plane_channels, const F& f) {
  const auto m = view<const MaskByte>(mask);
  plane_channels.size() == 1 ? f(OnePlane{m}) : f(ManyPlanes{m, plane_channels_of(plane_channels)});
}

}  // namespace

void CudaKernels::select(const Tensor& src, const Tensor& mask, const Ints& plane_channels, Tensor& dst) {
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

void CudaKernels::clear(Tensor& map, const Tensor& mask, const Ints& plane_channels) {
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

void CudaKernels::scale_and_shift(Tensor& map, const Tensor& ratio, const std::optional<Tensor>& bias) {
  dispatch_floating(map.scalar_type(), "partial_conv2d", [&](auto type) {
    using T = decltype(type);
    const auto m = view<T>(map);
    const T* shift = bias ? data_of<const T>(*bias) : nullptr;
    const Fastest fastest = fastest_of(m);
    walk<T>(extent_of(m), fastest, all_pack<T>(fastest, m) && packs_bias(shift),
            ScaleAndShift<T>{m, ratio_of<T>(ratio), {shift}}, current_stream(map));
  });
}

void CudaKernels::epilogue_backward(const Tensor& grad, const Tensor& ratio, Tensor& scaled, Tensor& grad_bias) {
  dispatch_floating(grad.scalar_type(), "partial_conv2d", [&](auto type) {
    using T = decltype(type);
    EpilogueGradient<T> work{view<const T>(grad), data_of<const Accumulator<T>>(ratio), {}, nullptr, nullptr};
    if (scaled.defined()) work.scaled = view<T>(scaled);
    const Fastest fastest = scaled.defined() ? fastest_of(work.scaled) : fastest_of(work.grad);
    const bool packed =
        packs(work.grad, fastest, kPack<T>) && (!scaled.defined() || packs(work.scaled, fastest, kPack<T>));
    T* bias = grad_bias.defined() ? data_of<T>(grad_bias) : nullptr;
    epilogue_gradient<T>(work, bias, fastest, packed, grad, current_stream(grad));
  });
}

}  // namespace msa::masked_conv
