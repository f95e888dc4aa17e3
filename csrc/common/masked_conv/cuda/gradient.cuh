// The gradient of Eq. 2 on a CUDA device, in one pass over the upstream gradient: grad · ratio, which the convolution's
// gradients need, and its sum over the valid positions, which is the gradient of the bias. Sums are made without
// atomics and in an order that depends on shapes and layouts alone, so that they are the same on every run: within a
// thread, within a block (a tree), and then over the slices of the map that blocks took, in double.
#pragma once

#include <vector>

#include "common/masked_conv/window.h"
#include "common/walk.cuh"

namespace msa::masked_conv {

// What a pass reads and writes. Null pointers are not wanted.
template <typename T>
struct EpilogueGradient {
  View<const T> grad;
  const Accumulator<T>* ratio;
  View<T> scaled;
  Accumulator<T>* partial;  // (slices, C)
  T* bias;                  // (C), where there is one slice only
};

// A band of rows of the map, in packs of which a slice takes `per_slice`; sums go to the slices from `first_slice` on.
struct Slices {
  uint32_t items, per_slice, first_slice;
  int64_t first_n, first_y;
  Divider columns, rows;

  __device__ __forceinline__ uint32_t begin() const { return blockIdx.y * per_slice; }
  __device__ __forceinline__ uint32_t end() const { return min(items, begin() + per_slice); }
  __device__ __forceinline__ Place place(uint32_t i) const {
    uint32_t y = columns.divide(i), x = i;
    const uint32_t n = rows.divide(y);
    return {first_n + n, 0, first_y + y, x};
  }
};

constexpr int kPixelsAtOnce = 4;  // loads of a thread in flight

template <typename T>
__device__ __forceinline__ void store_sum(const EpilogueGradient<T>& work, uint32_t slice, int64_t c,
                                          Accumulator<T> sum) {
  if (work.bias != nullptr) {
    work.bias[c] = static_cast<T>(sum);
  } else {
    work.partial[slice * work.grad.c + c] = sum;
  }
}

// Maps whose channel is the fastest dimension. A block takes `lanes` packs of channels, blockIdx.x of such groups, of a
// slice of the pixels, as many of them at a time as it has threads for.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 3)
    epilogue_gradient_by_channel(EpilogueGradient<T> work, Slices slices, int32_t lanes) {
  using R = Accumulator<T>;
  __shared__ R sums[V][kThreads];
  const int32_t rows = kThreads / lanes, row = threadIdx.x / lanes, lane = threadIdx.x - row * lanes;
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * lanes + lane) * V;
  const bool active = row < rows && c < work.grad.c;
  const uint32_t end = slices.end(), step = rows;
  R sum[V] = {};
  if (active)
    for (uint32_t first = slices.begin() + row; first < end; first += kPixelsAtOnce * step) {
      Place at[kPixelsAtOnce];
      Pack<T, V> pack[kPixelsAtOnce];
      R ratio[kPixelsAtOnce];
#pragma unroll
      for (int u = 0; u < kPixelsAtOnce; ++u) {
        at[u] = slices.place(min(first + u * step, end - 1));
        pack[u] = read_pack<T, V>(address(work.grad, at[u].n, c, at[u].y, at[u].x));
        ratio[u] = work.ratio[(at[u].n * work.grad.h + at[u].y) * work.grad.w + at[u].x];
      }
#pragma unroll
      for (int u = 0; u < kPixelsAtOnce; ++u) {
        if (first + u * step >= end) continue;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const R g = static_cast<R>(pack[u].at[i]);
          sum[i] += ratio[u] > R(0) ? g : R(0);
          pack[u].at[i] = static_cast<T>(renormalise<R>(g, ratio[u], R(0)));
        }
        if (work.scaled.data != nullptr) write_pack<T, V>(address(work.scaled, at[u].n, c, at[u].y, at[u].x), pack[u]);
      }
    }
  if (work.bias == nullptr && work.partial == nullptr) return;
