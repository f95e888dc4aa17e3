// CPU kernels of attention with shift propagation (Eqs. 6-8). Per sample, queries and keys are gathered into matrices,
// and tiles of queries × keys go through the library's matrix products and loops of ours:
//
//   scores    S  = scale · Q Kᵀ               product, (queries × keys)
//   softmax   s* = exp(S - max) / sum         our loop, written into images
//   shift     s'(p, q) = Σ_δ s*(p+δ, q+δ)     our loop over images (tiles.h)
//   values    O  = s' V                       product
//
// Scores exist for one tile at a time; the backward makes them again. docs/operators/shift_attention.md derives the
// formulas.
#include "shift_attention/operators.h"

#include "shift_attention/cpu/samples.h"

namespace msa::shift_attention {
namespace {

constexpr auto unscaled = [](int64_t) { return 1; };

// ---- weights --------------------

// Largest score and log Σ_q exp(S - largest) of every query, a stretch of keys at a time; `room` elements of scores.
template <typename R>
void normalise(const Matrix<R>& q, const Matrix<R>& k, R* scores, int64_t room, R* tops, R* log_sums) {
  const int64_t keys = std::min(k.rows, std::max<int64_t>(1, room / 64)), queries = std::max<int64_t>(1, room / keys);
  std::vector<double> sums(q.rows, 0);
  for (int64_t first = 0; first < q.rows; first += queries)
    for (int64_t from = 0; from < k.rows; from += keys) {
      const Matrix<R> rows{scores, std::min(queries, q.rows - first), std::min(keys, k.rows - from)};
      multiply(q.part(first, rows.rows), transposed(k.part(from, rows.columns)), rows);
      parallel_rows(rows.rows, 4 * rows.columns, [&](int64_t i) {
        R& top = tops[first + i];
        const R largest = max_of(rows.row(i), rows.columns), before = top;
        top = from == 0 ? largest : std::max(before, largest);
        exp_minus(rows.row(i), rows.columns, top);
        double& sum = sums[first + i];
        sum = (from == 0 ? 0 : sum * std::exp(static_cast<double>(before - top))) + sum_of(rows.row(i), rows.columns);
      });
    }
  for (int64_t i = 0; i < q.rows; ++i) log_sums[i] = static_cast<R>(std::log(sums[i]));
}

// What the forward and the map of one sample work in.
template <typename R>
struct WeightScratch {
  Buffer<R> q, k, top, log_sum, scores, images, shifted;

  WeightScratch(const std::vector<Sample>& samples, int64_t channels)
      : q(most(samples, [&](const Sample& s) { return s.queries() * channels; })),
        k(most(samples, [&](const Sample& s) { return s.keys() * channels; })),
        top(most(samples, [](const Sample& s) { return s.queries(); })),
        log_sum(most(samples, [](const Sample& s) { return s.queries(); })),
        scores(most(samples, [](const Sample& s) { return s.plan.scores; })),
        images(most(samples, [](const Sample& s) { return s.plan.images; })),
        shifted(most(samples, [](const Sample& s) { return s.plan.windows.size() > 1 ? s.plan.shifted : 0; })) {}
};

// Calls use(queries, keys, s' of this tile) for every tile, those of the same queries with ascending keys.
template <typename T, typename R, typename Use>
void for_weights(const Sample& s, const View<const T>& query, const View<const T>& key, R scale,
                 const WeightScratch<R>& scratch, const Use& use) {
  const Matrix<R> q{scratch.q.data, s.queries(), query.c}, k{scratch.k.data, s.keys(), key.c};
  gather(query, s.index, s.g.pitch, s.g.queries, q.data, [&](int64_t) { return scale; });
  gather(key, s.index, s.g.pitch, s.g.keys, k.data, unscaled);
  R *scores = scratch.scores.data, *tops = scratch.top.data, *log_sums = scratch.log_sum.data;
  R* shifted = s.plan.windows.size() > 1 ? scratch.shifted.data : scores;
  const bool whole = s.plan.is_whole();
  if (!whole) normalise(q, k, scores, s.plan.scores, tops, log_sums);
  Shifts<R> shift(s, scratch.images.data);
  for (const Range& keys : s.plan.keys)
    for (const Range& queries : s.plan.queries) {
      shift(queries, keys, q, k, scores, shifted, [&](int64_t i, R* row, int64_t n) -> std::pair<R, R> {
        if (!whole) {
          exp_minus(row, n, tops[i], log_sums[i]);
          return {1, 0};
        }
        tops[i] = max_of(row, n);
        exp_minus(row, n, tops[i]);
        const double sum = sum_of(row, n);
        log_sums[i] = static_cast<R>(std::log(sum));
        return {static_cast<R>(1.0 / sum), 0};
      });
      use(queries, keys, Matrix<R>{shifted, queries.size(), keys.size()});
    }
}

// ---- forward --------------------

template <typename R>
struct ForwardScratch : WeightScratch<R> {
  Buffer<R> v, attended, part, row_sum;

