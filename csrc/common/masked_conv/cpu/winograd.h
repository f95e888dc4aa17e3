// A partial convolution by minimal filtering: tiles of 2×2 outputs, for each of a tile's products one matrix product
// over the channels. Masks cost nothing here: an input under a hole is not read, a tile without a valid output is left
// out, and the ratio and bias of Eq. 2 go into the last step.
//
// The work is cut into blocks of tiles whose products stay in the cache. Within one,
//
//   V[s] (tiles × C) = B d Bᵀ,   U[s] (C_out × C) = G g Gᵀ,   M[s] = V[s] U[s]ᵀ,   outputs = ratio · A M Aᵀ + bias
//
// for every product ("slot") s; backwards, with W = Aᵀ (ratio · dY) A,
//
//   dU[s] += W[s]ᵀ V[s],   dV[s] = W[s] U[s],   dX += Bᵀ dV B,   dg = Gᵀ dU G.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "common/masked_conv/cpu/winograd_tiles.h"
#include "common/masked_conv/window.h"
#include "common/parallel.h"
#include "common/products.h"

namespace msa::masked_conv {
namespace {

constexpr int kMostProducts = 49;  // of a tile

// One map of the convolution's input.
template <typename R>
struct Part {
  const InputSteps<R>& steps;
  View<const R> map;             // the channel is its fastest dimension
  std::optional<MaskView> mask;  // one plane; none: the map is 0 under its holes already
  int64_t padding_h, padding_w;  // how far the first tile reaches over the map's edge
  int64_t first_channel;         // where its channels begin among the weight's
};

// Where the matrices of the slots lie. Those that every part has come first, and are as wide as all parts together;
// the others are the first part's alone.
struct Slots {
  int64_t shared = 0, own = 0, all_channels = 0, own_channels = 0;
  int at[kMostProducts];  // slot of a product

  // A cache line between matrices: at distances of powers of two all slots of a tile would compete for the same lines.
  static constexpr int64_t kGap = 16;

  int64_t count() const { return shared + own; }
  int64_t channels(int64_t slot) const { return slot < shared ? all_channels : own_channels; }
  int64_t offset(int64_t slot, int64_t rows) const {
    const int64_t wide = std::min(slot, shared), narrow = slot - wide;
    return wide * (rows * all_channels + kGap) + narrow * (rows * own_channels + kGap);
  }
  int64_t size(int64_t rows) const { return offset(count(), rows); }
};

template <typename R>
class Winograd {
 public:
  // The first part has all products of the output, others some of them. `ratio` (N, H', W') is that of Eq. 4.
  Winograd(const OutputSteps<R>& output, std::vector<Part<R>> parts, const View<const R>& weight, const R* ratio,
           int64_t n, int64_t h, int64_t w)
      : output_(output), parts_(std::move(parts)), weight_(weight), ratio_(ratio), n_(n), h_(h), w_(w) {
    const int products = output.products;
    std::vector<size_t> users(products * products, 0);
    for (const auto& part : parts_) for_products(part, [&](int, int product) { ++users[product]; });
    for (const size_t count : users) ++(count == parts_.size() ? slots_.shared : slots_.own);
    int next_shared = 0, next_own = static_cast<int>(slots_.shared);
    for (size_t i = 0; i < users.size(); ++i) slots_.at[i] = users[i] == parts_.size() ? next_shared++ : next_own++;
    slots_.all_channels = weight.c;
    slots_.own_channels = parts_.front().map.c;
  }

  void forward(const R* bias, const View<R>& out) const {
    const std::vector<R> no_bias(bias == nullptr ? out.c : 0, R(0));
    if (bias == nullptr) bias = no_bias.data();
    const Buffer<R> taps = transformed_taps();
    Scratch scratch(*this);
    for_blocks([&](const Block& block) {
      transform_inputs(block, scratch.inputs.data);
      for_slots(block.tiles(), [&](int64_t s, int64_t first, int64_t rows) {
        multiply(inputs_of(scratch, block, s).part(first, rows), transposed(taps_of(taps, s)),
                 outputs_of(scratch, block, s).part(first, rows));
      });
      transform_outputs(block, scratch.outputs.data, bias, out);
    });
  }

