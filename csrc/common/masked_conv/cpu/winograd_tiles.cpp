// The coefficients of the filters, and their steps unrolled: a translation unit of its own, because it is what takes
// the compiler's time, and both operators use it.
#include "common/masked_conv/cpu/winograd_tiles.h"

#include <utility>

#include "common/clones.h"

namespace msa::masked_conv {

template <int rows, int columns>
struct Coefficients {
  static constexpr int kRows = rows, kColumns = columns;
  float at[rows][columns];

  constexpr Coefficients<columns, rows> transposed() const {
    Coefficients<columns, rows> result{};
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) result.at[j][i] = at[i][j];
    return result;
  }

  template <int first, int count>
  constexpr Coefficients<count, columns> some_rows() const {
    Coefficients<count, columns> result{};
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < columns; ++j) result.at[i][j] = at[first + i][j];
    return result;
  }
};

struct Taps3 {
  static constexpr int kInputs = 4, kProducts = 4, kStep = 2;
  static constexpr Coefficients<4, 4> kB{{{1, 0, -1, 0}, {0, 1, 1, 0}, {0, 1, -1, 0}, {0, 1, 0, -1}}};
  static constexpr Coefficients<4, 3> kG{{{1, 0, 0}, {0.5, 0.5, 0.5}, {-0.5, 0.5, -0.5}, {0, 0, 1}}};
  static constexpr Coefficients<2, 4> kA{{{1, 1, 1, 0}, {0, 1, -1, -1}}};
  static constexpr int kOrder[] = {0, 1, 2, 3};
};

// Of a nearest-upsampled map: the inputs a, b, c are neighbours of the small map.
struct Taps3Upsampled {
  static constexpr int kInputs = 3, kProducts = 3, kStep = 1;
  static constexpr Coefficients<3, 3> kB{{{1, -1, 0}, {0, 1, 0}, {0, 1, -1}}};
  static constexpr Coefficients<3, 3> kG{{{1, 0, 0}, {1, 1, 1}, {0, 0, 1}}};
  static constexpr Coefficients<2, 4> kA = Taps3::kA;
  static constexpr int kOrder[] = {0, 1, 3};
};

// F(2, 2) of the even inputs and taps; the one odd tap has a product per output.
struct Taps3Stride2 {
  static constexpr int kInputs = 5, kProducts = 5, kStep = 4;
  static constexpr Coefficients<5, 5> kB{
      {{1, 0, -1, 0, 0}, {0, 0, 1, 0, 0}, {0, 0, 1, 0, -1}, {0, 1, 0, 0, 0}, {0, 0, 0, 1, 0}}};
  static constexpr Coefficients<5, 3> kG{{{1, 0, 0}, {1, 0, 1}, {0, 0, 1}, {0, 1, 0}, {0, 1, 0}}};
  static constexpr Coefficients<2, 5> kA{{{1, 1, 0, 1, 0}, {0, 1, -1, 0, 1}}};
  static constexpr int kOrder[] = {0, 1, 2, 3, 4};
};

// F(2, 3) of the even inputs and taps, F(2, 2) of the odd ones.
struct Taps5Stride2 {
  static constexpr int kInputs = 7, kProducts = 7, kStep = 4;
  static constexpr Coefficients<7, 7> kB{{{1, 0, 0, 0, -1, 0, 0},
                                          {0, 0, 1, 0, 1, 0, 0},
                                          {0, 0, 1, 0, -1, 0, 0},
                                          {0, 0, 1, 0, 0, 0, -1},
                                          {0, 1, 0, -1, 0, 0, 0},
                                          {0, 0, 0, 1, 0, 0, 0},
                                          {0, 0, 0, 1, 0, -1, 0}}};
  static constexpr Coefficients<7, 5> kG{{{1, 0, 0, 0, 0},
                                          {0.5, 0, 0.5, 0, 0.5},
                                          {-0.5, 0, 0.5, 0, -0.5},
                                          {0, 0, 0, 0, 1},
                                          {0, 1, 0, 0, 0},
                                          {0, 1, 0, 1, 0},
                                          {0, 0, 0, 1, 0}}};
  static constexpr Coefficients<2, 7> kA{{{1, 1, 1, 0, 1, 1, 0}, {0, 1, -1, -1, 0, 1, -1}}};
  static constexpr int kOrder[] = {0, 1, 2, 3, 4, 5, 6};
};

