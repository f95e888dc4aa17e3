// CUDA kernels of attention with shift propagation (Eqs. 6-8); docs/operators/shift_attention.md derives the formulas.
//
// The device finds which pixels are queries and keys, and the host never learns how many there are: grids cover all
// pixels, and blocks beyond the count return at once. Features are gathered into rows. Every kernel then walks tiles of
// 64 queries × 64 keys (tiles.cuh), whose scores live in registers:
//
//   statistics T(p) = max_q S(p,q),  L(p) = log Σ_q exp(S(p,q) - T(p))
//   forward    s'   = Σ_δ exp(S(p+δ,q+δ) - T(p+δ) - L(p+δ)),  O = s' V
//   mean       D(p) = Σ_q s* ds*,   ds* = Σ_δ ds'(p+δ,q+δ)
//   gradients  dV = s'ᵀ dO,  dS = s* (ds* - D),  dQ = λ dS K,  dK = λ dSᵀ Q
//
// No atomics: results do not depend on the order in which blocks run.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "shift_attention/cuda/gather.cuh"
#include "shift_attention/cuda/problem.cuh"
#include "shift_attention/operators.h"

namespace msa::shift_attention {
// Not anonymous, see common/launch.cuh.
inline namespace on_cuda {

// ---- forward --------------------

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident) statistics_kernel(Problem<T> problem) {
  using R = Accumulator<T>;
  __shared__ Tile<R> tile;
  const Problem<T> p = problem.sample(block_sample(problem.tiles));
  const int first_query = block_row(problem.tiles);
  if (first_query >= p.queries.count || p.keys.count == 0) return;
  // Every thread keeps maximum and sum over the keys that it sees.
  R top[kPerThread], sum[kPerThread] = {};
  for (R& t : top) t = -std::numeric_limits<R>::infinity();
  for (int first_key = 0; first_key < p.keys.count; first_key += kTile) {
    Scores<R> scores;
    clear(scores);
    point_at(p, first_query, first_key, {0, 0}, tile);  // the statistics it reads are still zero, and not used here
    add_product(scores, p.query, tile.query, p.key, tile.key, tile.staged);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        if (tile.key[thread_column() + j] < 0) continue;
        const R score = p.scale * scores[i][j];
        if (score == -std::numeric_limits<R>::infinity()) continue;  // adds nothing; its difference to `top` may be NaN
        if (score > top[i]) {
          sum[i] *= exp(top[i] - score);
          top[i] = score;
        }
        sum[i] += exp(score - top[i]);
      }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const R other_top = __shfl_xor_sync(0xffffffffu, top[i], step);
      const R other_sum = __shfl_xor_sync(0xffffffffu, sum[i], step);
      const R both = top[i] > other_top ? top[i] : other_top;
      // A thread may have seen no key at all; the difference of equal infinities would be NaN.
      sum[i] = (top[i] == both ? sum[i] : sum[i] * exp(top[i] - both)) +
               (other_top == both ? other_sum : other_sum * exp(other_top - both));
      top[i] = both;
    }
    const int query = first_query + thread_row() + i;
    if (threadIdx.x % kLanes == 0 && query < p.queries.count) {
      R* statistics = p.statistics + int64_t{3} * p.queries.pixel[query];
      statistics[0] = top[i];
      statistics[1] = log(sum[i]);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    forward_kernel(Problem<T> problem, bool renormalize, View<T> output) {
  using R = Accumulator<T>;
  __shared__ Tile<R> tile;
  const int64_t n = block_sample(problem.tiles);
  const int c0 = block_channel();
  const Problem<T> p = problem.sample(n);
  const int first_query = block_row(problem.tiles);
  if (first_query >= p.queries.count) return;
  Sums<R> attended;
  clear(attended);
  R row_sum[kPerThread] = {};
  for (int first_key = 0; first_key < p.keys.count; first_key += kTile) {
    Scores<R> weights;
    shifted_weights(p, first_query, first_key, tile, weights);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) row_sum[i] += weights[i][j];
    store_weights<Sum::kKeys>(weights, tile.weights);
    add_weighted(attended, tile.weights, p.value, first_key, p.keys.count, c0, tile.staged);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const R total = row_total(row_sum[i]);
    const int query = first_query + thread_row() + i;
    if (c0 == 0 && threadIdx.x % kLanes == 0 && query < p.queries.count)
      p.statistics[int64_t{3} * p.queries.pixel[query] + 2] = total;
    if (!renormalize || total == R(0)) continue;
#pragma unroll
    for (int j = 0; j < 2 * kPerThread; ++j) attended[i][j] /= total;
  }
  store_rows(attended, p.queries, first_query, c0, output, n);
}

// Per query the key with the largest s', the first of equals; nothing is written where all are zero.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident) argmax_kernel(Problem<T> problem, int64_t* best) {
  using R = Accumulator<T>;
  __shared__ Tile<R> tile;
  const int64_t n = block_sample(problem.tiles);
  const Problem<T> p = problem.sample(n);
  const int first_query = block_row(problem.tiles);
  if (first_query >= p.queries.count) return;
  R largest[kPerThread] = {};
  int at[kPerThread] = {};
  for (int first_key = 0; first_key < p.keys.count; first_key += kTile) {
    Scores<R> weights;
    shifted_weights(p, first_query, first_key, tile, weights);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
      for (int j = 0; j < kPerThread; ++j)
        if (weights[i][j] > largest[i]) {
          largest[i] = weights[i][j];
          at[i] = first_key + thread_column() + j;
        }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const R other = __shfl_xor_sync(0xffffffffu, largest[i], step);
      const int other_at = __shfl_xor_sync(0xffffffffu, at[i], step);
      if (other > largest[i] || (other == largest[i] && other_at < at[i])) {
        largest[i] = other;
        at[i] = other_at;
      }
    }
    const int query = first_query + thread_row() + i;
    if (threadIdx.x % kLanes == 0 && query < p.queries.count && largest[i] > R(0))
      best[n * p.pixels + p.queries.pixel[query]] = p.keys.pixel[at[i]];
  }
}