  // grads[i] is the gradient of parts[i]'s map, to be filled, or empty; `ratio_applied` says that `grad` has been
  // multiplied by the ratio.
  void backward(const View<const R>& grad, bool ratio_applied, const std::vector<std::optional<View<R>>>& grads,
                const std::optional<View<R>>& grad_weight) const {
    const bool need_maps = std::any_of(grads.begin(), grads.end(), [](const auto& map) { return map.has_value(); });
    for (const auto& map : grads)
      if (map) fill_zero(*map);
    const Buffer<R> taps = need_maps ? transformed_taps() : Buffer<R>(0);
    const Buffer<R> taps_gradient(grad_weight ? slots_.size(weight_.n) : 0);
    Scratch scratch(*this);
    bool first_block = true;
    for_blocks([&](const Block& block) {
      if (block.active.empty()) return;
      transform_gradients(block, grad, ratio_applied, scratch.outputs.data);
      if (grad_weight) {
        transform_inputs(block, scratch.inputs.data);
        deal_out(slots_.count(), [&](int64_t s) {
          const Matrix<R> sum = taps_of(taps_gradient, s);
          const auto outputs = outputs_of(scratch, block, s), inputs = inputs_of(scratch, block, s);
          const Buffer<R> product(first_block && block.tiles() <= kTilesPerSum ? 0 : sum.rows * sum.columns);
          for (int64_t first = 0; first < block.tiles(); first += kTilesPerSum) {
            const int64_t tiles = std::min(kTilesPerSum, block.tiles() - first);
            const bool is_first = first_block && first == 0;
            const Matrix<R> term{is_first ? sum.data : product.data, sum.rows, sum.columns};
            multiply(transposed(outputs.part(first, tiles)), inputs.part(first, tiles), term);
            if (!is_first) add_to(sum.data, term.data, sum.rows * sum.columns);
          }
        });
        first_block = false;
      }
      if (need_maps) {
        for_slots(block.tiles(), [&](int64_t s, int64_t first, int64_t rows) {
          multiply(outputs_of(scratch, block, s).part(first, rows), taps_of(taps, s),
                   inputs_of(scratch, block, s).part(first, rows));
        });
        for (size_t i = 0; i < parts_.size(); ++i)
          if (grads[i]) add_input_gradients(block, parts_[i], scratch.inputs.data, *grads[i]);
      }
    });
    // Where no output is valid, no block has written the sums.
    if (first_block) std::fill_n(taps_gradient.data, grad_weight ? slots_.size(weight_.n) : 0, R(0));
    if (grad_weight) transform_taps_gradients(taps_gradient, *grad_weight);
  }

 private:
  struct Tile {
    int64_t n, y, x;
  };

  // Whole rows of tiles, numbered through the batch; of their tiles those with a valid output ("active") are computed.
  struct Block {
    int64_t first_row, last_row;
    std::vector<Tile> active, empty;
    std::vector<int64_t> index;  // among the active, or -1; per row and column

    int64_t tiles() const { return static_cast<int64_t>(active.size()); }
  };

  // V or dV, and M or W.
  struct Scratch {
    Buffer<R> inputs, outputs;

    explicit Scratch(const Winograd& w)
        : inputs(w.slots_.size(w.most_tiles())), outputs(w.output_size(w.most_tiles())) {}
  };

  // A block's V and M stay in the last-level cache, but a product of too few tiles spends its time on copies of U.
  // Blocks do not depend on the number of threads, because that would change the rounding.
  static constexpr int64_t kBlockBytes = 4 << 20, kLeastTilesPerBlock = 128, kMostTilesPerProduct = 512;
  // The weight's gradient sums over tiles: so many at a time, because a long sum rounds more than a sum of short ones.
  static constexpr int64_t kTilesPerSum = 64;

  int64_t tiles_h() const { return (h_ + 1) / 2; }
  int64_t tiles_w() const { return (w_ + 1) / 2; }
  int64_t output_size(int64_t tiles) const { return slots_.count() * (tiles * weight_.n + Slots::kGap); }

