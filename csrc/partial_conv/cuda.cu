// CUDA kernels of the partial convolution. All are bound by memory traffic, so every map is walked along its fastest
// dimension, 16 bytes per thread where that is possible (common/walk.h).
#include <type_traits>

#include "../common/walk.h"
#include "operators.h"

namespace msa::partial_conv {
namespace {

// ---- masks --------------------

// Channels covered by each plane of a mask. Plane and per-channel masks need no table, and grouped masks few entries.
constexpr int kMaxGroups = 16;
struct PlaneChannels {
  int32_t planes;
  int64_t uniform;             // channels of every plane, or 0 where they differ
  int64_t starts[kMaxGroups];  // first channel of each plane where they differ

  __device__ __forceinline__ int64_t plane_of(int64_t c) const {
    if (planes == 1) return 0;
    if (uniform != 0) return c / uniform;
    int32_t g = planes - 1;
    while (g > 0 && c < starts[g]) --g;
    return g;
  }
};

PlaneChannels plane_channels_of(const Ints& channels) {
  PlaneChannels result{static_cast<int32_t>(channels.size()), channels[0], {}};
  for (int64_t c : channels)
    if (c != channels[0]) result.uniform = 0;
  if (result.uniform == 0) {
    STD_TORCH_CHECK(channels.size() <= kMaxGroups, "msa_ops::partial_conv2d: a grouped mask may have at most ",
                    kMaxGroups, " planes of different widths on CUDA, got ", channels.size());
    for (size_t g = 1; g < channels.size(); ++g) result.starts[g] = result.starts[g - 1] + channels[g - 1];
  }
  return result;
}

// counts(p) = Σ_g channels_g · mask_g(p)
__global__ void __launch_bounds__(kThreads)
    count_kernel(View<const bool> mask, PlaneChannels channels, int64_t total_channels, int32_t* counts) {
  const int64_t pixels = mask.n * mask.h * mask.w;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pixels;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const bool* at = address(mask, i / (mask.h * mask.w), 0, i / mask.w % mask.h, i % mask.w);
    int32_t sum = 0;
    for (int64_t g = 0; g < mask.c; ++g) {
      int64_t weight = channels.uniform;
      if (weight == 0) weight = (g + 1 < mask.c ? channels.starts[g + 1] : total_channels) - channels.starts[g];
      sum += at[g * mask.sc] ? static_cast<int32_t>(weight) : 0;
    }
    counts[i] = sum;
  }
}

__global__ void __launch_bounds__(kThreads)
    count_upcat_kernel(View<const bool> low, int32_t low_channels, View<const bool> skip, int32_t skip_channels,
                       int32_t* counts) {
  const int64_t pixels = skip.n * skip.h * skip.w;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pixels;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t n = i / (skip.h * skip.w), y = i / skip.w % skip.h, x = i % skip.w;
    counts[i] =
        (*address(low, n, 0, y / 2, x / 2) ? low_channels : 0) + (*address(skip, n, 0, y, x) ? skip_channels : 0);
  }
}

// s(p) of Eq. 4, a box filter over one plane. The plane is small enough to stay in cache, so taps are read directly.
template <typename R>
__global__ void __launch_bounds__(kThreads) window_kernel(View<const int32_t> counts, Window k, int64_t numerator,
                                                          int64_t out_h, int64_t out_w, R* ratio, bool* new_mask) {
  const int64_t pixels = counts.n * out_h * out_w;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pixels;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t n = i / (out_h * out_w), out_y = i / out_w % out_h, out_x = i % out_w;
    int64_t valid = 0;
    for (int64_t ky = 0; ky < k.kernel_h; ++ky) {
      const int64_t y = out_y * k.stride_h - k.padding_h + ky * k.dilation_h;
      if (y < 0 || y >= counts.h) continue;
      for (int64_t kx = 0; kx < k.kernel_w; ++kx) {
        const int64_t x = out_x * k.stride_w - k.padding_w + kx * k.dilation_w;
        if (x >= 0 && x < counts.w) valid += *address(counts, n, 0, y, x);
      }
    }
    ratio[i] = window_ratio<R>(numerator, valid);
    new_mask[i] = valid > 0;
  }
}

// dst = mask ? src : 0, on the element's bits.
template <typename T>
struct Select {
  View<const T> src;
  View<const bool> mask;
  PlaneChannels channels;
  View<T> dst;
  bool by_channel;