namespace {

// ---- X -> L X Rᵀ, unrolled --------------------

#define MSA_INLINE __attribute__((always_inline)) inline

// sum += coefficient · x, of which only what is not 0 or ±1 multiplies.
template <const auto& kMatrix, int kRow, int kColumn, typename R>
MSA_INLINE void accumulate(R& sum, R x) {
  constexpr auto first = [] {
    int column = 0;
    while (kMatrix.at[kRow][column] == 0) ++column;
    return column;
  }();
  constexpr float k = kMatrix.at[kRow][kColumn];
  if constexpr (k != 0) {
    const R term = k == 1 || k == -1 ? x : x * R(k > 0 ? k : -k);
    if constexpr (kColumn == first) {
      sum = k > 0 ? term : -term;
    } else {
      sum = k > 0 ? sum + term : sum - term;
    }
  }
}

template <const auto& kMatrix, int kRow, typename R, int... kColumns>
MSA_INLINE R dot(const R* x, std::integer_sequence<int, kColumns...>) {
  R sum{};
  (accumulate<kMatrix, kRow, kColumns>(sum, x[kColumns]), ...);
  return sum;
}

template <int kCount, typename F>
MSA_INLINE void unrolled(const F& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, i>()), ...);
  }(std::make_integer_sequence<int, kCount>());
}

// put(i, j, element) of L X Rᵀ for X(i, j) = get(i, j): columns first, then rows.
template <const auto& kLeft, const auto& kRight, typename R, typename Get, typename Put>
MSA_INLINE void sandwich(const Get& get, const Put& put) {
  constexpr int kIn = kLeft.kColumns, kAcross = kRight.kColumns;
  R half[kLeft.kRows][kAcross];
  unrolled<kAcross>([&](auto j) __attribute__((always_inline)) {
    R x[kIn];
    unrolled<kIn>([&](auto i) __attribute__((always_inline)) { x[i] = get(i, j); });
    unrolled<kLeft.kRows>([&](auto i) __attribute__((always_inline)) {
      half[i][j] = dot<kLeft, i>(x, std::make_integer_sequence<int, kIn>());
    });
  });
  unrolled<kLeft.kRows>([&](auto i) __attribute__((always_inline)) {
    unrolled<kRight.kRows>([&](auto j) __attribute__((always_inline)) {
      put(i, j, dot<kRight, j>(half[i], std::make_integer_sequence<int, kAcross>()));
    });
  });
}

// ---- the steps for all channels of a tile --------------------

template <class Axis>
struct Transposes {
  static constexpr auto kB = Axis::kB.transposed();
  static constexpr auto kG = Axis::kG.transposed();
  static constexpr auto kA = Axis::kA.transposed();
};

// The input rows under a tile that lie `kBand` whole steps below its origin.
template <class Axis, int kBand>
struct Band {
  static constexpr int kFirst = kBand * Axis::kStep;
  static constexpr int kRows = kFirst + Axis::kStep <= Axis::kInputs ? Axis::kStep : Axis::kInputs - kFirst;
  static constexpr auto kB = Transposes<Axis>::kB.template some_rows<kFirst, kRows>();
};

// products = B d Bᵀ. `pixels` holds the addresses of the tile's kInputs² pixels, row by row, `products` of kProducts².
template <class Axis, typename R>
MSA_CLONES void transform_input(const R* const* pixels, R* const* products, int64_t channels) {
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c)
    sandwich<Axis::kB, Axis::kB, R>([&](auto i, auto j) { return pixels[i * Axis::kInputs + j][c]; },
                                    [&](auto i, auto j, R x) { products[i * Axis::kProducts + j][c] = x; });
}

// Adds rows of Bᵀ (products) B, those of one band, to the pixels.
template <class Axis, int kBand, typename R>
MSA_CLONES void add_input_gradient(const R* const* products, R* const* pixels, int64_t channels) {
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c)
    sandwich<Band<Axis, kBand>::kB, Transposes<Axis>::kB, R>(
        [&](auto i, auto j) { return products[i * Axis::kProducts + j][c]; },
        [&](auto i, auto j, R x) { pixels[i * Axis::kInputs + j][c] += x; });
}