  int64_t tiles_per_block() const {
    const int64_t per_tile = slots_.size(1) + output_size(1) - 2 * slots_.count() * Slots::kGap;
    return std::max(kLeastTilesPerBlock, kBlockBytes / static_cast<int64_t>(sizeof(R)) / per_tile);
  }
  int64_t most_tiles() const { return std::min(std::max(tiles_per_block(), tiles_w()), n_ * tiles_h() * tiles_w()); }

  // Calls f(product of the part, product of the output) for each of a part's products.
  template <typename F>
  void for_products(const Part<R>& part, const F& f) const {
    for (int i = 0; i < part.steps.products; ++i)
      for (int j = 0; j < part.steps.products; ++j)
        f(i * part.steps.products + j, part.steps.order[i] * output_.products + part.steps.order[j]);
  }

  // The addresses of row `row` of the part's matrices that begin at `data` and have `rows` rows each.
  void rows_at(const Part<R>& part, R* data, int64_t rows, int64_t row, R** addresses) const {
    for_products(part, [&](int i, int product) {
      const int64_t slot = slots_.at[product];
      const int64_t channel = slot < slots_.shared ? part.first_channel : 0;
      addresses[i] = data + slots_.offset(slot, rows) + row * slots_.channels(slot) + channel;
    });
  }
  void output_rows_at(R* data, int64_t rows, int64_t row, R** addresses) const {
    for (int64_t i = 0; i < slots_.count(); ++i)
      addresses[i] = data + slots_.at[i] * (rows * weight_.n + Slots::kGap) + row * weight_.n;
  }

  Matrix<R> inputs_of(const Scratch& scratch, const Block& block, int64_t slot) const {
    return {scratch.inputs.data + slots_.offset(slot, block.tiles()), block.tiles(), slots_.channels(slot)};
  }
  Matrix<R> outputs_of(const Scratch& scratch, const Block& block, int64_t slot) const {
    return {scratch.outputs.data + slot * (block.tiles() * weight_.n + Slots::kGap), block.tiles(), weight_.n};
  }
  Matrix<R> taps_of(const Buffer<R>& taps, int64_t slot) const {
    return {taps.data + slots_.offset(slot, weight_.n), weight_.n, slots_.channels(slot)};
  }

  const R* ratio_at(const Tile& tile, int64_t dy, int64_t dx) const {
    const int64_t y = 2 * tile.y + dy, x = 2 * tile.x + dx;
    return y < h_ && x < w_ ? ratio_ + (tile.n * h_ + y) * w_ + x : nullptr;
  }

  template <typename F>
  void for_blocks(const F& f) const {
    const int64_t rows = n_ * tiles_h(), rows_per_block = std::max<int64_t>(1, tiles_per_block() / tiles_w());
    for (int64_t first = 0; first < rows; first += rows_per_block) {
      Block block{first, std::min(rows, first + rows_per_block), {}, {}, {}};
      for (int64_t row = block.first_row; row < block.last_row; ++row)
        for (int64_t x = 0; x < tiles_w(); ++x) {
          const Tile tile{row / tiles_h(), row % tiles_h(), x};
          bool is_active = false;
          for (int i = 0; i < 4; ++i) {
            const R* ratio = ratio_at(tile, i / 2, i % 2);
            is_active |= ratio != nullptr && *ratio > 0;
          }
          block.index.push_back(is_active ? block.tiles() : -1);
          (is_active ? block.active : block.empty).push_back(tile);
        }
      f(block);
    }
  }

  // Calls f(i) for i in [0, tasks), in parallel. A thread takes every threads-th task, because slots differ in width.
  template <typename F>
  static void deal_out(int64_t tasks, const F& f) {
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
    parallel_rows(threads, kElementsPerThread, [&](int64_t thread) {
      for (int64_t i = thread; i < tasks; i += threads) f(i);
    });
  }

  // Calls f(slot, first tile, tiles) for all slots and tiles.
  template <typename F>
  void for_slots(int64_t tiles, const F& f) const {
    const int64_t pieces = (tiles + kMostTilesPerProduct - 1) / kMostTilesPerProduct;
    deal_out(slots_.count() * pieces, [&](int64_t i) {
      const int64_t first = i / slots_.count() * tiles / pieces, last = (i / slots_.count() + 1) * tiles / pieces;
      f(i % slots_.count(), first, last - first);
    });
  }

