// Products with weights packed as MLX packs them, read as they lie; and rows unpacked.
//
// A weight matrix is (R, C). Its codes of BITS bits follow each other in a stream of little-endian words, row after
// row: 32 codes, a chunk, are BITS words. GROUP weights of a row share a scale, and a bias in the affine formats.
//
//   affine           w = scale * code + bias         scale and bias are floats
//   mxfp4, mxfp8     w = scale * float of the code   scale is 2^(byte - 127)
//   nvfp4            w = scale * float of the code   scale is a float of 8 bits
//
// | kernel | computes |
// |---|---|
// | qmv<1, 2, 4, 8> | few inputs (T, C) with all rows: (T, R) |
// | qmm | many inputs (T, C) with all rows: (T, R) |
// | gather_qmv, gather_qmm | input n / share with the rows of matrix ids[n]: (T, R) |
// | gather_qmv_runs | input n with the rows of matrix ids[n], where ids often repeat: (T, R) |
// | take_rows | the rows ids[n]: (T, C) |
//
// The text is MSL 2.4 (bfloat: 3.1), and C++14: the tests compile it for the processor, and CUDA's compiler takes it
// behind `../cuda/metal_stdlib.cuh`. T is the type of inputs and outputs; sums are f32. Letters: R rows, C columns,
// T tokens. C is a multiple of 32 and of GROUP.
#ifndef ON_CUDA
#include <metal_stdlib>
#endif
using namespace metal;

#ifdef __METAL_VERSION__
#define THREADGROUP_ARRAY(type, name, count) threadgroup type name[count]
#define EXPORT_KERNEL(name, ...) template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;
// Arrays of one thread stay in registers only if every index is known: their loops are written out.
#define UNROLL _Pragma("clang loop unroll(full)")
#elif !defined(ON_CUDA)
#define UNROLL
#endif

// Codes that a thread unpacks at a time.
constant constexpr int CHUNK = 32;
constant constexpr uint LANES = 32;
// Rows of a simdgroup in qmv, and simdgroups of a threadgroup.
constant constexpr int ROWS = 4;
constant constexpr uint QMV_SIMDGROUPS = 2;
// A threadgroup's part of the output in qmm, columns that it takes at a time, and its threads: four simdgroups.
constant constexpr uint TILE_TOKENS = 32;
constant constexpr uint TILE_ROWS = 64;
constant constexpr uint TILE_COLS = 64;
constant constexpr uint QMM_THREADS = 128;
// Numbers from one row to the next in threadgroup memory: eight more than there are, for the sake of its banks.
constant constexpr uint STRIDE = TILE_COLS + 8;

// The sizes of one launch; in Rust `Shape`.
struct Shape {
  uint rows;
  uint cols;
  uint tokens;
  // Matrices that lie behind each other, (experts, R, C).
  uint experts;
  // Outputs that share an input.
  uint share;
};

// ------------------------------------------------------------------------------------------------ formats

// An unsigned integer.
struct Integer {
  enum { BIASED = 1 };
  static float value(uint code) { return float(code); }
};

// Sign, 2 bits of exponent, 1 of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6. By integers, for a GPU may flush what is
// subnormal.
struct E2m1 {
  enum { BIASED = 0 };
  static float value(uint code) {
    const uint exponent = (code >> 1) & 3u, mantissa = code & 1u;
    const uint halves = exponent == 0u ? mantissa : (2u | mantissa) << (exponent - 1u);
    return float(halves) * ((code & 8u) != 0u ? -0.5f : 0.5f);
  }
};

// Sign, 4 bits of exponent, 3 of mantissa. The code for "no number", 0x7f, counts as 480, as in MLX.
struct E4m3 {
  enum { BIASED = 0 };
  static float value(uint code) {
    const uint exponent = (code >> 3) & 15u, mantissa = code & 7u;
    const float integer = float(exponent == 0u ? mantissa : 8u | mantissa);
    // 2^(exponent - 10); the subnormal ones have the exponent of the smallest normal.
    const float power = as_type<float>((max(exponent, 1u) + 117u) << 23);
    return (code & 0x80u) != 0u ? -integer * power : integer * power;
  }
};

// Scales and biases stored as floats.
template <typename S>
struct Plain {
  typedef S Stored;
  static float value(S scale) { return float(scale); }
};

