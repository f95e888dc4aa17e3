// Launching CUDA kernels from stable-ABI code.
//
// No kernel is in an anonymous namespace: nvcc would put a hash of the source's path into its name, on which ptxas'
// choice of registers depends, and a kernel at the limit would spill in one folder and not in another.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <cstdint>

#include "common/tensor.h"

namespace msa {

// Makes the device of a tensor the current one as long as it lives.
struct CudaGuard {
  torch::stable::accelerator::DeviceGuard device;
  explicit CudaGuard(const Tensor& t) : device(t.get_device_index()) {}
};

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 132 * 32;  // grid-stride loops do the rest; a few waves on the largest chips
constexpr int64_t kChipBlocks = 132 * 4;  // that the largest chips hold at once

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(std::min(kMaxBlocks, (items + kThreads - 1) / kThreads));
}

// V elements of T that are loaded or stored at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

template <typename T, int V>
__device__ __forceinline__ Pack<T, V> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <typename T, int V>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, V>& pack) {
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

}  // namespace msa
