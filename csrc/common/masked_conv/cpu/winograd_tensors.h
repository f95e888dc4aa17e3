// Minimal filtering between tensors, for both operators.
#pragma once

#include "common/masked_conv/cpu/epilogue.h"
#include "common/masked_conv/cpu/winograd.h"
#include "common/masked_conv/kernels.h"

namespace msa::masked_conv {
namespace {

inline std::optional<MaskView> plane_of(const Masked& map) {
  return map.mask != nullptr ? std::optional(view<const MaskByte>(*map.mask)) : std::nullopt;
}

// grad_output · ratio, dense, the channel its fastest dimension.
template <typename T>
Tensor scaled_gradient(const Tensor& grad_output, const Tensor& ratio) {
  Tensor scaled = torch::stable::empty(grad_output.sizes(), grad_output.scalar_type(), std::nullopt,
                                       grad_output.device(), std::nullopt, MemoryFormat::ChannelsLast);
  fill_map<T>(view<T>(scaled), ScaledGradient<T>{view<const T>(grad_output), data_of<const T>(ratio)});
  return scaled;
}

// Fills the gradients that are defined: grads[i] of the map of part i, and that of the weight.
template <typename T>
void winograd_backward(const Winograd<T>& winograd, const Tensor& grad_output, const Tensor& ratio,
                       const std::vector<Tensor>& grads, const Tensor& grad_weight) {
  std::vector<std::optional<View<T>>> maps;
  for (const Tensor& grad : grads) maps.push_back(grad.defined() ? std::optional(view<T>(grad)) : std::nullopt);
  const auto weight = grad_weight.defined() ? std::optional(view<T>(grad_weight)) : std::nullopt;
  const bool is_read_in_place = grad_output.stride(1) == 1;
  const Tensor grad = is_read_in_place ? grad_output : scaled_gradient<T>(grad_output, ratio);
  winograd.backward(view<const T>(grad), !is_read_in_place, maps, weight);
}

}  // namespace
}  // namespace msa::masked_conv