  ForwardScratch(const std::vector<Sample>& samples, int64_t channels, int64_t value_channels)
      : WeightScratch<R>(samples, channels),
        v(most(samples, [&](const Sample& s) { return s.keys() * value_channels; })),
        attended(most(samples, [&](const Sample& s) { return s.queries() * value_channels; })),
        part(most(samples,
                  [&](const Sample& s) { return s.plan.keys.size() > 1 ? s.plan.most_queries * value_channels : 0; })),
        row_sum(most(samples, [](const Sample& s) { return s.queries(); })) {}
};

void forward(const Operands& a, const Tensor& value, bool renormalize, const Tensor& output,
             const Tensor& statistics_of_pixels) {
  dispatch_floating(value.scalar_type(), "shift_attention", [&](auto type) {
    using T = decltype(type);
    using R = Accumulator<T>;
    const auto queries = view<const T>(a.query), keys = view<const T>(a.key), values = view<const T>(value);
    const auto out = view<T>(output);
    R* statistics = data_of<R>(statistics_of_pixels);
    const int64_t budget = kImageBytes / static_cast<int64_t>(sizeof(R)), pixels = out.h * out.w;
    const std::vector<Sample> samples = samples_of(a.query_mask, a.key_mask, a.radius, budget);
    const auto scratch_of = [&] { return ForwardScratch<R>(samples, queries.c, values.c); };
    for_samples(samples, budget, scratch_of, [&](const Sample& s, const ForwardScratch<R>& scratch) {
      const Matrix<R> v{scratch.v.data, s.keys(), out.c}, attended{scratch.attended.data, s.queries(), out.c};
      R* row_sum = scratch.row_sum.data;
      gather(values, s.index, s.g.pitch, s.g.keys, v.data, unscaled);
      for_weights(s, queries, keys, static_cast<R>(a.scale), scratch,
                  [&](const Range& q, const Range& k, const Matrix<R>& weights) {
                    const bool first = k.begin == 0;
                    parallel_rows(weights.rows, weights.columns, [&](int64_t i) {
                      const R sum = static_cast<R>(sum_of(weights.row(i), weights.columns));
                      row_sum[q.begin + i] = first ? sum : row_sum[q.begin + i] + sum;
                    });
                    multiply(weights, v.part(k.begin, k.size()), attended.part(q.begin, q.size()), first,
                             scratch.part.data);
                  });
      for (int64_t i = 0; i < s.queries(); ++i) {
        R* of_query = statistics + 3 * (s.index * pixels + s.g.pixel(s.g.queries[i]));
        of_query[0] = scratch.top.data[i];
        of_query[1] = scratch.log_sum.data[i];
        of_query[2] = row_sum[i];
      }
      scatter(attended.data, out, s.index, s.g.pitch, s.g.queries,
              [&](int64_t i) { return renormalize && row_sum[i] > 0 ? 1 / row_sum[i] : R(1); });
    });
  });
}

void argmax(const Operands& a, Tensor& result) {
  const int64_t pixels = a.query.size(2) * a.query.size(3);
  int64_t* best = data_of<int64_t>(result);
  dispatch_floating(a.query.scalar_type(), "shift_attention", [&](auto type) {
    using T = decltype(type);
    using R = Accumulator<T>;
    const auto queries = view<const T>(a.query), keys = view<const T>(a.key);
    const int64_t budget = kImageBytes / static_cast<int64_t>(sizeof(R));
    const std::vector<Sample> samples = samples_of(a.query_mask, a.key_mask, a.radius, budget);
    const auto scratch_of = [&] { return WeightScratch<R>(samples, queries.c); };
    for_samples(samples, budget, scratch_of, [&](const Sample& s, const WeightScratch<R>& scratch) {
      std::vector<R> largest(s.queries(), R(0));
      for_weights(s, queries, keys, static_cast<R>(a.scale), scratch,
                  [&](const Range& q, const Range& k, const Matrix<R>& weights) {
                    parallel_rows(weights.rows, weights.columns, [&](int64_t i) {
                      const R* row = weights.row(i);
                      const R top = max_of(row, weights.columns);
                      if (!(top > largest[q.begin + i])) return;
                      largest[q.begin + i] = top;
                      const int64_t at = k.begin + (std::find(row, row + weights.columns, top) - row);
                      best[s.index * pixels + s.g.pixel(s.g.queries[q.begin + i])] = s.g.pixel(s.g.keys[at]);
                    });
                  });
    });
  });
}

// ---- backward --------------------

template <typename R>
struct BackwardScratch {
  Buffer<R> q, k, v, grad, top, log_sum, offset, mean, attended, grad_query, grad_key, grad_value, weights, images,
      shifted, part;

