// CPU kernels of attention with shift propagation (Eqs. 6-8). Per sample, queries and keys are gathered, and blocks of
// query rows go through the library's matrix product and three loops of ours:
//
//   scores    S  = scale · Q Kᵀ                   product, (rows × keys)
//   softmax   s* = exp(S - max) / sum             our loop, written into a *padded image* per row (see below)
//   shift     s'(p, q) = Σ_δ s*(p+δ, q+δ)         our loop, read from the images of the rows p+δ at offset δ
//   values    O  = s' V                           product
//
// A row's padded image is the key map with a margin of `radius` zeros on every side, so that the shift q+δ is one flat
// offset, nothing wraps around row ends, and pixels that are no key contribute zeros. Scores exist for one block at a
// time; the backward makes them again. docs/pixel_attention.md derives the formulas.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "../common/parallel.h"
#include "../common/tensor.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MSA_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define MSA_CLONES
#endif

namespace msa::pixel_attention {
namespace {

// ---- vectors --------------------

// exp(x) for x ≤ 0 in float32, within 2 ulp: 2^n · p(r) with x = n ln2 + r, written so that the compiler vectorises it.
inline float exp_nonpositive(float x) {
  x = std::max(x, -87.0f);               // below, the result is under 2e-38, which a weight may call zero
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding and subtracting it rounds to an integer
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return p * scale;
}

inline double exp_nonpositive(double x) { return std::exp(x); }

#define MSA_VECTOR_LOOPS(R)                                                                                       \
  MSA_CLONES void exp_minus(const R* from, R* to, int64_t n, R shift) {                                           \
    for (int64_t i = 0; i < n; ++i) to[i] = exp_nonpositive(std::min(R(0), from[i] - shift));                     \
  }                                                                                                               \
  MSA_CLONES void add_to(R* __restrict to, const R* __restrict from, int64_t n) {                                 \
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];                                                             \
  }                                                                                                               \
  MSA_CLONES void scale_by(R* to, int64_t n, R factor) {                                                          \
    for (int64_t i = 0; i < n; ++i) to[i] *= factor;                                                              \
  }                                                                                                               \
  MSA_CLONES void softmax_gradient(R* __restrict grad, const R* __restrict weight, int64_t n, R mean, R factor) { \
    for (int64_t i = 0; i < n; ++i) grad[i] = weight[i] * (grad[i] - mean) * factor;                              \
  }
MSA_VECTOR_LOOPS(float)
MSA_VECTOR_LOOPS(double)
#undef MSA_VECTOR_LOOPS

// Sums in eight lanes, which vectorises without reordering licences; double at the end.
template <typename R>
double sum_of(const R* a, int64_t n) {
  R lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; ++l) lanes[l] += a[i + l];
  double total = 0;
  for (; i < n; ++i) total += static_cast<double>(a[i]);
  for (R lane : lanes) total += static_cast<double>(lane);
  return total;
}

template <typename R>
double dot_of(const R* a, const R* b, int64_t n) {
  R lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; ++l) lanes[l] += a[i + l] * b[i + l];
  double total = 0;
  for (; i < n; ++i) total += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  for (R lane : lanes) total += static_cast<double>(lane);
  return total;
}

// ---- matrices --------------------

template <typename R>
constexpr ScalarType dtype_of() {
  return std::is_same_v<R, double> ? ScalarType::Double : ScalarType::Float;
}

template <typename R>
R* data(const Tensor& t) {
  return static_cast<R*>(t.mutable_data_ptr());
}

template <typename R>
Tensor matrix(int64_t rows, int64_t columns) {
  return torch::stable::empty(Ints{rows, columns}, dtype_of<R>());
}

Tensor rows_of(const Tensor& t, int64_t first, int64_t count) {
  Tensor whole = t;
  return torch::stable::narrow(whole, 0, first, count);
}

// out = a b, all two-dimensional; out is written in place.
void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

// ---- one sample --------------------

struct Run {
  int64_t image, compact, length;  // start in the padded image, start among the gathered keys
};

// Which pixels of a sample are queries and keys, and where the keys lie in the padded image.
struct Geometry {
  int64_t h, w, radius, pitch;    // pitch: row length of the padded image
  std::vector<int64_t> queries;   // pixels, in raster order
  std::vector<int64_t> query_at;  // pixel -> index among the queries, or -1
  std::vector<int64_t> first_in;  // map row -> index of its first query; h + 1 entries
  std::vector<int64_t> keys;      // pixels, in raster order
  std::vector<Run> runs;          // neighbouring keys of one map row

