// Eq. 2 after a convolution on a CUDA device: in place, with or without the decoder's phases.
#pragma once

#include "../common/walk.h"
#include "params.h"

namespace msa::partial_conv {
namespace {

template <typename R>
struct Ratio {
  const R* data;
  int64_t h, w;

  // The ratios of a pack: one for all of it along channels, one per element along a row.
  template <int kCount>
  __device__ __forceinline__ void load(const Place& at, R (&out)[kCount]) const {
    const R* from = data + (at.n * h + at.y) * w + at.x;
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = from[i];
  }
};

template <int V, Fastest kFastest>
constexpr int kRatios = kFastest == Fastest::kChannel ? 1 : V;

// The bias, of which a pack along channels takes as many; null: none. Packs need it aligned (see packs_bias).
template <typename T>
struct Bias {
  const T* data;

  template <int V, Fastest kFastest>
  __device__ __forceinline__ Pack<T, kFastest == Fastest::kChannel ? V : 1> load(int64_t c) const {
    constexpr int kCount = kFastest == Fastest::kChannel ? V : 1;
    if (data != nullptr) return read_pack<T, kCount>(data + c);
    Pack<T, kCount> none;
#pragma unroll
    for (int i = 0; i < kCount; ++i) none.at[i] = T(0.f);
    return none;
  }
};

template <typename T>
bool packs_bias(const T* bias) {
  return reinterpret_cast<uintptr_t>(bias) % 16 == 0;
}

template <typename T>
struct ScaleAndShift {
  static constexpr int kAtOnce = 4;
  using R = Accumulator<T>;
  View<T> map;
  Ratio<R> ratio;
  Bias<T> bias;

  template <int V, Fastest kFastest>
  struct Value {
    Pack<T, V> pack;
    Pack<T, kFastest == Fastest::kChannel ? V : 1> shift;
    R ratio[kRatios<V, kFastest>];
  };
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Value<V, kFastest> read(const Place& at) const {
    Value<V, kFastest> value{read_pack<T, V>(address(map, at)), bias.template load<V, kFastest>(at.c), {}};
    ratio.load(at, value.ratio);
    return value;
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, Value<V, kFastest> value) const {
    constexpr bool kByChannel = kFastest == Fastest::kChannel;
#pragma unroll
    for (int i = 0; i < V; ++i)
      value.pack.at[i] =
          static_cast<T>(renormalise<R>(static_cast<R>(value.pack.at[i]), value.ratio[kByChannel ? 0 : i],
                                        static_cast<R>(value.shift.at[kByChannel ? i : 0])));
    write_pack<T, V>(address(map, at), value.pack);
  }
};

// map(2i+a, 2j+b) += phases(block 2a+b, i+a, j+b), then Eq. 2; see params.h. Packed along channels only: along a row,
// neighbours come from different phases.
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

}  // namespace
}  // namespace msa::partial_conv
