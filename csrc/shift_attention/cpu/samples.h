// The samples of a batch: what each needs, in which order they run, and the sum over shifts of one of their tiles.
#pragma once

#include <atomic>
#include <numeric>
#include <optional>

#include "shift_attention/cpu/maps.h"
#include "shift_attention/cpu/tiles.h"

namespace msa::shift_attention {
namespace {

struct Sample {
  int64_t index;
  Geometry g;
  Plan plan;

  int64_t queries() const { return static_cast<int64_t>(g.queries.size()); }
  int64_t keys() const { return static_cast<int64_t>(g.keys.size()); }
  int64_t work() const { return queries() * keys(); }
};

// Samples that have queries and keys; `budget` in elements of images.
inline std::vector<Sample> samples_of(const Tensor& query_mask, const Tensor& key_mask, int64_t radius,
                                      int64_t budget) {
  std::vector<Sample> samples;
  const auto queries = view<const MaskByte>(query_mask), keys = view<const MaskByte>(key_mask);
  for (int64_t i = 0; i < queries.n; ++i) {
    const Geometry g(queries, keys, i, radius);
    if (!g.queries.empty() && !g.keys.empty()) samples.push_back({i, g, Plan(g, budget)});
  }
  return samples;
}

template <typename Size>
int64_t most(const std::vector<Sample>& samples, const Size& size) {
  int64_t result = 0;
  for (const Sample& s : samples) result = std::max<int64_t>(result, size(s));
  return result;
}

// Calls work(sample, scratch) for every sample. Small ones run side by side, each in one thread with a scratch of its
// own, because their products and rows are too short to share out well; together they stay within the budget.
template <typename MakeScratch, typename Work>
void for_samples(const std::vector<Sample>& samples, int64_t budget, const MakeScratch& make, const Work& work) {
  if (samples.empty()) return;
  std::vector<size_t> order(samples.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return samples[a].work() > samples[b].work(); });
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<int64_t> busy(threads, 0);  // the largest first, each to the thread that is free first
  int64_t total = 0;
  for (const size_t i : order) {
    *std::min_element(busy.begin(), busy.end()) += samples[i].work();
    total += samples[i].work();
  }
  const bool fit = std::all_of(samples.begin(), samples.end(),
                               [&](const Sample& s) { return s.plan.is_whole() && s.plan.images <= budget / threads; });
  const bool balanced = 10 * *std::max_element(busy.begin(), busy.end()) * threads <= 13 * total;
  using Scratch = decltype(make());
  std::vector<Scratch> scratch;
  if (!fit || !balanced || threads == 1) {
    scratch.push_back(make());
    for (const Sample& sample : samples) work(sample, scratch[0]);
    return;
  }
  for (int64_t i = 0; i < threads; ++i) scratch.push_back(make());
  std::atomic<size_t> next(0);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (size_t i; (i = next++) < order.size();) work(samples[order[i]], scratch[worker]);
  });
}

// Sums over shifts of the tiles of one sample.
template <typename R>
class Shifts {
 public:
  // `images` has room for plan.images elements.
  Shifts(const Sample& sample, R* images) : g_(sample.g), plan_(sample.plan), images_(images) {}

  // For the tile of `queries` × `keys`: out(p, q) = Σ_δ f(p+δ, q+δ), where the rows of f are those of the product a bᵀ
  // (a by query, b by key) after finish(query, row, length), which returns a factor and an addend for its elements.
  // The rows before them are left in `scores`; with a single window `out` may be the same memory.
  template <typename Finish>
  void operator()(const Range& queries, const Range& keys, const Matrix<R>& a, const Matrix<R>& b, R* scores, R* out,
                  const Finish& finish) {
    const Matrix<R> sum{out, queries.size(), keys.size()};
    const bool several = plan_.windows.size() > 1;
    if (several) std::fill(out, sum.row(sum.rows), R(0));
    for (const Window& window : plan_.windows) {
      const Range outer = g_.halo(g_.queries, queries, window);
      lay_out(keys, window);
      if (outer.size() == 0 || layout_->outer.size() == 0) continue;
      const Matrix<R> rows{scores, outer.size(), layout_->outer.size()};
      multiply(a.part(outer.begin, rows.rows), transposed(b.part(layout_->outer.begin, rows.columns)), rows);
      const int64_t runs = static_cast<int64_t>(layout_->outer_runs.size());
      parallel_rows(rows.rows, 4 * rows.columns, [&](int64_t i) {
        const std::pair<R, R> line = finish(outer.begin + i, rows.row(i), rows.columns);
        to_image(rows.row(i), layout_->outer_runs.data(), runs, line.first, line.second, images_ + i * plan_.image);
      });
      parallel_rows(sum.rows, 10 * sum.columns,
                    [&](int64_t i) { add_shifts(queries.begin + i, outer.begin, window, several, sum.row(i)); });
    }
  }

 private:
  // Makes the images zero but for the keys of this tile, which every use overwrites: all of them once, and afterwards
  // only the keys of the layout before.
  void lay_out(const Range& keys, const Window& window) {
    if (layout_ && plan_.windows.size() == 1 && layout_->inner.begin == keys.begin) return;
    parallel_rows(plan_.rows, plan_.image, [&](int64_t i) {
      R* image = images_ + i * plan_.image;
      if (!layout_)
        std::fill_n(image, plan_.image, R(0));
      else
        for (const Run& run : layout_->outer_runs) std::fill_n(image + run.image, run.length, R(0));
    });
    layout_.emplace(g_, keys, window);
  }

  // The images in memory begin with query `first`.
  void add_shifts(int64_t query, int64_t first, const Window& window, bool add, R* row) const {
    constexpr int kTerms = 27;
    const R* terms[kTerms];
    int count = 0;
    const auto flush = [&] {
      sum_images(terms, count, layout_->spans.data(), static_cast<int64_t>(layout_->spans.size()),
                 layout_->inner_runs.data(), add, row);
      add = true;
      count = 0;
    };
    for (int64_t dy = window.top; dy <= window.bottom; ++dy)
      for (int64_t dx = window.left; dx <= window.right; ++dx) {
        const int64_t offset = dy * g_.pitch + dx, position = g_.queries[query] + offset;
        if (position < 0 || position >= static_cast<int64_t>(g_.query_at.size()) || g_.query_at[position] < 0) continue;
        if (count == kTerms) flush();
        terms[count++] = images_ + (g_.query_at[position] - first) * plan_.image + offset;
      }
    if (count > 0) flush();
  }

  const Geometry& g_;
  const Plan& plan_;
  R* images_;
  std::optional<Layout> layout_;
};

}  // namespace
}  // namespace msa::shift_attention
