"""Our engine, llama.cpp and candle side by side: the same shape, the same threads, turn by turn in one run.

    python3 ram-infer/peers/compare.py                        # Llama-3.2-1B's shape, five rounds
    python3 ram-infer/peers/compare.py --shape moe-8-of-64 --rounds 7 --markdown
    sudo python3 ram-infer/peers/compare.py --realtime        # where other programs want the cores, too

Everything it needs it makes under target/peers: models of random weights (2.3 GB for the 1B), llama.cpp's libraries from
npm, candle's example models built for this very CPU. Each engine runs in a process of its own, once a round; the order
turns with every round. It needs Python 3.11, cargo and npm, and no Python packages.

What is measured: `pp`, one prompt of 512 tokens; `tg`, one token after the other, from an empty cache unless --depth
says otherwise; at batch 8 the sum over eight sequences, each with a token a pass. Loading is with the file in the page
cache. Each engine's figures come from its own clock around these passes alone.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import shapes

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LLAMA_VERSION = "3.22.1"
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
REFERENCE = "llama.cpp Q4_0 tuned"

# What each is called, with what model it runs, and how. "tuned" is what serves llama.cpp best on Linux: huge pages, and
# the file read instead of mapped.
ENGINES = {
    "ram-infer int8": ("mlx", "ours", ["--mode", "int8"], {}),
    "ram-infer bf16": ("mlx", "ours", ["--mode", "bf16"], {}),
    "ram-infer f32": ("mlx", "ours", ["--mode", "f32"], {}),
    "llama.cpp Q4_0 tuned": ("Q4_0", "llama", ["--no-mmap"], HUGE_PAGES),
    "llama.cpp Q4_0": ("Q4_0", "llama", [], {}),
    "llama.cpp Q4_K_M tuned": ("Q4_K_M", "llama", ["--no-mmap"], HUGE_PAGES),
    "llama.cpp Q4_K_M": ("Q4_K_M", "llama", [], {}),
    "candle Q4_K_M huge pages": ("Q4_K_M", "candle", [], HUGE_PAGES),
    "candle Q4_K_M": ("Q4_K_M", "candle", [], {}),
}


# ---- What the engines need ----------------------------------------------------------------------------------------


def run(command, **more):
    print("+", " ".join(map(str, command)), file=sys.stderr)
    subprocess.run(command, check=True, stdout=sys.stderr, **more)


def llama_libraries(work):
    package = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}[platform.machine()]
    folder = work / "npm"
    libraries = folder / "node_modules/@node-llama-cpp" / package / "bins" / package
    if not libraries.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        wanted = f"@node-llama-cpp/{package}@{LLAMA_VERSION}"
        run(["npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", wanted], cwd=folder)
    return libraries


def candle_program(work):
    environment = os.environ | {"CARGO_TARGET_DIR": str(work / "candle"), "RUSTFLAGS": "-C target-cpu=native"}
    run(["cargo", "build", "--release", "--manifest-path", HERE / "candle/Cargo.toml"], env=environment)
    return work / "candle/release/peer-candle"


def our_program():
    run(["cargo", "build", "--release", "-p", "ram-infer", "--example", "bench"], cwd=ROOT)
    folder = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    return ROOT / folder / "release/examples/bench"


def commands(options, names):
    """(command, environment, bytes of the model's files) of each engine."""
    work, shape = options.work, shapes.SHAPES[options.shape]
    programs = {}
    common = ["--pp", options.pp, "--tg", options.tg, "--batch", options.batch, "--depth", options.depth]
    found = {}
    for name in names:
        kind, program, words, environment = ENGINES[name]
        model = shapes.make(shape, kind, work / "models")
        if program not in programs:
            make = {"ours": our_program, "llama": lambda: options.llama or llama_libraries(work)}
            programs[program] = make.get(program, lambda: candle_program(work))()
        made = programs[program]
        command = {
            "ours": [made, model, "--json", "--threads", options.threads],
            "llama": [sys.executable, HERE / "llama.py", made, model, "--threads", options.threads],
            "candle": [made, model],
        }[program]
        environment = environment | {
            "RAYON_NUM_THREADS": str(options.threads),
            "CANDLE_NUM_THREADS": str(options.threads),
        }
        size = sum(file.stat().st_size for file in ([model] if model.is_file() else model.iterdir()))
        found[name] = ([str(word) for word in [*command, *common, *words]], environment, size)
    return found


# ---- Measuring ----------------------------------------------------------------------------------------------------


def at_once():
    """No other program of the usual kind takes the cores from this process and its children."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def measure(command, environment, options):
    """One engine's figures by name, or why there are none."""
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=options.timeout,
            preexec_fn=at_once if options.realtime else None,
        )
    except subprocess.TimeoutExpired:
        return None, f"not done within {options.timeout} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        return None, f"ended with {done.returncode}: {lines[-1]}"
    told = json.loads(done.stdout.strip().splitlines()[-1])
    figures = {"load": told["load_s"], "memory": told["peak_memory_bytes"] / 2**20}
    if told.get("prefill_tokens_per_s"):
        figures[f"pp{options.pp}"] = told["prefill_tokens_per_s"]
    for part in told["decode"]:
        figures[f"tg b{part['batch']}"] = part["tokens_per_s"]
        if part.get("probe_share") and part["batch"] == 1:
            figures["probe share"] = 100 * part["probe_share"]
    if "probe_bytes_per_s" in told:
        figures["probe GB/s"] = told["probe_bytes_per_s"] / 1e9
    return figures, None


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    flags = next((line.split() for line in open("/proc/cpuinfo") if line.startswith(("flags", "Features"))), [])
    sets = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "asimddp", "i8mm") if flag in flags]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "cpu": cpu or platform.machine(),
        "sets": sets,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "commit": commit.stdout.strip(),
    }