// Powers of two by their exponent.
struct E8m0 {
  typedef uchar Stored;
  static float value(uchar scale) { return as_type<float>(uint(scale) << 23); }
};

// Floats of 8 bits.
struct SmallFloat {
  typedef uchar Stored;
  static float value(uchar scale) { return E4m3::value(uint(scale)); }
};

template <int B, int G, typename C, typename S>
struct Format {
  enum { BITS = B, GROUP = G, SPAN = G < CHUNK ? G : CHUNK, BIASED = C::BIASED };
  typedef C Code;
  typedef S Scale;
  typedef typename S::Stored Stored;
};

// A packed matrix.
template <typename F>
struct Matrix {
  device const uint* words;
  device const typename F::Stored* scales;
  device const typename F::Stored* biases;

  // The codes of a chunk, numbered through all rows.
  void read(ulong chunk, thread uint* into) const {
    UNROLL for (int i = 0; i < F::BITS; i++) into[i] = words[chunk * F::BITS + i];
  }
  // The group of a weight, numbered through all rows.
  static ulong group(ulong chunk, int first) { return (chunk * CHUNK + first) / F::GROUP; }
  float scale(ulong group) const { return F::Scale::value(scales[group]); }
  float bias(ulong group) const { return F::BIASED ? float(biases[group]) : 0.0f; }
};

// Number i of a chunk's codes, as a number.
template <typename F>
inline float number(thread const uint* words, int i) {
  const int at = i * F::BITS, word = at / 32, shift = at % 32;
  uint bits = words[word] >> shift;
  if (shift + F::BITS > 32) bits |= words[word + 1] << (32 - shift);
  return F::Code::value(bits & ((1u << F::BITS) - 1u));
}

// Writes the 32 weights of a chunk.
template <typename F, typename P>
inline void unpack(Matrix<F> matrix, ulong chunk, P out) {
  uint words[F::BITS];
  matrix.read(chunk, words);
  UNROLL for (int span = 0; span < CHUNK; span += F::SPAN) {
    const ulong group = matrix.group(chunk, span);
    const float scale = matrix.scale(group), bias = matrix.bias(group);
    UNROLL for (int i = span; i < span + F::SPAN; i++) out.put(i, scale * number<F>(words, i) + bias);
  }
}

// Where `unpack` writes.
template <typename T>
struct ToDevice {
  device T* to;
  void put(int i, float weight) { to[i] = T(weight); }
};
template <typename T>
struct ToThreadgroup {
  threadgroup T* to;
  void put(int i, float weight) { to[i] = T(weight); }
};

// ------------------------------------------------------------------------------------------------ few inputs

// The products of TOKENS inputs with ROWS rows from `row0` on, by one simdgroup. A lane takes each 32nd chunk; within
// a group it sums codes times inputs, and inputs, and scales once.
template <typename F, typename T, int TOKENS>
inline void few(Matrix<F> matrix, ulong matrix_row0, device const T* x, device T* y, uint rows, uint cols, uint tokens,
                uint row0, uint lane) {
  const uint chunks = cols / CHUNK;
  float sums[TOKENS][ROWS];
  UNROLL for (int t = 0; t < TOKENS; t++)
    UNROLL for (int r = 0; r < ROWS; r++) sums[t][r] = 0.0f;
  for (uint chunk = lane; chunk < chunks; chunk += LANES) {
    uint words[ROWS][F::BITS];
    ulong at[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) {
      // Rows past the last are computed as the last, and not written.
      at[r] = (matrix_row0 + min(row0 + r, rows - 1u)) * chunks + chunk;
      matrix.read(at[r], words[r]);
    }
    UNROLL for (int span = 0; span < CHUNK; span += F::SPAN) {
      float dots[TOKENS][ROWS], totals[TOKENS];
      UNROLL for (int t = 0; t < TOKENS; t++) {
        totals[t] = 0.0f;
        UNROLL for (int r = 0; r < ROWS; r++) dots[t][r] = 0.0f;
      }
      UNROLL for (int first = span; first < span + F::SPAN; first += 4) {
        float numbers[ROWS][4];
        UNROLL for (int r = 0; r < ROWS; r++)
          UNROLL for (int i = 0; i < 4; i++) numbers[r][i] = number<F>(words[r], first + i);
        UNROLL for (int t = 0; t < TOKENS; t++) {
          device const T* from = x + ulong(min(uint(t), tokens - 1u)) * cols + chunk * CHUNK + first;
          UNROLL for (int i = 0; i < 4; i++) {
            const float input = float(from[i]);
            totals[t] += input;
            UNROLL for (int r = 0; r < ROWS; r++) dots[t][r] += numbers[r][i] * input;
          }
        }
      }
      UNROLL for (int r = 0; r < ROWS; r++) {
        const ulong group = matrix.group(at[r], span);
        const float scale = matrix.scale(group), bias = matrix.bias(group);
        UNROLL for (int t = 0; t < TOKENS; t++) sums[t][r] += scale * dots[t][r] + bias * totals[t];
      }
    }
  }
  UNROLL for (int t = 0; t < TOKENS; t++) {
    UNROLL for (int r = 0; r < ROWS; r++) {
      const float sum = simd_sum(sums[t][r]);
      const bool inside = row0 + r < rows && uint(t) < tokens;
      if (lane == uint(t * ROWS + r) && inside) y[ulong(t) * rows + row0 + r] = T(sum);
    }
  }
}