// ---- backward --------------------

// factor(p) = 1/z(p) and offset(p) = dO(p)·O(p), with z the row sum that the forward divided by; zero factor where z
// is.
template <typename T, typename R>
__global__ void __launch_bounds__(kThreads)
    renormalization_kernel(View<const T> grad, View<const T> output, const R* statistics, R* factor, R* offset) {
  const int64_t pixels = grad.n * grad.h * grad.w;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pixels;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t n = i / (grad.h * grad.w), y = i / grad.w % grad.h, x = i % grad.w;
    const T* left = grad.data + n * grad.sn + y * grad.sh + x * grad.sw;
    const T* right = output.data + n * output.sn + y * output.sh + x * output.sw;
    R sum = 0;
    for (int64_t c = 0; c < grad.c; ++c)
      sum += static_cast<R>(left[c * grad.sc]) * static_cast<R>(right[c * output.sc]);
    offset[i] = sum;
    const R row_sum = statistics[3 * i + 2];
    factor[i] = row_sum > R(0) ? 1 / row_sum : R(0);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident) mean_kernel(Problem<T> problem) {
  using R = Accumulator<T>;
  __shared__ Tile<R> tile;
  const Problem<T> p = problem.sample(block_sample(problem.tiles));
  const int first_query = block_row(problem.tiles);
  if (first_query >= p.queries.count) return;
  R mean[kPerThread] = {};
  for (int first_key = 0; first_key < p.keys.count; first_key += kTile) {
    Scores<R> weights, gradient;
    softmax_and_gradient(p, first_query, first_key, tile, weights, gradient);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) mean[i] += weights[i][j] * gradient[i][j];
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const R total = row_total(mean[i]);
    const int query = first_query + thread_row() + i;
    if (threadIdx.x % kLanes == 0 && query < p.queries.count) p.mean[p.queries.pixel[query]] = total;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident) query_gradient_kernel(Problem<T> problem, View<T> grad_query) {
  using R = Accumulator<T>;
  __shared__ Tile<R> tile;
  const int64_t n = block_sample(problem.tiles);
  const int c0 = block_channel();
  const Problem<T> p = problem.sample(n);
  const int first_query = block_row(problem.tiles);
  if (first_query >= p.queries.count) return;
  Sums<R> sum;
  clear(sum);
  for (int first_key = 0; first_key < p.keys.count; first_key += kTile) {
    Scores<R> gradient;
    score_gradient(p, first_query, first_key, tile, gradient);
    store_weights<Sum::kKeys>(gradient, tile.weights);
    add_weighted(sum, tile.weights, p.key, first_key, p.keys.count, c0, tile.staged);
  }
  store_rows(sum, p.queries, first_query, c0, grad_query, n);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident) key_gradient_kernel(Problem<T> problem, View<T> grad_key) {
  using R = Accumulator<T>;
  __shared__ Tile<R> tile;
  const int64_t n = block_sample(problem.tiles);
  const int c0 = block_channel();
  const Problem<T> p = problem.sample(n);
  const int first_key = block_row(problem.tiles);
  if (first_key >= p.keys.count) return;
  Sums<R> sum;
  clear(sum);
  for (int first_query = 0; first_query < p.queries.count; first_query += kTile) {
    Scores<R> gradient;
    score_gradient(p, first_query, first_key, tile, gradient);
    store_weights<Sum::kQueries>(gradient, tile.weights);
    add_weighted(sum, tile.weights, p.query, first_query, p.queries.count, c0, tile.staged);
  }
  store_rows(sum, p.keys, first_key, c0, grad_key, n);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident) value_gradient_kernel(Problem<T> problem, View<T> grad_value) {
  using R = Accumulator<T>;
  __shared__ Tile<R> tile;
  const int64_t n = block_sample(problem.tiles);
  const int c0 = block_channel();
  const Problem<T> p = problem.sample(n);
  const int first_key = block_row(problem.tiles);
  if (first_key >= p.keys.count) return;
  Sums<R> sum;
  clear(sum);
  for (int first_query = 0; first_query < p.queries.count; first_query += kTile) {
    Scores<R> weights;
    shifted_weights(p, first_query, first_key, tile, weights);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int query = first_query + thread_row() + i;
      const R factor = p.factor && query < p.queries.count ? p.factor[p.queries.pixel[query]] : R(1);
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) weights[i][j] *= factor;
    }
    store_weights<Sum::kQueries>(weights, tile.weights);
    add_weighted(sum, tile.weights, p.grad, first_query, p.queries.count, c0, tile.staged);
  }
  store_rows(sum, p.keys, first_key, c0, grad_value, n);
}

