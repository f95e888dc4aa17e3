// Walking a map on a CUDA device so that neighbouring threads touch neighbouring elements: along its fastest dimension
// (the channel in channels_last, else the column), 16 bytes per thread where strides and alignment allow it, and
// several such packs per thread, all read before the first is written, because the number of bytes in flight bounds
// these kernels.
#pragma once

#include <cstring>

#include "common/launch.cuh"

namespace msa {

enum class Fastest { kChannel, kColumn };

template <typename T>
Fastest fastest_of(const View<T>& map) {
  return map.sc == 1 && map.c > 1 ? Fastest::kChannel : Fastest::kColumn;
}

template <typename T>
constexpr int64_t kPack = 16 / sizeof(T);

// Whether V neighbours along the fastest dimension can be read at once anywhere in the map.
template <typename T>
bool packs(const View<T>& map, Fastest fastest, int64_t v) {
  const bool by_channel = fastest == Fastest::kChannel;
  const int64_t unit = by_channel ? map.sc : map.sw, other = by_channel ? map.sw : map.sc;
  return unit == 1 && (by_channel ? map.c : map.w) % v == 0 && map.sn % v == 0 && map.sh % v == 0 && other % v == 0 &&
         reinterpret_cast<uintptr_t>(map.data) % (v * sizeof(T)) == 0;
}

// The same for 16 bytes' worth, of all these maps.
template <typename T, typename... Views>
bool all_pack(Fastest fastest, const Views&... views) {
  return (packs(views, fastest, kPack<T>) && ...);
}

template <typename T>
__device__ __forceinline__ T* address(const View<T>& map, int64_t n, int64_t c, int64_t y, int64_t x) {
  return map.data + n * map.sn + c * map.sc + y * map.sh + x * map.sw;
}

// A pack of 16 bytes, or of one element, in global memory.
template <typename T, int V>
__device__ __forceinline__ Pack<T, V> read_pack(const T* from) {
  static_assert(V == 1 || sizeof(T) * V == sizeof(uint4));
  Pack<T, V> pack;
  if constexpr (V == 1) {
    pack.at[0] = *from;
  } else {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    memcpy(&pack, &bits, sizeof(bits));
  }
  return pack;
}

template <typename T, int V>
__device__ __forceinline__ void write_pack(T* to, const Pack<T, V>& pack) {
  if constexpr (V == 1) {
    *to = pack.at[0];
  } else {
    uint4 bits;
    memcpy(&bits, &pack, sizeof(bits));
#ifdef __CUDA_ARCH__
    // By name: the compiler divides the store into four where it sees that the word was made of small elements.
    asm("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
        :
        : "l"(__cvta_generic_to_global(to)), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w)
        : "memory");
#else
    *reinterpret_cast<uint4*>(to) = bits;
#endif
  }
}

struct Extent {
  int64_t n, c, h, w;
};

template <typename T>
Extent extent_of(const View<T>& map) {
  return {map.n, map.c, map.h, map.w};
}

// Where a pack starts.
struct Place {
  int64_t n, c, y, x;
};

template <typename T>
__device__ __forceinline__ T* address(const View<T>& map, const Place& at) {
  return address(map, at.n, at.c, at.y, at.x);
}

// Division of numbers below 2^31 by a divisor that the host knows, as a product and a shift (Granlund and Montgomery,
// 1994): a 32-bit division takes some twenty instructions, and a walk would make three for every pack.
struct Divider {
  uint32_t divisor, multiplier, shift;

