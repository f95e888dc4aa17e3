// Maps with 0 in their holes, on a CUDA device.
#pragma once

#include "common/masked_conv/cuda/planes.cuh"

namespace msa::masked_conv {

// Masks of one plane, and of several.
struct OnePlane {
  static constexpr int kAtOnce = 4;
  MaskView mask;

  template <int V, Fastest kFastest>
  using Valid = Validity<kFastest == Fastest::kChannel ? 1 : V>;
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Valid<V, kFastest> read(const Place& at) const {
    const MaskByte* from = address(mask, at.n, 0, at.y, at.x);
    Valid<V, kFastest> valid;
#pragma unroll
    for (int i = 0; i < (kFastest == Fastest::kChannel ? 1 : V); ++i) valid.bytes[i] = from[i * mask.sw];
    return valid;
  }
};

struct ManyPlanes {
  static constexpr int kAtOnce = 1;
  MaskView mask;
  PlaneChannels channels;

  template <int V, Fastest kFastest>
  using Valid = Validity<V>;
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Validity<V> read(const Place& at) const {
    constexpr bool kByChannel = kFastest == Fastest::kChannel;
    Validity<V> valid;
#pragma unroll
    for (int i = 0; i < V; ++i)
      valid.bytes[i] =
          *address(mask, at.n, channels.plane_of(kByChannel ? at.c + i : at.c), at.y, kByChannel ? at.x : at.x + i);
    return valid;
  }
};

// dst = mask ? src : 0, on the element's bits. What lies in a hole is read all the same: waiting for the mask first
// would cost more than it saves.
template <typename T, typename Planes>
struct Select {
  static constexpr int kAtOnce = Planes::kAtOnce;
  View<const T> src;
  Planes planes;
  View<T> dst;

  template <int V, Fastest kFastest>
  struct Value {
    Pack<T, V> pack;
    typename Planes::template Valid<V, kFastest> valid;
  };
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Value<V, kFastest> read(const Place& at) const {
    return {read_pack<T, V>(address(src, at)), planes.template read<V, kFastest>(at)};
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, Value<V, kFastest> value) const {
    clear_invalid(value.pack, value.valid);
    write_pack<T, V>(address(dst, at), value.pack);
  }
};

// map = 0 in the holes; all else is neither read nor written.
template <typename T, typename Planes>
struct Clear {
  static constexpr int kAtOnce = Planes::kAtOnce;
  View<T> map;
  Planes planes;

  template <int V, Fastest kFastest>
  using Value = typename Planes::template Valid<V, kFastest>;
  template <int V, Fastest kFastest>
  __device__ __forceinline__ Value<V, kFastest> read(const Place& at) const {
    return planes.template read<V, kFastest>(at);
  }
  template <int V, Fastest kFastest>
  __device__ __forceinline__ void write(const Place& at, const Value<V, kFastest>& valid) const {
    bool any = false, all = true;
#pragma unroll
    for (int i = 0; i < V; ++i) any |= valid.at(i), all &= valid.at(i);
    if (all) return;
    T* to = address(map, at);
    if (!any) return write_pack<T, V>(to, Pack<T, V>{});
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (!valid.at(i)) to[i] = T(0);
  }
};

}  // namespace msa::masked_conv
