// The phases of the decoder form on a CUDA device: their weights, and adding them to the convolution of the skip
// connection.
#pragma once

#include "common/masked_conv/cuda/epilogue.cuh"
#include "decoder_conv/phases.h"

namespace msa::decoder_conv {

using masked_conv::Bias;
using masked_conv::Ratio;
using masked_conv::renormalise;

// ---- the weights --------------------

// The nine taps of a pack of weights.
template <typename T, int V>
struct Taps {
  Pack<T, V> at[9];
};

template <typename T, int V>
__device__ __forceinline__ Taps<T, V> load_taps(const View<const T>& weight, int64_t o, int64_t c) {
  Taps<T, V> taps;
#pragma unroll
  for (int k = 0; k < 9; ++k) taps.at[k] = read_pack<T, V>(address(weight, o, c, k / 3, k % 3));
  return taps;
}

template <typename T, int V>
__device__ __forceinline__ void store_taps(const View<T>& weight, int64_t o, int64_t c, const Taps<T, V>& taps) {
#pragma unroll
  for (int k = 0; k < 9; ++k) write_pack<T, V>(address(weight, o, c, k / 3, k % 3), taps.at[k]);
}

// phases[block 2a+b][u][v] = Σ of the 3x3 taps that fall on row u and column v of the small map; the skip's channels
// are copied, so that they lie close together, as the library wants them. Walked over (C_out, C_in): every tap is read
// once.
template <typename T>
struct PhaseWeights {
  static constexpr int kAtOnce = 1;
  using R = Accumulator<T>;
  View<const T> weight;
  View<T> phases, skip;

  template <int V, Fastest kFastest>
  using Value = Taps<T, V>;
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Taps<T, V> read(const Place& at) const {
    return load_taps<T, V>(weight, at.n, at.c);
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, const Taps<T, V>& taps) const {
    if (at.c >= phases.c) return store_taps<T, V>(skip, at.n, at.c - phases.c, taps);
#pragma unroll
    for (int target = 0; target < 16; ++target) {
      const int a = target >> 3, b = target >> 2 & 1, u = target >> 1 & 1, v = target & 1;
      R sum[V] = {};
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        if (phase_tap(a, k / 3) != u || phase_tap(b, k % 3) != v) continue;
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += static_cast<R>(taps.at[k].at[i]);
      }
      Pack<T, V> pack;
#pragma unroll
      for (int i = 0; i < V; ++i) pack.at[i] = static_cast<T>(sum[i]);
      write_pack<T, V>(address(phases, (2 * a + b) * weight.n + at.n, at.c, u, v), pack);
    }
  }
};

// The transpose: every 3x3 tap gathers the gradient of the four phase taps it was summed into.
template <typename T>
struct FoldPhaseWeights {
  static constexpr int kAtOnce = 1;
  using R = Accumulator<T>;
  View<const T> phases, skip;
  View<T> weight;

  template <int V, Fastest kFastest>
  using Value = Taps<T, V>;
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Taps<T, V> read(const Place& at) const {
    if (at.c >= phases.c) return load_taps<T, V>(skip, at.n, at.c - phases.c);
    Pack<T, V> sources[16];
#pragma unroll
    for (int s = 0; s < 16; ++s)
      sources[s] = read_pack<T, V>(address(phases, (s >> 2) * weight.n + at.n, at.c, s >> 1 & 1, s & 1));
    Taps<T, V> taps;
#pragma unroll
    for (int k = 0; k < 9; ++k) {
      R sum[V] = {};
#pragma unroll
      for (int block = 0; block < 4; ++block) {
        const int s = block * 4 + static_cast<int>(phase_tap(block >> 1, k / 3) * 2 + phase_tap(block & 1, k % 3));
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += static_cast<R>(sources[s].at[i]);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) taps.at[k].at[i] = static_cast<T>(sum[i]);
    }
    return taps;
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, const Taps<T, V>& taps) const {
    store_taps<T, V>(weight, at.n, at.c, taps);
  }
};

// ---- the maps --------------------

// map(2i+a, 2j+b) += phases(block 2a+b, i+a, j+b), then Eq. 2; see decoder_conv/phases.h. Packed along channels only:
// along a row, neighbours come from different phases.
template <typename T>
struct AddPhases {
  static constexpr int kAtOnce = 4;
  using R = Accumulator<T>;
  View<T> map;
  View<const T> phases;
  Ratio<R> ratio;
  Bias<T> bias;

  template <int V, Fastest kFastest>
  struct Value {
    Pack<T, V> pack, phase, shift;
    R ratio[1];
  };
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Value<V, kFastest> read(const Place& at) const {
    const int64_t a = at.y & 1, b = at.x & 1;
    Value<V, kFastest> value{
        read_pack<T, V>(address(map, at)),
        read_pack<T, V>(address(phases, at.n, (2 * a + b) * map.c + at.c, (at.y >> 1) + a, (at.x >> 1) + b)),
        bias.template load<V, Fastest::kChannel>(at.c),
        {}};
    ratio.load(at, value.ratio);
    return value;
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, Value<V, kFastest> value) const {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const R sum = static_cast<R>(value.pack.at[i]) + static_cast<R>(value.phase.at[i]);
      value.pack.at[i] = static_cast<T>(renormalise<R>(sum, value.ratio[0], static_cast<R>(value.shift.at[i])));
    }
    write_pack<T, V>(address(map, at), value.pack);
  }
};

// The transpose of adding phases. Walked over the phases; packed along channels within one block.
template <typename T>
struct SplitPhases {
  static constexpr int kAtOnce = 4;
  View<const T> grad;
  View<T> phases;
  Divider block_channels;

  template <int V, Fastest kFastest>
  struct Value {
    Pack<T, V> pack;
    bool inside;
  };
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Value<V, kFastest> read(const Place& at) const {
    uint32_t c = static_cast<uint32_t>(at.c);
    const int64_t block = block_channels.divide(c);
    const int64_t i = at.y - (block >> 1), j = at.x - (block & 1), h = grad.h >> 1, w = grad.w >> 1;
    // Outside there is nothing to read, so a neighbour is.
    const int64_t y = 2 * max(int64_t{0}, min(i, h - 1)), x = 2 * max(int64_t{0}, min(j, w - 1));
    return {read_pack<T, V>(address(grad, at.n, c, y + (block >> 1), x + (block & 1))),
            i >= 0 && j >= 0 && i < h && j < w};
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, Value<V, kFastest> value) const {
    if (!value.inside) {
#pragma unroll
      for (int i = 0; i < V; ++i) value.pack.at[i] = T(0.f);
    }
    write_pack<T, V>(address(phases, at), value.pack);
  }
};

}  // namespace msa::decoder_conv