  template <int V>
  __device__ __forceinline__ void run(int64_t n, int64_t c, int64_t y, int64_t x) const {
    Pack<T, V> pack;
    if constexpr (V == 1) {
      pack.at[0] = *address(src, n, c, y, x);
    } else {
      pack = load_pack<T, V>(address(src, n, c, y, x));
    }
    for (int i = 0; i < V; ++i) {
      const int64_t ci = by_channel ? c + i : c, xi = by_channel ? x : x + i;
      if (!*address(mask, n, channels.plane_of(ci), y, xi)) pack.at[i] = T(0);
    }
    store_pack<T, V>(address(dst, n, c, y, x), pack);
  }
};

// ---- epilogue (Eq. 2) and its gradient --------------------

// The ratio at element i of a pack that starts at (n, y, x).
template <typename R>
struct Ratio {
  const R* data;
  int64_t h, w;
  bool by_channel;

  __device__ __forceinline__ R at(int64_t n, int64_t y, int64_t x, int i) const {
    return data[(n * h + y) * w + (by_channel ? x : x + i)];
  }
};

template <typename T>
struct ScaleAndShift {
  using R = Accumulator<T>;
  View<T> map;
  Ratio<R> ratio;
  const T* bias;

  template <int V>
  __device__ __forceinline__ void run(int64_t n, int64_t c, int64_t y, int64_t x) const {
    T* at = address(map, n, c, y, x);
    Pack<T, V> pack = load_pack<T, V>(at);
    for (int i = 0; i < V; ++i) {
      const R shift = bias != nullptr ? static_cast<R>(bias[ratio.by_channel ? c + i : c]) : R(0);
      pack.at[i] = static_cast<T>(renormalise<R>(static_cast<R>(pack.at[i]), ratio.at(n, y, x, i), shift));
    }
    store_pack<T, V>(at, pack);
  }
};

// map(2i+a, 2j+b) += phases(block 2a+b, i+a, j+b), then Eq. 2; see params.h. Packed along channels only: along a row,
// neighbours come from different phases.
template <typename T>
struct AddPhases {
  using R = Accumulator<T>;
  View<T> map;
  View<const T> phases;
  Ratio<R> ratio;
  const T* bias;

  template <int V>
  __device__ __forceinline__ void run(int64_t n, int64_t c, int64_t y, int64_t x) const {
    T* at = address(map, n, c, y, x);
    const int64_t a = y & 1, b = x & 1;
    Pack<T, V> pack = load_pack<T, V>(at);
    const Pack<T, V> phase = load_pack<T, V>(address(phases, n, (2 * a + b) * map.c + c, y / 2 + a, x / 2 + b));
    const R r = ratio.at(n, y, x, 0);
    for (int i = 0; i < V; ++i) {
      const R shift = bias != nullptr ? static_cast<R>(bias[c + i]) : R(0);
      const R sum = static_cast<R>(pack.at[i]) + static_cast<R>(phase.at[i]);
      pack.at[i] = static_cast<T>(renormalise<R>(sum, r, shift));
    }
    store_pack<T, V>(at, pack);
  }
};

// grad · ratio; 0 where the ratio is 0, even if the incoming gradient is inf or NaN there.
template <typename T>
struct Scale {
  using R = Accumulator<T>;
  View<const T> grad;
  Ratio<R> ratio;
  View<T> scaled;

  template <int V>
  __device__ __forceinline__ void run(int64_t n, int64_t c, int64_t y, int64_t x) const {
    Pack<T, V> pack = load_pack<T, V>(address(grad, n, c, y, x));
    for (int i = 0; i < V; ++i)
      pack.at[i] = static_cast<T>(renormalise<R>(static_cast<R>(pack.at[i]), ratio.at(n, y, x, i), R(0)));
    store_pack<T, V>(address(scaled, n, c, y, x), pack);
  }
};

// The transpose of adding phases. Walked over the phases; packed along channels within one block.
template <typename T>
struct SplitPhases {
  View<const T> grad;
  View<T> phases;

  template <int V>
  __device__ __forceinline__ void run(int64_t n, int64_t c, int64_t y, int64_t x) const {
    const int64_t block = c / grad.c, i = y - block / 2, j = x - block % 2;
    Pack<T, V> pack;
    if (i >= 0 && j >= 0 && i < grad.h / 2 && j < grad.w / 2) {
      pack = load_pack<T, V>(address(grad, n, c % grad.c, 2 * i + block / 2, 2 * j + block % 2));
    } else {
      for (int v = 0; v < V; ++v) pack.at[v] = T(0.f);
    }
    store_pack<T, V>(address(phases, n, c, y, x), pack);
  }
};