  BackwardScratch(const std::vector<Sample>& samples, int64_t c, int64_t value_c, bool renormalize,
                  const std::vector<bool>& needed)
      : BackwardScratch(most(samples, [](const Sample& s) { return s.queries(); }),
                        most(samples, [](const Sample& s) { return s.keys(); }), samples, c, value_c, renormalize,
                        needed) {}

 private:
  BackwardScratch(int64_t queries, int64_t keys, const std::vector<Sample>& samples, int64_t c, int64_t value_c,
                  bool renormalize, const std::vector<bool>& needed)
      : q(queries * c),
        k(keys * c),
        v(keys * value_c),
        grad(queries * value_c),
        top(queries),
        log_sum(queries),
        offset(queries),
        mean(queries),
        attended(renormalize ? queries * value_c : 0),
        grad_query(needed[0] ? queries * c : 0),
        grad_key(needed[1] ? keys * c : 0),
        grad_value(needed[2] ? keys * value_c : 0),
        weights(most(samples, [](const Sample& s) { return s.plan.scores; })),
        images(most(samples, [](const Sample& s) { return s.plan.images; })),
        shifted(most(samples, [](const Sample& s) { return s.plan.scores; })),
        part(most(samples, [&](const Sample& s) {
          const int64_t cuts = static_cast<int64_t>(s.plan.keys.size() * s.plan.queries.size());
          return cuts > 1 ? std::max(s.plan.most_queries, s.plan.most_keys) * std::max(c, value_c) : 0;
        })) {}
};

// Gradients of one sample whose inputs are gathered, into the scratch.
template <typename R>
class SampleGradients {
 public:
  SampleGradients(const Sample& s, const BackwardScratch<R>& scratch, int64_t c, int64_t value_c,
                  const std::vector<bool>& needed)
      : s_(s),
        scratch_(scratch),
        q_{scratch.q.data, s.queries(), c},
        k_{scratch.k.data, s.keys(), c},
        v_{scratch.v.data, s.keys(), value_c},
        grad_{scratch.grad.data, s.queries(), value_c},
        grad_query_{scratch.grad_query.data, s.queries(), c},
        grad_key_{scratch.grad_key.data, s.keys(), c},
        grad_value_{scratch.grad_value.data, s.keys(), value_c},
        needed_(needed),
        shift_(s, scratch.images.data) {}

