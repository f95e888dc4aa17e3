// Loops over one row of weights: the arithmetic of the CPU kernels, written so that the compiler vectorises it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/clones.h"

namespace msa::shift_attention {
namespace {

// Neighbouring keys: where they start in an image, where among the gathered keys, and how many they are.
struct Run {
  int64_t image, compact, length;
};

// A stretch of an image that holds the runs [first_run, last_run) and whatever lies between them.
struct Span {
  int64_t image, length, first_run, last_run;
};

constexpr int64_t kSpanLength = 512;  // at most, unless it is a single run

// exp(x) for -87 ≤ x ≤ 0 (and a little above) in float32, within 2 ulp: 2^n · p(r) with x = n ln2 + r. NaN stays NaN.
inline float exp_of(float x) {
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
  uint32_t bits;  // those of n are the lowest ones
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127u << 23);
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline double exp_of(double x) { return std::exp(x); }

// row = exp(row - top - rest), where top is the largest element and rest not negative; top goes first, as it cancels
// what is large. Weights below exp(-87), which is under 2e-38, become exp(-87). This limit has a loop of its own,
// because the compiler would make it a branch otherwise.
template <typename R>
MSA_CLONES void exp_minus(R* row, int64_t n, R top, R rest = 0) {
  const R least = std::is_same_v<R, float> ? R(-87) : -std::numeric_limits<R>::infinity();
  constexpr int64_t kStretch = 1024;  // stays in the first-level cache between the loops
  for (int64_t first = 0; first < n; first += kStretch) {
    const int64_t last = std::min(n, first + kStretch);
    for (int64_t i = first; i < last; ++i) row[i] = std::max(row[i] - top - rest, least);
    for (int64_t i = first; i < last; ++i) row[i] = exp_of(row[i]);
  }
}

// Reductions keep kLanes partial results, so that the compiler can vectorise them without reordering; sums end in
// double.
constexpr int kLanes = 32;

template <typename R>
MSA_CLONES R max_of(const R* a, int64_t n) {
  R lanes[kLanes];
  std::fill(lanes, lanes + kLanes, a[0]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const R one = a[i + l], other = lanes[l];  // by value: with std::max's references this does not vectorise
      lanes[l] = one > other ? one : other;
    }
  for (; i < n; ++i) lanes[0] = std::max(lanes[0], a[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

template <typename R>
MSA_CLONES double sum_of(const R* a, int64_t n) {
  R lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[i + l];
  double total = 0;
  for (; i < n; ++i) total += static_cast<double>(a[i]);
  for (R lane : lanes) total += static_cast<double>(lane);
  return total;
}

template <typename R>
MSA_CLONES double dot_of(const R* a, const R* b, int64_t n) {
  R lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  double total = 0;
  for (; i < n; ++i) total += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  for (R lane : lanes) total += static_cast<double>(lane);
  return total;
}

// grad = weight · (grad - mean)
template <typename R>
MSA_CLONES void softmax_gradient(R* __restrict grad, const R* __restrict weight, int64_t n, R mean) {
  for (int64_t i = 0; i < n; ++i) grad[i] = weight[i] * (grad[i] - mean);
}

// Writes row · factor + offset to the keys of the image and leaves the rest as it is.
template <typename R>
MSA_CLONES void to_image(const R* __restrict row, const Run* runs, int64_t count, R factor, R offset,
                         R* __restrict image) {
  for (const Run* run = runs; run < runs + count; ++run) {
    const R* from = row + run->compact;
    R* to = image + run->image;
    for (int64_t i = 0; i < run->length; ++i) to[i] = from[i] * factor + offset;
  }
}

// Writes the sum of the `terms` images, each already moved by its shift, at the keys to `row`; with `add`, adds it.
// The terms are added in their order, three per pass over a stretch that stays in the first-level cache.
template <typename R>
MSA_CLONES void sum_images(const R* const* images, int terms, const Span* spans, int64_t count, const Run* runs,
                           bool add, R* __restrict row) {
  R stretch[kSpanLength];
  for (const Span* span = spans; span < spans + count; ++span) {
    const bool single = span->last_run - span->first_run == 1;
    R* __restrict sum = single ? row + runs[span->first_run].compact : stretch;
    const int64_t n = span->length;
    if (!single && add)
      for (const Run* run = runs + span->first_run; run < runs + span->last_run; ++run)
        for (int64_t i = 0; i < run->length; ++i) sum[run->image - span->image + i] = row[run->compact + i];
    int t = 0;
    if (!add) {
      const R* a = images[t++] + span->image;
      for (int64_t i = 0; i < n; ++i) sum[i] = a[i];
    }
    for (; t + 2 < terms; t += 3) {
      const R *a = images[t] + span->image, *b = images[t + 1] + span->image, *c = images[t + 2] + span->image;
      for (int64_t i = 0; i < n; ++i) sum[i] = ((sum[i] + a[i]) + b[i]) + c[i];
    }
    for (; t < terms; ++t) {
      const R* a = images[t] + span->image;
      for (int64_t i = 0; i < n; ++i) sum[i] += a[i];
    }
    if (!single)
      for (const Run* run = runs + span->first_run; run < runs + span->last_run; ++run)
        for (int64_t i = 0; i < run->length; ++i) row[run->compact + i] = sum[run->image - span->image + i];
  }
}

}  // namespace
}  // namespace msa::shift_attention