// db = Σ grad over valid positions, in two steps without atomics, so that the sum is the same on every run. Each block
// sums a slice of the rows: for 32 channels at once in channels_last, for one channel otherwise.
constexpr int kSumLanes = 32, kSumRows = 8;

template <typename T>
__global__ void __launch_bounds__(kSumLanes* kSumRows)
    bias_partial_kernel(View<const T> grad, const Accumulator<T>* ratio, int64_t rows_per_slice, bool by_channel,
                        Accumulator<T>* partial) {
  using R = Accumulator<T>;
  __shared__ R sums[kSumRows][kSumLanes];
  const int64_t rows = grad.n * grad.h, begin = blockIdx.y * rows_per_slice, end = min(rows, begin + rows_per_slice);
  // channels_last: lanes are channels, the block's rows are columns of the map. Else: lanes are columns, rows are rows.
  const int64_t c = by_channel ? static_cast<int64_t>(blockIdx.x) * kSumLanes + threadIdx.x : blockIdx.x;
  const int first_row = by_channel ? 0 : threadIdx.y, row_step = by_channel ? 1 : kSumRows;
  const int first_x = by_channel ? threadIdx.y : threadIdx.x, x_step = by_channel ? kSumRows : kSumLanes;
  R sum = R(0);
  if (c < grad.c)
    for (int64_t row = begin + first_row; row < end; row += row_step) {
      const T* pixels = address(grad, row / grad.h, c, row % grad.h, 0);
      for (int64_t x = first_x; x < grad.w; x += x_step)
        if (ratio[row * grad.w + x] > R(0)) sum += static_cast<R>(pixels[x * grad.sw]);
    }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0) return;
  for (int row = 1; row < kSumRows; ++row) sum += sums[row][threadIdx.x];
  if (by_channel) {
    if (c < grad.c) partial[blockIdx.y * grad.c + c] = sum;
    return;
  }
  for (int offset = kSumLanes / 2; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  if (threadIdx.x == 0) partial[blockIdx.y * grad.c + c] = sum;
}

