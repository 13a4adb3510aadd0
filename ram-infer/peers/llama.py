"""Measures llama.cpp once, through its shared libraries, and prints the figures as a line of JSON.

    python3 llama.py LIBRARIES MODEL.gguf --pp 512 --tg 128 --batch 1,8 --threads 2 [--no-mmap]

LIBRARIES is a folder with libllama*.so, libggml*.so and the CPU variants beside them; ggml picks the variant itself.
Only the first fields of llama.cpp's parameter structures are set, and each is checked against its known default first,
so that a version with another layout is refused instead of mismeasured.
"""

import argparse
import ctypes
import json
import math
import pathlib
import struct
import time

from ctypes import c_char_p, c_float, c_int32, c_int8, c_void_p


class Parameters(ctypes.Structure):
    """Larger than any version's; over 16 bytes a structure travels by pointer or on the stack, where more is harmless."""

    _fields_ = [("bytes", ctypes.c_ubyte * 1024)]

    def get(self, offset, form="<i"):
        return struct.unpack_from(form, bytes(self.bytes), offset)[0]

    def set(self, offset, value, form="<i"):
        struct.pack_into(form, self.bytes, offset, value)


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", ctypes.POINTER(c_int32)),
        ("embd", ctypes.POINTER(c_float)),
        ("pos", ctypes.POINTER(c_int32)),
        ("n_seq_id", ctypes.POINTER(c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(c_int32))),
        ("logits", ctypes.POINTER(c_int8)),
    ]


class Llama:
    def __init__(self, folder):
        folder = pathlib.Path(folder).resolve()
        self.ggml = self.library(folder, "libggml.*so*")
        self.llama = self.library(folder, "libllama.*so*")
        llama = self.llama
        self.log = []
        # Kept, or it would be collected while the library still calls it.
        self.logger = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)(self.keep)
        llama.llama_log_set(self.logger, None)
        for call, result, arguments in (
            ("llama_model_default_params", Parameters, []),
            ("llama_context_default_params", Parameters, []),
            ("llama_model_load_from_file", c_void_p, [c_char_p, Parameters]),
            ("llama_init_from_model", c_void_p, [c_void_p, Parameters]),
            ("llama_model_get_vocab", c_void_p, [c_void_p]),
            ("llama_vocab_n_tokens", c_int32, [c_void_p]),
            ("llama_set_n_threads", None, [c_void_p, c_int32, c_int32]),
            ("llama_batch_init", Batch, [c_int32, c_int32, c_int32]),
            ("llama_decode", c_int32, [c_void_p, Batch]),
            ("llama_get_logits_ith", ctypes.POINTER(c_float), [c_void_p, c_int32]),
            ("llama_synchronize", None, [c_void_p]),
            ("llama_get_memory", c_void_p, [c_void_p]),
            ("llama_memory_clear", None, [c_void_p, ctypes.c_bool]),
            ("llama_free", None, [c_void_p]),
            ("llama_print_system_info", c_char_p, []),
            ("ggml_backend_load_all_from_path", None, [c_char_p]),
        ):
            function = getattr(self.ggml if call.startswith("ggml") else llama, call)
            function.restype, function.argtypes = result, arguments
        self.ggml.ggml_backend_load_all_from_path(str(folder).encode())
        llama.llama_backend_init()

    def keep(self, _level, text, _data):
        self.log.append(text.decode(errors="replace"))

    @staticmethod
    def library(folder, pattern):
        found = sorted(folder.glob(pattern))
        if not found:
            raise SystemExit(f"{folder} has no {pattern}")
        return ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)

    def load(self, path, mmap):
        parameters = self.llama.llama_model_default_params()
        if hasattr(self.llama, "llama_load_mode_name"):
            # ..., split_mode, load_mode: automatic (which maps) or mapped; 0 reads the file.
            known = parameters.get(20) == 1 and parameters.get(24) in (-1, 1)
            if not mmap:
                parameters.set(24, 0)
        else:
            # Before late 2026: booleans behind the pointers, of which the second is use_mmap.
            known = parameters.get(20) == 1 and parameters.get(72, "<H") == 0x0100
            if not mmap:
                parameters.set(73, 0, "<B")
        if not known:
            raise SystemExit("this llama.cpp lays its model parameters out in a way that is not known here")
        model = self.llama.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            raise SystemExit("llama.cpp could not load the model:\n" + "".join(self.log[-20:]))
        return model

    def context(self, model, positions, sequences, threads):
        parameters = self.llama.llama_context_default_params()
        if [parameters.get(at) for at in (0, 4, 8, 12)] != [512, 2048, 512, 1]:
            raise SystemExit("this llama.cpp lays its context parameters out in a way that is not known here")
        parameters.set(0, positions * sequences)  # n_ctx
        parameters.set(12, sequences)  # n_seq_max
        context = self.llama.llama_init_from_model(model, parameters)
        if not context:
            raise SystemExit("llama.cpp made no context:\n" + "".join(self.log[-20:]))
        self.llama.llama_set_n_threads(context, threads, threads)
        return context

    def decode(self, context, batch, entries):
        """One pass over (token, position, sequence, whether logits are wanted)."""
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, wanted
        status = self.llama.llama_decode(context, batch)
        if status:
            raise SystemExit(f"llama_decode failed: {status}")
        self.llama.llama_synchronize(context)
        last = len(entries) - 1
        if entries[last][3] and math.isnan(self.llama.llama_get_logits_ith(context, last)[0]):
            raise SystemExit("llama.cpp's logits are not numbers")


