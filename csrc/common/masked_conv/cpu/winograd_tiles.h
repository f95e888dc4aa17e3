// Winograd's minimal filtering (Winograd 1980; Lavin & Gray 2016) of one tile: two outputs along an axis from few
// products,
//
//   y = A ((G g) ⊙ (B d)),      in two dimensions   Y = A ((G g Gᵀ) ⊙ (B d Bᵀ)) Aᵀ,
//
// with d the inputs under the tile, g the taps, ⊙ the products, which over all channels are one matrix product each.
// The gradients are the transposes of the same three steps. Along an axis stand
//
//   F(2, 3)   y0 = m0 + m1 + m2        m0 = (d0 - d2) g0    m1 = (d1 + d2) (g0 + g1 + g2)/2
//             y1 = m1 - m2 - m3        m3 = (d1 - d3) g2    m2 = (d1 - d2) (g1 - g0 - g2)/2       4 products in place
//             of 6
//   F(2, 2)   y0 = m0 + m1,  y1 = m1 - m2
//             m0 = (d0 - d1) g0    m1 = d1 (g0 + g1)    m2 = (d1 - d2) g1                         3 in place of 4
//
// and, on top of them, a stride of two, whose even and odd inputs are separate filters with every second tap, and
// nearest upsampling, under which F(2, 3) sees d = (a, b, b, c): m2 vanishes. All coefficients are 0, ±1 and ±1/2, so
// float32 sums come out as exact as in direct convolution; larger tiles, F(4, 3), would lose digits.
#pragma once

#include <cstdint>

namespace msa::masked_conv {

// The filters of an axis, defined in winograd_tiles.cpp: three taps, three taps on a nearest-upsampled map, and three
// and five taps with a stride of two.
struct Taps3;
struct Taps3Upsampled;
struct Taps3Stride2;
struct Taps5Stride2;

// The steps of one filter in two dimensions, for all channels of a tile, with the filter's type hidden, so that one
// convolution can have two of them. Pixels and products are lists of addresses, row by row.
template <typename R>
struct InputSteps {
  int inputs, products, step, bands;
  const int* order;  // order[i]: the output's product that product i is added to
  // products = B d Bᵀ
  void (*transform)(const R* const* pixels, R* const* products, int64_t channels);
  // Adds rows of Bᵀ (products) B to the pixels: those of one band of the input rows under a tile.
  void (*add_gradient[3])(const R* const* products, R* const* pixels, int64_t channels);
  // products = G g Gᵀ for the taps g of one output channel and all input channels.
  void (*transform_taps)(const R* taps, int64_t row_stride, int64_t column_stride, int64_t channel_stride,
                         R* const* products, int64_t channels);
  // taps = Gᵀ (products) G
  void (*transform_taps_gradient)(const R* const* products, R* taps, int64_t row_stride, int64_t column_stride,
                                  int64_t channel_stride, int64_t channels);
};

template <typename R>
struct OutputSteps {
  int products;
  // pixels = ratios · A (products) Aᵀ + bias (Eq. 2), of the tile's four outputs.
  void (*transform)(const R* const* products, R* const* pixels, const R* ratios, const R* bias, int64_t channels);
  // products = Aᵀ (ratios · gradients) A
  void (*transform_gradient)(const R* const* pixels, const R* ratios, R* const* products, int64_t channels);
};

template <class Axis, typename R>
const InputSteps<R>& input_steps();

template <class Axis, typename R>
const OutputSteps<R>& output_steps();

}  // namespace msa::masked_conv