  Geometry(const View<const bool>& query_mask, const View<const bool>& key_mask, int64_t n, int64_t k)
      : h(key_mask.h), w(key_mask.w), radius(std::min(k, std::max(h, w))), pitch(w + 2 * radius), query_at(h * w, -1) {
    for (int64_t y = 0; y < h; ++y) {
      first_in.push_back(static_cast<int64_t>(queries.size()));
      bool running = false;
      for (int64_t x = 0; x < w; ++x) {
        if (query_mask.data[n * query_mask.sn + y * query_mask.sh + x * query_mask.sw]) {
          query_at[y * w + x] = static_cast<int64_t>(queries.size());
          queries.push_back(y * w + x);
        }
        const bool is_key = key_mask.data[n * key_mask.sn + y * key_mask.sh + x * key_mask.sw];
        if (is_key && running) {
          ++runs.back().length;
        } else if (is_key) {
          runs.push_back({(y + radius) * pitch + x + radius, static_cast<int64_t>(keys.size()), 1});
        }
        if (is_key) keys.push_back(y * w + x);
        running = is_key;
      }
    }
    first_in.push_back(static_cast<int64_t>(queries.size()));
  }

  int64_t image_size() const { return (h + 2 * radius) * pitch; }
};

// A block of map rows [top, bottom) whose queries are done together; [outer_top, outer_bottom) adds the rows that the
// shift reaches.
struct Block {
  int64_t begin, end, outer_begin, outer_end;  // indices of queries
};

// Bytes of padded images that a block may hold (unless a single map row needs more).
constexpr int64_t kImageBytes = 20 << 20;

std::vector<Block> blocks_of(const Geometry& g, int64_t element_size) {
  const int64_t most = std::max<int64_t>(1, kImageBytes / (g.image_size() * element_size));
  std::vector<Block> blocks;
  for (int64_t top = 0, bottom; top < g.h; top = bottom) {
    const auto block_to = [&](int64_t end_row) {
      return Block{g.first_in[top], g.first_in[end_row], g.first_in[std::max<int64_t>(0, top - g.radius)],
                   g.first_in[std::min(g.h, end_row + g.radius)]};
    };
    bottom = top + 1;
    while (bottom < g.h && block_to(bottom + 1).outer_end - block_to(bottom + 1).outer_begin <= most) ++bottom;
    if (block_to(bottom).end > block_to(bottom).begin) blocks.push_back(block_to(bottom));
  }
  return blocks;
}

// Features of the listed pixels as a matrix (pixels × channels) in the arithmetic type.
template <typename R, typename T>
Tensor gather(const View<const T>& map, int64_t n, const std::vector<int64_t>& pixels) {
  Tensor result = matrix<R>(static_cast<int64_t>(pixels.size()), map.c);
  R* out = data<R>(result);
  parallel_rows(static_cast<int64_t>(pixels.size()), map.c, [&](int64_t i) {
    const T* from = map.data + n * map.sn + pixels[i] / map.w * map.sh + pixels[i] % map.w * map.sw;
    for (int64_t c = 0; c < map.c; ++c) out[i * map.c + c] = static_cast<R>(from[c * map.sc]);
  });
  return result;
}

template <typename R, typename T>
void scatter(const R* rows, const View<T>& map, int64_t n, const int64_t* pixels, int64_t count) {
  parallel_rows(count, map.c, [&](int64_t i) {
    T* to = map.data + n * map.sn + pixels[i] / map.w * map.sh + pixels[i] % map.w * map.sw;
    for (int64_t c = 0; c < map.c; ++c) to[c * map.sc] = static_cast<T>(rows[i * map.c + c]);
  });
}

// Everything that forward and backward share for one sample.
template <typename R>
struct Sample {
  const Geometry& g;
  int64_t keys, image;

  explicit Sample(const Geometry& geometry)
      : g(geometry), keys(static_cast<int64_t>(geometry.keys.size())), image(geometry.image_size()) {}

  // The padded image of one row of values over the keys.
  void to_image(const R* compact, R* out) const {
    std::fill(out, out + image, R(0));
    for (const Run& run : g.runs) std::copy_n(compact + run.compact, run.length, out + run.image);
  }

