// A partial convolution of few outputs by one matrix product: their windows side by side as rows ("patches"), times the
// weight as it lies in memory. The library's convolution copies the weight into an order of its own first, which for
// deep layers, of few pixels and large weights, takes longer than the convolution.
#pragma once

#include <algorithm>
#include <optional>

#include "common/masked_conv/cpu/choice.h"
#include "common/masked_conv/window.h"
#include "common/parallel.h"
#include "common/products.h"

namespace msa::masked_conv {
namespace {

template <typename R>
class Patches {
 public:
  // The channel is the fastest dimension of `map`; without a mask (one plane) it is 0 under its holes already. `h` and
  // `w` are those of the output.
  Patches(const View<const R>& map, const std::optional<MaskView>& mask, const View<const R>& weight,
          const Window& window, int64_t h, int64_t w)
      : map_(map), mask_(mask), weight_(weight), window_(window), h_(h), w_(w) {}

  // out (N·H'·W', C_out): the convolution before Eq. 2.
  void forward(R* out) const {
    const Buffer<R> patches(outputs() * row_length());
    fill(row_order(weight_), patches.data);
    multiply(patches_of(patches), transposed(matrix(weight_.data)), Matrix<R>{out, outputs(), weight_.n});
  }

  // From `scaled` (N·H'·W', C_out), the gradient times the ratio.
  void input_gradient(const R* scaled, const View<R>& grad) const {
    const Buffer<R> patches(outputs() * row_length());
    multiply(gradient(scaled), matrix(weight_.data), patches_of(patches));
    const RowOrder order = row_order(weight_);
    parallel_rows(grad.n, grad.h * grad.w * grad.c, [&](int64_t n) {
      for (int64_t y = 0; y < grad.h; ++y)
        for (int64_t x = 0; x < grad.w; ++x) {
          R* pixel = grad.data + n * grad.sn + y * grad.sh + x * grad.sw;
          std::fill(pixel, pixel + grad.c, R(0));
        }
      for (int64_t i = 0; i < h_ * w_; ++i)
        for_taps(n, i, [&](int64_t tap, int64_t y, int64_t x, bool is_valid) {
          if (!is_valid) return;
          const R* row = patches.data + (n * h_ * w_ + i) * row_length();
          R* pixel = grad.data + n * grad.sn + y * grad.sh + x * grad.sw;
          in_row(order, tap, [&](int64_t c, int64_t at) { pixel[c] += row[at]; });
        });
    });
  }

  // `grad` is a weight that row_order takes.
  void weight_gradient(const R* scaled, const View<R>& grad) const {
    const Buffer<R> patches(outputs() * row_length());
    fill(row_order(grad), patches.data);
    multiply(transposed(gradient(scaled)), patches_of(patches), matrix(grad.data));
  }

 private:
  int64_t outputs() const { return map_.n * h_ * w_; }
  int64_t taps() const { return weight_.h * weight_.w; }
  int64_t row_length() const { return weight_.c * taps(); }

  Matrix<R> patches_of(const Buffer<R>& patches) const { return {patches.data, outputs(), row_length()}; }
  Matrix<R> matrix(const R* weight) const { return {const_cast<R*>(weight), weight_.n, row_length()}; }
  Matrix<R> gradient(const R* scaled) const { return {const_cast<R*>(scaled), outputs(), weight_.n}; }

  // f(tap, y, x, whether that pixel is there and valid) for the window of output i of sample n.
  template <typename F>
  void for_taps(int64_t n, int64_t i, const F& f) const {
    for (int64_t tap = 0; tap < taps(); ++tap) {
      const int64_t y = i / w_ * window_.stride_h - window_.padding_h + tap / weight_.w * window_.dilation_h;
      const int64_t x = i % w_ * window_.stride_w - window_.padding_w + tap % weight_.w * window_.dilation_w;
      const bool inside = y >= 0 && y < map_.h && x >= 0 && x < map_.w;
      f(tap, y, x, inside && (!mask_ || mask_->data[n * mask_->sn + y * mask_->sh + x * mask_->sw]));
    }
  }

  // f(channel, where in the row) for one tap.
  template <typename F>
  void in_row(RowOrder order, int64_t tap, const F& f) const {
    if (order == RowOrder::kChannelsLast) {
      for (int64_t c = 0; c < weight_.c; ++c) f(c, tap * weight_.c + c);
    } else {
      for (int64_t c = 0; c < weight_.c; ++c) f(c, c * taps() + tap);
    }
  }

  void fill(RowOrder order, R* patches) const {
    parallel_rows(outputs(), row_length(), [&](int64_t i) {
      const int64_t n = i / (h_ * w_);
      R* row = patches + i * row_length();
      for_taps(n, i % (h_ * w_), [&](int64_t tap, int64_t y, int64_t x, bool is_valid) {
        const R* pixel = is_valid ? map_.data + n * map_.sn + y * map_.sh + x * map_.sw : nullptr;
        if (is_valid) {
          in_row(order, tap, [&](int64_t c, int64_t at) { row[at] = pixel[c]; });
        } else {
          in_row(order, tap, [&](int64_t, int64_t at) { row[at] = R(0); });
        }
      });
    });
  }

  View<const R> map_;
  std::optional<MaskView> mask_;
  View<const R> weight_;
  Window window_;
  int64_t h_, w_;
};

}  // namespace
}  // namespace msa::masked_conv
