// A stand-in for <metal_stdlib>: lets CUDA's runtime compiler (NVRTC) take `kernels.metal` as it is, which follows this
// text. It knows what those kernels use, and no more. A function of Metal's language becomes one of the GPU; the entry
// points at the end call it with the place of their thread.
//
// It includes nothing: whoever runs the engine may have NVRTC without CUDA's headers. NVRTC is to be told
// `-default-device`: functions that do not say where they run, run on the GPU.
#define ON_CUDA

// Memory needs no names here: a pointer finds its own. A kernel becomes part of its entry point.
#define device
#define thread
#define threadgroup
#define constant const
#define kernel __forceinline__
// Positions come from the entry points: the attributes that ask Metal for them are not known here, and need not be. Nor
// are the numbers all used that are written for Metal's matrices.
#pragma nv_diag_suppress 1097, 177
// Arrays of one thread stay in registers only if every index is known: their loops are written out.
#define UNROLL _Pragma("unroll")

namespace metal {
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
// 64 bits on every system, as Metal's.
typedef unsigned long long ulong;

template <typename To, typename From>
To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type changes no size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// 16 bits, 8 of them exponent: the upper half of a float.
struct bfloat {
  ushort bits;
  bfloat() = default;
  // Rounds to the nearest, and to the even one of two; what is no number stays none.
  explicit bfloat(float value) {
    const uint whole = as_type<uint>(value);
    bits = ushort(value != value ? 0x7fc0u : (whole + 0x7fffu + (whole >> 16 & 1u)) >> 16);
  }
  explicit operator float() const { return as_type<float>(uint(bits) << 16); }
};

// 16 bits, 5 of them exponent: the GPU converts it by itself.
struct half {
  ushort bits;
  half() = default;
  explicit half(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
  explicit operator float() const {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
};

// A simdgroup is a warp, of as many threads.
inline float simd_sum(float value) {
  UNROLL for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}
}  // namespace metal

// ------------------------------------------------------------------------------------------------ entry points

// The kernels of a format F, which is one word, over inputs of type T; `label` is F's name.
#define EXPORT_DENSE(label, F, T)  \
  EXPORT_PRODUCTS(qmv1_##F, F, T, 1) \
  EXPORT_PRODUCTS(qmv2_##F, F, T, 2) \
  EXPORT_PRODUCTS(qmv4_##F, F, T, 4) \
  EXPORT_PRODUCTS(qmv8_##F, F, T, 8) \
  EXPORT_ROWS(take_rows_##F, F, T)
// Those of matrices that lie behind each other.
#define EXPORT_GATHER(label, F, T)                       \
  EXPORT_GATHERED(gather_qmv_##F, F, T, gather_qmv<F, T>) \
  EXPORT_GATHERED(gather_qmv4_##F, F, T, gather_qmv_runs<F, T, 4>)
// Matrix, input, output, sizes: in Rust `PackedMatrix::queue`.
#define EXPORT_PRODUCTS(name, F, T, TOKENS)                                                                         \
  extern "C" __global__ void __launch_bounds__(QMV_SIMDGROUPS * LANES)                                              \
      name(const uint* __restrict__ words, const F::Stored* __restrict__ scales,                                    \
           const F::Stored* __restrict__ biases, const T* __restrict__ x, T* __restrict__ y, const Shape shape) {   \
    const uint2 at = {blockIdx.x, blockIdx.y};                                                                      \
    qmv<F, T, TOKENS>(words, scales, biases, x, y, shape, at, threadIdx.x % LANES, threadIdx.x / LANES);            \
  }
// Outputs lie along x, and rows along y: neighbours read the same weights.
#define EXPORT_GATHERED(name, F, T, ...)                                                                          \
  extern "C" __global__ void __launch_bounds__(QMV_SIMDGROUPS * LANES)                                            \
      name(const uint* __restrict__ words, const F::Stored* __restrict__ scales,                                  \
           const F::Stored* __restrict__ biases, const T* __restrict__ x, T* __restrict__ y, const Shape shape,   \
           const uint* __restrict__ ids) {                                                                        \
    const uint2 at = {blockIdx.y, blockIdx.x};                                                                    \
    __VA_ARGS__(words, scales, biases, x, y, shape, ids, at, threadIdx.x % LANES, threadIdx.x / LANES);           \
  }
// Rows lie along x, and columns along y: a grid may be 2^31 wide, and no more than 65535 high.
#define EXPORT_ROWS(name, F, T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(LANES)                                                                  \
      name(const uint* __restrict__ words, const F::Stored* __restrict__ scales,                                       \
           const F::Stored* __restrict__ biases, const uint* __restrict__ ids, T* __restrict__ y, const Shape shape) { \
    const uint2 at = {blockIdx.y * blockDim.x + threadIdx.x, blockIdx.x};                                              \
    take_rows<F, T>(words, scales, biases, y, shape, ids, at);                                                         \
  }