#pragma unroll
  for (int i = 0; i < V; ++i) sums[i][threadIdx.x] = sum[i];
  for (int32_t left = rows; left > 1;) {
    const int32_t half = (left + 1) / 2;
    __syncthreads();
    if (row + half < left) {
#pragma unroll
      for (int i = 0; i < V; ++i) sums[i][threadIdx.x] = sum[i] += sums[i][threadIdx.x + half * lanes];
    }
    left = half;
  }
  if (!active || row > 0) return;
#pragma unroll
  for (int i = 0; i < V; ++i) store_sum(work, slices.first_slice + blockIdx.y, c + i, sum[i]);
}

// All other maps: a block takes a slice of one channel, blockIdx.x.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) epilogue_gradient_by_column(EpilogueGradient<T> work, Slices slices) {
  using R = Accumulator<T>;
  constexpr int kWarp = 32;
  __shared__ R sums[kThreads / kWarp];
  const int64_t c = blockIdx.x;
  const uint32_t end = slices.end();
  R sum = R(0);
  for (uint32_t first = slices.begin() + threadIdx.x; first < end; first += kPixelsAtOnce * kThreads) {
    Place at[kPixelsAtOnce];
    Pack<T, V> pack[kPixelsAtOnce];
    R ratio[kPixelsAtOnce][V];
#pragma unroll
    for (int u = 0; u < kPixelsAtOnce; ++u) {
      at[u] = slices.place(min(first + u * kThreads, end - 1));
      at[u].x *= V;
      pack[u] = read_pack<T, V>(address(work.grad, at[u].n, c, at[u].y, at[u].x));
      const R* from = work.ratio + (at[u].n * work.grad.h + at[u].y) * work.grad.w + at[u].x;
#pragma unroll
      for (int i = 0; i < V; ++i) ratio[u][i] = from[i];
    }
#pragma unroll
    for (int u = 0; u < kPixelsAtOnce; ++u) {
      if (first + u * kThreads >= end) continue;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const R g = static_cast<R>(pack[u].at[i]);
        sum += ratio[u][i] > R(0) ? g : R(0);
        pack[u].at[i] = static_cast<T>(renormalise<R>(g, ratio[u][i], R(0)));
      }
      if (work.scaled.data != nullptr) write_pack<T, V>(address(work.scaled, at[u].n, c, at[u].y, at[u].x), pack[u]);
    }
  }
  if (work.bias == nullptr && work.partial == nullptr) return;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < kThreads / kWarp; ++warp) sum += sums[warp];
  store_sum(work, slices.first_slice + blockIdx.y, c, sum);
}