// products = G g Gᵀ for the taps g of one output channel and all input channels.
template <class Axis, typename R>
MSA_CLONES void transform_taps(const R* taps, int64_t row_stride, int64_t column_stride, int64_t channel_stride,
                               R* const* products, int64_t channels) {
  const auto run = [&](auto stride) __attribute__((always_inline)) {
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; ++c)
      sandwich<Axis::kG, Axis::kG, R>(
          [&](auto i, auto j) { return taps[i * row_stride + j * column_stride + c * stride]; },
          [&](auto i, auto j, R x) { products[i * Axis::kProducts + j][c] = x; });
  };
  channel_stride == 1 ? run(std::integral_constant<int64_t, 1>()) : run(channel_stride);
}

// taps = Gᵀ (products) G
template <class Axis, typename R>
MSA_CLONES void transform_taps_gradient(const R* const* products, R* taps, int64_t row_stride, int64_t column_stride,
                                        int64_t channel_stride, int64_t channels) {
  const auto run = [&](auto stride) __attribute__((always_inline)) {
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; ++c)
      sandwich<Transposes<Axis>::kG, Transposes<Axis>::kG, R>(
          [&](auto i, auto j) { return products[i * Axis::kProducts + j][c]; },
          [&](auto i, auto j, R x) { taps[i * row_stride + j * column_stride + c * stride] = x; });
  };
  channel_stride == 1 ? run(std::integral_constant<int64_t, 1>()) : run(channel_stride);
}

// pixels = ratios · A (products) Aᵀ + bias (Eq. 2), of the tile's four outputs, row by row.
template <class Axis, typename R>
MSA_CLONES void transform_output(const R* const* products, R* const* pixels, const R* ratios, const R* bias,
                                 int64_t channels) {
  constexpr int kProducts = Axis::kA.kColumns;
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c)
    sandwich<Axis::kA, Axis::kA, R>(
        [&](auto i, auto j) { return products[i * kProducts + j][c]; },
        [&](auto i, auto j, R x) { pixels[i * 2 + j][c] = x * ratios[i * 2 + j] + bias[c]; });
}

// products = Aᵀ (ratios · gradients) A
template <class Axis, typename R>
MSA_CLONES void transform_output_gradient(const R* const* pixels, const R* ratios, R* const* products,
                                          int64_t channels) {
  constexpr int kProducts = Axis::kA.kColumns;
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c)
    sandwich<Transposes<Axis>::kA, Transposes<Axis>::kA, R>(
        [&](auto i, auto j) { return pixels[i * 2 + j][c] * ratios[i * 2 + j]; },
        [&](auto i, auto j, R x) { products[i * kProducts + j][c] = x; });
}

}  // namespace

template <class Axis, typename R>
const InputSteps<R>& input_steps() {
  constexpr int kBands = (Axis::kInputs + Axis::kStep - 1) / Axis::kStep;
  static_assert(kBands == 2 || kBands == 3);
  static const InputSteps<R> steps{
      Axis::kInputs,
      Axis::kProducts,
      Axis::kStep,
      kBands,
      Axis::kOrder,
      transform_input<Axis, R>,
      {add_input_gradient<Axis, 0, R>, add_input_gradient<Axis, 1, R>, add_input_gradient<Axis, kBands - 1, R>},
      transform_taps<Axis, R>,
      transform_taps_gradient<Axis, R>};
  return steps;
}

template <class Axis, typename R>
const OutputSteps<R>& output_steps() {
  static const OutputSteps<R> steps{Axis::kA.kColumns, transform_output<Axis, R>, transform_output_gradient<Axis, R>};
  return steps;
}

#define MSA_INSTANTIATE(R)                                        \
  template const InputSteps<R>& input_steps<Taps3, R>();          \
  template const InputSteps<R>& input_steps<Taps3Upsampled, R>(); \
  template const InputSteps<R>& input_steps<Taps3Stride2, R>();   \
  template const InputSteps<R>& input_steps<Taps5Stride2, R>();   \
  template const OutputSteps<R>& output_steps<Taps3, R>();        \
  template const OutputSteps<R>& output_steps<Taps3Stride2, R>(); \
  template const OutputSteps<R>& output_steps<Taps5Stride2, R>()

MSA_INSTANTIATE(float);
MSA_INSTANTIATE(double);

}  // namespace msa::masked_conv
