// What every operator needs of torch's stable ABI: checks, strided views, and the few ATen calls we make.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace msa {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using Ints = std::vector<int64_t>;

inline std::string shape_of(const Tensor& t) {
  std::ostringstream text;
  text << "(";
  for (int64_t d = 0; d < t.dim(); ++d) text << (d ? ", " : "") << t.size(d);
  text << ")";
  return text.str();
}

inline bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  if (t.dim() != static_cast<int64_t>(shape.size())) return false;
  int64_t d = 0;
  for (int64_t extent : shape)
    if (t.size(d++) != extent) return false;
  return true;
}

// A strided NCHW view. Kernels take strides, so contiguous, channels_last, sliced and expanded tensors are all read in
// place.
template <typename T>
struct View {
  T* data;
  int64_t n, c, h, w;
  int64_t sn, sc, sh, sw;
};

// One element of a mask. torch takes every byte but 0 for true, and a uint8 mask viewed as bool keeps its bytes; to C++
// a bool whose byte is neither 0 nor 1 is undefined. So masks are read as MaskByte, never as bool.
struct MaskByte {
  uint8_t byte;
  constexpr operator bool() const { return byte != 0; }
};
static_assert(sizeof(MaskByte) == 1);

using MaskView = View<const MaskByte>;

// The tensor's elements. Reading them as const never marks the tensor as written.
template <typename T>
T* data_of(const Tensor& t) {
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(t.const_data_ptr());
  } else {
    return static_cast<T*>(t.mutable_data_ptr());
  }
}

template <typename T>
View<T> view(const Tensor& t) {
  const auto size = t.sizes();
  const auto stride = t.strides();
  return {data_of<T>(t), size[0], size[1], size[2], size[3], stride[0], stride[1], stride[2], stride[3]};
}

// The rule for the layout of maps: channels_last where the channel of `like` is its fastest dimension.
inline bool wants_channels_last(const Tensor& like) { return like.stride(1) == 1 && like.size(1) > 1; }

// An uninitialised map (N, C, H, W) with the dtype and device of `like`.
inline Tensor empty_map(const Tensor& like, bool channels_last, int64_t n, int64_t c, int64_t h, int64_t w) {
  return torch::stable::empty(Ints{n, c, h, w}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// The same in the layout of `like`.
inline Tensor empty_map(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  return empty_map(like, wants_channels_last(like), n, c, h, w);
}

inline Tensor empty_map_like(const Tensor& t) { return empty_map(t, t.size(0), t.size(1), t.size(2), t.size(3)); }

// Whether torch takes these strides for channels_last. Unlike wants_channels_last it tells a 1x1 weight in
// channels_last from a contiguous one, by strides that nothing is read with.
inline bool torch_sees_channels_last(const Tensor& t) {
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.stride(d) < least || (d == 0 && least == t.stride(1))) return false;
    least = t.size(d) > 1 ? t.stride(d) * t.size(d) : t.stride(d);
  }
  return true;
}

// Whether a copy made by empty_map would have exactly these strides. (Those of dimensions of size 1 count: by them
// torch picks the layout of a convolution's output.)
inline bool is_laid_out_as_its_copy(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  if (t.stride(0) != c * h * w) return false;
  if (wants_channels_last(t)) return t.stride(2) == w * c && t.stride(3) == c;
  return t.stride(1) == h * w && t.stride(2) == w && t.stride(3) == 1;
}

// Returns the map in the given layout. Our results promise their layout, so that fake tensors can know it; a library's
// convolution chooses one by rules that differ between versions and devices (for a map of one pixel, say). A copy is
// made only where the two differ, which is rare.
inline Tensor laid_out(const Tensor& t, bool channels_last) {
  if (!t.defined()) return t;
  const int64_t n = t.size(0), c = t.size(1), h = t.size(2), w = t.size(3);
  const auto is = [&](int64_t d, int64_t stride) { return t.size(d) <= 1 || t.stride(d) == stride; };
  const bool fits = channels_last ? is(0, c * h * w) && is(1, 1) && is(2, w * c) && is(3, c)
                                  : is(0, c * h * w) && is(1, h * w) && is(2, w) && is(3, 1);
  if (fits && n * c * h * w > 0) return t;
  Tensor copy = empty_map(t, channels_last, n, c, h, w);
  torch::stable::copy_(copy, t);
  return copy;
}

