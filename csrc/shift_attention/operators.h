// Host side of attention with shift propagation (Eqs. 6-8), the same for every device.
#pragma once

#include <array>
#include <concepts>

#include "common/tensor.h"

namespace msa::shift_attention {

using Attended = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// What makes the weights s': query and key (N, C, H, W), masks (N, 1, H, W) bool, λ, and the radius of the shifts.
struct Operands {
  const Tensor &query, &key, &query_mask, &key_mask;
  double scale;
  int64_t radius;
};

// What the host code needs of a device's kernels: static members of a class K. Tensors have any strides and are not
// empty; outputs come as they are to stay where nothing is written.
template <class K>
concept Kernels =
    requires(const Operands& operands, const Tensor& value, bool renormalize, const Tensor& grad_output,
             const Tensor& output, const Tensor& statistics, const std::array<Tensor, 3>& grads, Tensor& best) {
      // As long as one lives, allocations and launches go to the device of the tensor it was made from.
      requires std::constructible_from<typename K::Guard, const Tensor&>;
      // Writes output and statistics (see zero_outputs) of every query of a sample that has keys.
      { K::forward(operands, value, renormalize, output, statistics) } -> std::same_as<void>;
      // Writes the gradients of query, key and value that are defined.
      { K::backward(grad_output, operands, value, output, statistics, renormalize, grads) } -> std::same_as<void>;
      // Writes for every query the key with the largest s', the first of equals, where one is positive.
      { K::argmax(operands, best) } -> std::same_as<void>;
    };

inline void check(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& query_mask,
                  const Tensor& key_mask, int64_t radius, const char* where) {
  for (const Tensor* t : {&query, &key, &value})
    STD_TORCH_CHECK(t->dim() == 4 && t->scalar_type() == query.scalar_type(), "msa_ops::", where,
                    ": query, key and value must be four-dimensional and of one dtype, got ", shape_of(*t));
  STD_TORCH_CHECK(has_shape(key, {query.size(0), query.size(1), query.size(2), query.size(3)}), "msa_ops::", where,
                  ": key must have the shape of query, ", shape_of(query), ", got ", shape_of(key));
  STD_TORCH_CHECK(has_shape(value, {query.size(0), value.size(1), query.size(2), query.size(3)}), "msa_ops::", where,
                  ": value must have the batch and size of query, ", shape_of(query), ", got ", shape_of(value));
  for (const Tensor* t : {&key, &value, &query_mask, &key_mask})
    STD_TORCH_CHECK(t->device() == query.device(), "msa_ops::", where,
                    ": key, value and masks must be on the device of query");
  for (const Tensor* m : {&query_mask, &key_mask})
    STD_TORCH_CHECK(
        m->scalar_type() == ScalarType::Bool && has_shape(*m, {query.size(0), 1, query.size(2), query.size(3)}),
        "msa_ops::", where, ": masks must be bool and have shape (", query.size(0), ", 1, ", query.size(2), ", ",
        query.size(3), "), got ", shape_of(*m));
  STD_TORCH_CHECK(radius >= 0, "msa_ops::", where, ": radius must not be negative, got ", radius);
  check_floating(query.scalar_type(), "shift_attention");
}

inline void check_backward(const Tensor& grad_output, const Tensor& query, const Tensor& value, const Tensor& output,
                           const Tensor& statistics, const std::vector<bool>& needed) {
  const char* where = "shift_attention_backward";
  for (const Tensor* t : {&grad_output, &output, &statistics})
    STD_TORCH_CHECK(t->device() == query.device(), "msa_ops::", where,
                    ": grad_output, output and statistics must be on the device of query");
  for (const Tensor* t : {&grad_output, &output})
    STD_TORCH_CHECK(t->scalar_type() == value.scalar_type() &&
                        has_shape(*t, {value.size(0), value.size(1), value.size(2), value.size(3)}),
                    "msa_ops::", where, ": grad_output and output must be those of the forward, got ", shape_of(*t));
  STD_TORCH_CHECK(statistics.is_contiguous() && statistics.scalar_type() == accumulator_dtype(query.scalar_type()) &&
                      has_shape(statistics, {query.size(0), query.size(2) * query.size(3), 3}),
                  "msa_ops::", where, ": statistics must be those of the forward, got ", shape_of(statistics));
  STD_TORCH_CHECK(needed.size() == 3, "msa_ops::", where, ": needed must hold three flags");
}

// Output (N, Cv, H, W), and statistics per pixel (N, H·W, 3): the largest score, log Σ exp(S - largest), the row sum of
// s'. All zero, which is what pixels without a query, and samples without a key, keep.
inline Attended zero_outputs(const Tensor& query, const Tensor& value) {
  Attended outputs{
      empty_map(value, value.size(0), value.size(1), value.size(2), value.size(3)),
      empty_on(query, {query.size(0), query.size(2) * query.size(3), 3}, accumulator_dtype(query.scalar_type()))};
  torch::stable::zero_(std::get<0>(outputs));
  torch::stable::zero_(std::get<1>(outputs));
  return outputs;
}

// Zero gradients of the inputs that need one; the others undefined.
inline std::array<Tensor, 3> zero_gradients(const Tensor& query, const Tensor& key, const Tensor& value,
                                            const std::vector<bool>& needed) {
  std::array<Tensor, 3> grads;
  const std::array<const Tensor*, 3> inputs{&query, &key, &value};
  for (int i = 0; i < 3; ++i)
    if (needed[i]) {
      const Tensor& t = *inputs[i];
      grads[i] = empty_map(t, t.size(0), t.size(1), t.size(2), t.size(3));
      torch::stable::zero_(grads[i]);
    }
  return grads;
}

template <Kernels K>
struct ShiftAttention {
  static Attended forward(Tensor query, Tensor key, Tensor value, Tensor query_mask, Tensor key_mask, double scale,
                          int64_t radius, bool renormalize) {
    check(query, key, value, query_mask, key_mask, radius, "shift_attention_forward");
    const typename K::Guard guard(query);
    const Attended outputs = zero_outputs(query, value);
    const auto& [output, statistics] = outputs;
    if (statistics.numel() == 0) return outputs;
    K::forward({query, key, query_mask, key_mask, scale, radius}, value, renormalize, output, statistics);
    return outputs;
  }

  static Gradients backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_mask,
                            Tensor key_mask, Tensor output, Tensor statistics, double scale, int64_t radius,
                            bool renormalize, std::vector<bool> needed) {
    check(query, key, value, query_mask, key_mask, radius, "shift_attention_backward");
    check_backward(grad_output, query, value, output, statistics, needed);
    const typename K::Guard guard(query);
    const std::array<Tensor, 3> grads = zero_gradients(query, key, value, needed);
    if (statistics.numel() > 0)
      K::backward(grad_output, {query, key, query_mask, key_mask, scale, radius}, value, output, statistics,
                  renormalize, grads);
    return {grads[0], grads[1], grads[2]};
  }

  // For every query pixel the key with the largest s' (the first of equals), -1 where there is none: (N, H, W) int64.
  static Tensor argmax(Tensor query, Tensor key, Tensor query_mask, Tensor key_mask, double scale, int64_t radius) {
    check(query, key, key, query_mask, key_mask, radius, "shift_attention_argmax");
    const typename K::Guard guard(query);
    Tensor best = empty_on(query, {query.size(0), query.size(2), query.size(3)}, ScalarType::Long);
    torch::stable::fill_(best, -1);
    if (best.numel() > 0) K::argmax({query, key, query_mask, key_mask, scale, radius}, best);
    return best;
  }
};

}  // namespace msa::shift_attention