// One warp per channel adds the slices.
template <typename T>
__global__ void bias_final_kernel(const Accumulator<T>* partial, int64_t slices, int64_t channels, T* result) {
  double sum = 0.0;
  for (int64_t s = threadIdx.x; s < slices; s += kSumLanes)
    sum += static_cast<double>(partial[s * channels + blockIdx.x]);
  for (int offset = kSumLanes / 2; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  if (threadIdx.x == 0) result[blockIdx.x] = static_cast<T>(static_cast<Accumulator<T>>(sum));
}

// ---- decoder weights --------------------

// phases[block 2a+b][u][v] = Σ of the 3x3 taps that fall on row u and column v of the small map.
template <typename T>
struct PhaseWeight {
  using R = Accumulator<T>;
  View<const T> weight;
  View<T> phases;

  template <int V>
  __device__ __forceinline__ void run(int64_t o, int64_t i, int64_t u, int64_t v) const {
    const int64_t block = o / weight.n;
    R sum[V] = {};
    for (int64_t ky = 0; ky < 3; ++ky)
      for (int64_t kx = 0; kx < 3; ++kx)
        if (phase_tap(block / 2, ky) == u && phase_tap(block % 2, kx) == v) {
          const Pack<T, V> tap = load_pack<T, V>(address(weight, o % weight.n, i, ky, kx));
          for (int at = 0; at < V; ++at) sum[at] += static_cast<R>(tap.at[at]);
        }
    Pack<T, V> pack;
    for (int at = 0; at < V; ++at) pack.at[at] = static_cast<T>(sum[at]);
    store_pack<T, V>(address(phases, o, i, u, v), pack);
  }
};

// The transpose: every 3x3 tap gathers the gradient of the four phase taps it was summed into.
template <typename T>
struct FoldPhaseWeight {
  using R = Accumulator<T>;
  View<const T> phases;
  View<T> grad;

  template <int V>
  __device__ __forceinline__ void run(int64_t o, int64_t i, int64_t ky, int64_t kx) const {
    R sum[V] = {};
    for (int64_t block = 0; block < 4; ++block) {
      const Pack<T, V> tap =
          load_pack<T, V>(address(phases, block * grad.n + o, i, phase_tap(block / 2, ky), phase_tap(block % 2, kx)));
      for (int at = 0; at < V; ++at) sum[at] += static_cast<R>(tap.at[at]);
    }
    Pack<T, V> pack;
    for (int at = 0; at < V; ++at) pack.at[at] = static_cast<T>(sum[at]);
    store_pack<T, V>(address(grad, o, i, ky, kx), pack);
  }
};

// ---- the interface that operators.h calls --------------------

struct CudaKernels : LibraryConvolution {
  struct Guard {
    torch::stable::accelerator::DeviceGuard device;
    explicit Guard(const Tensor& t) : device(t.get_device_index()) {}
  };

  static void count_valid(const Tensor& mask, const Ints& plane_channels, Tensor& counts) {
    const auto m = view<const bool>(mask);
    int64_t total = 0;
    for (int64_t c : plane_channels) total += c;
    count_kernel<<<blocks_for(m.n * m.h * m.w), kThreads, 0, current_stream(mask)>>>(
        m, plane_channels_of(plane_channels), total, static_cast<int32_t*>(counts.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void count_valid_upcat(const Tensor& low_mask, int64_t low_channels, const Tensor& skip_mask,
                                int64_t skip_channels, Tensor& counts) {
    const auto skip = view<const bool>(skip_mask);
    count_upcat_kernel<<<blocks_for(skip.n * skip.h * skip.w), kThreads, 0, current_stream(skip_mask)>>>(
        view<const bool>(low_mask), static_cast<int32_t>(low_channels), skip, static_cast<int32_t>(skip_channels),
        static_cast<int32_t*>(counts.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void window_ratios(const Tensor& counts, const Window& window, int64_t numerator, Tensor& ratio,
                            Tensor& new_mask) {
    const auto in = view<const int32_t>(counts);
    bool* valid = static_cast<bool*>(new_mask.mutable_data_ptr());
    const auto run = [&](auto* ratios) {
      window_kernel<<<blocks_for(ratio.numel()), kThreads, 0, current_stream(counts)>>>(
          in, window, numerator, ratio.size(2), ratio.size(3), ratios, valid);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (ratio.scalar_type() == ScalarType::Double) {
      run(static_cast<double*>(ratio.mutable_data_ptr()));
    } else {
      run(static_cast<float*>(ratio.mutable_data_ptr()));
    }
  }

  // Looking at the mask would synchronise with the device.
  static bool known_all_valid(const Tensor&) { return false; }

  static void select(const Tensor& src, const Tensor& mask, const Ints& plane_channels, Tensor& dst) {
    const auto m = view<const bool>(mask);
    const auto run = [&](auto bits) {
      using T = decltype(bits);
      const auto from = view<const T>(src);
      const auto to = view<T>(dst);
      const Fastest fastest = fastest_of(to);
      const bool packed = packs(from, fastest, kPack<T>) && packs(to, fastest, kPack<T>);
      walk<T>(extent_of(to), fastest, packed,
              Select<T>{from, m, plane_channels_of(plane_channels), to, fastest == Fastest::kChannel},
              current_stream(src));
    };
    switch (src.element_size()) {
      case 2:
        return run(uint16_t());
      case 4:
        return run(uint32_t());
      default:
        return run(uint64_t());
    }
  }

  static void scale_and_shift(Tensor& map, const Tensor& ratio, const std::optional<Tensor>& bias) {
    dispatch_floating(map.scalar_type(), "partial_conv2d", [&](auto type) {
      using T = decltype(type);
      const auto m = view<T>(map);
      const Fastest fastest = fastest_of(m);
      walk<T>(extent_of(m), fastest, packs(m, fastest, kPack<T>),
              ScaleAndShift<T>{m, ratio_of<T>(ratio, fastest), bias ? data<T>(*bias) : nullptr}, current_stream(map));
    });
  }

  static void add_phases_scale_and_shift(Tensor& map, const Tensor& phases, const Tensor& ratio,
                                         const std::optional<Tensor>& bias) {
    dispatch_floating(map.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const auto m = view<T>(map);
      const auto p = view<const T>(phases);
      const Fastest fastest = fastest_of(m);
      const bool packed = fastest == Fastest::kChannel && packs(m, fastest, kPack<T>) && packs(p, fastest, kPack<T>);
      walk<T>(extent_of(m), fastest, packed,
              AddPhases<T>{m, p, ratio_of<T>(ratio, fastest), bias ? data<T>(*bias) : nullptr}, current_stream(map));
    });
  }

  static void scale(const Tensor& grad, const Tensor& ratio, Tensor& scaled) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d", [&](auto type) {
      using T = decltype(type);
      const auto g = view<const T>(grad);
      const auto s = view<T>(scaled);
      const Fastest fastest = fastest_of(s);
      const bool packed = packs(g, fastest, kPack<T>) && packs(s, fastest, kPack<T>);
      walk<T>(extent_of(s), fastest, packed, Scale<T>{g, ratio_of<T>(ratio, fastest), s}, current_stream(grad));
    });
  }

  static void split_phases(const Tensor& grad, Tensor& phases) {
    dispatch_floating(grad.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const auto g = view<const T>(grad);
      const auto p = view<T>(phases);
      const Fastest fastest = fastest_of(p);
      const bool packed = fastest == Fastest::kChannel && packs(g, fastest, kPack<T>) && packs(p, fastest, kPack<T>);
      walk<T>(extent_of(p), fastest, packed, SplitPhases<T>{g, p}, current_stream(grad));
    });
  }

  static Tensor bias_gradient(const Tensor& grad, const Tensor& ratio) {
    Tensor result = empty_on(grad, {grad.size(1)}, grad.scalar_type());
    const int64_t channels = grad.size(1), rows = grad.size(0) * grad.size(2);
    if (channels == 0) return result;
    dispatch_floating(grad.scalar_type(), "partial_conv2d", [&](auto type) {
      using T = decltype(type);
      const auto g = view<const T>(grad);
      const bool by_channel = fastest_of(g) == Fastest::kChannel;
      // Enough slices to fill the chip, each with enough pixels to be worth a block. The number depends on shape and
      // layout alone, so the sum's order does too.
      const int64_t groups = by_channel ? (channels + kSumLanes - 1) / kSumLanes : channels;
      const int64_t worth = std::min(rows, rows * g.w / kThreads);
      const int64_t slices = std::max<int64_t>(1, std::min<int64_t>(1024 / groups, worth));
      Tensor partial = empty_on(grad, {slices, channels}, accumulator_dtype(grad.scalar_type()));
      auto* sums = static_cast<Accumulator<T>*>(partial.mutable_data_ptr());
      const cudaStream_t stream = current_stream(grad);
      bias_partial_kernel<T><<<dim3(groups, slices), dim3(kSumLanes, kSumRows), 0, stream>>>(
          g, data<Accumulator<T>>(ratio), (rows + slices - 1) / slices, by_channel, sums);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      bias_final_kernel<T>
          <<<channels, kSumLanes, 0, stream>>>(sums, slices, channels, static_cast<T*>(result.mutable_data_ptr()));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
    return result;
  }

  static void phase_weight(const Tensor& weight, Tensor& phases) {
    weights(phases, weight, [](auto from, auto to) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(from.data)>>;
      return PhaseWeight<T>{from, to};
    });
  }

  static void fold_phase_weight(const Tensor& phases, Tensor& grad) {
    weights(grad, phases, [](auto from, auto to) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(from.data)>>;
      return FoldPhaseWeight<T>{from, to};
    });
  }

 private:
  // Weights are walked along input channels, packed where both allow it.
  template <typename MakeWork>
  static void weights(Tensor& to, const Tensor& from, const MakeWork& make) {
    dispatch_floating(to.scalar_type(), "partial_conv2d_upcat", [&](auto type) {
      using T = decltype(type);
      const auto src = view<const T>(from);
      const auto dst = view<T>(to);
      const Fastest fastest = fastest_of(dst);
      const bool packed =
          fastest == Fastest::kChannel && packs(src, fastest, kPack<T>) && packs(dst, fastest, kPack<T>);
      walk<T>(extent_of(dst), fastest, packed, make(src, dst), current_stream(to));
    });
  }

  template <typename T>
  static const T* data(const Tensor& t) {
    return static_cast<const T*>(t.const_data_ptr());
  }

  template <typename T>
  static Ratio<Accumulator<T>> ratio_of(const Tensor& ratio, Fastest fastest) {
    return {data<Accumulator<T>>(ratio), ratio.size(2), ratio.size(3), fastest == Fastest::kChannel};
  }
};

}  // namespace
}  // namespace msa::partial_conv

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CUDA, library) {
  MSA_REGISTER_PARTIAL_CONV(library, msa::partial_conv::CudaKernels);
}
