// How the weights of one sample are cut into tiles of queries × keys that fit a fixed budget.
//
// Pixels are numbered by *position*, y · pitch + x with a gap of `radius` columns between map rows, so that a shift
// δ = (dy, dx) is the one offset dy · pitch + dx for queries and keys alike: nothing wraps around row ends, for a gap
// holds no pixel. An *image* is a row of weights over a stretch of positions, zero where no key lies.
//
//   s'(p, q) = Σ_δ s*(p+δ, q+δ)
//
// then needs, for a tile of queries p and keys q, the images of the queries p+δ over the positions q+δ: the tile's
// *halo*. Usually all keys are one tile. Where even the halo of one map row of queries is over the budget, keys are cut
// too, and, so that no map is too wide and no radius too large, the shifts into *windows* that are done one by one.
#pragma once

#include <cmath>
#include <limits>

#include "common/tensor.h"
#include "shift_attention/cpu/rows.h"

namespace msa::shift_attention {
namespace {

// Bytes of images that may exist at a time; scores need as much at most.
constexpr int64_t kImageBytes = 16 << 20;

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The shifts (dy, dx) of a rectangle, both ends included.
struct Window {
  int64_t top, bottom, left, right;

  int64_t lowest(int64_t pitch) const { return top * pitch + left; }
  int64_t highest(int64_t pitch) const { return bottom * pitch + right; }
};

// Which pixels of a sample are queries and keys.
struct Geometry {
  int64_t h, w, reach_y, reach_x, pitch;
  std::vector<int64_t> queries, keys;  // positions, ascending
  std::vector<int64_t> query_at;       // position -> index among the queries, or -1

  Geometry(const MaskView& query_mask, const MaskView& key_mask, int64_t n, int64_t radius)
      : h(key_mask.h),
        w(key_mask.w),
        reach_y(std::min(radius, std::max<int64_t>(h, 1) - 1)),
        reach_x(std::min(radius, std::max<int64_t>(w, 1) - 1)),
        pitch(w + reach_x),
        query_at(h * pitch, -1) {
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; ++x) {
        const int64_t position = y * pitch + x;
        if (query_mask.data[n * query_mask.sn + y * query_mask.sh + x * query_mask.sw]) {
          query_at[position] = static_cast<int64_t>(queries.size());
          queries.push_back(position);
        }
        if (key_mask.data[n * key_mask.sn + y * key_mask.sh + x * key_mask.sw]) keys.push_back(position);
      }
  }

  int64_t pixel(int64_t position) const { return position / pitch * w + position % pitch; }
  Window all_shifts() const { return {-reach_y, reach_y, -reach_x, reach_x}; }

  // Returns the range of queries or keys that holds all positions the window reaches from those of `inner`.
  Range halo(const std::vector<int64_t>& positions, const Range& inner, const Window& window) const {
    const int64_t low = positions[inner.begin] + window.lowest(pitch);
    const int64_t high = positions[inner.end - 1] + window.highest(pitch);
    const auto begin = std::lower_bound(positions.begin(), positions.end(), low);
    return {begin - positions.begin(), std::upper_bound(begin, positions.end(), high) - positions.begin()};
  }
};

// The keys of a tile in an image: where element 0 lies, and where the keys are.
struct Layout {
  Range inner, outer;  // keys of the tile and of its halo
  int64_t low;
  std::vector<Run> outer_runs, inner_runs;
  std::vector<Span> spans;  // of the inner runs

  Layout(const Geometry& g, const Range& tile, const Window& window)
      : inner(tile), outer(g.halo(g.keys, tile, window)), low(g.keys[tile.begin] + window.lowest(g.pitch)) {
    outer_runs = runs_of(g, outer);
    // Seen from its own shift an inner key may lie outside the window's image; only the shifted images are read there.
    inner_runs = runs_of(g, inner);
    for (int64_t i = 0; i < static_cast<int64_t>(inner_runs.size()); ++i) {
      const Run& run = inner_runs[i];
      // Few short gaps cost less than a loop of its own for every run.
      constexpr int64_t kGap = 32;
      if (!spans.empty()) {
        Span& last = spans.back();
        const int64_t length = run.image + run.length - last.image;
        if (length <= kSpanLength && length - last.length <= run.length + kGap) {
          last.length = length;
          last.last_run = i + 1;
          continue;
        }
      }
      spans.push_back({run.image, run.length, i, i + 1});
    }
  }

 private:
  std::vector<Run> runs_of(const Geometry& g, const Range& keys) const {
    std::vector<Run> runs;
    for (int64_t i = keys.begin; i < keys.end; ++i) {
      const int64_t at = g.keys[i] - low;
      if (!runs.empty() && runs.back().image + runs.back().length == at) {
        ++runs.back().length;
      } else {
        runs.push_back({at, i - keys.begin, 1});
      }
    }
    return runs;
  }
};

// The cuts of one sample, and the memory they need, in elements.
struct Plan {
  std::vector<Window> windows;
  std::vector<Range> queries, keys;
  int64_t rows = 0;                         // queries of a tile and its halo, at most
  int64_t images = 0;                       // rows × image
  int64_t image = 0;                        // longest image of a tile
  int64_t scores = 0;                       // rows × keys of a tile with its halo
  int64_t shifted = 0;                      // queries × keys of a tile
  int64_t most_queries = 0, most_keys = 0;  // of a tile

