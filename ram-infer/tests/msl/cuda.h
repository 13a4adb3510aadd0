// A stand-in for CUDA's language on this processor: what `src/cuda/metal_stdlib.cuh` asks of it, by the fibers of
// `metal_stdlib`. The text under test follows.
#define MSL_HOST
#include "metal_stdlib"

#pragma clang diagnostic ignored "-Wunknown-pragmas"
#define __global__
#define __launch_bounds__(threads)
#define __forceinline__ inline
#define threadIdx (::msl::builtin3(::msl::TITG))
#define blockIdx (::msl::G->pos)
#define blockDim (::msl::G->job->size)

struct uint2 {
  unsigned x, y;
};
template <class T>
inline T min(T a, T b) {
  return a < b ? a : b;
}
template <class T>
inline T max(T a, T b) {
  return a > b ? a : b;
}
MSL_NOSAN inline float __shfl_xor_sync(unsigned mask, float value, unsigned distance, int line = __builtin_LINE()) {
  if (mask != 0xffffffffu) std::abort();
  return ::msl::collective(value, "__shfl_xor_sync", line,
                           [=](auto get, unsigned lane, unsigned) MSL_NOSAN { return get(lane ^ distance); });
}

// An entry point with what the host has bound: as for Metal, but that the fourth pointer is buffer `from`.
template <class S, class X, class T, class Sizes>
inline void enter(void (*entry)(const unsigned*, const S*, const S*, const X*, T*, Sizes), int from) {
  auto bound = [](int i) { return ::msl::G->job->bind[i].p; };
  entry((const unsigned*)bound(0), (const S*)bound(1), (const S*)bound(2), (const X*)bound(from), (T*)bound(4),
        *(const Sizes*)bound(5));
}
// And with numbers of matrices.
template <class S, class X, class T, class Sizes>
inline void enter(void (*entry)(const unsigned*, const S*, const S*, const X*, T*, Sizes, const unsigned*), int from) {
  auto bound = [](int i) { return ::msl::G->job->bind[i].p; };
  entry((const unsigned*)bound(0), (const S*)bound(1), (const S*)bound(2), (const X*)bound(from), (T*)bound(4),
        *(const Sizes*)bound(5), (const unsigned*)bound(6));
}
#define ENTRY(name, from) static ::msl::Register register_##name(#name, [] { enter(name, from); });

// The two stand-ins for Metal's header stand beside each other, and the C library has a type of this name.
#define metal metal_on_cuda
#define ulong ulong_on_cuda