  // Σ_δ image(p+δ)[q+δ] over all keys q, for the query with index `query`; images start with query `first`.
  void shift(const R* images, int64_t first, int64_t query, R* out) const {
    std::fill(out, out + keys, R(0));
    const int64_t y = g.queries[query] / g.w, x = g.queries[query] % g.w;
    for (int64_t dy = std::max(-g.radius, -y); dy <= std::min(g.radius, g.h - 1 - y); ++dy)
      for (int64_t dx = std::max(-g.radius, -x); dx <= std::min(g.radius, g.w - 1 - x); ++dx) {
        const int64_t neighbour = g.query_at[(y + dy) * g.w + x + dx];
        if (neighbour < 0) continue;
        const R* from = images + (neighbour - first) * image + dy * g.pitch + dx;
        for (const Run& run : g.runs) add_to(out + run.compact, from + run.image, run.length);
      }
  }

  // Scores of the block's outer queries against all keys, scaled.
  void scores(const Tensor& queries, const Tensor& key_rows, const Block& b, R scale, const Tensor& out) const {
    const int64_t count = b.outer_end - b.outer_begin;
    multiply(rows_of(queries, b.outer_begin, count), transposed(key_rows), rows_of(out, 0, count));
    R* row = data<R>(out);
    parallel_rows(count, keys, [&](int64_t i) { scale_by(row + i * keys, keys, scale); });
  }

  static int64_t largest(const std::vector<Block>& blocks) {
    int64_t most = 0;
    for (const Block& b : blocks) most = std::max(most, b.outer_end - b.outer_begin);
    return most;
  }
};

// ---- forward --------------------

// What the block loop does with the shifted weights s' of a block.
template <typename R, typename Use>
void for_shifted_weights(const Geometry& g, const Tensor& queries, const Tensor& key_rows, R scale, R* log_sum,
                         const Use& use) {
  const Sample<R> sample(g);
  const std::vector<Block> blocks = blocks_of(g, sizeof(R));
  const int64_t most = Sample<R>::largest(blocks);
  const Tensor compact = matrix<R>(most, sample.keys), images = matrix<R>(most, sample.image);
  R* rows = data<R>(compact);
  R* image = data<R>(images);
  for (const Block& b : blocks) {
    sample.scores(queries, key_rows, b, scale, compact);
    parallel_rows(b.outer_end - b.outer_begin, 4 * sample.keys, [&](int64_t i) {
      R* row = rows + i * sample.keys;
      const R top = *std::max_element(row, row + sample.keys);
      exp_minus(row, row, sample.keys, top);
      const double sum = sum_of(row, sample.keys);
      scale_by(row, sample.keys, static_cast<R>(1.0 / sum));
      log_sum[b.outer_begin + i] = top + static_cast<R>(std::log(sum));
      sample.to_image(row, image + i * sample.image);
    });
    parallel_rows(b.end - b.begin, 10 * sample.keys,
                  [&](int64_t i) { sample.shift(image, b.outer_begin, b.begin + i, rows + i * sample.keys); });
    use(b, compact);
  }
}

void check(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& query_mask,
           const Tensor& key_mask, int64_t radius, const char* where) {
  for (const Tensor* t : {&query, &key, &value})
    STD_TORCH_CHECK(t->dim() == 4 && t->scalar_type() == query.scalar_type(), "msa_ops::", where,
                    ": query, key and value must be four-dimensional and of one dtype, got ", shape_of(*t));
  STD_TORCH_CHECK(has_shape(key, {query.size(0), query.size(1), query.size(2), query.size(3)}), "msa_ops::", where,
                  ": key must have the shape of query, ", shape_of(query), ", got ", shape_of(key));
  STD_TORCH_CHECK(has_shape(value, {query.size(0), value.size(1), query.size(2), query.size(3)}), "msa_ops::", where,
                  ": value must have the batch and size of query, ", shape_of(query), ", got ", shape_of(value));
  for (const Tensor* m : {&query_mask, &key_mask})
    STD_TORCH_CHECK(
        m->scalar_type() == ScalarType::Bool && has_shape(*m, {query.size(0), 1, query.size(2), query.size(3)}),
        "msa_ops::", where, ": masks must be bool and have shape (", query.size(0), ", 1, ", query.size(2), ", ",
        query.size(3), "), got ", shape_of(*m));
  STD_TORCH_CHECK(radius >= 0, "msa_ops::", where, ": radius must not be negative, got ", radius);
}

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

