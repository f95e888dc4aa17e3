// The table of contents of the native code: the schema of every operator. Kernels register themselves from their own
// files: <room>/cpu/operators.cpp, and <room>/cuda/operators.cu in the library of the CUDA part.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(msa_ops, library) {
  // partial_conv/. plane_channels[g]: channels that plane g of the mask covers; numerator: E of Eq. 4 (or what stands
  // in its place).
  library.def(
      "partial_conv2d_forward(Tensor input, Tensor mask, Tensor weight, Tensor? bias, int[] plane_channels, "
      "int[] stride, int[] padding, int[] dilation, int groups, int numerator, bool input_is_masked)"
      " -> (Tensor output, Tensor new_mask, Tensor ratio)");
  library.def(
      "partial_conv2d_backward(Tensor grad_output, Tensor input, Tensor mask, Tensor weight, Tensor ratio, "
      "int[] plane_channels, int[] stride, int[] padding, int[] dilation, int groups, bool input_is_masked, "
      "bool[] needed) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  // decoder_conv/. phases: the form without the concatenation.
  library.def(
      "partial_conv2d_upcat_forward(Tensor low, Tensor low_mask, Tensor skip, Tensor skip_mask, Tensor weight, "
      "Tensor? bias, int numerator, bool low_is_masked, bool skip_is_masked, bool phases)"
      " -> (Tensor output, Tensor new_mask, Tensor ratio)");
  library.def(
      "partial_conv2d_upcat_backward(Tensor grad_output, Tensor low, Tensor low_mask, Tensor skip, "
      "Tensor skip_mask, Tensor weight, Tensor ratio, bool low_is_masked, bool skip_is_masked, bool phases, "
      "bool[] needed) -> (Tensor grad_low, Tensor grad_skip, Tensor grad_weight, Tensor grad_bias)");

  // shift_attention/
  library.def(
      "shift_attention_forward(Tensor query, Tensor key, Tensor value, Tensor query_mask, Tensor key_mask, "
      "float scale, int radius, bool renormalize) -> (Tensor output, Tensor statistics)");
  library.def(
      "shift_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_mask, "
      "Tensor key_mask, Tensor output, Tensor statistics, float scale, int radius, bool renormalize, "
      "bool[] needed) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)");
  library.def(
      "shift_attention_argmax(Tensor query, Tensor key, Tensor query_mask, Tensor key_mask, float scale, int radius)"
      " -> Tensor");
}
