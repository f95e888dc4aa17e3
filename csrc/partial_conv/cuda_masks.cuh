// Masks on a CUDA device: the sums s(p) of Eq. 4 in one kernel from the mask's bytes, and maps with 0 in their holes.
#pragma once

#include "../common/walk.h"
#include "params.h"

namespace msa::partial_conv {
namespace {

using MaskView = View<const uint8_t>;

// Channels covered by each plane of a mask. Plane and per-channel masks need no table, and grouped masks few entries.
constexpr int kMaxGroups = 16;
struct PlaneChannels {
  int32_t planes;
  int64_t total;
  int64_t uniform;  // channels of every plane, or 0 where they differ
  Divider by_uniform;
  int64_t starts[kMaxGroups];  // first channel of each plane where they differ

  __device__ __forceinline__ int64_t plane_of(int64_t c) const {
    if (uniform != 0) {
      uint32_t rest = static_cast<uint32_t>(c);
      return by_uniform.divide(rest);
    }
    int32_t g = planes - 1;
    while (g > 0 && c < starts[g]) --g;
    return g;
  }
  __device__ __forceinline__ int64_t width_of(int64_t g) const {
    return uniform != 0 ? uniform : (g + 1 < planes ? starts[g + 1] : total) - starts[g];
  }
};

inline PlaneChannels plane_channels_of(const Ints& channels) {
  PlaneChannels result{static_cast<int32_t>(channels.size()), 0, channels[0], Divider(channels[0]), {}};
  for (int64_t c : channels) {
    result.total += c;
    if (c != channels[0]) result.uniform = 0;
  }
  if (result.uniform == 0) {
    STD_TORCH_CHECK(channels.size() <= kMaxGroups, "msa_ops::partial_conv2d: a grouped mask may have at most ",
                    kMaxGroups, " planes of different widths on CUDA, got ", channels.size());
    for (size_t g = 1; g < channels.size(); ++g) result.starts[g] = result.starts[g - 1] + channels[g - 1];
  }
  return result;
}

// ---- s(p), a box filter --------------------

// Valid entries of all channels at one pixel, for masks of one plane, of several, and for the decoder's two.
struct PlaneCounts {
  MaskView mask;
  int32_t channels;
  __device__ __forceinline__ int32_t at(int64_t n, int64_t y, int64_t x) const {
    return *address(mask, n, 0, y, x) != 0 ? channels : 0;
  }
};

struct GroupCounts {
  MaskView mask;
  PlaneChannels channels;
  __device__ __forceinline__ int32_t at(int64_t n, int64_t y, int64_t x) const {
    const uint8_t* plane = address(mask, n, 0, y, x);
    int32_t sum = 0;
    if (channels.uniform != 0) {
#pragma unroll 8
      for (int64_t g = 0; g < mask.c; ++g) sum += plane[g * mask.sc] != 0;
      return sum * static_cast<int32_t>(channels.uniform);
    }
    for (int64_t g = 0; g < mask.c; ++g)
      sum += plane[g * mask.sc] != 0 ? static_cast<int32_t>(channels.width_of(g)) : 0;
    return sum;
  }
};

struct UpcatCounts {
  MaskView low, skip;
  int32_t low_channels, skip_channels;
  __device__ __forceinline__ int32_t at(int64_t n, int64_t y, int64_t x) const {
    const uint8_t from_low = *address(low, n, 0, y >> 1, x >> 1), from_skip = *address(skip, n, 0, y, x);
    return (from_low != 0 ? low_channels : 0) + (from_skip != 0 ? skip_channels : 0);
  }
};

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
  bool* valid = static_cast<bool*>(new_mask.mutable_data_ptr());
  const auto run = [&](auto* ratios) {
    using R = std::remove_pointer_t<decltype(ratios)>;
    window_kernel<R, kTaps>
        <<<blocks, kThreads, tile.pixels * sizeof(int32_t), stream>>>(counts, plane, tile, numerator, ratios, valid);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (ratio.scalar_type() == ScalarType::Double) {
    run(static_cast<double*>(ratio.mutable_data_ptr()));
  } else {
    run(static_cast<float*>(ratio.mutable_data_ptr()));
  }
}

// ---- maps with holes --------------------

// Whether the elements of a pack are valid: the mask's bytes, one for all of a pixel's channels or one for each
// element. They are kept as read, and looked at when the pack is written.
template <int kCount>
struct Validity {
  uint8_t bytes[kCount];

  __device__ __forceinline__ bool at(int i) const { return bytes[kCount == 1 ? 0 : i] != 0; }
};

// Masks of one plane, and of several.
struct OnePlane {
  static constexpr int kAtOnce = 4;
  MaskView mask;

  template <int V, Fastest kFastest>
  using Valid = Validity<kFastest == Fastest::kChannel ? 1 : V>;
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Valid<V, kFastest> read(const Place& at) const {
    const uint8_t* from = address(mask, at.n, 0, at.y, at.x);
    Valid<V, kFastest> valid;
#pragma unroll
    for (int i = 0; i < (kFastest == Fastest::kChannel ? 1 : V); ++i) valid.bytes[i] = from[i * mask.sw];
    return valid;
  }
};

struct ManyPlanes {
  static constexpr int kAtOnce = 1;
  MaskView mask;
  PlaneChannels channels;

  template <int V, Fastest kFastest>
  using Valid = Validity<V>;
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Validity<V> read(const Place& at) const {
    constexpr bool kByChannel = kFastest == Fastest::kChannel;
    Validity<V> valid;
#pragma unroll
    for (int i = 0; i < V; ++i)
      valid.bytes[i] =
          *address(mask, at.n, channels.plane_of(kByChannel ? at.c + i : at.c), at.y, kByChannel ? at.x : at.x + i);
    return valid;
  }
};

template <typename T, int V, int kCount>
__device__ __forceinline__ void clear_invalid(Pack<T, V>& pack, const Validity<kCount>& valid) {
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (!valid.at(i)) pack.at[i] = T(0);
}

// dst = mask ? src : 0, on the element's bits. What lies in a hole is read all the same: waiting for the mask first
// would cost more than it saves.
template <typename T, typename Planes>
struct Select {
  static constexpr int kAtOnce = Planes::kAtOnce;
  View<const T> src;
  Planes planes;
  View<T> dst;

  template <int V, Fastest kFastest>
  struct Value {
    Pack<T, V> pack;
    typename Planes::template Valid<V, kFastest> valid;
  };
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Value<V, kFastest> read(const Place& at) const {
    return {read_pack<T, V>(address(src, at)), planes.template read<V, kFastest>(at)};
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, Value<V, kFastest> value) const {
    clear_invalid(value.pack, value.valid);
    write_pack<T, V>(address(dst, at), value.pack);
  }
};

// map = 0 in the holes; all else is neither read nor written.
template <typename T, typename Planes>
struct Clear {
  static constexpr int kAtOnce = Planes::kAtOnce;
  View<T> map;
  Planes planes;

  template <int V, Fastest kFastest>
  using Value = typename Planes::template Valid<V, kFastest>;
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Value<V, kFastest> read(const Place& at) const {
    return planes.template read<V, kFastest>(at);
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, const Value<V, kFastest>& valid) const {
    bool any = false, all = true;
#pragma unroll
    for (int i = 0; i < V; ++i) any |= valid.at(i), all &= valid.at(i);
    if (all) return;
    T* to = address(map, at);
    if (!any) return write_pack<T, V>(to, Pack<T, V>{});
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (!valid.at(i)) to[i] = T(0);
  }
};

}  // namespace
}  // namespace msa::partial_conv