// Returns the output, and per query pixel (N, H·W) the log of the softmax' sum and the row sum of s'.
Outputs forward(Tensor query, Tensor key, Tensor value, Tensor query_mask, Tensor key_mask, double scale,
                int64_t radius, bool renormalize) {
  check(query, key, value, query_mask, key_mask, radius, "shift_attention_forward");
  const int64_t n = query.size(0), pixels = query.size(2) * query.size(3);
  Tensor output = empty_map(value, n, value.size(1), value.size(2), value.size(3));
  Tensor log_sums = empty_on(query, {n, pixels}, accumulator_dtype(query.scalar_type()));
  Tensor row_sums = empty_on(query, {n, pixels}, accumulator_dtype(query.scalar_type()));
  torch::stable::zero_(output);
  torch::stable::zero_(log_sums);
  torch::stable::zero_(row_sums);
  if (output.numel() == 0 && query.numel() == 0) return {output, log_sums, row_sums};
  dispatch_floating(query.scalar_type(), "shift_attention", [&](auto type) {
    using T = decltype(type);
    using R = Accumulator<T>;
    const auto qm = view<const bool>(query_mask), km = view<const bool>(key_mask);
    const auto out = view<T>(output);
    for (int64_t i = 0; i < n; ++i) {
      const Geometry g(qm, km, i, radius);
      if (g.queries.empty() || g.keys.empty()) continue;
      const int64_t keys = static_cast<int64_t>(g.keys.size()), count = static_cast<int64_t>(g.queries.size());
      const Tensor q = gather<R>(view<const T>(query), i, g.queries), k = gather<R>(view<const T>(key), i, g.keys);
      const Tensor v = gather<R>(view<const T>(value), i, g.keys);
      const Tensor attended = matrix<R>(count, out.c);
      std::vector<R> log_sum(count);
      for_shifted_weights<R>(g, q, k, static_cast<R>(scale), log_sum.data(),
                             [&](const Block& b, const Tensor& weights) {
                               const int64_t rows = b.end - b.begin;
                               R* row_sum = data<R>(row_sums) + i * pixels;
                               R* row = data<R>(weights);
                               parallel_rows(rows, keys, [&](int64_t j) {
                                 const double sum = sum_of(row + j * keys, keys);
                                 row_sum[g.queries[b.begin + j]] = static_cast<R>(sum);
                                 if (renormalize && sum > 0) scale_by(row + j * keys, keys, static_cast<R>(1.0 / sum));
                               });
                               multiply(rows_of(weights, 0, rows), v, rows_of(attended, b.begin, rows));
                             });
      for (int64_t j = 0; j < count; ++j) data<R>(log_sums)[i * pixels + g.queries[j]] = log_sum[j];
      scatter(data<R>(attended), out, i, g.queries.data(), count);
    }
  });
  return {output, log_sums, row_sums};
}

// For every query pixel the key with the largest s' (the first of equals), -1 where there is none: (N, H, W) int64.
Tensor argmax(Tensor query, Tensor key, Tensor query_mask, Tensor key_mask, double scale, int64_t radius) {
  check(query, key, key, query_mask, key_mask, radius, "shift_attention_argmax");
  const int64_t n = query.size(0), pixels = query.size(2) * query.size(3);
  Tensor result = empty_on(query, {n, query.size(2), query.size(3)}, ScalarType::Long);
  int64_t* best = static_cast<int64_t*>(result.mutable_data_ptr());
  std::fill(best, best + n * pixels, -1);
  dispatch_floating(query.scalar_type(), "shift_attention", [&](auto type) {
    using T = decltype(type);
    using R = Accumulator<T>;
    const auto qm = view<const bool>(query_mask), km = view<const bool>(key_mask);
    for (int64_t i = 0; i < n; ++i) {
      const Geometry g(qm, km, i, radius);
      if (g.queries.empty() || g.keys.empty()) continue;
      const int64_t keys = static_cast<int64_t>(g.keys.size());
      const Tensor q = gather<R>(view<const T>(query), i, g.queries), k = gather<R>(view<const T>(key), i, g.keys);
      std::vector<R> log_sum(g.queries.size());
      for_shifted_weights<R>(g, q, k, static_cast<R>(scale), log_sum.data(),
                             [&](const Block& b, const Tensor& weights) {
                               const R* row = data<R>(weights);
                               parallel_rows(b.end - b.begin, keys, [&](int64_t j) {
                                 const R* first = row + j * keys;
                                 const R* top = std::max_element(first, first + keys);
                                 if (*top > R(0)) best[i * pixels + g.queries[b.begin + j]] = g.keys[top - first];
                               });
                             });
    }
  });
  return result;
}

