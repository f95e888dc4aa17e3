// Eq. 2 after a convolution on a CUDA device, in place.
#pragma once

#include "common/masked_conv/window.h"
#include "common/walk.cuh"

namespace msa::masked_conv {

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

// The bias, or null. A pack along channels reads as many of its elements at once, so it must be aligned (see
// packs_bias).
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
Ratio<Accumulator<T>> ratio_of(const Tensor& ratio) {
  return {data_of<const Accumulator<T>>(ratio), ratio.size(2), ratio.size(3)};
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

}  // namespace msa::masked_conv
