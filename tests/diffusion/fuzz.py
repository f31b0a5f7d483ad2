"""Loads a prior and reads a run's folder, repeatedly, each time with one corrupted file.

  python -m tests.diffusion.fuzz --pipeline=DIR --workspace=EMPTY_DIR --count=2000 --fuzz_seed=0

A process of its own, so that its memory can be bounded, and so that a crash is seen. Every file
must be read or be refused by a UserError; what else happens is a finding. Leaves report.json.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from safetensors.numpy import load_file, save_file

from dreamfusion_jax.config.flags import Config, read_config, to_dict, validate
from dreamfusion_jax.diffusion.loading.lora_files import Lora
from dreamfusion_jax.diffusion.loading.parts import Additions
from dreamfusion_jax.diffusion.loading.pipeline import load_prior
from dreamfusion_jax.diffusion.loading.text_encoder import load_tokenizer
from dreamfusion_jax.runs import outputs
from dreamfusion_jax.runs.metrics import _drop_lines_after
from dreamfusion_jax.runs.workdir import check_places
from dreamfusion_jax.runtime.errors import PriorError, UserError
from dreamfusion_jax.training.options import TrainOptions

PIPELINE = flags.DEFINE_string("pipeline", None, "a small pipeline, as diffusers saves it")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "a small model.safetensors in LDM names, with its tokenizer/ beside it"
)
WORKSPACE = flags.DEFINE_string("workspace", None, "an empty folder")
COUNT = flags.DEFINE_integer("count", 100, "files to corrupt")
SEED = flags.DEFINE_integer("fuzz_seed", 0, "decides all that is done to them")

SECONDS = 20  # after which a file counts as hanging
MEMORY = 2**30
LENGTH = 12  # of the small pipeline's texts
PROMPTS = ("a red chair", "", "\U0001f984 \u6771\u4eac \0 <|endoftext|>", "very " * 200)
REPORT = "report.json"
SECRET = "secret"  # a folder beside the prior, into which nothing may lead


class Hung(BaseException):
    """Raised where a file takes too long."""


# What is done to a file. Every function takes a source of chance and the bytes of the file.


def cut_short(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    # The head of a file says what the rest is.
    end = len(changed) if rng.random() < 0.5 else min(len(changed), 2000)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def splice(rng: random.Random, data: bytes) -> bytes:
    """Copies a piece of the file to another place, over or before the bytes there."""
    first, length = rng.randrange(len(data) + 1), rng.choice((1, 8, 100, 1000))
    at, over = rng.randrange(len(data) + 1), rng.choice((0, length))
    return data[:at] + data[first : first + length] + data[at + over :]


def leave_out(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 8, 100)) :]


def put_in(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 8, 1000))) + data[at:]


def something_else(rng: random.Random, data: bytes) -> bytes:
    return rng.choice(
        (
            b"",
            b"\0" * len(data),
            b"\xff" * 64,
            rng.randbytes(500),
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b"1" * 5000,
            b'"' + b"\\ud800" * 100 + b'"',
            b"\x80\x04\x95 a pickle's first bytes",
            b"{}",
            b"[]",
            b"null",
            b"[" + b"[]," * 3_000_000 + b"[]]",
            b" " * 9_000_000 + data,
        )
    )


def other_encoding(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", errors="replace")
    return text.encode(
        rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "utf-8-sig", "cp037")),
        errors="replace",
    )


RAW = (cut_short, flip_bits, flip_bits, splice, leave_out, put_in, something_else, other_encoding)


def strange_value(rng: random.Random) -> Any:
    deep: Any = []
    for _ in range(rng.choice((3, 500))):
        deep = [deep]
    return rng.choice(
        (
            *(None, True, False, 0, -1, 1, 2, 7, 3.5, -0.0, 1e308, 1e-308, 2**31, 2**63, 10**400),
            *(float("nan"), float("inf"), -(10**18), 10**9, 10**6, 100_000),
            *([], {}, [[]], [1], deep),
            *("", "x", "\0", "..", ".", "/", "nan", "1", "x" * 100_000, "\ud800", "\u202e\x1b[2J"),
            *(f"../{SECRET}/a.json", f"../../{SECRET}/a.safetensors", "/etc/passwd", "file:///x"),
            *([1] * 5000, [True], ["x"] * 3, [float("nan")] * 3, {"x": {"y": 1}}, [[1, 2], [3]]),
        )
    )


STRANGE_KEYS = (
    *("", "..", "weight", "vocab", "merges", "vocab_file", "merges_file", "tokenizer_file"),
    *("fast_tokenizer_files", "init_inputs", "gguf_file", "auto_map", "chat_template", "__class__"),
    *("dtype", "name", "parent", "trained_betas", "sample_size", "steps", "prompt", "workdir"),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Returns every container in a JSON value with each of its keys."""
    pairs = []
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        pairs.append((value, key))
        if isinstance(part, dict | list) and part:
            pairs += places(part)
    return pairs


