// The rule which convolution runs on the CPU. Minimal filtering (winograd.h) saves products with every tile and pays
// once for the transformed weight, which is 16/9 to 25/9 of the weight; so it wins from some number of tiles on. Where
// there are few outputs, patches (patches.h) win. Fewer channels make the products of both too thin. A decoder layer
// that makes an image has a form of its own (decoder_conv/cpu/image_layer.h), for the forward only. The library does
// the rest. The bounds were measured on 2 CPU cores with AVX2.
#pragma once

#include "common/masked_conv/window.h"
#include "common/tensor.h"

namespace msa::masked_conv {

enum class Convolution { kLibrary, kWinograd, kPatches, kImageLayer };

constexpr int64_t kLeastChannels = 16;     // of a map and of an output, for minimal filtering and patches
constexpr int64_t kMostPatches = 128;      // outputs up to which patches run
constexpr int64_t kLeastTilesUpcat = 32;   // for the decoder's minimal filtering
constexpr int64_t kMostImageChannels = 4;  // of an image, and of the skip connection beside it

// ---- what each can take --------------------

// The weight (C_out, C, kH, kW) as a matrix of C_out rows, where its strides allow it: the order of a row's elements.
enum class RowOrder { kNone, kChannelsFirst, kChannelsLast };

template <typename T>
RowOrder row_order(const View<T>& w) {
  const int64_t taps = w.h * w.w;
  if (w.sn != w.c * taps) return RowOrder::kNone;
  if (w.sc == 1 && w.sw == w.c && w.sh == w.w * w.c) return RowOrder::kChannelsLast;
  return w.sw == 1 && w.sh == w.w && w.sc == taps ? RowOrder::kChannelsFirst : RowOrder::kNone;
}

// The windows that minimal filtering covers, see winograd_tiles.h.
enum class Filter { kNone, kTaps3, kTaps3Stride2, kTaps5Stride2 };

inline Filter filter_of(const Window& k) {
  if (k.kernel_h != k.kernel_w || k.stride_h != k.stride_w || k.dilation_h != 1 || k.dilation_w != 1)
    return Filter::kNone;
  if (k.kernel_h == 3 && k.stride_h == 1) return Filter::kTaps3;
  if (k.kernel_h == 3 && k.stride_h == 2) return Filter::kTaps3Stride2;
  return k.kernel_h == 5 && k.stride_h == 2 ? Filter::kTaps5Stride2 : Filter::kNone;
}

inline int64_t least_tiles(Filter filter) {
  switch (filter) {
    case Filter::kTaps3:
      return 48;
    case Filter::kTaps3Stride2:
      return 192;
    default:
      return 64;
  }
}

// Whether torch itself takes the map for channels_last, so that a result has the layout that the library's convolution
// would give it: no empty maps, no repeated rows, not the ambiguous map of one pixel.
inline bool is_channels_last(const Tensor& map) {
  if (map.numel() == 0 || map.size(1) < 2 || map.stride(1) != 1) return false;
  int64_t least = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (map.stride(d) < least || (d == 0 && least == 1)) return false;
    least = map.size(d) > 1 ? map.stride(d) * map.size(d) : map.stride(d);
  }
  return true;
}

inline bool is_wide_type(const Tensor& map) {
  return map.scalar_type() == ScalarType::Float || map.scalar_type() == ScalarType::Double;
}

inline bool fits(const Tensor& map, const Tensor& weight) {
  return is_wide_type(map) && is_channels_last(map) && map.size(1) >= kLeastChannels &&
         weight.size(0) >= kLeastChannels;
}

// ---- the rule --------------------

// Which convolution runs for any masked convolution: the library's, minimal filtering or patches.
inline Convolution convolution_for(const Tensor& input, const Tensor& weight, const Window& k, int64_t groups) {
  if (groups != 1 || !fits(input, weight)) return Convolution::kLibrary;
  const int64_t outputs = input.size(0) * k.output_h(input.size(2)) * k.output_w(input.size(3));
  if (outputs <= kMostPatches && row_order(view<const char>(weight)) != RowOrder::kNone) return Convolution::kPatches;
  const Filter filter = filter_of(k);
  return filter != Filter::kNone && outputs / 4 >= least_tiles(filter) ? Convolution::kWinograd : Convolution::kLibrary;
}

// Which convolution runs for the decoder's phases: the library's, minimal filtering or the image layer.
inline Convolution decoder_convolution_for(const Tensor& low, const Tensor& skip, const Tensor& weight) {
  if (is_wide_type(low) && is_channels_last(low) && low.size(1) >= kLeastChannels && is_channels_last(skip) &&
      skip.size(1) <= kMostImageChannels && weight.size(0) <= kMostImageChannels)
    return Convolution::kImageLayer;
  const bool has_tiles = low.size(0) * low.size(2) * low.size(3) >= kLeastTilesUpcat;
  return fits(low, weight) && fits(skip, weight) && has_tiles ? Convolution::kWinograd : Convolution::kLibrary;
}

}  // namespace msa::masked_conv