// Adds the sums of the slices, 32 channels per block.
constexpr int kFinalLanes = 32, kFinalRows = 32;
template <typename T>
__global__ void __launch_bounds__(kFinalLanes* kFinalRows)
    bias_final_kernel(const Accumulator<T>* partial, int64_t slices, int64_t channels, T* bias) {
  __shared__ double sums[kFinalRows][kFinalLanes];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kFinalLanes + threadIdx.x;
  double sum = 0.0;
  if (c < channels) {
#pragma unroll 8
    for (int64_t s = threadIdx.y; s < slices; s += kFinalRows) sum += static_cast<double>(partial[s * channels + c]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  for (int half = kFinalRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) sums[threadIdx.y][threadIdx.x] = sum += sums[threadIdx.y + half][threadIdx.x];
  }
  if (threadIdx.y == 0 && c < channels) bias[c] = static_cast<T>(static_cast<Accumulator<T>>(sum));
}

// How a map is divided among blocks. There are enough to fill the chip, unless one block per group of channels is done
// so soon that a second launch, for the sum over slices, would cost more.
struct Division {
  int32_t lanes;      // packs of channels side by side in a block (maps by channel)
  int64_t groups;     // blocks over channels
  int64_t per_slice;  // packs (pixels, by channel) in a slice
};

inline Division division_of(bool by_channel, int64_t channels, int64_t v, int64_t items) {
  constexpr int64_t kMostLanes = 32, kFewestLanes = 2, kAloneRounds = 8, kBlocks = 132 * 3;
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t packs = by_channel ? channels / v : 1;
  int64_t lanes = by_channel ? up(packs, up(packs, kMostLanes)) : 1;  // evenly
  int64_t at_a_time = by_channel ? kThreads / lanes : kThreads;
  if (by_channel && items <= kAloneRounds * (kThreads / kFewestLanes)) {
    // Take the widest group whose block is done in a few rounds.
    while (lanes > kFewestLanes && items > kAloneRounds * (kThreads / lanes)) lanes = up(lanes, 2);
    at_a_time = kThreads / lanes;
  }
  const int64_t groups = by_channel ? up(packs, lanes) : channels;
  if (items <= kAloneRounds * at_a_time) return {static_cast<int32_t>(lanes), groups, std::max<int64_t>(1, items)};
  const int64_t slices = std::max<int64_t>(1, std::min(kBlocks / groups, up(items, kPixelsAtOnce * at_a_time)));
  return {static_cast<int32_t>(lanes), groups, up(items, slices)};
}

template <typename T>
void epilogue_gradient(const EpilogueGradient<T>& work, T* bias, Fastest fastest, bool packed, const Tensor& like,
                       cudaStream_t stream) {
  using R = Accumulator<T>;
  const bool by_channel = fastest == Fastest::kChannel;
  const int64_t v = packed ? kPack<T> : 1;
  const View<const T>& grad = work.grad;
  // Bands of one pass each, by pixels along channels and by packs along rows.
  const Extent extent{grad.n, 1, grad.h, grad.w};
  const int64_t unit = by_channel ? 1 : v;
  struct Band {
    Slices slices;
    Division division;
    unsigned count;
  };
  std::vector<Band> bands;
  int64_t total = 0;
  for_each_band(extent, unit, [&](const Extent& band, int64_t n, int64_t y) {
    const int64_t items = band.n * band.h * (band.w / unit);
    const Division division = division_of(by_channel, grad.c, v, items);
    const int64_t count = (items + division.per_slice - 1) / division.per_slice;
    bands.push_back({{static_cast<uint32_t>(items), static_cast<uint32_t>(division.per_slice),
                      static_cast<uint32_t>(total), n, y, Divider(band.w / unit), Divider(band.h)},
                     division,
                     static_cast<unsigned>(count)});
    total += count;
  });
  EpilogueGradient<T> pass = work;
  Tensor partial;
  if (bias != nullptr && total == 1) pass.bias = bias;
  if (bias != nullptr && total > 1) {
    partial = empty_on(like, {total, grad.c}, accumulator_dtype(like.scalar_type()));
    pass.partial = data_of<R>(partial);
  }
  constexpr int kWide = 16 / sizeof(T);
  for (const auto& [slices, division, count] : bands) {
    const dim3 blocks(static_cast<unsigned>(division.groups), count);
    if (by_channel) {
      packed ? epilogue_gradient_by_channel<T, kWide><<<blocks, kThreads, 0, stream>>>(pass, slices, division.lanes)
             : epilogue_gradient_by_channel<T, 1><<<blocks, kThreads, 0, stream>>>(pass, slices, division.lanes);
    } else {
      packed ? epilogue_gradient_by_column<T, kWide><<<blocks, kThreads, 0, stream>>>(pass, slices)
             : epilogue_gradient_by_column<T, 1><<<blocks, kThreads, 0, stream>>>(pass, slices);
    }
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (bias == nullptr || total == 1) return;
  const unsigned blocks = static_cast<unsigned>((grad.c + kFinalLanes - 1) / kFinalLanes);
  bias_final_kernel<T><<<blocks, dim3(kFinalLanes, kFinalRows), 0, stream>>>(pass.partial, total, grad.c, bias);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace msa::masked_conv
