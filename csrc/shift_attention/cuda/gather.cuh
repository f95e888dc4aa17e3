// Which pixels are queries and keys, found on the device, and their features as rows.
#pragma once

#include "shift_attention/cuda/tiles.cuh"

namespace msa::shift_attention {

constexpr int kIndexThreads = 1024;

// One block per sample numbers the set pixels of a mask in raster order.
__global__ void __launch_bounds__(kIndexThreads)
    index_kernel(MaskView mask, int32_t* pixel, int32_t* rank, int32_t* count) {
  __shared__ int32_t in_warp[kIndexThreads / 32];
  const int64_t n = blockIdx.x, pixels = mask.h * mask.w;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int32_t before = 0;
  for (int64_t start = 0; start < pixels; start += kIndexThreads) {
    const int64_t p = start + threadIdx.x;
    const bool set = p < pixels && mask.data[n * mask.sn + p / mask.w * mask.sh + p % mask.w * mask.sw];
    const unsigned set_lanes = __ballot_sync(0xffffffffu, set);
    if (lane == 0) in_warp[warp] = __popc(set_lanes);
    __syncthreads();
    int32_t row = before + __popc(set_lanes & ((1u << lane) - 1));
    for (int w = 0; w < kIndexThreads / 32; ++w) {
      if (w < warp) row += in_warp[w];
      before += in_warp[w];
    }
    __syncthreads();
    if (p < pixels) rank[n * pixels + p] = set ? row : -1;
    if (set) pixel[n * pixels + row] = static_cast<int32_t>(p);
  }
  if (threadIdx.x == 0) count[n] = before;
}

constexpr int kGatherTile = 32, kGatherRows = 8;

// rows(n, i, c) = map(n, c, pixel(n, i)), through shared memory so that both sides are walked along their fastest
// dimension.
template <typename T>
__global__ void __launch_bounds__(kGatherTile* kGatherRows)
    gather_kernel(View<const T> map, Index index, int64_t tiles, T* rows) {
  __shared__ T tile[kGatherTile][kGatherTile + 1];  // row, channel
  const int64_t n = blockIdx.x / tiles, first = blockIdx.x % tiles * kGatherTile, pixels = map.h * map.w;
  const int64_t c0 = static_cast<int64_t>(blockIdx.y) * kGatherTile;
  const int32_t count = index.counts[n];
  if (first >= count) return;
  const bool by_channel = map.sc == 1;
  for (int i = threadIdx.y; i < kGatherTile; i += kGatherRows) {
    const int row = by_channel ? i : threadIdx.x, channel = by_channel ? threadIdx.x : i;
    if (first + row >= count || c0 + channel >= map.c) continue;
    const int64_t p = index.pixel[n * pixels + first + row];
    tile[row][channel] = map.data[n * map.sn + (c0 + channel) * map.sc + p / map.w * map.sh + p % map.w * map.sw];
  }
  __syncthreads();
  for (int i = threadIdx.y; i < kGatherTile; i += kGatherRows)
    if (first + i < count && c0 + threadIdx.x < map.c)
      rows[(n * pixels + first + i) * map.c + c0 + threadIdx.x] = tile[i][threadIdx.x];
}

}  // namespace msa::shift_attention
