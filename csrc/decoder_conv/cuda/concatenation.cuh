// The decoder's concatenation on a CUDA device, and its transpose.
#pragma once

#include "common/masked_conv/cuda/planes.cuh"

namespace msa::decoder_conv {

using masked_conv::clear_invalid;
using masked_conv::Validity;

// A map and the plane of its holes; a plane without data: the map is 0 there already.
template <typename T>
struct MaskedView {
  View<T> map;
  MaskView mask;

  __device__ __forceinline__ MaskByte valid(int64_t n, int64_t y, int64_t x) const {
    return mask.data == nullptr ? MaskByte{1} : *address(mask, n, 0, y, x);
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
    MaskByte valid[4];
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
        sum.at[i] = value.valid[0] ? static_cast<T>(above + below) : T(0.f);
      }
      write_pack<T, V>(address(low.map, at.n, c, at.y, at.x), sum);
      return;
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      if (!value.valid[p]) {
#pragma unroll
        for (int i = 0; i < V; ++i) value.packs[p].at[i] = T(0.f);
      }
      write_pack<T, V>(address(skip.map, at.n, c - low_channels, 2 * at.y + (p >> 1), 2 * at.x + (p & 1)),
                       value.packs[p]);
    }
  }
};

}  // namespace msa::decoder_conv