def token(i, vocabulary):
    """The tokens differ; which ones they are makes no odds."""
    return 7 * i % vocabulary


def memory(key):
    """VmRSS or VmHWM in bytes."""
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024


def measure(options):
    llama = Llama(options.libraries)
    before = memory("VmRSS")
    start = time.perf_counter()
    model = llama.load(options.model, not options.no_mmap)
    load = time.perf_counter() - start
    vocabulary = llama.llama.llama_vocab_n_tokens(llama.llama.llama_model_get_vocab(model))
    most = max(options.batch)
    batch = llama.llama.llama_batch_init(max(options.pp, options.depth, most), 0, 1)
    figures = {"load_s": load}

    context = llama.context(model, max(options.pp, options.depth + options.tg + 8), 1, options.threads)
    clear = lambda context: llama.llama.llama_memory_clear(llama.llama.llama_get_memory(context), True)
    # The first pass makes the graph and touches every page.
    llama.decode(context, batch, [(1, 0, 0, 1)])
    figures["first_token_s"] = time.perf_counter() - start
    clear(context)
    if options.pp:
        prompt = [(token(i, vocabulary), i, 0, i == options.pp - 1) for i in range(options.pp)]
        start = time.perf_counter()
        llama.decode(context, batch, prompt)
        figures["prefill_tokens_per_s"] = options.pp / (time.perf_counter() - start)
    llama.llama.llama_free(context)

    figures["decode"] = []
    for sequences in options.batch:
        steps = max(options.tg // sequences, min(options.tg, 16))
        context = llama.context(model, options.depth + steps + 8, sequences, options.threads)
        for sequence in range(sequences):
            filled = [(token(i, vocabulary), i, sequence, i == options.depth - 1) for i in range(options.depth)]
            for at in range(0, len(filled), 512):
                llama.decode(context, batch, filled[at : at + 512])
        start = None
        # The first step is not counted: a graph of this many tokens is made in it.
        for step in range(steps + 1):
            if step == 1:
                start = time.perf_counter()
            entries = [
                (token(7 * sequence + step, vocabulary), options.depth + step, sequence, 1) for sequence in range(sequences)
            ]
            llama.decode(context, batch, entries)
        seconds = time.perf_counter() - start
        figures["decode"].append({"batch": sequences, "tokens_per_s": steps * sequences / seconds})
        llama.llama.llama_free(context)

    figures["peak_memory_bytes"] = memory("VmHWM") - before
    figures["system"] = llama.llama.llama_print_system_info().decode().strip()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries")
    parser.add_argument("model")
    parser.add_argument("--pp", type=int, default=512)
    parser.add_argument("--tg", type=int, default=128)
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache before decoding")
    parser.add_argument("--batch", type=lambda text: [int(word) for word in text.split(",")], default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-mmap", action="store_true")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