def rounds(options, names):
    """Every engine's figures of every round: {name: [figures or None]}, and {name: why one failed}."""
    found = commands(options, names)
    results, failures = {name: [] for name in names}, {}
    for turn in range(options.rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if name in failures:
                continue
            command, environment, _ = found[name]
            figures, failure = measure(command, environment, options)
            if failure:
                failures[name] = failure
                print(f"round {turn + 1}: {name}: {failure}", file=sys.stderr)
                continue
            results[name].append(figures)
            line = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
            print(f"round {turn + 1}: {name}: {line}", file=sys.stderr)
    sizes = {name: size for name, (_, _, size) in found.items()}
    return results, failures, sizes


# ---- Telling ------------------------------------------------------------------------------------------------------


def summary(results, failures, sizes, reference):
    """Of each engine and figure the median, the extremes, and the median of the rounds' ratios to the reference's."""
    engines = {}
    for name, told in results.items():
        entry = {"file_bytes": sizes[name], "failure": failures.get(name), "rounds": told, "figures": {}}
        keys = dict.fromkeys(key for figures in told for key in figures)
        for key in keys:
            values = [figures[key] for figures in told if key in figures]
            pairs = zip(told, results.get(reference, []))
            ratios = [mine[key] / theirs[key] for mine, theirs in pairs if key in mine and key in theirs]
            entry["figures"][key] = {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "ratio": statistics.median(ratios) if ratios else None,
            }
        engines[name] = entry
    return engines


def rows(engines, keys):
    """The table's cells: head, then a row for each engine."""
    yield ["engine", *keys, "memory / file"]
    for name, entry in engines.items():
        if not entry["figures"]:
            yield [name, *["failed: " + entry["failure"] if key == keys[0] else "" for key in keys], ""]
            continue
        cells = []
        for key in keys:
            figure = entry["figures"].get(key)
            if not figure:
                cells.append("-")
                continue
            digits = {"load": 2, "memory": 0}.get(key, 1)
            low, middle, high = (f"{figure[part]:.{digits}f}" for part in ("min", "median", "max"))
            ratio = f" {figure['ratio']:.2f}x" if figure["ratio"] and key.startswith(("pp", "tg")) else ""
            cells.append(f"{middle} ({low}-{high}){ratio}")
        memory = entry["figures"]["memory"]["median"] * 2**20 / entry["file_bytes"]
        yield [name, *cells, f"{memory:.2f}"]


def table(engines, markdown):
    keys = list(dict.fromkeys(key for entry in engines.values() for key in entry["figures"]))
    order = [key for key in keys if key.startswith(("pp", "tg"))] + [key for key in keys if key[:2] not in ("pp", "tg")]
    cells = list(rows(engines, order))
    titles = {"load": "load, s", "memory": "peak MiB", "probe share": "% of probe"}
    cells[0] = [titles.get(title, title) for title in cells[0]]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def options_of(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=shapes.SHAPES, default="llama-3.2-1b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", help="names or their beginnings, with commas between; all unless given")
    parser.add_argument("--pp", type=int, default=512, help="tokens of the prompt; 0 leaves it out")
    parser.add_argument("--tg", type=int, default=128, help="tokens to decode; a batch shares them out, 16 at least for each")
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache before decoding")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--realtime", action="store_true", help="above all other programs (needs root)")
    parser.add_argument("--reference", default=REFERENCE, help="the engine that ratios are taken to")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one engine in one round")
    parser.add_argument("--llama", type=pathlib.Path, help="a folder with llama.cpp's libraries, instead of npm's")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/peers")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file as well")
    return parser.parse_args(arguments)


def main():
    options = options_of(None)
    wanted = options.engines.split(",") if options.engines else [""]
    names = [name for name in ENGINES if any(name.startswith(word.strip()) for word in wanted)]
    if not names:
        raise SystemExit(f"no such engine; there are {', '.join(ENGINES)}")
    before = machine()
    results, failures, sizes = rounds(options, names)
    engines = summary(results, failures, sizes, options.reference)
    if options.json:
        told = {"machine": before, "options": vars(options), "engines": engines}
        options.json.write_text(json.dumps(told, indent=1, default=str))
    realtime = ", above all other programs" if options.realtime else ""
    print(
        f"{options.shape}, {options.threads} threads, depth {options.depth}, {options.rounds} rounds; "
        f"median (min-max), ratio to {options.reference}; {before['cpu']} ({' '.join(before['sets'])}), "
        f"load before {before['load']}{realtime}; commit {before['commit']}\n"
    )
    print(table(engines, options.markdown))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