  void run() {
    const bool scores = needed_[0] || needed_[1];
    if (s_.plan.keys.size() == 1) {
      for (const Range& queries : s_.plan.queries) tile(queries, s_.plan.keys[0], needed_[2], scores, scores);
      return;
    }
    // D is a sum over all keys, so the tiles are gone through twice.
    for (const Range& keys : s_.plan.keys)
      for (const Range& queries : s_.plan.queries) tile(queries, keys, needed_[2], scores, false);
    if (!scores) return;
    for (const Range& keys : s_.plan.keys)
      for (const Range& queries : s_.plan.queries) tile(queries, keys, false, false, true);
  }

 private:
  void tile(const Range& queries, const Range& keys, bool for_value, bool for_mean, bool for_scores) {
    const bool one_window = s_.plan.windows.size() == 1, first_queries = queries.begin == 0;
    const Matrix<R> shifted{scratch_.shifted.data, queries.size(), keys.size()};
    const Matrix<R> q = q_.part(queries.begin, queries.size()), k = k_.part(keys.begin, keys.size());
    R *weights = scratch_.weights.data, *part = scratch_.part.data;
    const auto softmax = [&](int64_t i, R* row, int64_t n) {
      exp_minus(row, n, scratch_.top.data[i], scratch_.log_sum.data[i]);
      return std::pair<R, R>(1, 0);
    };
    if (for_value) {  // dV += s'ᵀ dO
      shift_(queries, keys, q_, k_, weights, shifted.data, softmax);
      multiply(transposed(shifted), grad_.part(queries.begin, queries.size()),
               grad_value_.part(keys.begin, keys.size()), first_queries, part);
    }
    if (!for_mean && !for_scores) return;
    // ds* is the shift of ds' = dO Vᵀ - dO·O.
    shift_(queries, keys, grad_, v_, one_window ? shifted.data : weights, shifted.data,
           [&](int64_t i, R*, int64_t) { return std::pair<R, R>(1, -scratch_.offset.data[i]); });
    // s* of the tile itself: made again, unless its halo is still there.
    Matrix<R> halo{weights, queries.size(), keys.size()};
    int64_t above = 0, before = 0;
    if (for_value && one_window) {
      const Range rows = s_.g.halo(s_.g.queries, queries, s_.plan.windows[0]);
      const Range columns = s_.g.halo(s_.g.keys, keys, s_.plan.windows[0]);
      halo = {weights, rows.size(), columns.size()};
      above = queries.begin - rows.begin;
      before = keys.begin - columns.begin;
    } else {
      multiply(q, transposed(k), halo);
      parallel_rows(halo.rows, 2 * halo.columns,
                    [&](int64_t i) { softmax(queries.begin + i, halo.row(i), halo.columns); });
    }
    parallel_rows(shifted.rows, 4 * shifted.columns, [&](int64_t i) {  // dS = s* ⊙ (ds* - D), in place of ds*
      const R* own = halo.row(above + i) + before;
      R& mean = scratch_.mean.data[queries.begin + i];
      if (for_mean) mean = (keys.begin == 0 ? 0 : mean) + static_cast<R>(dot_of(own, shifted.row(i), shifted.columns));
      if (for_scores) softmax_gradient(shifted.row(i), own, shifted.columns, mean);
    });
    if (!for_scores) return;
    if (needed_[0]) multiply(shifted, k, grad_query_.part(queries.begin, queries.size()), keys.begin == 0, part);
    if (needed_[1]) multiply(transposed(shifted), q, grad_key_.part(keys.begin, keys.size()), first_queries, part);
  }