// ---- backward --------------------

// Gradients of one sample; matrices over queries (grad_query) and keys (grad_key, grad_value), those needed defined.
template <typename R>
struct SampleGradients {
  const Geometry& g;
  const Tensor &q, &k, &v;  // gathered
  const Tensor& grad;       // dO per query, already divided by the row sum where renormalised
  const R* log_sum;         // per query
  const R* offset;          // per query, dO·O of the renormalisation; null without it
  R scale;

  void run(Tensor& grad_query, Tensor& grad_key, Tensor& grad_value) const {
    const Sample<R> sample(g);
    const int64_t keys = sample.keys;
    const std::vector<Block> blocks = blocks_of(g, 2 * sizeof(R));
    const int64_t most = Sample<R>::largest(blocks);
    const Tensor compact = matrix<R>(most, keys), weight_images = matrix<R>(most, sample.image),
                 gradient_images = matrix<R>(most, sample.image);
    const Tensor key_part = matrix<R>(keys, k.size(1)), value_part = matrix<R>(keys, v.size(1));
    R *rows = data<R>(compact), *weights = data<R>(weight_images), *gradients = data<R>(gradient_images);
    for (const Block& b : blocks) {
      const int64_t outer = b.outer_end - b.outer_begin, inner = b.end - b.begin;
      // s* of the outer rows, as images
      sample.scores(q, k, b, scale, compact);
      parallel_rows(outer, 4 * keys, [&](int64_t i) {
        R* row = rows + i * keys;
        exp_minus(row, row, keys, log_sum[b.outer_begin + i]);
        sample.to_image(row, weights + i * sample.image);
      });
      if (grad_value.defined()) {  // dV += s'ᵀ dO
        parallel_rows(inner, 10 * keys,
                      [&](int64_t i) { sample.shift(weights, b.outer_begin, b.begin + i, rows + i * keys); });
        multiply(transposed(rows_of(compact, 0, inner)), rows_of(grad, b.begin, inner), value_part);
        accumulate(value_part, grad_value);
      }
      if (!grad_query.defined() && !grad_key.defined()) continue;
      // ds' = dO Vᵀ (- dO·O) of the outer rows, as images; its shift is ds*
      multiply(rows_of(grad, b.outer_begin, outer), transposed(v), rows_of(compact, 0, outer));
      parallel_rows(outer, 2 * keys, [&](int64_t i) {
        R* row = rows + i * keys;
        if (offset != nullptr)
          for (int64_t j = 0; j < keys; ++j) row[j] -= offset[b.outer_begin + i];
        sample.to_image(row, gradients + i * sample.image);
      });
      parallel_rows(inner, 12 * keys, [&](int64_t i) {
        R* row = rows + i * keys;
        sample.shift(gradients, b.outer_begin, b.begin + i, row);
        const R* own = weights + (b.begin - b.outer_begin + i) * sample.image;
        double mean = 0;
        for (const Run& run : g.runs) mean += dot_of(own + run.image, row + run.compact, run.length);
        for (const Run& run : g.runs)
          softmax_gradient(row + run.compact, own + run.image, run.length, static_cast<R>(mean), scale);
      });
      const Tensor score_gradient = rows_of(compact, 0, inner);
      if (grad_query.defined()) multiply(score_gradient, k, rows_of(grad_query, b.begin, inner));
      if (grad_key.defined()) {
        multiply(transposed(score_gradient), rows_of(q, b.begin, inner), key_part);
        accumulate(key_part, grad_key);
      }
    }
  }

  static void accumulate(const Tensor& part, const Tensor& total) {
    const int64_t columns = part.size(1);
    const R* from = data<R>(part);
    R* to = data<R>(total);
    parallel_rows(part.size(0), columns, [&](int64_t i) { add_to(to + i * columns, from + i * columns, columns); });
  }
};

