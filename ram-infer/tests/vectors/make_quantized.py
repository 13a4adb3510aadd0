"""Writes quantized.txt: small matrices as MLX packs them, and their weights as MLX unpacks them in f32.

    pip install 'mlx[cpu]==0.32.4' numpy && python make_quantized.py > quantized.txt

A line a matrix: format, group, type of scales and biases, rows, columns, factor of all scales; then as hexadecimal
bytes: codes, scales, biases (or -), weights (f32, little-endian).
"""

import mlx.core as mx
import numpy as np

ROWS, COLS = 2, 128
DTYPES = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}


def stored(array):
    return bytes(memoryview(mx.contiguous(array).reshape(-1).view(mx.uint8))).hex()


def line(name, group, dtype, factor, codes, scales, biases, weights):
    parts = [stored(codes), stored(scales), "-" if biases is None else stored(biases), stored(weights)]
    print(name, group, dtype, ROWS, COLS, repr(float(np.float32(factor))), *parts)


mx.set_default_device(mx.cpu)
mx.random.seed(4)
for bits, group, dtype in [(2, 32, "bf16"), (3, 64, "f16"), (4, 64, "bf16"), (4, 32, "f32"), (5, 128, "bf16"),
                           (6, 32, "f16"), (6, 64, "bf16"), (3, 32, "bf16"), (5, 32, "bf16"), (8, 128, "bf16")]:
    w = mx.random.normal((ROWS, COLS)).astype(DTYPES[dtype])
    codes, scales, biases = mx.quantize(w, group, bits)
    weights = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), group, bits)
    line(f"affine{bits}", group, dtype, 1, codes, scales, biases, weights)
for mode, group, global_scale in [("mxfp4", 32, None), ("nvfp4", 16, None), ("nvfp4", 16, 3.0), ("mxfp8", 32, None)]:
    w = mx.random.normal((ROWS, COLS)).astype(mx.bfloat16)
    scale = None if global_scale is None else mx.array(global_scale, dtype=mx.float32)
    codes, scales = mx.quantize(w, mode=mode, global_scale=scale)
    weights = mx.dequantize(codes, scales, mode=mode, global_scale=scale, dtype=mx.float32)
    # MLX's own scale for the whole is the largest magnitude; what multiplies is its part of the largest that fits.
    factor = 1 if global_scale is None else np.float32(global_scale) / np.float32(448 * 6)
    line(mode, group, "u8", factor, codes, scales, None, weights)
