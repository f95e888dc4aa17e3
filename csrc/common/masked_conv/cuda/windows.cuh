// The sums s(p) of Eq. 4 on a CUDA device, in one kernel from the mask's bytes. `Counts` gives the valid entries of all
// channels at one pixel: at(n, y, x).
#pragma once

#include "common/masked_conv/cuda/planes.cuh"

namespace msa::masked_conv {

// A tile of 2^log2_w × 2^log2_h outputs per block, and the pixels under its windows.
struct WindowTile {
  int32_t log2_w, log2_h;
  uint32_t pixels;     // 0 where the windows are too large for shared memory
  Divider row_pixels;  // in a row of them
};

struct WindowPlane {
  Window window;
  int64_t n, h, w, out_h, out_w;
};

constexpr int64_t kTilePixels = 12 * 1024;  // 48 KiB of counts

inline WindowTile tile_of(const Window& k) {
  const auto extent = [](int64_t outputs, int64_t stride, int64_t dilation, int64_t kernel) {
    return (outputs - 1) * stride + dilation * (kernel - 1) + 1;
  };
  int32_t log2_w = 5, log2_h = 3;
  for (;;) {
    const int64_t w = extent(int64_t{1} << log2_w, k.stride_w, k.dilation_w, k.kernel_w);
    const int64_t h = extent(int64_t{1} << log2_h, k.stride_h, k.dilation_h, k.kernel_h);
    if (w <= kTilePixels / h) return {log2_w, log2_h, static_cast<uint32_t>(w * h), Divider(w)};
    if (log2_w == 0 && log2_h == 0) return {5, 3, 0, Divider(1)};
    --((w > h && log2_w > 0) || log2_h == 0 ? log2_w : log2_h);
  }
}

// Every block counts the valid entries of its tile's pixels once, in shared memory, and sums windows of these. kTaps is
// the kernel's height and width, or 0 for any.
template <typename R, int kTaps, typename Counts>
__global__ void __launch_bounds__(kThreads)
    window_kernel(Counts counts, WindowPlane plane, WindowTile tile, int64_t numerator, R* ratio, bool* new_mask) {
  extern __shared__ int32_t inside[];
  constexpr int kAtOnce = 4;
  const Window& k = plane.window;
  const int64_t kernel_h = kTaps > 0 ? kTaps : k.kernel_h, kernel_w = kTaps > 0 ? kTaps : k.kernel_w;
  const int32_t tile_w = 1 << tile.log2_w, tile_h = 1 << tile.log2_h;
  const int32_t column = threadIdx.x & (tile_w - 1), row = threadIdx.x >> tile.log2_w;
  const auto sum_tile = [&](int64_t n, int64_t first_y, int64_t first_x) {
    const int64_t top = first_y * k.stride_h - k.padding_h, left = first_x * k.stride_w - k.padding_w;
    for (uint32_t first = threadIdx.x; first < tile.pixels; first += kAtOnce * kThreads) {
      int32_t count[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        uint32_t x_in_tile = first + u * kThreads;
        const uint32_t y_in_tile = tile.row_pixels.divide(x_in_tile);
        const int64_t y = top + y_in_tile, x = left + x_in_tile;
        count[u] = y >= 0 && y < plane.h && x >= 0 && x < plane.w ? counts.at(n, y, x) : 0;
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u)
        if (first + u * kThreads < tile.pixels) inside[first + u * kThreads] = count[u];
    }
    __syncthreads();
    const int64_t out_y = first_y + row, out_x = first_x + column;
    if (row < tile_h && out_y < plane.out_h && out_x < plane.out_w) {
      int64_t valid = 0;
      if (tile.pixels > 0) {
        const int32_t pitch = tile.row_pixels.divisor;
        const int32_t step_y = static_cast<int32_t>(k.dilation_h) * pitch, step_x = static_cast<int32_t>(k.dilation_w);
        const int32_t* window =
            inside + row * static_cast<int32_t>(k.stride_h) * pitch + column * static_cast<int32_t>(k.stride_w);
#pragma unroll
        for (int32_t ky = 0; ky < kernel_h; ++ky)
#pragma unroll
          for (int32_t kx = 0; kx < kernel_w; ++kx) valid += window[ky * step_y + kx * step_x];
      } else {
        for (int64_t ky = 0; ky < kernel_h; ++ky)
          for (int64_t kx = 0; kx < kernel_w; ++kx) {
            const int64_t y = out_y * k.stride_h - k.padding_h + ky * k.dilation_h;
            const int64_t x = out_x * k.stride_w - k.padding_w + kx * k.dilation_w;
            if (y >= 0 && y < plane.h && x >= 0 && x < plane.w) valid += counts.at(n, y, x);
          }
      }
      const int64_t at = (n * plane.out_h + out_y) * plane.out_w + out_x;
      ratio[at] = window_ratio<R>(numerator, valid);
      new_mask[at] = valid > 0;
    }
    __syncthreads();
  };
  // Loops of one step, for all but the largest maps; in three dimensions, as divisions of 64 bits are slow.
  for (int64_t n = blockIdx.z; n < plane.n; n += gridDim.z)
    for (int64_t y = static_cast<int64_t>(blockIdx.y) * tile_h; y < plane.out_h;
         y += static_cast<int64_t>(gridDim.y) * tile_h)
      for (int64_t x = static_cast<int64_t>(blockIdx.x) * tile_w; x < plane.out_w;
           x += static_cast<int64_t>(gridDim.x) * tile_w)
        sum_tile(n, y, x);
}

template <int kTaps, typename Counts>
void launch_window_kernel(const Counts& counts, const WindowPlane& plane, int64_t numerator, Tensor& ratio,
                          Tensor& new_mask, cudaStream_t stream) {
  const WindowTile tile = tile_of(plane.window);
  const auto tiles = [](int64_t outputs, int32_t log2, int64_t most) {
    return static_cast<unsigned>(std::min(most, (outputs + (int64_t{1} << log2) - 1) >> log2));
  };
  const dim3 blocks(tiles(plane.out_w, tile.log2_w, INT32_MAX), tiles(plane.out_h, tile.log2_h, 65535),
                    tiles(plane.n, 0, 65535));
  bool* valid = data_of<bool>(new_mask);
  dispatch_accumulator(ratio.scalar_type(), [&](auto type) {
    using R = decltype(type);
    window_kernel<R, kTaps><<<blocks, kThreads, tile.pixels * sizeof(int32_t), stream>>>(counts, plane, tile, numerator,
                                                                                         data_of<R>(ratio), valid);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace msa::masked_conv
