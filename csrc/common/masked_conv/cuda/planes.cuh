// The planes of a mask on a CUDA device, and which elements of a pack they make valid.
#pragma once

#include "common/masked_conv/window.h"
#include "common/walk.cuh"

namespace msa::masked_conv {

// Channels covered by each plane of a mask. Plane and per-channel masks need no table, and grouped masks few entries.
constexpr int kMaxGroups = 16;
struct PlaneChannels {
  int32_t planes;
  int64_t total;
  int64_t uniform;  // channels of every plane, or 0 where they differ
  Divider by_uniform;
  int64_t starts[kMaxGroups];  // first channel of each plane where they differ

  __device__ __forceinline__ int64_t plane_of(int64_t c) const {
    if (uniform != 0) {
      uint32_t rest = static_cast<uint32_t>(c);
      return by_uniform.divide(rest);
    }
    int32_t g = planes - 1;
    while (g > 0 && c < starts[g]) --g;
    return g;
  }
  __device__ __forceinline__ int64_t width_of(int64_t g) const {
    return uniform != 0 ? uniform : (g + 1 < planes ? starts[g + 1] : total) - starts[g];
  }
};

inline PlaneChannels plane_channels_of(const Ints& channels) {
  PlaneChannels result{static_cast<int32_t>(channels.size()), 0, channels[0], Divider(channels[0]), {}};
  for (int64_t c : channels) {
    result.total += c;
    if (c != channels[0]) result.uniform = 0;
  }
  if (result.uniform == 0) {
    STD_TORCH_CHECK(channels.size() <= kMaxGroups, "msa_ops::partial_conv2d: a grouped mask may have at most ",
                    kMaxGroups, " planes of different widths on CUDA, got ", channels.size());
    for (size_t g = 1; g < channels.size(); ++g) result.starts[g] = result.starts[g - 1] + channels[g - 1];
  }
  return result;
}

// Whether the elements of a pack are valid: the mask's bytes, one for all of a pixel's channels or one for each
// element. They are kept as read, and looked at when the pack is written.
template <int kCount>
struct Validity {
  MaskByte bytes[kCount];

  __device__ __forceinline__ bool at(int i) const { return bytes[kCount == 1 ? 0 : i]; }
};

template <typename T, int V, int kCount>
__device__ __forceinline__ void clear_invalid(Pack<T, V>& pack, const Validity<kCount>& valid) {
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (!valid.at(i)) pack.at[i] = T(0);
}

}  // namespace msa::masked_conv
