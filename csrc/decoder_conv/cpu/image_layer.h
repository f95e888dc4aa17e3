// The decoder form with few output channels and few skip channels: the layer that makes the image.
//
// A product per output channel is too thin for a convolution. Instead every small pixel is multiplied with all taps,
//
//   z[tap, o](i, j) = Σ_c weight[o, c, tap] · low[c](i, j),      one matrix product, as exact as direct convolution,
//
// and an output sums the nine z that fall on it: of the small rows under its three rows and, along x, with
// s[kx] = Σ_ky z[ky, kx],
//
//   output(2j) = s[0](j-1) + s[1](j) + s[2](j)        output(2j+1) = s[0](j) + s[1](j) + s[2](j+1).
//
// Maps lie in planes here, so that loops run along rows.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "common/clones.h"
#include "common/masked_conv/window.h"
#include "common/parallel.h"
#include "common/products.h"

namespace msa::decoder_conv {
namespace {

// Rows of planes with a zero on either side.
template <typename R>
struct Planes {
  int64_t h, w;
  Buffer<R> memory;

  Planes(int64_t count, int64_t h, int64_t w) : h(h), w(w), memory(count * h * (w + 2)) {}
  R* row(int64_t plane, int64_t y) const { return memory.data + (plane * h + y) * (w + 2) + 1; }
};

template <typename R>
MSA_CLONES void add_scaled(R* __restrict to, const R* __restrict left, const R* __restrict middle,
                           const R* __restrict right, R a, R b, R c, int64_t n) {
  for (int64_t x = 0; x < n; ++x) to[x] += (left[x] * a + middle[x] * b) + right[x] * c;
}

// Makes the even and odd outputs of a row from s[0], s[1], s[2], which have a zero on either side.
template <typename R>
MSA_CLONES void interleave_phases(const R* left, const R* middle, const R* right, R* __restrict to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    to[2 * j] = (left[j - 1] + middle[j]) + right[j];
    to[2 * j + 1] = (left[j] + middle[j]) + right[j + 1];
  }
}

template <typename R>
class ImageLayer {
 public:
  // low (N, C1, h, w) and skip (N, C2, 2h, 2w), in both the channel the fastest dimension.
  ImageLayer(const View<const R>& low, const std::optional<MaskView>& low_mask, const View<const R>& skip,
             const std::optional<MaskView>& skip_mask, const View<const R>& weight, const R* ratio)
      : low_(low), low_mask_(low_mask), skip_(skip), skip_mask_(skip_mask), weight_(weight), ratio_(ratio) {}

  void forward(const R* bias, const View<R>& out) const {
    const int64_t pixels = low_.n * low_.h * low_.w, planes = 9 * weight_.n;
    const int64_t columns = (planes + 7) / 8 * 8;  // zeros up to full vectors make the library's product faster
    const Buffer<R> taps(columns * low_.c), z(planes * pixels);
    const Planes<R> skip(skip_.n * skip_.c, skip_.h, skip_.w);
    gather_taps(Matrix<R>{taps.data, columns, low_.c});
    multiply_taps(Matrix<R>{taps.data, columns, low_.c}, z.data);
    split_skip(skip);
    parallel_ranges(out.n * out.h, out.w * 27 * skip_.c, [&](int64_t begin, int64_t end) {
      std::vector<R> sums(3 * (low_.w + 2), R(0)), rows(weight_.n * out.w);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / out.h, y = i % out.h;
        for (int64_t o = 0; o < weight_.n; ++o) {
          R* row = rows.data() + o * out.w;
          add_taps(z.data, n, o, y, sums.data(), row);
          add_skip(skip, n, o, y, row);
        }
        finish(n, y, rows.data(), bias, out);
      }
    });
  }