  const Sample& s_;
  const BackwardScratch<R>& scratch_;
  const Matrix<R> q_, k_, v_, grad_, grad_query_, grad_key_, grad_value_;
  const std::vector<bool>& needed_;
  Shifts<R> shift_;
};

void backward(const Tensor& grad_output, const Operands& a, const Tensor& value, const Tensor& output,
              const Tensor& statistics, bool renormalize, const std::array<Tensor, 3>& grads) {
  const std::vector<bool> needed{grads[0].defined(), grads[1].defined(), grads[2].defined()};
  dispatch_floating(value.scalar_type(), "shift_attention", [&](auto type) {
    using T = decltype(type);
    using R = Accumulator<T>;
    const auto queries = view<const T>(a.query), keys = view<const T>(a.key), values = view<const T>(value);
    const auto upstream = view<const T>(grad_output), attended = view<const T>(output);
    const R* all_statistics = data_of<const R>(statistics);
    const int64_t c = queries.c, value_c = values.c, pixels = queries.h * queries.w;
    // Half of it, because two kinds of weights exist at a time.
    const int64_t budget = kImageBytes / 2 / static_cast<int64_t>(sizeof(R));
    const std::vector<Sample> samples = samples_of(a.query_mask, a.key_mask, a.radius, budget);
    const auto scratch_of = [&] { return BackwardScratch<R>(samples, c, value_c, renormalize, needed); };
    for_samples(samples, budget, scratch_of, [&](const Sample& s, const BackwardScratch<R>& scratch) {
      const auto statistics_of = [&](int64_t i) {
        return all_statistics + 3 * (s.index * pixels + s.g.pixel(s.g.queries[i]));
      };
      R* inverse_sum = scratch.mean.data;
      for (int64_t i = 0; i < s.queries(); ++i) {
        const R sum = renormalize ? statistics_of(i)[2] : R(1);
        inverse_sum[i] = sum > 0 ? 1 / sum : R(0);
      }
      gather(queries, s.index, s.g.pitch, s.g.queries, scratch.q.data,
             [&](int64_t) { return static_cast<R>(a.scale); });
      gather(keys, s.index, s.g.pitch, s.g.keys, scratch.k.data, unscaled);
      gather(values, s.index, s.g.pitch, s.g.keys, scratch.v.data, unscaled);
      gather(upstream, s.index, s.g.pitch, s.g.queries, scratch.grad.data, [&](int64_t i) { return inverse_sum[i]; });
      if (renormalize) gather(attended, s.index, s.g.pitch, s.g.queries, scratch.attended.data, unscaled);
      for (int64_t i = 0; i < s.queries(); ++i) {
        scratch.top.data[i] = statistics_of(i)[0];
        scratch.log_sum.data[i] = statistics_of(i)[1];
        scratch.offset.data[i] = R(0);
        if (renormalize)
          scratch.offset.data[i] =
              static_cast<R>(dot_of(scratch.grad.data + i * value_c, scratch.attended.data + i * value_c, value_c));
      }
      SampleGradients<R>(s, scratch, c, value_c, needed).run();
      if (needed[0])
        scatter(scratch.grad_query.data, view<T>(grads[0]), s.index, s.g.pitch, s.g.queries,
                [&](int64_t) { return static_cast<R>(a.scale); });
      if (needed[1]) scatter(scratch.grad_key.data, view<T>(grads[1]), s.index, s.g.pitch, s.g.keys, unscaled);
      if (needed[2]) scatter(scratch.grad_value.data, view<T>(grads[2]), s.index, s.g.pitch, s.g.keys, unscaled);
    });
  });
}

struct CpuKernels {
  using Guard = HostGuard;
  static constexpr auto forward = &shift_attention::forward;
  static constexpr auto backward = &shift_attention::backward;
  static constexpr auto argmax = &shift_attention::argmax;
};
static_assert(Kernels<CpuKernels>);

using Operators = ShiftAttention<CpuKernels>;

}  // namespace
}  // namespace msa::shift_attention

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CPU, library) {
  library.impl("shift_attention_forward", MSA_BOX(msa::shift_attention::Operators::forward));
  library.impl("shift_attention_backward", MSA_BOX(msa::shift_attention::Operators::backward));
  library.impl("shift_attention_argmax", MSA_BOX(msa::shift_attention::Operators::argmax));
}