// Grid: (rows / 8, tokens / TOKENS), of 64 threads.
template <typename F, typename T, int TOKENS>
kernel void qmv(device const uint* words [[buffer(0)]], device const typename F::Stored* scales [[buffer(1)]],
                device const typename F::Stored* biases [[buffer(2)]], device const T* x [[buffer(3)]],
                device T* y [[buffer(4)]], constant Shape& shape [[buffer(5)]],
                uint2 at [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                uint simd_index [[simdgroup_index_in_threadgroup]]) {
  const uint row0 = (at.x * QMV_SIMDGROUPS + simd_index) * ROWS, token0 = at.y * TOKENS;
  if (row0 >= shape.rows) return;
  const Matrix<F> matrix = {words, scales, biases};
  few<F, T, TOKENS>(matrix, 0, x + ulong(token0) * shape.cols, y + ulong(token0) * shape.rows, shape.rows, shape.cols,
                    shape.tokens - token0, row0, lane);
}

// Grid: (rows / 8, tokens), of 64 threads. An expert that there is not counts as the last.
template <typename F, typename T>
kernel void gather_qmv(device const uint* words [[buffer(0)]], device const typename F::Stored* scales [[buffer(1)]],
                       device const typename F::Stored* biases [[buffer(2)]], device const T* x [[buffer(3)]],
                       device T* y [[buffer(4)]], constant Shape& shape [[buffer(5)]],
                       device const uint* ids [[buffer(6)]], uint2 at [[threadgroup_position_in_grid]],
                       uint lane [[thread_index_in_simdgroup]], uint simd_index [[simdgroup_index_in_threadgroup]]) {
  const uint row0 = (at.x * QMV_SIMDGROUPS + simd_index) * ROWS, token = at.y;
  if (row0 >= shape.rows) return;
  const ulong expert = min(ids[token], shape.experts - 1u);
  const Matrix<F> matrix = {words, scales, biases};
  const ulong input = token / shape.share;
  few<F, T, 1>(matrix, expert * shape.rows, x + input * shape.cols, y + ulong(token) * shape.rows, shape.rows,
               shape.cols, 1, row0, lane);
}

// Grid: (rows / 8, tokens / TOKENS), of 64 threads. Right in any order of ids; fast where equal ids follow each other,
// for rows are read once for each run of them. Each output has an input of its own. An expert that there is not counts
// as the last.
template <typename F, typename T, int TOKENS>
kernel void gather_qmv_runs(device const uint* words [[buffer(0)]],
                            device const typename F::Stored* scales [[buffer(1)]],
                            device const typename F::Stored* biases [[buffer(2)]], device const T* x [[buffer(3)]],
                            device T* y [[buffer(4)]], constant Shape& shape [[buffer(5)]],
                            device const uint* ids [[buffer(6)]], uint2 at [[threadgroup_position_in_grid]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simd_index [[simdgroup_index_in_threadgroup]]) {
  const uint row0 = (at.x * QMV_SIMDGROUPS + simd_index) * ROWS, token0 = at.y * TOKENS;
  if (row0 >= shape.rows) return;
  const Matrix<F> matrix = {words, scales, biases};
  const uint last = min(token0 + TOKENS, shape.tokens);
  for (uint begin = token0, end; begin < last; begin = end) {
    end = begin + 1u;
    while (end < last && ids[end] == ids[begin]) end++;
    const ulong expert = min(ids[begin], shape.experts - 1u);
    few<F, T, TOKENS>(matrix, expert * shape.rows, x + ulong(begin) * shape.cols, y + ulong(begin) * shape.rows,
                      shape.rows, shape.cols, end - begin, row0, lane);
  }
}

// ------------------------------------------------------------------------------------------------ many inputs

// CUDA has no matrices of 8 x 8: there many inputs are multiplied by its library, with rows that `take_rows` unpacked.
#ifndef ON_CUDA
// One tile of the output, by the whole threadgroup.
struct Tile {
  uint row0;
  uint token0;
  // The tokens of the tile that are computed, counted from its first.
  uint begin;
  uint end;
};

// Inputs and unpacked weights are staged in `memory`, 64 columns at a time, and multiplied in blocks of 8 x 8; each
// simdgroup makes 16 tokens by 32 rows. A weight is rounded to T there, as in MLX.
template <typename F, typename T>
inline void many(Matrix<F> matrix, ulong matrix_row0, device const T* x, device T* y, constant Shape& shape, Tile tile,
                 threadgroup float* memory, uint thread_index, uint simd_index) {
  threadgroup T* weights = (threadgroup T*)memory;
  threadgroup T* inputs = weights + TILE_ROWS * STRIDE;
  const uint chunks = shape.cols / CHUNK, block_token = simd_index / 2u * 16u, block_row = simd_index % 2u * 32u;
  simdgroup_float8x8 sums[2][4];
  UNROLL for (int i = 0; i < 2; i++)
    UNROLL for (int j = 0; j < 4; j++) sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint col0 = 0; col0 < shape.cols; col0 += TILE_COLS) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    {  // Two threads a row, a chunk each.
      const uint row = thread_index / 2u, chunk = col0 / CHUNK + thread_index % 2u;
      const ToThreadgroup<T> to = {weights + row * STRIDE + thread_index % 2u * CHUNK};
      if (tile.row0 + row < shape.rows && chunk < chunks) {
        unpack<F>(matrix, (matrix_row0 + tile.row0 + row) * chunks + chunk, to);
      } else {
        for (int i = 0; i < CHUNK; i++) to.to[i] = T(0.0f);
      }
    }
    {  // Four threads a token, 16 columns each.
      const uint token = thread_index / 4u, col = col0 + thread_index % 4u * 16u;
      threadgroup T* to = inputs + token * STRIDE + thread_index % 4u * 16u;
      const bool inside = token >= tile.begin && token < tile.end && col < shape.cols;
      device const T* from = x + ulong((tile.token0 + token) / shape.share) * shape.cols + col;
      for (int i = 0; i < 16; i++) to[i] = inside ? from[i] : T(0.0f);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint col = 0; col < TILE_COLS; col += 8) {
      simdgroup_matrix<T, 8, 8> a[2], b[4];
      UNROLL for (uint i = 0; i < 2; i++) simdgroup_load(a[i], inputs + (block_token + 8u * i) * STRIDE + col, STRIDE);
      UNROLL for (uint j = 0; j < 4; j++)
        simdgroup_load(b[j], weights + (block_row + 8u * j) * STRIDE + col, STRIDE, ulong2(0), true);
      UNROLL for (int i = 0; i < 2; i++)
        UNROLL for (int j = 0; j < 4; j++) simdgroup_multiply_accumulate(sums[i][j], a[i], b[j], sums[i][j]);
    }
  }
  // The weights are used up: their memory takes the sums.
  threadgroup_barrier(mem_flags::mem_threadgroup);
  UNROLL for (uint i = 0; i < 2; i++)
    UNROLL for (uint j = 0; j < 4; j++)
      simdgroup_store(sums[i][j], memory + (block_token + 8u * i) * TILE_ROWS + block_row + 8u * j, TILE_ROWS);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < TILE_TOKENS * TILE_ROWS; i += QMM_THREADS) {
    const uint token = i / TILE_ROWS, row = tile.row0 + i % TILE_ROWS;
    const bool inside = token >= tile.begin && token < tile.end && row < shape.rows;
    if (inside) y[ulong(tile.token0 + token) * shape.rows + row] = T(memory[i]);
  }
}

