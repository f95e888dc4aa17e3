// The decoder form on a CUDA device: the concatenation of small maps, and the weights of the four phases of large ones.
#pragma once

#include "../common/walk.h"
#include "cuda_masks.cuh"
#include "params.h"

namespace msa::partial_conv {
namespace {

// ---- the concatenation --------------------

// A map and the plane of its holes; a plane without data: the map is 0 there already.
template <typename T>
struct MaskedView {
  View<T> map;
  MaskView mask;

  // Not 0 where the map is valid.
  __device__ __forceinline__ uint8_t valid(int64_t n, int64_t y, int64_t x) const {
    return mask.data == nullptr ? 1 : *address(mask, n, 0, y, x);
  }
};

// image = cat(nearest_up2(low), skip), 0 in the holes, on the element's bits.
template <typename T>
struct Concatenate {
  static constexpr int kAtOnce = 4;
  MaskedView<const T> low, skip;
  View<T> image;

  template <int V, Fastest kFastest>
  struct Value {
    Pack<T, V> pack;
    Validity<kFastest == Fastest::kChannel ? 1 : V> valid;
  };
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Value<V, kFastest> read(const Place& at) const {
    const bool is_low = at.c < low.map.c;
    const MaskedView<const T>& from = is_low ? low : skip;
    const int64_t c = is_low ? at.c : at.c - low.map.c, shift = is_low ? 1 : 0, y = at.y >> shift;
    Value<V, kFastest> value;
    if constexpr (kFastest == Fastest::kChannel) {
      value.pack = read_pack<T, V>(address(from.map, at.n, c, y, at.x >> shift));
      value.valid.bytes[0] = from.valid(at.n, y, at.x >> shift);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const int64_t x = (at.x + i) >> shift;
        value.pack.at[i] = *address(from.map, at.n, c, y, x);
        value.valid.bytes[i] = from.valid(at.n, y, x);
      }
    }
    return value;
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, Value<V, kFastest> value) const {
    clear_invalid(value.pack, value.valid);
    write_pack<T, V>(address(image, at), value.pack);
  }
};

// The transpose, walked over the pixels of low: channels of low sum the four pixels that one became, those of skip are
// copied; both 0 in the holes. Packed along channels only.
template <typename T>
struct DivideConcatenation {
  static constexpr int kAtOnce = 2;
  using R = Accumulator<T>;
  View<const T> grad;
  MaskedView<T> low, skip;  // without data where that gradient is not wanted
  int64_t low_channels, first_channel;

  template <int V, Fastest kFastest>
  struct Value {
    Pack<T, V> packs[4];
    uint8_t valid[4];
  };
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Value<V, kFastest> read(const Place& at) const {
    const int64_t c = first_channel + at.c;
    const bool is_low = c < low_channels;
    const MaskedView<T>& part = is_low ? low : skip;
    Value<V, kFastest> value;
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const int64_t y = 2 * at.y + (p >> 1), x = 2 * at.x + (p & 1);
      value.packs[p] = read_pack<T, V>(address(grad, at.n, c, y, x));
      value.valid[p] = part.valid(at.n, is_low ? at.y : y, is_low ? at.x : x);
    }
    return value;
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, Value<V, kFastest> value) const {
    const int64_t c = first_channel + at.c;
    if (c < low_channels) {
      Pack<T, V> sum;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const R above = static_cast<R>(value.packs[0].at[i]) + static_cast<R>(value.packs[1].at[i]);
        const R below = static_cast<R>(value.packs[2].at[i]) + static_cast<R>(value.packs[3].at[i]);
        sum.at[i] = value.valid[0] != 0 ? static_cast<T>(above + below) : T(0.f);
      }
      write_pack<T, V>(address(low.map, at.n, c, at.y, at.x), sum);
      return;
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      if (value.valid[p] == 0) {
#pragma unroll
        for (int i = 0; i < V; ++i) value.packs[p].at[i] = T(0.f);
      }
      write_pack<T, V>(address(skip.map, at.n, c - low_channels, 2 * at.y + (p >> 1), 2 * at.x + (p & 1)),
                       value.packs[p]);
    }
  }
};

// ---- the phases' weights --------------------

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
struct DecoderWeights {
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
struct FoldDecoderWeights {
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

}  // namespace
}  // namespace msa::partial_conv