  explicit Divider(int64_t d) : divisor(static_cast<uint32_t>(d)), shift(0) {
    while (shift < 31 && (uint32_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  // n / divisor, and n becomes the remainder.
  __device__ __forceinline__ uint32_t divide(uint32_t& n) const {
    const uint32_t quotient = (__umulhi(n, multiplier) + n) >> shift;
    n -= quotient * divisor;
    return quotient;
  }
};

// The packs of one launch. Indices within it are 32-bit (see for_each_band); addresses are 64-bit.
template <int V, Fastest kFastest>
struct Grid {
  uint32_t total;
  Divider channels, rows, columns;
  int64_t first_n, first_y;

  Grid(const Extent& band, int64_t n, int64_t y)
      : total(static_cast<uint32_t>(band.n * band.c * band.h * band.w / V)),
        channels(kFastest == Fastest::kChannel ? band.c / V : band.c),
        rows(band.h),
        columns(kFastest == Fastest::kColumn ? band.w / V : band.w),
        first_n(n),
        first_y(y) {}

  __device__ __forceinline__ Place place(uint32_t i) const {
    if constexpr (kFastest == Fastest::kChannel) {
      uint32_t x = channels.divide(i), c = i;  // divide() leaves the remainder behind
      uint32_t y = columns.divide(x), n = rows.divide(y);
      return {first_n + n, static_cast<int64_t>(c) * V, first_y + y, x};
    } else {
      uint32_t y = columns.divide(i), x = i;
      uint32_t c = rows.divide(y), n = channels.divide(c);
      return {first_n + n, c, first_y + y, static_cast<int64_t>(x) * V};
    }
  }
};

// Calls work.read<V, kFastest>(place) and work.write<V, kFastest>(place, what was read) once for every pack. A read
// that has no pack of its own left repeats the last one, so that all of them go out without a branch between them.
template <int V, Fastest kFastest, typename Work>
__global__ void __launch_bounds__(kThreads) walk_kernel(Grid<V, kFastest> grid, Work work) {
  constexpr int kAtOnce = Work::kAtOnce;
  const uint32_t step = gridDim.x * kThreads;
  for (uint32_t first = blockIdx.x * kThreads + threadIdx.x; first < grid.total; first += kAtOnce * step) {
    Place at[kAtOnce];
    typename Work::template Value<V, kFastest> values[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      at[u] = grid.place(min(first + u * step, grid.total - 1));
      values[u] = work.template read<V, kFastest>(at[u]);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (first + u * step < grid.total) work.template write<V, kFastest>(at[u], values[u]);
  }
}

// Calls f(band, first sample, first row) for bands of a map of at most 2^30 packs each: one for almost every map, else
// one per sample or some rows of it.
template <typename F>
void for_each_band(const Extent& extent, int64_t v, const F& f) {
  constexpr int64_t kMaxPacks = int64_t{1} << 30;
  const int64_t packs_per_row = extent.c * extent.w / v;
  const int64_t packs = extent.n * extent.h * packs_per_row;
  if (packs == 0) return;
  STD_TORCH_CHECK(packs_per_row <= kMaxPacks, "msa_ops: rows of more than 2^30 elements are not supported on CUDA");
  const bool whole = packs <= kMaxPacks;
  const int64_t samples = whole ? extent.n : 1;
  const int64_t rows = whole ? extent.h : std::max<int64_t>(1, std::min(extent.h, kMaxPacks / packs_per_row));
  for (int64_t n = 0; n < extent.n; n += samples)
    for (int64_t y = 0; y < extent.h; y += rows)
      f(Extent{samples, extent.c, std::min(rows, extent.h - y), extent.w}, n, y);
}

// Blocks for packs of which a thread takes `at_once`: all the chip's processors first, then several packs per thread.
inline unsigned walk_blocks(int64_t packs, int64_t at_once) {
  const int64_t spread = std::min(kChipBlocks, (packs + kThreads - 1) / kThreads);
  return static_cast<unsigned>(
      std::min(kMaxBlocks, std::max(spread, (packs + kThreads * at_once - 1) / (kThreads * at_once))));
}

template <int V, Fastest kFastest, typename Work>
void launch_walk(const Extent& extent, const Work& work, cudaStream_t stream) {
  for_each_band(extent, V, [&](const Extent& band, int64_t n, int64_t y) {
    const Grid<V, kFastest> grid(band, n, y);
    walk_kernel<V, kFastest><<<walk_blocks(grid.total, Work::kAtOnce), kThreads, 0, stream>>>(grid, work);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
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

// The same for work that is packed along channels only.
template <typename T, typename Work>
void walk_channels(const Extent& extent, Fastest fastest, bool packed, const Work& work, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  if (fastest == Fastest::kColumn) return launch_walk<1, Fastest::kColumn>(extent, work, stream);
  packed ? launch_walk<kWide, Fastest::kChannel>(extent, work, stream)
         : launch_walk<1, Fastest::kChannel>(extent, work, stream);
}

}  // namespace msa
