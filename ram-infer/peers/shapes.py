"""Models of random weights: the shapes, and writers for the MLX and the GGUF format.

What the weights are does not change the speed, so a few million random codes are made once and written again and again;
only routers of experts are random throughout, since they choose what is read. Scales keep the activations of the size
of a real model's. Plain Python, no packages.
"""

import array
import json
import math
import pathlib
import random
import struct
from dataclasses import dataclass

CHUNK = 1 << 22


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; `experts` is 0 for a dense one, else `inner` is one expert's."""

    name: str
    kind: str  # model_type in MLX's config.json
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rope_theta: float
    epsilon: float
    experts: int = 0
    used: int = 0

    @property
    def architecture(self):
        """The name in GGUF."""
        return self.kind.replace("_", "")

    @property
    def head_norms(self):
        return self.kind.startswith("qwen3")

    def matrices(self, layer):
        """(MLX's module, GGUF's tensor, rows, columns, number of experts or None) of a layer's matrices."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "self_attn.q_proj", "attn_q", q, self.hidden, None
        yield "self_attn.k_proj", "attn_k", kv, self.hidden, None
        yield "self_attn.v_proj", "attn_v", kv, self.hidden, None
        yield "self_attn.o_proj", "attn_output", self.hidden, q, None
        mlp, suffix = ("mlp.switch_mlp", "_exps") if self.experts else ("mlp", "")
        experts = self.experts or None
        yield f"{mlp}.gate_proj", f"ffn_gate{suffix}", self.inner, self.hidden, experts
        yield f"{mlp}.up_proj", f"ffn_up{suffix}", self.inner, self.hidden, experts
        yield f"{mlp}.down_proj", f"ffn_down{suffix}", self.hidden, self.inner, experts


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128256, 500000.0, 1e-5),
        Shape("qwen3-0.6b", "qwen3", 1024, 3072, 28, 16, 8, 128, 151936, 1000000.0, 1e-6),
        # A layer of Qwen3-30B-A3B with half its experts.
        Shape("moe-8-of-64", "qwen3_moe", 2048, 768, 8, 32, 4, 128, 32000, 1000000.0, 1e-6, 64, 8),
        # For trying the machinery out.
        Shape("tiny", "llama", 256, 512, 2, 4, 2, 64, 1024, 500000.0, 1e-5),
    )
}


def chunk_of(block, seed=1):
    """About `CHUNK` random bytes, a whole number of blocks."""
    return bytearray(random.Random(seed).randbytes(CHUNK // block * block))


def put(chunk, block, offset, value):
    """Writes `value` at `offset` of every block."""
    blocks = len(chunk) // block
    for i, byte in enumerate(value):
        chunk[offset + i :: block] = bytes([byte]) * blocks


def bf16(value):
    return struct.pack("<f", value)[2:]


def f16(value):
    return struct.pack("<e", value)


def pour(file, chunk, size):
    """Writes `size` bytes of the chunk, over and over."""
    whole, rest = divmod(size, len(chunk))
    for _ in range(whole):
        file.write(chunk)
    file.write(memoryview(chunk)[:rest])


def random_floats(count, spread, seed):
    """Floats between -spread and spread."""
    codes = random.Random(seed).randbytes(2 * count)
    values = array.array("H", codes)
    return array.array("f", (spread * (value - 32767.5) / 32768 for value in values))


# ---- MLX: 4 bits, groups of 64 ------------------------------------------------------------------------------------


class Mlx:
    """`config.json` and `model.safetensors` in a folder."""

    def __init__(self, shape):
        self.shape = shape
        scale = 2.0**-8
        self.codes = chunk_of(4)
        self.fill = {"scales": bf16(scale) * (CHUNK // 2), "biases": bf16(-7.5 * scale) * (CHUNK // 2)}
        self.ones = bf16(1.0) * (CHUNK // 2)
        self.tensors = []  # (name, type, shape, chunk)

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config(), indent=1))
        self.list()
        header, offset = {}, 0
        for name, dtype, dims, _ in self.tensors:
            size = math.prod(dims) * {"U32": 4, "BF16": 2}[dtype]
            header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, _, _, chunk in self.tensors:
                begin, end = header[name]["data_offsets"]
                pour(file, chunk, end - begin)

    def config(self):
        s = self.shape
        config = {
            "model_type": s.kind,
            "hidden_size": s.hidden,
            "intermediate_size": s.inner,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "vocab_size": s.vocabulary,
            "rms_norm_eps": s.epsilon,
            "rope_theta": s.rope_theta,
            "max_position_embeddings": 40960 if s.head_norms else 131072,
            "tie_word_embeddings": True,
            "eos_token_id": [0],
            "quantization": {"group_size": 64, "bits": 4},
        }
        if s.kind == "llama":
            config["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        if s.experts:
            config |= {
                "num_experts": s.experts,
                "num_experts_per_tok": s.used,
                "moe_intermediate_size": s.inner,
                "norm_topk_prob": True,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            }
            for layer in range(s.layers):
                config["quantization"][f"model.layers.{layer}.mlp.gate"] = {"group_size": 64, "bits": 8}
        return config

    def list(self):
        s = self.shape
        self.packed("model.embed_tokens", [s.vocabulary], s.hidden)
        for layer in range(s.layers):
            at = f"model.layers.{layer}"
            for module, _, rows, columns, experts in s.matrices(layer):
                self.packed(f"{at}.{module}", [experts, rows] if experts else [rows], columns)
            if s.experts:
                self.router(f"{at}.mlp.gate", layer)
            self.norm(f"{at}.input_layernorm", s.hidden)
            self.norm(f"{at}.post_attention_layernorm", s.hidden)
            if s.head_norms:
                self.norm(f"{at}.self_attn.q_norm", s.head_dim)
                self.norm(f"{at}.self_attn.k_norm", s.head_dim)
        self.norm("model.norm", s.hidden)

    def packed(self, path, rows, columns):
        self.tensors.append((f"{path}.weight", "U32", [*rows, columns // 8], self.codes))
        for name, chunk in self.fill.items():
            self.tensors.append((f"{path}.{name}", "BF16", [*rows, columns // 64], chunk))

    def router(self, path, layer):
        s = self.shape
        codes = random.Random(1000 + layer).randbytes(s.experts * s.hidden)
        spread = 2 / math.sqrt(s.hidden)
        groups = [s.experts, s.hidden // 64]
        self.tensors.append((f"{path}.weight", "U32", [s.experts, s.hidden // 4], codes))
        self.tensors.append((f"{path}.scales", "BF16", groups, bf16(spread / 128) * math.prod(groups)))
        self.tensors.append((f"{path}.biases", "BF16", groups, bf16(-spread) * math.prod(groups)))

    def norm(self, path, size):
        self.tensors.append((f"{path}.weight", "BF16", [size], self.ones))


# ---- GGUF ---------------------------------------------------------------------------------------------------------

# Type: (its number, values in a block, bytes of a block).
TYPES = {"F32": (0, 1, 4), "Q4_0": (2, 32, 18), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}
ALIGNMENT = 32


def q4_0():
    """A scale, then 32 codes of 4 bits, of which each stands for (code - 8) times the scale."""
    chunk = chunk_of(18)
    put(chunk, 18, 0, f16(2.0**-8))
    return chunk


def q4_k():
    """Two scales, 8 scales and 8 minima of 6 bits, then 256 codes of 4 bits."""
    chunk = chunk_of(144)
    put(chunk, 144, 0, f16(1.2e-4) + f16(9e-4))
    return chunk


def q6_k():
    """256 codes of 6 bits, 16 scales of 8 bits, and their scale."""
    chunk = chunk_of(210)
    for i in range(16):
        put(chunk, 210, 192 + i, struct.pack("<b", 12 if i % 2 else -12))
    put(chunk, 210, 208, f16(2.0**-14))
    return chunk


class Gguf:
    """A GGUF file as llama.cpp's own quantiser lays out its `Q4_0` and `Q4_K_M` for a tied head: `Q6_K` for the
    embedding, and with `Q4_K_M` for the values and down projections of about half the layers."""

    def __init__(self, shape, kind):
        self.shape = shape
        self.kind = kind
        self.chunks = {"Q4_0": q4_0(), "Q4_K": q4_k(), "Q6_K": q6_k()}
        self.tensors = []  # (name, type, dims with the columns first, content)

    def write(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.list()
        meta = self.metadata()
        head = struct.pack("<IIQQ", 0x46554747, 3, len(self.tensors), len(meta))
        head += b"".join(self.entry(key, value) for key, value in meta.items())
        offset, places = 0, []
        for name, kind, dims, _ in self.tensors:
            number, values, size = TYPES[kind]
            count = math.prod(dims) // values * size
            head += self.text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset)
            places.append(count)
            offset += count + -count % ALIGNMENT
        with open(path, "wb") as file:
            file.write(head + bytes(-len(head) % ALIGNMENT))
            for (_, _, _, content), count in zip(self.tensors, places):
                pour(file, content, count)
                file.write(bytes(-count % ALIGNMENT))

    @staticmethod
    def text(value):
        return struct.pack("<Q", len(value.encode())) + value.encode()

    @classmethod
    def entry(cls, key, value):
        if isinstance(value, str):
            return cls.text(key) + struct.pack("<I", 8) + cls.text(value)
        if isinstance(value, float):
            return cls.text(key) + struct.pack("<If", 6, value)
        return cls.text(key) + struct.pack("<II", 4, value)

    def metadata(self):
        s, a = self.shape, self.shape.architecture
        meta = {
            "general.architecture": a,
            "general.name": s.name,
            "general.file_type": {"Q4_0": 2, "Q4_K_M": 15}[self.kind],
            "general.quantization_version": 2,
            "tokenizer.ggml.model": "none",
            f"{a}.vocab_size": s.vocabulary,
            f"{a}.context_length": 40960 if s.head_norms else 131072,
            f"{a}.embedding_length": s.hidden,
            f"{a}.block_count": s.layers,
            f"{a}.feed_forward_length": s.inner,
            f"{a}.attention.head_count": s.heads,
            f"{a}.attention.head_count_kv": s.kv_heads,
            f"{a}.attention.key_length": s.head_dim,
            f"{a}.attention.value_length": s.head_dim,
            f"{a}.attention.layer_norm_rms_epsilon": s.epsilon,
            f"{a}.rope.dimension_count": s.head_dim,
            f"{a}.rope.freq_base": s.rope_theta,
        }
        if s.experts:
            meta |= {
                f"{a}.expert_count": s.experts,
                f"{a}.expert_used_count": s.used,
                f"{a}.expert_feed_forward_length": s.inner,
            }
        return meta

    def list(self):
        s = self.shape
        self.matrix("token_embd", "Q6_K", [s.hidden, s.vocabulary])
        if s.kind == "llama":
            self.floats("rope_freqs", self.llama3_factors())
        for layer in range(s.layers):
            for _, name, rows, columns, experts in s.matrices(layer):
                dims = [columns, rows, experts] if experts else [columns, rows]
                self.matrix(f"blk.{layer}.{name}", self.type_of(name, layer), dims)
            if s.experts:
                spread = 2 / math.sqrt(s.hidden)
                router = random_floats(s.experts * s.hidden, spread, 1000 + layer)
                self.floats(f"blk.{layer}.ffn_gate_inp", router, [s.hidden, s.experts])
            self.norm(f"blk.{layer}.attn_norm", s.hidden)
            self.norm(f"blk.{layer}.ffn_norm", s.hidden)
            if s.head_norms:
                self.norm(f"blk.{layer}.attn_q_norm", s.head_dim)
                self.norm(f"blk.{layer}.attn_k_norm", s.head_dim)
        self.norm("output_norm", s.hidden)

    def type_of(self, name, layer):
        if self.kind == "Q4_0":
            return "Q4_0"
        eighth = self.shape.layers // 8
        more = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
        return "Q6_K" if more and name.startswith(("attn_v", "ffn_down")) else "Q4_K"

    def llama3_factors(self):
        s, factors = self.shape, []
        for i in range(0, s.head_dim, 2):
            length = 2 * math.pi * s.rope_theta ** (i / s.head_dim)
            smooth = min(max((8192 / length - 1) / (4 - 1), 0), 1)
            factors.append(1 / ((1 - smooth) / 32 + smooth))
        return array.array("f", factors)

    def matrix(self, name, kind, dims):
        self.tensors.append((f"{name}.weight", kind, dims, self.chunks[kind]))

    def floats(self, name, values, dims=None):
        self.tensors.append((f"{name}.weight", "F32", dims or [len(values)], values.tobytes()))

    def norm(self, name, size):
        self.floats(name, array.array("f", [1.0]) * size)


def make(shape, kind, folder):
    """The model's path; it is written unless an earlier run has. `kind` is mlx, Q4_0 or Q4_K_M."""
    folder = pathlib.Path(folder)
    path = folder / f"{shape.name}-mlx-4bit" if kind == "mlx" else folder / f"{shape.name}-{kind}.gguf"
    if not path.exists():
        unfinished = path.with_name(path.name + ".part")
        (Mlx(shape) if kind == "mlx" else Gguf(shape, kind)).write(unfinished)
        unfinished.rename(path)
    return path
