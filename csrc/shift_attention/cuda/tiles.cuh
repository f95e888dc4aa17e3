// Tiles of 64 queries × 64 keys, on which the CUDA kernels of attention work: the shift of Eq. 8 as a choice of rows,
// and the two matrix products.
//
// A block of 256 threads is a 16 × 16 grid (ty, tx); its thread owns 4 × 4 elements of a tile, queries 4·ty… and keys
// 4·tx…, or 4 × 8 elements of 64 rows × 128 channels. The shift never moves scores: the tile of s*(p+δ, q+δ) is made
// from the *rows* p+δ and q+δ and thus lands on the element of (p, q), where it is added up in a register.
#pragma once

#include "common/launch.cuh"

namespace msa::shift_attention {

constexpr int kTile = 64;
constexpr int kChannels = 128;
constexpr int kPerThread = 4;
constexpr int kLanes = kTile / kPerThread;  // threads that share a row of a tile
static_assert(kLanes * kLanes == kThreads);

// Rows of features staged at once; shared memory stays below the 48 KiB that every device grants.
template <typename R>
constexpr int kDepth = sizeof(R) == 8 ? 8 : 16;

// Which pixels of the samples are queries, or keys. Row i of sample n, of counts[n], is its i-th such pixel in raster
// order.
struct Index {
  const int32_t* pixel;   // (N, H·W): row -> pixel
  const int32_t* rank;    // (N, H·W): pixel -> row, or -1
  const int32_t* counts;  // (N)
  int count = 0;          // of one sample, see `sample`

  __device__ Index sample(int64_t n, int64_t pixels) const {
    return {pixel + n * pixels, rank + n * pixels, counts, counts[n]};
  }
};

// Gathered features, (N, H·W, channels): row i of sample n is that of the index.
template <typename T>
struct Features {
  const T* data;
  int64_t channels;

  __device__ Features sample(int64_t n, int64_t pixels) const { return {data + n * pixels * channels, channels}; }
};

struct Shift {
  int dy, dx;
};

// The window of shifts, and the size of the map that they must not leave.
struct Window {
  int h, w, radius_y, radius_x;

  // The row at pixel + shift, or -1 where there is none.
  __device__ int neighbour(const int32_t* rank, int pixel, Shift by) const {
    const int y = pixel / w + by.dy, x = pixel % w + by.dx;
    return y < 0 || y >= h || x < 0 || x >= w ? -1 : rank[y * w + x];
  }
};

// Shared memory of a block.
template <typename R>
struct alignas(32) Tile {
  R staged[2 * kDepth<R> * kTile];
  R weights[kTile * kTile];
  int query[kTile], key[kTile];  // rows of the shifted queries and keys, -1: none
  // Of the shifted queries: softmax statistics, and the terms of the renormalisation's gradient.
  R top[kTile], log_sum[kTile], offset[kTile], factor[kTile];
};
static_assert(2 * kDepth<float> * kTile == kDepth<float> * kChannels);

__device__ __forceinline__ int thread_row() { return threadIdx.x / kLanes * kPerThread; }
__device__ __forceinline__ int thread_column() { return threadIdx.x % kLanes * kPerThread; }

template <typename R, int A, int B>
__device__ __forceinline__ void clear(R (&tile)[A][B]) {
#pragma unroll
  for (int i = 0; i < A; ++i)
#pragma unroll
    for (int j = 0; j < B; ++j) tile[i][j] = R(0);
}

// Sum over the threads that share a row; all of them get it.
template <typename R>
__device__ __forceinline__ R row_total(R value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Channels that are summed apart, as a sum of short sums rounds less than one long sum.
constexpr int kSummedApart = 8;
static_assert(kDepth<float> % kSummedApart == 0 && kDepth<double> % kSummedApart == 0);

// tile += A Bᵀ over all channels, of the listed rows; row -1 is zero.
template <typename R, typename T>
__device__ void add_product(R (&tile)[kPerThread][kPerThread], const Features<T>& a, const int* a_rows,
                            const Features<T>& b, const int* b_rows, R* staged) {
  constexpr int kStep = kDepth<R> * kTile / kThreads;  // channels that a thread fetches of its row
  R *as = staged, *bs = staged + kDepth<R> * kTile;
  const int row = threadIdx.x % kTile, first = threadIdx.x / kTile * kStep, channels = static_cast<int>(a.channels);
  const bool has_a = a_rows[row] >= 0, has_b = b_rows[row] >= 0;
  const T* a_at = a.data + (has_a ? a_rows[row] : 0) * a.channels + first;
  const T* b_at = b.data + (has_b ? b_rows[row] : 0) * b.channels + first;
  for (int c0 = 0; c0 < channels; c0 += kDepth<R>) {
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kStep; ++s) {
      const bool inside = c0 + first + s < channels;
      as[(first + s) * kTile + row] = has_a && inside ? static_cast<R>(a_at[c0 + s]) : R(0);
      bs[(first + s) * kTile + row] = has_b && inside ? static_cast<R>(b_at[c0 + s]) : R(0);
    }
    __syncthreads();
#pragma unroll
    for (int first_channel = 0; first_channel < kDepth<R>; first_channel += kSummedApart) {
      R sum[kPerThread][kPerThread];
      clear(sum);
#pragma unroll
      for (int c = first_channel; c < first_channel + kSummedApart; ++c) {
        const auto left = load_pack<R, kPerThread>(as + c * kTile + thread_row());
        const auto right = load_pack<R, kPerThread>(bs + c * kTile + thread_column());
#pragma unroll
        for (int i = 0; i < kPerThread; ++i)
#pragma unroll
          for (int j = 0; j < kPerThread; ++j) sum[i][j] += left.at[i] * right.at[j];
      }
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) tile[i][j] += sum[i][j];
    }
  }
}