// The map in one of torch's two layouts, copied only where its strides are of neither. Some of torch's gradients of
// convolutions fail for a weight whose dimensions of size 1 have odd strides.
inline Tensor plainly_laid_out(const Tensor& t) {
  if (t.is_contiguous() || is_laid_out_as_its_copy(t)) return t;
  Tensor copy = empty_map_like(t);
  torch::stable::copy_(copy, t);
  return copy;
}

// An uninitialised contiguous tensor on the device of `like`.
inline Tensor empty_on(const Tensor& like, const Ints& shape, ScalarType dtype) {
  return torch::stable::empty(shape, dtype, std::nullopt, like.device());
}

// The library's convolution (cuDNN, oneDNN), through ATen: TF32, determinism and benchmark switches keep their meaning.
inline Tensor convolution(const Tensor& input, const Tensor& weight, const Ints& stride, const Ints& padding,
                          const Ints& dilation, int64_t groups) {
  using torch::stable::detail::from;
  std::array<StableIValue, 9> stack{from(input),  from(weight),     from(std::optional<Tensor>()),
                                    from(stride), from(padding),    from(dilation),
                                    from(false),  from(Ints{0, 0}), from(groups)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Gradients of `convolution` for input and weight; a gradient that is not asked for comes back undefined.
inline std::pair<Tensor, Tensor> convolution_backward(const Tensor& grad_output, const Tensor& input,
                                                      const Tensor& weight, const Ints& stride, const Ints& padding,
                                                      const Ints& dilation, int64_t groups, bool need_input,
                                                      bool need_weight) {
  if (!need_input && !need_weight) return {Tensor(), Tensor()};
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const bool needed[3] = {need_input, need_weight, false};
  std::array<StableIValue, 11> stack{from(grad_output),
                                     from(input),
                                     from(weight),
                                     from(std::optional<Ints>()),
                                     from(stride),
                                     from(padding),
                                     from(dilation),
                                     from(false),
                                     from(Ints{0, 0}),
                                     from(groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(needed, 3))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  Tensor grad_input = to<Tensor>(stack[0]);
  Tensor grad_weight = to<Tensor>(stack[1]);
  to<Tensor>(stack[2]);  // takes ownership of the bias gradient's handle, which is undefined
  return {grad_input, grad_weight};
}

// Newer torches (2.13 on) keep the text of an error that crossed the C interface; older ones only print it. Resolved
// when the library is loaded, null where torch has no such function.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

// The operator `function`, whose errors in ATen calls (out of memory, say) keep torch's own message.
template <auto function>
struct Explained;

template <typename Result, typename... Args, Result (*function)(Args...)>
struct Explained<function> {
  static Result call(Args... args) {
    try {
      return function(std::move(args)...);
    } catch (const std::runtime_error& error) {
      const bool from_torch = std::string(error.what()).find("API call failed") != std::string::npos;
      if (!from_torch || torch_exception_get_what_without_backtrace == nullptr) throw;
      throw std::runtime_error(torch_exception_get_what_without_backtrace());
    }
  }
};

#define MSA_BOX(function) TORCH_BOX((&msa::Explained<&function>::call))

// The device guard of the CPU, which has no current device to change.
struct HostGuard {
  explicit HostGuard(const Tensor&) {}
};

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// Calls f with a value of the element type; `where` names the operator in the refusal.
template <typename F>
void dispatch_floating(ScalarType dtype, const char* where, const F& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double());
    case ScalarType::Float:
      return f(float());
    case ScalarType::Half:
      return f(Half());
    case ScalarType::BFloat16:
      return f(BFloat16());
    default:
      STD_TORCH_CHECK(false, "msa_ops::", where, ": input must be float64, float32, float16 or bfloat16");
  }
}

// Refuses what dispatch_floating would, before anything is allocated.
inline void check_floating(ScalarType dtype, const char* where) {
  dispatch_floating(dtype, where, [](auto) {});
}

// Calls f with a value of the arithmetic type: float64 where the tensor is float64, else float32.
template <typename F>
void dispatch_accumulator(ScalarType dtype, const F& f) {
  dtype == ScalarType::Double ? f(double()) : f(float());
}

// Calls f with an unsigned integer as wide as the element, for what only moves elements or clears them: zero is all
// zero bits in every dtype.
template <typename F>
void dispatch_bits(int64_t element_size, const F& f) {
  switch (element_size) {
    case 2:
      return f(uint16_t());
    case 4:
      return f(uint32_t());
    default:
      return f(uint64_t());
  }
}

// Arithmetic type: float64 for float64, float32 for everything narrower.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType accumulator_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace msa