Outputs backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_mask, Tensor key_mask,
                 Tensor output, Tensor log_sums, Tensor row_sums, double scale, int64_t radius, bool renormalize,
                 std::vector<bool> needed) {
  const char* where = "shift_attention_backward";
  check(query, key, value, query_mask, key_mask, radius, where);
  const int64_t n = query.size(0), pixels = query.size(2) * query.size(3);
  for (const Tensor* t : {&grad_output, &output})
    STD_TORCH_CHECK(
        t->scalar_type() == value.scalar_type() && has_shape(*t, {n, value.size(1), value.size(2), value.size(3)}),
        "msa_ops::", where, ": grad_output and output must be those of the forward, got ", shape_of(*t));
  for (const Tensor* t : {&log_sums, &row_sums})
    STD_TORCH_CHECK(
        t->is_contiguous() && t->scalar_type() == accumulator_dtype(query.scalar_type()) && has_shape(*t, {n, pixels}),
        "msa_ops::", where, ": statistics must be those of the forward, got ", shape_of(*t));
  STD_TORCH_CHECK(needed.size() == 3, "msa_ops::", where, ": needed must hold three flags");
  std::array<Tensor, 3> grads;
  const std::array<const Tensor*, 3> inputs{&query, &key, &value};
  for (int i = 0; i < 3; ++i)
    if (needed[i]) {
      const Tensor& t = *inputs[i];
      grads[i] = empty_map(t, t.size(0), t.size(1), t.size(2), t.size(3));
      torch::stable::zero_(grads[i]);
    }
  dispatch_floating(query.scalar_type(), "shift_attention", [&](auto type) {
    using T = decltype(type);
    using R = Accumulator<T>;
    const auto qm = view<const bool>(query_mask), km = view<const bool>(key_mask);
    for (int64_t i = 0; i < n; ++i) {
      const Geometry g(qm, km, i, radius);
      if (g.queries.empty() || g.keys.empty()) continue;
      const int64_t count = static_cast<int64_t>(g.queries.size()), keys = static_cast<int64_t>(g.keys.size());
      const Tensor q = gather<R>(view<const T>(query), i, g.queries), k = gather<R>(view<const T>(key), i, g.keys),
                   v = gather<R>(view<const T>(value), i, g.keys);
      const Tensor grad = gather<R>(view<const T>(grad_output), i, g.queries);
      std::vector<R> log_sum(count), offset(renormalize ? count : 0);
      for (int64_t j = 0; j < count; ++j) log_sum[j] = data<R>(log_sums)[i * pixels + g.queries[j]];
      if (renormalize) {
        const Tensor attended = gather<R>(view<const T>(output), i, g.queries);
        const int64_t c = value.size(1);
        for (int64_t j = 0; j < count; ++j) {
          const R sum = data<R>(row_sums)[i * pixels + g.queries[j]];
          scale_by(data<R>(grad) + j * c, c, sum > 0 ? 1 / sum : R(0));
          offset[j] = static_cast<R>(dot_of(data<R>(grad) + j * c, data<R>(attended) + j * c, c));
        }
      }
      const auto zeros = [](int64_t rows, int64_t columns) {
        Tensor t = matrix<R>(rows, columns);
        torch::stable::zero_(t);
        return t;
      };
      Tensor grad_query = needed[0] ? zeros(count, q.size(1)) : Tensor(),
             grad_key = needed[1] ? zeros(keys, k.size(1)) : Tensor(),
             grad_value = needed[2] ? zeros(keys, v.size(1)) : Tensor();
      SampleGradients<R>{g, q, k, v, grad, log_sum.data(), renormalize ? offset.data() : nullptr, static_cast<R>(scale)}
          .run(grad_query, grad_key, grad_value);
      if (needed[0]) scatter(data<R>(grad_query), view<T>(grads[0]), i, g.queries.data(), count);
      if (needed[1]) scatter(data<R>(grad_key), view<T>(grads[1]), i, g.keys.data(), keys);
      if (needed[2]) scatter(data<R>(grad_value), view<T>(grads[2]), i, g.keys.data(), keys);
    }
  });
  return {grads[0], grads[1], grads[2]};
}

}  // namespace
}  // namespace msa::pixel_attention

STABLE_TORCH_LIBRARY_IMPL(msa_ops, CPU, library) {
  library.impl("shift_attention_forward", MSA_BOX(msa::pixel_attention::forward));
  library.impl("shift_attention_backward", MSA_BOX(msa::pixel_attention::backward));
  library.impl("shift_attention_argmax", MSA_BOX(msa::pixel_attention::argmax));
}