// A tile into shared memory, as the left operand of add_weighted: by key to sum over keys, by query to sum over
// queries.
enum class Sum { kKeys, kQueries };

template <Sum over, typename R>
__device__ __forceinline__ void store_weights(const R (&tile)[kPerThread][kPerThread], R* weights) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int query = thread_row() + i, key = thread_column() + j;
      weights[over == Sum::kKeys ? key * kTile + query : query * kTile + key] = tile[i][j];
    }
}

// sum += weightsᵀ · rows [first, first + kTile) of the features, channels [c0, c0 + kChannels). Element (i, j) of the
// thread is channel c0 + channel_of(j).
template <typename R>
using Sums = R[kPerThread][2 * kPerThread];

__device__ __forceinline__ int channel_of(int j) {
  return thread_column() + (j < kPerThread ? j : kTile + j - kPerThread);
}

template <typename R, typename T>
__device__ void add_weighted(Sums<R>& sum, const R* weights, const Features<T>& rows, int first, int count, int64_t c0,
                             R* staged) {
  constexpr int kRowsAtOnce = kThreads / kChannels;
  const int channel = threadIdx.x % kChannels, own = threadIdx.x / kChannels;
  const bool inside = c0 + channel < rows.channels;
  const T* at = rows.data + (first + own) * rows.channels + c0 + channel;
  for (int k0 = 0; k0 < kTile; k0 += kDepth<R>) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth<R>; k += kRowsAtOnce) {
      const bool there = inside && first + k0 + k + own < count;
      staged[(k + own) * kChannels + channel] = there ? static_cast<R>(at[(k0 + k) * rows.channels]) : R(0);
    }
    __syncthreads();
#pragma unroll 4  // in full it would spill
    for (int k = 0; k < kDepth<R>; ++k) {
      const auto left = load_pack<R, kPerThread>(weights + (k0 + k) * kTile + thread_row());
      const auto low = load_pack<R, kPerThread>(staged + k * kChannels + thread_column());
      const auto high = load_pack<R, kPerThread>(staged + k * kChannels + kTile + thread_column());
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          sum[i][j] += left.at[i] * low.at[j];
          sum[i][kPerThread + j] += left.at[i] * high.at[j];
        }
    }
  }
}

// Writes the sums of rows [first, first + kTile) to the pixels of a map.
template <typename R, typename T>
__device__ void store_rows(const Sums<R>& sum, const Index& rows, int first, int64_t c0, const View<T>& map,
                           int64_t n) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int row = first + thread_row() + i;
    if (row >= rows.count) continue;
    const int pixel = rows.pixel[row];
    T* at = map.data + n * map.sn + pixel / map.w * map.sh + pixel % map.w * map.sw;
#pragma unroll
    for (int j = 0; j < 2 * kPerThread; ++j) {
      const int c = c0 + channel_of(j);
      if (c < map.c) at[c * map.sc] = static_cast<T>(sum[i][j]);
    }
  }
}

}  // namespace msa::shift_attention