  // Calls f(whether it is on the map, y, x, i) for the pixels under rows [first, last) of a part's tile; i counts them.
  template <typename F>
  static void for_pixels(const Part<R>& part, int64_t tile_y, int64_t tile_x, int first, int last, const F& f) {
    const int64_t top = tile_y * part.steps.step - part.padding_h, left = tile_x * part.steps.step - part.padding_w;
    for (int i = first; i < last; ++i)
      for (int j = 0; j < part.steps.inputs; ++j) {
        const int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && y < part.map.h && x >= 0 && x < part.map.w;
        f(inside, y, x, (i - first) * part.steps.inputs + j);
      }
  }

  static bool is_valid(const Part<R>& part, int64_t n, int64_t y, int64_t x) {
    return !part.mask || part.mask->data[n * part.mask->sn + y * part.mask->sh + x * part.mask->sw];
  }

  Buffer<R> transformed_taps() const {
    Buffer<R> taps(slots_.size(weight_.n));
    for (const auto& part : parts_)
      parallel_rows(weight_.n, kMostProducts * part.map.c, [&](int64_t o) {
        R* products[kMostProducts];
        rows_at(part, taps.data, weight_.n, o, products);
        part.steps.transform_taps(weight_.data + o * weight_.sn + part.first_channel * weight_.sc, weight_.sh,
                                  weight_.sw, weight_.sc, products, part.map.c);
      });
    return taps;
  }

  void transform_taps_gradients(const Buffer<R>& taps, const View<R>& grad) const {
    for (const auto& part : parts_)
      parallel_rows(weight_.n, kMostProducts * part.map.c, [&](int64_t o) {
        R* products[kMostProducts];
        rows_at(part, taps.data, weight_.n, o, products);
        part.steps.transform_taps_gradient(products, grad.data + o * grad.sn + part.first_channel * grad.sc, grad.sh,
                                           grad.sw, grad.sc, part.map.c);
      });
  }

  void transform_inputs(const Block& block, R* data) const {
    for (const auto& part : parts_) {
      const std::vector<R> zeros(part.map.c, R(0));
      parallel_rows(block.tiles(), kMostProducts * part.map.c, [&](int64_t t) {
        const Tile& tile = block.active[t];
        const R* pixels[kMostProducts];
        R* products[kMostProducts];
        for_pixels(part, tile.y, tile.x, 0, part.steps.inputs, [&](bool inside, int64_t y, int64_t x, int i) {
          pixels[i] = inside && is_valid(part, tile.n, y, x)
                          ? part.map.data + tile.n * part.map.sn + y * part.map.sh + x * part.map.sw
                          : zeros.data();
        });
        rows_at(part, data, block.tiles(), t, products);
        part.steps.transform(pixels, products, part.map.c);
      });
    }
  }

  void transform_outputs(const Block& block, R* data, const R* bias, const View<R>& out) const {
    const auto pixel_at = [&](const Tile& tile, int i) {
      return out.data + tile.n * out.sn + (2 * tile.y + i / 2) * out.sh + (2 * tile.x + i % 2) * out.sw;
    };
    parallel_ranges(block.tiles(), kMostProducts * out.c, [&](int64_t begin, int64_t end) {
      std::vector<R> spare(out.c);
      for (int64_t t = begin; t < end; ++t) {
        R *products[kMostProducts], *pixels[4], ratios[4];
        for (int i = 0; i < 4; ++i) {
          const R* ratio = ratio_at(block.active[t], i / 2, i % 2);
          ratios[i] = ratio != nullptr ? *ratio : R(0);
          pixels[i] = ratio != nullptr ? pixel_at(block.active[t], i) : spare.data();
        }
        output_rows_at(data, block.tiles(), t, products);
        output_.transform(products, pixels, ratios, bias, out.c);
        for (int i = 0; i < 4; ++i)
          if (ratios[i] == R(0)) std::fill(pixels[i], pixels[i] + out.c, R(0));
      }
    });
    parallel_rows(static_cast<int64_t>(block.empty.size()), 4 * out.c, [&](int64_t t) {
      for (int i = 0; i < 4; ++i)
        if (ratio_at(block.empty[t], i / 2, i % 2) != nullptr) {
          R* pixel = pixel_at(block.empty[t], i);
          std::fill(pixel, pixel + out.c, R(0));
        }
    });
  }

