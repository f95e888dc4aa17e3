// Walking a map on a CUDA device so that neighbouring threads touch neighbouring elements: along its fastest dimension
// (the channel in channels_last, else the column), 16 bytes per thread where strides and alignment allow it.
#pragma once

#include "cuda.h"

namespace msa {

enum class Fastest { kChannel, kColumn };

template <typename T>
Fastest fastest_of(const View<T>& map) {
  return map.sc == 1 && map.c > 1 ? Fastest::kChannel : Fastest::kColumn;
}

// Whether V neighbours along the fastest dimension can be read at once anywhere in the map.
template <typename T>
bool packs(const View<T>& map, Fastest fastest, int64_t v) {
  const bool by_channel = fastest == Fastest::kChannel;
  const int64_t unit = by_channel ? map.sc : map.sw, other = by_channel ? map.sw : map.sc;
  return unit == 1 && (by_channel ? map.c : map.w) % v == 0 && map.sn % v == 0 && map.sh % v == 0 && other % v == 0 &&
         reinterpret_cast<uintptr_t>(map.data) % (v * sizeof(T)) == 0;
}

template <typename T>
__device__ __forceinline__ T* address(const View<T>& map, int64_t n, int64_t c, int64_t y, int64_t x) {
  return map.data + n * map.sn + c * map.sc + y * map.sh + x * map.sw;
}

struct Extent {
  int64_t n, c, h, w;
};

// Calls work.template run<V>(n, c, y, x) once for every pack of V elements that starts there. Indices within one launch
// are 32-bit (see launch_walk); addresses are 64-bit.
template <int V, Fastest kFastest, typename Work>
__global__ void __launch_bounds__(kThreads) walk_kernel(Extent extent, int64_t first_n, int64_t first_y, Work work) {
  const uint32_t channels = static_cast<uint32_t>(kFastest == Fastest::kChannel ? extent.c / V : extent.c);
  const uint32_t columns = static_cast<uint32_t>(kFastest == Fastest::kColumn ? extent.w / V : extent.w);
  const uint32_t rows = static_cast<uint32_t>(extent.h);
  const uint32_t total = static_cast<uint32_t>(extent.n) * channels * rows * columns;
  const uint32_t step = gridDim.x * kThreads;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < total; i += step) {
    uint32_t rest = i, c, y, x;
    if constexpr (kFastest == Fastest::kChannel) {
      c = rest % channels * V, rest /= channels;
      x = rest % columns, rest /= columns;
      y = rest % rows, rest /= rows;
    } else {
      x = rest % columns * V, rest /= columns;
      y = rest % rows, rest /= rows;
      c = rest % channels, rest /= channels;
    }
    work.template run<V>(first_n + rest, c, first_y + y, x);
  }
}

// One launch for almost every map; a map of more than 2^30 packs is cut into samples, and those into bands of rows.
template <int V, Fastest kFastest, typename Work>
void launch_walk(const Extent& extent, const Work& work, cudaStream_t stream) {
  constexpr int64_t kMaxPacks = int64_t{1} << 30;
  const int64_t packs_per_row = extent.c * extent.w / V;
  const int64_t packs = extent.n * extent.h * packs_per_row;
  if (packs == 0) return;
  STD_TORCH_CHECK(packs_per_row <= kMaxPacks, "msa_ops: rows of more than 2^30 elements are not supported on CUDA");
  const bool whole = packs <= kMaxPacks;
  const int64_t samples = whole ? extent.n : 1;
  const int64_t rows = whole ? extent.h : std::max<int64_t>(1, std::min(extent.h, kMaxPacks / packs_per_row));
  for (int64_t n = 0; n < extent.n; n += samples)
    for (int64_t y = 0; y < extent.h; y += rows) {
      const Extent band{samples, extent.c, std::min(rows, extent.h - y), extent.w};
      const unsigned blocks = blocks_for(samples * band.h * packs_per_row);
      walk_kernel<V, kFastest><<<blocks, kThreads, 0, stream>>>(band, n, y, work);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
}

// V is 16 bytes' worth where `packed` says that all of the work's maps allow it.
template <typename T, typename Work>
void walk(const Extent& extent, Fastest fastest, bool packed, const Work& work, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  if (fastest == Fastest::kChannel) {
    packed ? launch_walk<kWide, Fastest::kChannel>(extent, work, stream)
           : launch_walk<1, Fastest::kChannel>(extent, work, stream);
  } else {
    packed ? launch_walk<kWide, Fastest::kColumn>(extent, work, stream)
           : launch_walk<1, Fastest::kColumn>(extent, work, stream);
  }
}

template <typename T>
Extent extent_of(const View<T>& map) {
  return {map.n, map.c, map.h, map.w};
}

template <typename T>
constexpr int64_t kPack = 16 / sizeof(T);

}  // namespace msa