  // `budget`: elements of images. A sample without queries or keys has no tiles.
  Plan(const Geometry& g, int64_t budget) {
    if (g.queries.empty() || g.keys.empty()) return;
    const Window all = g.all_shifts();
    const int64_t reach = all.highest(g.pitch) - all.lowest(g.pitch);
    const int64_t whole = g.keys.back() - g.keys.front() + 1 + reach;
    if (holds_every_map_row(g, all, budget / whole)) {
      windows = {all};
      keys = {{0, static_cast<int64_t>(g.keys.size())}};
      cut_queries(g, budget / whole);
    } else {
      cut_everything(g, budget);
    }
    measure(g);
  }

  bool is_whole() const { return keys.size() == 1 && windows.size() == 1; }

 private:
  static bool holds_every_map_row(const Geometry& g, const Window& window, int64_t most) {
    for (size_t i = 0; i < g.queries.size();) {
      const auto row_end = (g.queries[i] / g.pitch + 1) * g.pitch;
      const auto end = std::lower_bound(g.queries.begin(), g.queries.end(), row_end) - g.queries.begin();
      if (g.halo(g.queries, {static_cast<int64_t>(i), end}, window).size() > most) return false;
      i = end;
    }
    return true;
  }

  // Tiles as large as a halo of `most` queries allows.
  void cut_queries(const Geometry& g, int64_t most) {
    const int64_t count = static_cast<int64_t>(g.queries.size());
    for (int64_t begin = 0, end; begin < count; begin = end) {
      const auto fits = [&](int64_t last) {
        return std::all_of(windows.begin(), windows.end(), [&](const Window& window) {
          return g.halo(g.queries, {begin, last}, window).size() <= most;
        });
      };
      end = begin + 1;  // which fits, by the choice of windows
      for (int64_t above = count + 1; above - end > 1;) {
        const int64_t middle = (end + above) / 2;
        (fits(middle) ? end : above) = middle;
      }
      queries.push_back({begin, end});
    }
  }

  // Windows of `rows` × `columns` shifts, tiles of `side` positions of keys with their halo.
  struct Cut {
    int64_t rows, columns, reach, side;
    double cost;  // times that a score is computed
  };

  static Cut cut_of(const Geometry& g, int64_t budget, int64_t rows, int64_t columns) {
    const int64_t reach = (rows - 1) * g.pitch + columns - 1, span = g.keys.back() - g.keys.front() + 1;
    // Square tiles have the least halo; a query's side counts only where queries are.
    const double density = static_cast<double>(g.queries.size()) / static_cast<double>(g.h * g.pitch);
    const int64_t square = static_cast<int64_t>(std::sqrt(static_cast<double>(budget) / density));
    const int64_t side = std::min({square, span + reach, budget});
    const int64_t most = budget / std::max<int64_t>(1, side);
    if (side <= reach || most < reach + 1) return {rows, columns, reach, side, std::numeric_limits<double>::infinity()};
    const double height = std::max(static_cast<double>(most) / density, reach + 1.0), width = static_cast<double>(side);
    const double windows = std::ceil((2.0 * g.reach_y + 1) / rows) * std::ceil((2.0 * g.reach_x + 1) / columns);
    return {rows, columns, reach, side, windows * height / (height - reach) * width / (width - reach)};
  }

  void cut_everything(const Geometry& g, int64_t budget) {
    Cut best = cut_of(g, budget, 1, 1);  // a shift by itself has no halo, so this always fits
    const auto consider = [&](int64_t rows, int64_t columns) {
      const Cut cut = cut_of(g, budget, rows, columns);
      if (cut.cost < best.cost) best = cut;
    };
    for (int64_t columns = 2; columns <= 2 * g.reach_x + 1; ++columns) consider(1, columns);
    for (int64_t rows = 2; rows <= 2 * g.reach_y + 1; ++rows) consider(rows, 2 * g.reach_x + 1);
    for (int64_t top = -g.reach_y; top <= g.reach_y; top += best.rows)
      for (int64_t left = -g.reach_x; left <= g.reach_x; left += best.columns)
        windows.push_back(
            {top, std::min(top + best.rows - 1, g.reach_y), left, std::min(left + best.columns - 1, g.reach_x)});
    for (auto first = g.keys.begin(); first != g.keys.end();) {
      const auto last = std::lower_bound(first, g.keys.end(), *first + best.side - best.reach);
      keys.push_back({first - g.keys.begin(), last - g.keys.begin()});
      first = last;
    }
    cut_queries(g, budget / best.side);
  }

  void measure(const Geometry& g) {
    int64_t outer_keys = 0;
    for (const Window& window : windows) {
      for (const Range& tile : queries) rows = std::max(rows, g.halo(g.queries, tile, window).size());
      for (const Range& tile : keys) {
        const int64_t reach = window.highest(g.pitch) - window.lowest(g.pitch);
        image = std::max(image, g.keys[tile.end - 1] - g.keys[tile.begin] + 1 + reach);
        outer_keys = std::max(outer_keys, g.halo(g.keys, tile, window).size());
      }
    }
    for (const Range& tile : queries) most_queries = std::max(most_queries, tile.size());
    for (const Range& tile : keys) most_keys = std::max(most_keys, tile.size());
    images = rows * image;
    scores = rows * outer_keys;
    shifted = most_queries * most_keys;
  }
};

}  // namespace
}  // namespace msa::shift_attention