  void transform_gradients(const Block& block, const View<const R>& grad, bool ratio_applied, R* data) const {
    const std::vector<R> zeros(grad.c, R(0));
    parallel_rows(block.tiles(), kMostProducts * grad.c, [&](int64_t t) {
      const Tile& tile = block.active[t];
      R *products[kMostProducts], ratios[4];
      const R* pixels[4];
      for (int i = 0; i < 4; ++i) {
        const R* ratio = ratio_at(tile, i / 2, i % 2);
        const bool is_valid = ratio != nullptr && *ratio > 0;
        ratios[i] = is_valid && !ratio_applied ? *ratio : R(1);
        pixels[i] = is_valid
                        ? grad.data + tile.n * grad.sn + (2 * tile.y + i / 2) * grad.sh + (2 * tile.x + i % 2) * grad.sw
                        : zeros.data();
      }
      output_rows_at(data, block.tiles(), t, products);
      output_.transform_gradient(pixels, ratios, products, grad.c);
    });
  }

  // Tiles overlap. Rows of the map are shared out in bands of one step, each to one thread: band b lies under tile row
  // b, and under the last inputs of the rows before.
  void add_input_gradients(const Block& block, const Part<R>& part, R* data, const View<R>& grad) const {
    struct BandOfRows {
      int64_t n, band;
    };
    std::vector<BandOfRows> bands;
    for (int64_t row = block.first_row; row < block.last_row; ++row) {
      bands.push_back({row / tiles_h(), row % tiles_h()});
      if (row + 1 == block.last_row || row % tiles_h() == tiles_h() - 1)
        for (int k = 1; k < part.steps.bands; ++k) bands.push_back({row / tiles_h(), row % tiles_h() + k});
    }
    parallel_ranges(static_cast<int64_t>(bands.size()), kElementsPerThread, [&](int64_t begin, int64_t end) {
      std::vector<R> spare(grad.c);
      for (int64_t i = begin; i < end; ++i)
        for (int k = part.steps.bands - 1; k >= 0; --k) {
          const auto [n, band] = bands[i];
          const int64_t y = band - k, row = n * tiles_h() + y;
          if (y < 0 || y >= tiles_h() || row < block.first_row || row >= block.last_row) continue;
          for (int64_t x = 0; x < tiles_w(); ++x) {
            const int64_t t = block.index[(row - block.first_row) * tiles_w() + x];
            if (t < 0) continue;
            R *pixels[kMostProducts], *products[kMostProducts];
            const int first = k * part.steps.step, last = std::min(first + part.steps.step, part.steps.inputs);
            for_pixels(part, y, x, first, last, [&, n = n](bool inside, int64_t py, int64_t px, int at) {
              pixels[at] = inside && is_valid(part, n, py, px) ? grad.data + n * grad.sn + py * grad.sh + px * grad.sw
                                                               : spare.data();
            });
            rows_at(part, data, block.tiles(), t, products);
            part.steps.add_gradient[k](products, pixels, grad.c);
          }
        }
    });
  }

  static void fill_zero(const View<R>& map) {
    parallel_rows(map.n * map.h, map.w * map.c, [&](int64_t row) {
      R* pixels = map.data + row / map.h * map.sn + row % map.h * map.sh;
      for (int64_t x = 0; x < map.w; ++x) std::fill(pixels + x * map.sw, pixels + x * map.sw + map.c, R(0));
    });
  }

  const OutputSteps<R>& output_;
  std::vector<Part<R>> parts_;
  View<const R> weight_;
  const R* ratio_;
  int64_t n_, h_, w_;
  Slots slots_;
};

}  // namespace
}  // namespace msa::masked_conv