 private:
  // Fills taps (tap · C_out + o, c), then zeros.
  void gather_taps(const Matrix<R>& taps) const {
    R* to = taps.data;
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t o = 0; o < weight_.n; ++o)
        for (int64_t c = 0; c < low_.c; ++c)
          *to++ = weight_.data[o * weight_.sn + c * weight_.sc + tap / 3 * weight_.sh + tap % 3 * weight_.sw];
    std::fill(to, taps.data + taps.rows * taps.columns, R(0));
  }

  // Fills z (tap · C_out + o, pixel of the batch), 0 in holes, some rows of the map at a time. The pixels are the rows
  // of the product, because the library copies the other factor, and there are few taps; the planes are made while the
  // product is in the cache.
  void multiply_taps(const Matrix<R>& taps, R* z) const {
    constexpr int64_t kPixels = 512;
    const int64_t rows = low_.n * low_.h, group = std::max<int64_t>(1, kPixels / low_.w);
    parallel_ranges((rows + group - 1) / group, kPixels * low_.c, [&](int64_t begin, int64_t end) {
      const Buffer<R> copy(group * low_.w * low_.c), products(group * low_.w * taps.rows);
      for (int64_t first = begin * group; first < std::min(rows, end * group); first += group) {
        const int64_t pixels = std::min(group, rows - first) * low_.w;
        const Matrix<R> map{features_of(first, pixels / low_.w, copy.data), pixels, low_.c};
        multiply(map, transposed(taps), Matrix<R>{products.data, pixels, taps.rows});
        split_products(products.data, taps.rows, first * low_.w, pixels, z);
      }
    });
  }

  // Returns the address of rows of the small map, numbered through the batch: in place where they are contiguous, else
  // of a copy.
  R* features_of(int64_t first, int64_t rows, R* copy) const {
    const auto row_at = [&](int64_t row) { return low_.data + row / low_.h * low_.sn + row % low_.h * low_.sh; };
    if (low_.sw == low_.c && low_.sh == low_.w * low_.c && low_.sn == low_.h * low_.sh)
      return const_cast<R*>(row_at(first));
    R* to = copy;
    for (int64_t row = first; row < first + rows; ++row)
      for (int64_t x = 0; x < low_.w; ++x, to += low_.c) std::copy_n(row_at(row) + x * low_.sw, low_.c, to);
    return copy;
  }

  // Moves products from rows per pixel to planes, a cache line of pixels at a time.
  void split_products(const R* products, int64_t pitch, int64_t first, int64_t pixels, R* z) const {
    constexpr int64_t kLine = 16;
    const int64_t all = low_.n * low_.h * low_.w;
    for (int64_t line = 0; line < pixels; line += kLine) {
      const int64_t count = std::min(kLine, pixels - line);
      bool valid[kLine];
      for (int64_t p = 0; p < count; ++p) valid[p] = is_valid(first + line + p);
      for (int64_t i = 0; i < 9 * weight_.n; ++i)
        for (int64_t p = 0; p < count; ++p)
          z[i * all + first + line + p] = valid[p] ? products[(line + p) * pitch + i] : R(0);
    }
  }

  bool is_valid(int64_t pixel) const {
    const int64_t row = pixel / low_.w;
    return !low_mask_ ||
           low_mask_
               ->data[row / low_.h * low_mask_->sn + row % low_.h * low_mask_->sh + pixel % low_.w * low_mask_->sw];
  }

  void split_skip(const Planes<R>& planes) const {
    parallel_rows(skip_.n * skip_.h, skip_.w * skip_.c, [&](int64_t i) {
      const int64_t n = i / skip_.h, y = i % skip_.h;
      const MaskByte* valid = skip_mask_ ? skip_mask_->data + n * skip_mask_->sn + y * skip_mask_->sh : nullptr;
      for (int64_t c = 0; c < skip_.c; ++c) {
        R* row = planes.row(n * skip_.c + c, y);
        const R* from = skip_.data + n * skip_.sn + y * skip_.sh + c;
        for (int64_t x = 0; x < skip_.w; ++x)
          row[x] = valid == nullptr || valid[x * skip_mask_->sw] ? from[x * skip_.sw] : R(0);
        row[-1] = row[skip_.w] = R(0);
      }
    });
  }

  void add_taps(const R* z, int64_t n, int64_t o, int64_t y, R* sums, R* row) const {
    const int64_t pitch = low_.w + 2;
    for (int64_t kx = 0; kx < 3; ++kx) {
      R* sum = sums + kx * pitch + 1;
      std::fill(sum, sum + low_.w, R(0));
      for (int64_t ky = 0; ky < 3; ++ky) {
        const int64_t from = (y + ky + 1) / 2 - 1;
        if (from < 0 || from >= low_.h) continue;
        add_to(sum, z + ((((ky * 3 + kx) * weight_.n + o) * low_.n + n) * low_.h + from) * low_.w, low_.w);
      }
    }
    interleave_phases(sums + 1, sums + pitch + 1, sums + 2 * pitch + 1, row, low_.w);
  }

  void add_skip(const Planes<R>& skip, int64_t n, int64_t o, int64_t y, R* row) const {
    for (int64_t c = 0; c < skip_.c; ++c)
      for (int64_t ky = 0; ky < 3; ++ky) {
        if (y + ky - 1 < 0 || y + ky - 1 >= skip.h) continue;
        const R* from = skip.row(n * skip_.c + c, y + ky - 1);
        const R* taps = weight_.data + o * weight_.sn + (low_.c + c) * weight_.sc + ky * weight_.sh;
        add_scaled(row, from - 1, from, from + 1, taps[0], taps[weight_.sw], taps[2 * weight_.sw], skip.w);
      }
  }

  // Applies Eq. 2 and moves the result from planes back to pixels.
  void finish(int64_t n, int64_t y, const R* rows, const R* bias, const View<R>& out) const {
    const R* ratio = ratio_ + (n * out.h + y) * out.w;
    for (int64_t o = 0; o < out.c; ++o) {
      R* to = out.data + n * out.sn + y * out.sh + o * out.sc;
      const R shift = bias != nullptr ? bias[o] : R(0);
      for (int64_t x = 0; x < out.w; ++x)
        to[x * out.sw] = masked_conv::renormalise<R>(rows[o * out.w + x], ratio[x], shift);
    }
  }

  View<const R> low_;
  std::optional<MaskView> low_mask_;
  View<const R> skip_;
  std::optional<MaskView> skip_mask_;
  View<const R> weight_;
  const R* ratio_;
};

}  // namespace
}  // namespace msa::decoder_conv