// ---- host --------------------

unsigned chunks_of(int64_t channels) { return static_cast<unsigned>((channels + kChannels - 1) / kChannels); }

// The tensors behind a Problem, and the launches.
template <typename T>
class Call {
 public:
  using R = Accumulator<T>;
  Problem<T> problem{};
  cudaStream_t stream;

  explicit Call(const Operands& a) : stream(current_stream(a.query)), samples_(a.query.size(0)) {
    const int64_t h = a.query.size(2), w = a.query.size(3), pixels = h * w;
    STD_TORCH_CHECK(pixels <= std::numeric_limits<int32_t>::max() - kTile,
                    "msa_ops::shift_attention: maps of more than 2^31 pixels are not supported on CUDA, got ",
                    shape_of(a.query));
    problem.pixels = pixels;
    problem.tiles = (pixels + kTile - 1) / kTile;
    // A shift of the map's size or more leaves the map.
    problem.window = {static_cast<int>(h), static_cast<int>(w), static_cast<int>(std::min(a.radius, h - 1)),
                      static_cast<int>(std::min(a.radius, w - 1))};
    problem.scale = static_cast<R>(a.scale);
    problem.queries = index(a.query_mask);
    problem.keys = index(a.key_mask);
  }

  Features<T> gather(const Tensor& map, const Index& rows) {
    const auto from = view<const T>(map);
    storage_.push_back(empty_on(map, {from.n, problem.pixels, from.c}, map.scalar_type()));
    const int64_t tiles = (problem.pixels + kGatherTile - 1) / kGatherTile;
    const dim3 grid(tiles * from.n, (from.c + kGatherTile - 1) / kGatherTile);
    if (from.c > 0) {
      gather_kernel<<<grid, dim3(kGatherTile, kGatherRows), 0, stream>>>(from, rows, tiles,
                                                                         data_of<T>(storage_.back()));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    return {data_of<const T>(storage_.back()), from.c};
  }

  // Zeros (N, H·W, count).
  R* per_pixel(const Tensor& like, int64_t count = 1) {
    storage_.push_back(empty_on(like, {samples_, problem.pixels, count}, accumulator_dtype(like.scalar_type())));
    torch::stable::zero_(storage_.back());
    return data_of<R>(storage_.back());
  }

  // Launches a kernel over the tiles of queries or keys, and in y over chunks of channels.
  template <typename... Args>
  void launch(void (*kernel)(Problem<T>, Args...), unsigned chunks, Args... args) const {
    if (chunks == 0) return;
    kernel<<<dim3(problem.tiles * samples_, chunks), kThreads, 0, stream>>>(problem, args...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  Index index(const Tensor& mask) {
    const Tensor pixel = empty_on(mask, {samples_, problem.pixels}, ScalarType::Int),
                 rank = empty_on(mask, {samples_, problem.pixels}, ScalarType::Int),
                 count = empty_on(mask, {samples_}, ScalarType::Int);
    index_kernel<<<samples_, kIndexThreads, 0, stream>>>(view<const MaskByte>(mask), data_of<int32_t>(pixel),
                                                         data_of<int32_t>(rank), data_of<int32_t>(count));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    storage_.insert(storage_.end(), {pixel, rank, count});
    return {data_of<int32_t>(pixel), data_of<int32_t>(rank), data_of<int32_t>(count)};
  }

  int64_t samples_;
  std::vector<Tensor> storage_;
};

struct CudaKernels {
  using Guard = CudaGuard;

  static void forward(const Operands& a, const Tensor& value, bool renormalize, const Tensor& output,
                      const Tensor& statistics) {
    dispatch_floating(value.scalar_type(), "shift_attention", [&](auto type) {
      using T = decltype(type);
      using R = Accumulator<T>;
      Call<T> call(a);
      Problem<T>& p = call.problem;
      p.query = call.gather(a.query, p.queries);
      p.key = call.gather(a.key, p.keys);
      p.value = call.gather(value, p.keys);
      p.statistics = data_of<R>(statistics);
      call.launch(statistics_kernel<T>, 1);
      // One chunk at least: there are row sums without channels too.
      call.launch(forward_kernel<T>, std::max(1u, chunks_of(value.size(1))), renormalize, view<T>(output));
    });
  }

  static void backward(const Tensor& grad_output, const Operands& a, const Tensor& value, const Tensor& output,
                       const Tensor& statistics, bool renormalize, const std::array<Tensor, 3>& grads) {
    dispatch_floating(value.scalar_type(), "shift_attention", [&](auto type) {
      using T = decltype(type);
      using R = Accumulator<T>;
      const auto& [grad_query, grad_key, grad_value] = grads;
      Call<T> call(a);
      Problem<T>& p = call.problem;
      p.query = call.gather(a.query, p.queries);
      p.key = call.gather(a.key, p.keys);
      p.grad = call.gather(grad_output, p.queries);
      p.statistics = data_of<R>(statistics);
      if (renormalize) {
        R *factor = call.per_pixel(a.query), *offset = call.per_pixel(a.query);
        renormalization_kernel<<<blocks_for(statistics.numel() / 3), kThreads, 0, call.stream>>>(
            view<const T>(grad_output), view<const T>(output), data_of<const R>(statistics), factor, offset);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
        p.factor = factor;
        p.offset = offset;
      }
      if (grad_value.defined()) call.launch(value_gradient_kernel<T>, chunks_of(value.size(1)), view<T>(grad_value));
      if (!grad_query.defined() && !grad_key.defined()) return;
      p.value = call.gather(value, p.keys);
      p.mean = call.per_pixel(a.query);
      call.launch(mean_kernel<T>, 1);
      if (grad_query.defined()) call.launch(query_gradient_kernel<T>, chunks_of(a.query.size(1)), view<T>(grad_query));
      if (grad_key.defined()) call.launch(key_gradient_kernel<T>, chunks_of(a.key.size(1)), view<T>(grad_key));
    });
  }

  static void argmax(const Operands& a, Tensor& best) {
    dispatch_floating(a.query.scalar_type(), "shift_attention", [&](auto type) {
      using T = decltype(type);
      Call<T> call(a);
      Problem<T>& p = call.problem;
      p.query = call.gather(a.query, p.queries);
      p.key = call.gather(a.key, p.keys);
      p.statistics = call.per_pixel(a.query, 3);
      call.launch(statistics_kernel<T>, 1);
      call.launch(argmax_kernel<T>, 1, data_of<int64_t>(best));
    });
  }
};
static_assert(Kernels<CudaKernels>);

using Operators = ShiftAttention<CudaKernels>;

}  // namespace on_cuda
}  // namespace msa::shift_attention

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CUDA, library) {
  library.impl("shift_attention_forward", MSA_BOX(msa::shift_attention::Operators::forward));
  library.impl("shift_attention_backward", MSA_BOX(msa::shift_attention::Operators::backward));
  library.impl("shift_attention_argmax", MSA_BOX(msa::shift_attention::Operators::argmax));
}
