// What the tile kernels of attention are given, and the tiles that they make of it: s', s* and ds*, dS.
#pragma once

#include "shift_attention/cuda/tiles.cuh"

namespace msa::shift_attention {

template <typename T>
struct Problem {
  using R = Accumulator<T>;
  Window window;
  int64_t pixels, tiles;  // per sample
  Index queries, keys;
  Features<T> query, key, value, grad;  // grad: dO of the queries
  R scale;
  R* statistics;  // (N, H·W, 3): largest score, log Σ exp(S - largest), row sum of s'
  // Of the backward, (N, H·W): D; and factor and offset that make ds' = factor · (dO·V - offset) where `renormalize`
  // divides by the row sum, null without it. Kernels get only what they use; the rest is null.
  R* mean;
  const R *factor, *offset;

  __device__ Problem sample(int64_t n) const {
    Problem p = *this;
    p.queries = queries.sample(n, pixels);
    p.keys = keys.sample(n, pixels);
    p.query = query.sample(n, pixels);
    p.key = key.sample(n, pixels);
    p.value = value.sample(n, pixels);
    p.grad = grad.sample(n, pixels);
    p.statistics += 3 * n * pixels;
    if (p.mean) p.mean += n * pixels;
    if (p.factor) p.factor += n * pixels;
    if (p.offset) p.offset += n * pixels;
    return p;
  }
};

// A block is one tile of one sample, and in y a chunk of channels.
__device__ __forceinline__ int64_t block_sample(int64_t tiles) { return blockIdx.x / tiles; }
__device__ __forceinline__ int block_row(int64_t tiles) { return static_cast<int>(blockIdx.x % tiles) * kTile; }
__device__ __forceinline__ int block_channel() { return static_cast<int>(blockIdx.y) * kChannels; }

// Blocks that a multiprocessor should hold at once, which bounds registers: with two, sums of sums would spill.
constexpr int kResident = 1;

template <typename R>
using Scores = R[kPerThread][kPerThread];

// Points the tile at the queries and keys `by` away from those starting at first_query and first_key. All threads of
// the block must call it, and all get the same answer: false where no pair is left.
template <typename T, typename R>
__device__ bool point_at(const Problem<T>& p, int first_query, int first_key, Shift by, Tile<R>& tile) {
  __syncthreads();  // earlier readers are done
  const int i = threadIdx.x % kTile;
  const bool is_query = threadIdx.x < kTile, is_key = threadIdx.x >= kTile && threadIdx.x < 2 * kTile;
  int row = -1;
  if (is_query) {
    if (first_query + i < p.queries.count)
      row = p.window.neighbour(p.queries.rank, p.queries.pixel[first_query + i], by);
    const int64_t pixel = row >= 0 ? p.queries.pixel[row] : 0;  // times three it may not fit an int
    tile.query[i] = row;
    tile.top[i] = row >= 0 ? p.statistics[3 * pixel] : R(0);
    tile.log_sum[i] = row >= 0 ? p.statistics[3 * pixel + 1] : R(0);
    tile.factor[i] = p.factor && row >= 0 ? p.factor[pixel] : R(1);
    tile.offset[i] = p.offset && row >= 0 ? p.offset[pixel] : R(0);
  } else if (is_key) {
    if (first_key + i < p.keys.count) row = p.window.neighbour(p.keys.rank, p.keys.pixel[first_key + i], by);
    tile.key[i] = row;
  }
  const bool any_query = __syncthreads_or(is_query && row >= 0);
  const bool any_key = __syncthreads_or(is_key && row >= 0);
  return any_query && any_key;
}

// Calls body() for every shift that leaves a pair, with the tile pointing at it.
template <typename T, typename R, typename Body>
__device__ __forceinline__ void for_shifts(const Problem<T>& p, int first_query, int first_key, Tile<R>& tile,
                                           const Body& body) {
  for (int dy = -p.window.radius_y; dy <= p.window.radius_y; ++dy)
    for (int dx = -p.window.radius_x; dx <= p.window.radius_x; ++dx)
      if (point_at(p, first_query, first_key, {dy, dx}, tile)) body();
}

// weights += s* of the rows that the tile points at.
template <typename T, typename R>
__device__ __forceinline__ void add_softmax(const Problem<T>& p, Tile<R>& tile, Scores<R>& weights) {
  Scores<R> scores;
  clear(scores);
  add_product(scores, p.query, tile.query, p.key, tile.key, tile.staged);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int query = thread_row() + i, key = thread_column() + j;
      if (tile.query[query] >= 0 && tile.key[key] >= 0)  // the maximum first: it cancels what is large
        weights[i][j] += exp(p.scale * scores[i][j] - tile.top[query] - tile.log_sum[query]);
    }
}

// s' of the tile: Eq. 8.
template <typename T, typename R>
__device__ void shifted_weights(const Problem<T>& p, int first_query, int first_key, Tile<R>& tile,
                                Scores<R>& weights) {
  clear(weights);
  for_shifts(p, first_query, first_key, tile, [&] { add_softmax(p, tile, weights); });
}

// s* and ds* of the tile.
template <typename T, typename R>
__device__ void softmax_and_gradient(const Problem<T>& p, int first_query, int first_key, Tile<R>& tile,
                                     Scores<R>& weights, Scores<R>& gradient) {
  clear(weights);
  clear(gradient);
  for_shifts(p, first_query, first_key, tile, [&] {
    Scores<R> product;
    clear(product);
    add_product(product, p.grad, tile.query, p.value, tile.key, tile.staged);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int query = thread_row() + i, key = thread_column() + j;
        if (tile.query[query] >= 0 && tile.key[key] >= 0)
          gradient[i][j] += tile.factor[query] * (product[i][j] - tile.offset[query]);
      }
  });
  if (point_at(p, first_query, first_key, {0, 0}, tile)) add_softmax(p, tile, weights);
}

// dS of the tile, times λ.
template <typename T, typename R>
__device__ void score_gradient(const Problem<T>& p, int first_query, int first_key, Tile<R>& tile,
                               Scores<R>& gradient) {
  Scores<R> weights;
  softmax_and_gradient(p, first_query, first_key, tile, weights, gradient);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int query = first_query + thread_row() + i;
    const R mean = query < p.queries.count ? p.mean[p.queries.pixel[query]] : R(0);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) gradient[i][j] = p.scale * weights[i][j] * (gradient[i][j] - mean);
  }
}

}  // namespace msa::shift_attention
