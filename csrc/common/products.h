// Matrices in memory of torch's allocator, and the library's products of them (MKL, OpenBLAS), through ATen.
#pragma once

#include <type_traits>

#include "common/clones.h"
#include "common/tensor.h"

namespace msa {

template <typename R>
constexpr ScalarType dtype_of() {
  return std::is_same_v<R, double> ? ScalarType::Double : ScalarType::Float;
}

// Memory of torch's allocator.
template <typename R>
struct Buffer {
  Tensor owner;
  R* data = nullptr;

  explicit Buffer(int64_t size) : owner(torch::stable::empty(Ints{size}, dtype_of<R>())) {
    data = static_cast<R*>(owner.mutable_data_ptr());
  }
};

// A dense matrix in memory that someone else owns.
template <typename R>
struct Matrix {
  R* data;
  int64_t rows, columns;

  R* row(int64_t i) const { return data + i * columns; }
  Matrix part(int64_t first, int64_t count) const { return {row(first), count, columns}; }

  // As a tensor of its own and not a view of the buffer's, so that threads without the caller's inference mode may
  // write it.
  Tensor tensor(bool transposed = false) const {
    const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    const int64_t pitch = std::max<int64_t>(1, columns);
    if (transposed) return torch::stable::from_blob(data, Ints{columns, rows}, Ints{1, pitch}, cpu, dtype_of<R>());
    return torch::stable::from_blob(data, Ints{rows, columns}, Ints{pitch, 1}, cpu, dtype_of<R>());
  }
};

template <typename R>
struct Transposed {
  Matrix<R> of;
  Tensor tensor() const { return of.tensor(true); }
};

template <typename R>
Transposed<R> transposed(const Matrix<R>& of) {
  return {of};
}

// out = a b
template <typename A, typename B, typename R>
void multiply(const A& a, const B& b, const Matrix<R>& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a.tensor()), from(b.tensor()), from(out.tensor())};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

template <typename R>
MSA_CLONES void add_to(R* __restrict to, const R* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

}  // namespace msa