// Floats that `many` needs for weights and inputs.
#define TILE_MEMORY(T) ((TILE_ROWS + TILE_TOKENS) * STRIDE * sizeof(T) / sizeof(float))

// Grid: (rows / 64, tokens / 32), of 128 threads.
template <typename F, typename T>
kernel void qmm(device const uint* words [[buffer(0)]], device const typename F::Stored* scales [[buffer(1)]],
                device const typename F::Stored* biases [[buffer(2)]], device const T* x [[buffer(3)]],
                device T* y [[buffer(4)]], constant Shape& shape [[buffer(5)]],
                uint2 at [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                uint simd_index [[simdgroup_index_in_threadgroup]]) {
  THREADGROUP_ARRAY(float, memory, TILE_MEMORY(T));
  const Matrix<F> matrix = {words, scales, biases};
  const uint token0 = at.y * TILE_TOKENS;
  const Tile tile = {at.x * TILE_ROWS, token0, 0, min(TILE_TOKENS, shape.tokens - token0)};
  many<F, T>(matrix, 0, x, y, shape, tile, memory, thread_index, simd_index);
}

// Grid: (rows / 64, tokens / 32), of 128 threads. Right in any order of ids; fast where equal ids follow each other,
// for a tile is computed once for each run of them. An expert that there is not counts as the last.
template <typename F, typename T>
kernel void gather_qmm(device const uint* words [[buffer(0)]], device const typename F::Stored* scales [[buffer(1)]],
                       device const typename F::Stored* biases [[buffer(2)]], device const T* x [[buffer(3)]],
                       device T* y [[buffer(4)]], constant Shape& shape [[buffer(5)]],
                       device const uint* ids [[buffer(6)]], uint2 at [[threadgroup_position_in_grid]],
                       uint thread_index [[thread_index_in_threadgroup]],
                       uint simd_index [[simdgroup_index_in_threadgroup]]) {
  THREADGROUP_ARRAY(float, memory, TILE_MEMORY(T));
  const Matrix<F> matrix = {words, scales, biases};
  const uint token0 = at.y * TILE_TOKENS, count = min(TILE_TOKENS, shape.tokens - token0);
  for (uint begin = 0; begin < count;) {
    const uint id = ids[token0 + begin];
    uint end = begin + 1u;
    while (end < count && ids[token0 + end] == id) end++;
    const Tile tile = {at.x * TILE_ROWS, token0, begin, end};
    const ulong expert = min(id, shape.experts - 1u);
    many<F, T>(matrix, expert * shape.rows, x, y, shape, tile, memory, thread_index, simd_index);
    begin = end;
  }
}
#endif

// ------------------------------------------------------------------------------------------------ rows

// Grid: (cols / 1024, tokens), of 32 threads, a chunk each. A row that there is not counts as the last.
template <typename F, typename T>
kernel void take_rows(device const uint* words [[buffer(0)]], device const typename F::Stored* scales [[buffer(1)]],
                      device const typename F::Stored* biases [[buffer(2)]], device T* y [[buffer(4)]],
                      constant Shape& shape [[buffer(5)]], device const uint* ids [[buffer(6)]],
                      uint2 at [[thread_position_in_grid]]) {
  const uint chunks = shape.cols / CHUNK, chunk = at.x;
  if (chunk >= chunks) return;
  const ulong row = min(ids[at.y], shape.rows - 1u);
  const Matrix<F> matrix = {words, scales, biases};
  const ToDevice<T> to = {y + ulong(at.y) * shape.cols + chunk * CHUNK};
  unpack<F>(matrix, row * chunks + chunk, to);
}

// The kernels of a format F over inputs of type T; their names end in `label`.
#ifndef ON_CUDA
#define EXPORT_DENSE(label, F, T)            \
  EXPORT_KERNEL("qmv1_" label, qmv<F, T, 1>) \
  EXPORT_KERNEL("qmv2_" label, qmv<F, T, 2>) \
  EXPORT_KERNEL("qmv4_" label, qmv<F, T, 4>) \
  EXPORT_KERNEL("qmv8_" label, qmv<F, T, 8>) \
  EXPORT_KERNEL("qmm_" label, qmm<F, T>)     \
  EXPORT_KERNEL("take_rows_" label, take_rows<F, T>)
#define EXPORT_GATHER(label, F, T)                     \
  EXPORT_KERNEL("gather_qmv_" label, gather_qmv<F, T>) \
  EXPORT_KERNEL("gather_qmm_" label, gather_qmm<F, T>)
#endif