def change_value(rng: random.Random, value: Any) -> Any:
    """Sets one to three strange values or keys somewhere in a JSON value, or removes one."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        there = places(value) if isinstance(value, dict | list) else []
        if not there or rng.random() < 0.02:
            return strange_value(rng)
        holder, key = rng.choice(there)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(STRANGE_KEYS)] = strange_value(rng)
            case 2 if isinstance(holder[key], int | float):
                factor = rng.choice((-1, 0, 2, 10, 1e3, 1e6, 1e9, 1e300))
                holder[key] = type(holder[key])(holder[key] * factor)
            case 3:
                holder[key] = [holder[key]] * rng.choice((1, 2, 9))
            case _:
                holder[key] = strange_value(rng)
    return value


def change_json(rng: random.Random, data: bytes) -> bytes:
    value = json.loads(data)
    if rng.random() < 0.1 and isinstance(value, dict) and value:  # a key twice
        key = rng.choice(list(value))
        twice = f"{json.dumps(key)}: {json.dumps(strange_value(rng))}, "
        return (b"{" + twice.encode() + data.lstrip()[1:]) if twice.isascii() else data
    return json.dumps(change_value(rng, value)).encode()


STRANGE_LINES = (
    *(b"", b"a b c", b"ab", b"\xff", b"{}", b"[1]", b"7", b"a" * 10**6, b"[" * 10**5),
    *(b'{"step": "x"}', b'{"step": NaN}', b'{"step": 1e999}', b'{"step": [1]}'),
)


def change_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at : at + rng.randrange(2)] = [rng.choice(STRANGE_LINES)]
    return b"\n".join(lines)


DTYPES = (
    *("F64", "F16", "BF16", "I64", "BOOL", "C64", "F8_E4M3", "F4", "U8", "X", ""),
    *(None, 7),
)
SHAPES: tuple[Any, ...] = (
    *([], [0], [1] * 70, [2**60, 2**60], [-1], [1.5], ["4"], [0, 2**62], [2**64]),
    None,
)
NAMES = (
    *("", "weight", "a..b", "\0", "conv_in", "conv_in.weight.x", "0", "a" * 5000, "../x"),
    "__metadata__.x",
)


def strange_offsets(rng: random.Random, begin: int, end: int) -> Any:
    """Returns wrong places of a tensor, and values that are no places."""
    no_place: tuple[Any, ...] = ([begin], [2**64, 2**64], [0, 0], "0", [])
    beside = ([begin, end + 1], [begin + 1, end + 1], [-1, end], [end, begin], [begin, 2**63])
    return rng.choice((*beside, *no_place))


def change_header(rng: random.Random, data: bytes) -> bytes:
    """Changes the header of a safetensors file: types, shapes, places, names."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    true = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice((1, 1, 2, 5))):
        entry, other = header[rng.choice(names)], header[rng.choice(names)]
        match rng.randrange(12):
            case 0:
                entry["dtype"] = rng.choice(DTYPES)
            case 1:
                entry["shape"] = rng.choice((*SHAPES, other["shape"]))
            case 2:
                entry["shape"] = [*true[rng.choice(names)]["shape"][::-1], 1]
            case 3:
                entry["data_offsets"] = other["data_offsets"]  # one over the other
            case 4:
                entry["data_offsets"] = strange_offsets(
                    rng, *true[rng.choice(names)]["data_offsets"]
                )
            case 5:
                header[rng.choice(NAMES)] = dict(entry)
            case 6:
                name = rng.choice(names)
                header[name.replace(".0.", "_0.")] = dict(entry)
            case 7:
                header["__metadata__"] = strange_value(rng)
            case 8:
                entry[rng.choice(STRANGE_KEYS)] = strange_value(rng)
            case 9:
                body += rng.randbytes(rng.choice((1, 8, 1000)))
            case 10:
                body = b"\xff" * len(body)  # NaN everywhere
            case 11:
                header = change_value(rng, header)
                break
    text = json.dumps(header).encode()
    if rng.random() < 0.1:  # a name twice
        text = b'{"x": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, ' * 2 + text[1:]
    text += b" " * rng.choice((0, 1, 7, 10_000))
    size = rng.choice(
        (len(text),) * 8 + (len(text) - 1, len(text) + 1, 0, 2**63, 2**64 - 1, 99_999_999)
    )
    return size.to_bytes(8, "little") + text + body


# What may lie in a file's place.


def put_folder(rng: random.Random, path: Path) -> None:
    path.mkdir()


def put_pipe(rng: random.Random, path: Path) -> None:
    os.mkfifo(path)


def put_sparse(rng: random.Random, path: Path) -> None:
    with path.open("wb") as file:
        file.write(rng.choice((b"", b"\xff\xff\xff\x7f\0\0\0\0", b"\xe0\xff\xf5\x05\0\0\0\0{")))
        file.truncate(rng.choice((2**27, 2**33)))


TARGETS = ("no such", "..", "/dev/zero", "/dev/null", "/proc/self/mem", "/", "/dev/urandom")


def put_link(rng: random.Random, path: Path) -> None:
    path.symlink_to(rng.choice((path.name, *TARGETS)))


def put_nothing(rng: random.Random, path: Path) -> None:
    pass


INSTEAD = (put_folder, put_pipe, put_sparse, put_link, put_link, put_nothing)


def changes(path: Path) -> tuple[Callable[[random.Random, bytes], bytes], ...]:
    """Returns the changes for a file of this name, mostly those for its format."""
    if path.suffix == ".json":
        return (*RAW, *(change_json,) * 24)
    if path.suffix == ".safetensors":
        return (*RAW, *(change_header,) * 16)
    return (*RAW, *(change_lines,) * 8)


# What is read.


def lay_out(pipeline: Path, folder: Path) -> list[Path]:
    """Writes a run and two priors, which have every kind of file; returns the folders."""
    whole, parts, run = folder / "whole", folder / "parts", folder / "run"
    for copy in (whole, parts):
        shutil.copytree(pipeline, copy, ignore=shutil.ignore_patterns("words"))
    divide(parts / "unet")
    spell_out(parts / "tokenizer")
    for name in ("a.json", "a.safetensors"):
        (folder / SECRET).mkdir(exist_ok=True)
        (folder / SECRET / name).write_text("{}")
    run.mkdir()
    config = validate(Config(train=TrainOptions(prompt="a red chair")))
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    (run / "outputs.json").write_text('{"step": 3, "files": ["mesh.glb"]}')
    lines = [json.dumps({"step": step, "opacity_mean": 0.5}) for step in range(20)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for name in outputs.SCENE_FILES:
        (run / name).touch()
    return [whole, parts, run]


def lay_out_checkpoint(checkpoint: Path, pipeline: Path, folder: Path) -> list[Path]:
    """Writes a checkpoint in one file, and what is added to a prior; returns their folders."""
    single, added = folder / "single", folder / "added"
    shutil.copytree(checkpoint / "tokenizer", single / "tokenizer")
    shutil.copy(checkpoint / "model.safetensors", single)
    added.mkdir()
    unet = load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    attention = [name for name in unet if ".to_q.weight" in name]
    factors = {
        f"unet.{name.replace('.weight', f'.lora_{kind}.weight')}": np.ones(
            (2, unet[name].shape[1]) if kind == "A" else (len(unet[name]), 2), np.float32
        )
        for name in attention
        for kind in "AB"
    }
    save_file(factors, added / "lora.safetensors", {"lora_adapter_metadata": '{"unet.r": 2}'})
    text = json.loads((pipeline / "text_encoder" / "config.json").read_text())
    save_file({"<cup>": np.ones(text["hidden_size"], np.float32)}, added / "word.safetensors")
    return [single, added]


def divide(network: Path) -> None:
    """Splits a file of weights into two with an index."""
    name = "diffusion_pytorch_model"
    tensors = load_file(network / f"{name}.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number, held in enumerate((names[::2], names[1::2]), 1):
        shard = f"{name}-0000{number}-of-00002.safetensors"
        save_file({n: np.array(tensors[n]) for n in held}, network / shard)
        weight_map |= dict.fromkeys(held, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (network / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    (network / f"{name}.safetensors").unlink()


def spell_out(tokenizer: Path) -> None:
    """Replaces a tokenizer.json by the files of older versions of transformers."""
    model = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    marks = {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>"}}
    (tokenizer / "special_tokens_map.json").write_text(json.dumps(marks))
    (tokenizer / "added_tokens.json").write_text("{}")
    (tokenizer / "tokenizer.json").unlink()


def read_prior(folder: Path) -> None:
    load_prior(folder, place=lambda array: array)
    vocabulary = json.loads((folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    tokenize = load_tokenizer(folder / "tokenizer", LENGTH, vocabulary)
    ids = tokenize(PROMPTS)
    assert ids.shape[0] == len(PROMPTS) and 0 <= ids.min() <= ids.max() < vocabulary


def read_single(folder: Path) -> None:
    load_prior(folder / "model.safetensors", place=lambda array: array)


def read_added(folder: Path) -> None:
    loras = [Lora(folder / "lora.safetensors", 0.5)]
    additions = Additions(loras, [folder / "word.safetensors"])
    load_prior(folder.parent / "whole", place=lambda array: array, additions=additions)


def read_run(folder: Path) -> None:
    check_places(folder)
    config = read_config(folder / "config.json")
    outputs.missing_outputs(folder, config, 3)
    _drop_lines_after(folder / "metrics.jsonl", 10)


FORBIDDEN = ("pickle.find_class", "socket.connect", "socket.bind", "os.system", "os.exec")


class Watch:
    """Hears what Python opens, connects to and unpickles. It never stops hearing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            self.hear_open(os.path.abspath(os.fsdecode(arguments[0])), arguments[2])
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")

    def hear_open(self, path: str, mode: int) -> None:
        writes = mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and not path.startswith((f"{self.folder}/", "/dev/null")):
            self.seen.append(f"written: {path}")
        if f"/{SECRET}/" in path:
            self.seen.append(f"led to: {path}")


@contextlib.contextmanager
def corrupted(rng: random.Random, path: Path) -> Iterator[str]:
    """Changes a file, and restores it afterwards."""
    data = path.read_bytes()
    try:
        if rng.random() < 0.06:
            put = rng.choice(INSTEAD)
            path.unlink()
            put(rng, path)
            yield put.__name__
        else:
            change = rng.choice(changes(path))
            path.write_bytes(change(rng, data))
            yield change.__name__
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(data)


def outcome(read: Callable[[Path], None], folder: Path, path: Path) -> str:
    """Returns "worked", "refused", or what went wrong."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            read(folder)
    except UserError as error:
        right = UserError if read is read_run else PriorError
        named = path.name in str(error) or path.parent.name in str(error)
        if type(error) is right and named:
            return "refused"
        return f"refused badly: {type(error).__name__}: {error}"[:500]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)
        places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in where[::-1][:6])
        return f"{type(error).__name__}: {error} ({places})"[:700]
    return "worked"


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Raises `Hung` when it takes too long; ends the process where not even that is heard."""
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


def hang(*_: Any) -> None:
    raise Hung


def to_spoil(folders: Sequence[Path]) -> list[Path]:
    """Returns the folders' files, those with more influence more often."""
    there = [path for folder in folders for path in sorted(folder.rglob("*"))]
    files = [path for path in there if path.is_file() and path.stat().st_size]
    texts = [path for path in files if path.suffix != ".safetensors"]
    foreign = [path for path in texts if path.parent.name in ("tokenizer", "run")]
    whole = [path for path in files if path.parent.name in ("single", "added")]
    return [*files, *texts, *foreign, *foreign, *(5 * whole)]


def bound_memory() -> None:
    """Limits the process to one more gigabyte from here on."""
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))


def peak_mb() -> float:
    """Returns this process's own peak: ru_maxrss is at least what its parent held at the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(_: list[str]) -> None:
    sys.dont_write_bytecode = True
    workspace = Path(WORKSPACE.value).resolve()
    folders = lay_out(Path(PIPELINE.value), workspace)
    read_all: list[Callable[[Path], None]] = [read_prior, read_prior, read_run]
    if CHECKPOINT.value:
        folders += lay_out_checkpoint(Path(CHECKPOINT.value), Path(PIPELINE.value), workspace)
        read_all += [read_single, read_added]
    readers = dict(zip(folders, read_all, strict=True))
    for folder, read in readers.items():
        read(folder)  # as it is, it must work; and all is imported then
    files, peaks, findings, times = to_spoil(folders), [(peak_mb(), "before")], [], []
    counts: collections.Counter[str] = collections.Counter()
    signal.signal(signal.SIGALRM, hang)
    bound_memory()
    watch = Watch(workspace)
    for number in range(COUNT.value):
        rng = random.Random(f"{SEED.value} {number}")
        path = rng.choice(files)
        folder = next(folder for folder in folders if path.is_relative_to(folder))
        with corrupted(rng, path) as change:
            began = time.monotonic()
            with in_time():
                came = outcome(readers[folder], folder, path)
        what = f"{number}: {change} of {path.relative_to(workspace)}"
        times.append((time.monotonic() - began, what))
        if peak_mb() > peaks[-1][0] + 16:
            peaks.append((peak_mb(), what))
        if watch.seen:
            came = f"{came}, but {'; '.join(watch.seen)}"
            watch.seen.clear()
        if came not in ("worked", "refused"):
            findings.append(f"{what}: {came}")
            came = "wrong"
        counts.update((came, f"{change} {came}"))
    report = {
        "findings": findings,
        "slowest": max(times),
        "seconds": sum(took for took, _ in times),
        "peaks_mb": [*peaks, (peak_mb(), "all")],
        "counts": dict(sorted(counts.items())),
    }
    (workspace / REPORT).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    flags.mark_flags_as_required(["pipeline", "workspace"])
    app.run(main)
