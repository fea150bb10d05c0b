"""Broken and hostile files: each is refused by one true sentence, or works; in bounded time, with nothing left behind.

The files of ../shared/cases/hostile against `hostile_table`, and what no file is needed for.
"""

import io
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.worker import Worker
from tests.fuzz.written import feeds, open_model

from ..graphs import DIGITS
from ..slow import all_but
from .hostile_table import COMPRESSED, WORKS

FEW = ("--images", "4", "--steps", "2", "-q", "-o", "out.onnx")
METHODS = {
    "auto": FEW,
    "dfq": ("--method", "dfq", *FEW),
    "dfmpc": ("--method", "dfmpc", "--bits", "w2/6a8", *FEW),
}
LEAST = 15.0  # dB on inputs of the kind that calibrated
SECONDS = {"seconds": 120.0, "processor": 60}
ENDLESS = {"14_loop_2_62", "09_chain_sigmoid_1000", "13_data_propagation_bomb"}  # a quarter or half a minute each
QUICK = {
    "02_function_constant_read_from_cwd",
    "06_domain_ai_onnx",
    "12_function_shadows_relu",
}  # whose numbers are held
MODEL = "model.onnx"


def cases() -> list[Any]:
    """All files; mutants, those that are slow, and every second of the others wait for `make test-slow`."""
    quick = [case for case in COMPRESSED if case not in ENDLESS and not case.startswith("mutant")]
    return all_but(COMPRESSED, quick[::2])


def working() -> list[Any]:
    """The files that are right."""
    found = [case for case, right in COMPRESSED.items() if right == WORKS]
    return all_but(found, QUICK)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A warm process with forks for all of these."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("the runs are watched by what Linux alone has")
    with Worker() as process:
        yield process


@pytest.fixture
def folder(tmp_path: Path, shared_cases: Path, case: str) -> Path:
    """A copy of the file in a folder of its own, with what lies beside it."""
    source = shared_cases / "hostile"
    shutil.copy(source / f"{case}.onnx", tmp_path / MODEL)
    shutil.copy(source / "ok.bin", tmp_path / "ok.bin")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def test_the_table_names_every_file(shared_cases: Path) -> None:
    assert {path.stem for path in (shared_cases / "hostile").glob("*.onnx")} == set(COMPRESSED)


@pytest.mark.parametrize("case", cases())
def test_inspect_and_lint_tell_or_refuse(worker: Worker, folder: Path, case: str) -> None:
    for command in ("inspect", "lint"):
        outcome, faults = worker.run([command, MODEL], folder, **SECONDS)
        assert faults == []
        assert outcome.code in ((0,) if COMPRESSED[case] == WORKS else (0, 2))


@pytest.mark.parametrize("case", cases())
def test_compress_works_or_is_refused_by_a_true_sentence(worker: Worker, folder: Path, case: str) -> None:
    _compress(worker, folder, case, "auto")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dfq", "dfmpc"])
@pytest.mark.parametrize("case", COMPRESSED)
def test_other_methods_work_or_refuse_by_a_true_sentence(worker: Worker, folder: Path, case: str, method: str) -> None:
    _compress(worker, folder, case, method)


def _compress(worker: Worker, folder: Path, case: str, method: str) -> None:
    arguments = ["compress", MODEL, *METHODS[method]]
    outcome, faults = worker.run(arguments, folder, outputs=("out.onnx",), model=MODEL, **SECONDS)
    assert faults == []
    right = COMPRESSED[case]
    if outcome.code:
        # a method may have a reason of its own to refuse what another takes
        assert method != "auto" or (re.search(right, outcome.stderr) and right != WORKS), outcome.stderr
        return
    assert WORKS in right.split("|")


@pytest.mark.parametrize("case", working())
def test_what_works_computes_what_the_file_does(worker: Worker, folder: Path, case: str) -> None:
    drawn = [feeds(open_model(folder / MODEL), seed) for seed in range(8)]
    np.savez(folder / "data.npz", **{name: np.concatenate([one[name] for one in drawn]) for name in drawn[0]})
    arguments = ["compress", MODEL, "--calibration", "data.npz", "-q", "-o", "out.onnx"]
    outcome, faults = worker.run(arguments, folder, outputs=("out.onnx",), model=MODEL, **SECONDS)
    assert (outcome.code, faults) == (0, []), outcome.stderr
    assert _decibel(folder / MODEL, folder / "out.onnx") > LEAST


def _decibel(source: Path, written: Path) -> float:
    """Signal to noise of the worst output against the file as ONNX Runtime runs it."""
    one, other = open_model(source), open_model(written)
    given, levels = feeds(other, 99), []
    for wanted, found in zip(one.run(None, given), other.run(None, given), strict=True):
        noise, signal = np.square(wanted.astype(float) - found).sum(), np.square(wanted.astype(float)).sum()
        levels.append(np.inf if noise == 0 else 10 * np.log10(signal / noise))
    return float(min(levels))


HUGE, DEEP, LONG = "9" * 5000, "[" * 2000 + "]" * 2000, "x" * 300
COMPRESS = ["compress", MODEL, "-o", "out.onnx", "-q", "--method", "noise"]
REFUSED_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "images": ([*COMPRESS, "--images", "1000000000000"], "--images"),
    "images of dgh": (["compress", MODEL, "-o", "out.onnx", "--images", "1000000000000"], "--images"),
    "steps": (["compress", MODEL, "-o", "out.onnx", "--steps", "1000000000000"], "--steps"),
    "batch size": ([*COMPRESS, "--images", "4", "--batch-size", str(2**63)], "--batch-size"),
    "seed": ([*COMPRESS, "--images", "4", "--seed", str(2**64)], "--seed"),
    "minutes": (["compress", MODEL, "-o", "out.onnx", "--minutes", "nan"], "--minutes"),
    "endless recipe": ([*COMPRESS, "--recipe", "/dev/zero"], "/dev/zero"),
    "endless plan": ([*COMPRESS, "--images", "4", "--plan", "/dev/zero"], "/dev/zero"),
    "endless target": ([*COMPRESS, "--images", "4", "--target", "zero.toml"], "zero.toml"),
    "endless model": (["inspect", "/dev/zero"], "/dev/zero"),
    "endless data": (["evaluate", MODEL, "/dev/zero"], "/dev/zero"),
    "pipe as model": (["inspect", "pipe.onnx"], "pipe.onnx"),
    "pipe as data": ([*COMPRESS, "--calibration", "pipe.npz"], "pipe.npz"),
    "pipe as image": ([*COMPRESS, "--calibration", "pipe.png"], "pipe.png"),
    "pipe among images": (["evaluate", MODEL, "photos", "--normalize", "none"], "pipe.png"),
    "pipe as recipe": ([*COMPRESS, "--recipe", "pipe.toml"], "pipe.toml"),
    "pipe as plan": ([*COMPRESS, "--images", "4", "--plan", "pipe.toml"], "pipe.toml"),
    "pipe as target": ([*COMPRESS, "--images", "4", "--target", "pipe.toml"], "pipe.toml"),
    "output of NUL": (["compress", MODEL, "-o", "a\0b.onnx", "--images", "4"], "-o|name|NUL"),
    "long output": (["compress", MODEL, "-o", f"{LONG}.onnx", "--images", "4"], "long"),
    "long model": (["inspect", LONG], "long|no such file"),
    "long data": (["evaluate", MODEL, f"{LONG}.npz"], "long|no such file"),
    "nested recipe": ([*COMPRESS, "--recipe", "deep.toml"], "deep.toml"),
    "nested plan": ([*COMPRESS, "--images", "4", "--plan", "deep.toml"], "deep.toml"),
    "nested target": ([*COMPRESS, "--images", "4", "--target", "./deep.toml"], "deep.toml"),
    "recipe with a number of 5,000 digits": ([*COMPRESS, "--recipe", "huge.toml"], "huge.toml"),
    "setting of 5,000 digits": ([*COMPRESS, "--images", "4", "--set", f"dgh.rate={HUGE}"], "--set|rate"),
    "nested setting": ([*COMPRESS, "--images", "4", "--set", f"dgh.rate={DEEP}"], "--set|rate"),
}


def _lay_down(folder: Path) -> None:
    """What these arguments name."""
    shutil.copy(DIGITS / "digits.onnx", folder / MODEL)
    (folder / "photos").mkdir()
    for name in ("pipe.onnx", "pipe.npz", "pipe.png", "pipe.toml", "photos/pipe.png"):
        os.mkfifo(folder / name)
    (folder / "zero.toml").symlink_to("/dev/zero")
    (folder / "deep.toml").write_text(f"images = {DEEP}\n")
    (folder / "huge.toml").write_text(f"images = {HUGE}\n")


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_arguments_are_refused_by_a_true_sentence(worker: Worker, tmp_path: Path, name: str) -> None:
    _lay_down(tmp_path)
    arguments, fragment = REFUSED_ARGUMENTS[name]
    outcome, faults = worker.run(arguments, tmp_path, outputs=("out.onnx",), **SECONDS)
    assert faults == []
    assert outcome.code == 2
    assert re.search(fragment, outcome.stderr), outcome.stderr


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + data


def _shaped(shape: str, kind: str = "<f4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape})}}"


def _zip(name: str, data: bytes, *, method: int = zipfile.ZIP_STORED, flags: int = 0, size: int | None = None) -> bytes:
    """An archive of one entry, whose data may be of any method, or none."""
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, flags, method, 0, 33, zlib.crc32(data), len(data),
                        size or len(data), len(name), 0)  # fmt: skip
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, flags, method, 0, 33, zlib.crc32(data), len(data),
                        size or len(data), len(name), 0, 0, 0, 0, 0, 0)  # fmt: skip
    head = local + name.encode() + data
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(entry) + len(name), len(head), 0)
    return head + entry + name.encode() + end


def _bomb(*, told: bool) -> bytes:
    """A few megabytes that expand to gigabytes: zeros, of which one piece is packed and laid down again and again.

    told: whether the archive says how much it is.
    """
    count, pieces = 2**20, 3900
    header = _npy(_shaped(f"{pieces * count // 256}, 1, 8, 8"))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(b"\0" * count) + packer.flush(zlib.Z_FULL_FLUSH)
    size = len(header) + (count * pieces if told else 1000)
    return _zip("images.npy", head + piece * pieces, method=zipfile.ZIP_DEFLATED, size=size)


def _npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _eps() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(stream, "EPS")
    return stream.getvalue()


def _png(width: int, height: int, pixels: bytes = b"\0" * 2**16) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


FLOATS = np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype("f4")
REFUSED_DATA: dict[str, tuple[str, bytes, str]] = {
    "bomb that tells its size": ("data.npz", _bomb(told=True), "data.npz"),
    "bomb that does not": ("data.npz", _bomb(told=False), "data.npz"),
    "entry that is no array": ("data.npz", _zip("images.npy", b"no array"), "data.npz"),
    "encrypted entry": ("data.npz", _zip("images.npy", _npy(_shaped("1, 1, 8, 8")), flags=1), "encrypted|password"),
    "unknown compression": ("data.npz", _zip("images.npy", b"x" * 50, method=99), "compress"),
    "broken deflate": ("data.npz", _zip("images.npy", b"\xff" * 50, method=zipfile.ZIP_DEFLATED), "data.npz"),
    "broken lzma": ("data.npz", _zip("images.npy", b"\xff" * 50, method=zipfile.ZIP_LZMA), "data.npz"),
    "broken bzip2": ("data.npz", _zip("images.npy", b"\xff" * 50, method=zipfile.ZIP_BZIP2), "data.npz"),
    "header of brackets": ("data.npy", _npy("(" * 500), "data.npy"),
    "header of a name": ("data.npy", _npy("__import__('os').getcwd()"), "data.npy"),
    "header that is long": ("data.npy", _npy("{" + " " * 20_000 + "}"), "data.npy"),
    "array of 4 TB": ("data.npy", _npy(_shaped("1000000000000,")), "data.npy"),
    "array of a negative size": ("data.npy", _npy(_shaped("-1, 1, 8, 8")), "data.npy"),
    "array of objects": ("data.npy", _npy(_shaped("1,", "|O")), "pickle"),
    "array of texts": ("data.npz", _npz(images=np.array(["a", "b"])), "images"),
    "array of times": ("data.npz", _npz(images=np.zeros((4, 1, 8, 8), "M8[s]")), "images"),
    "array of complex numbers": ("data.npz", _npz(images=FLOATS.astype("c8")), "images"),
    "pixels that are NaN": ("data.npz", _npz(images=np.full_like(FLOATS, np.nan)), "NaN|not a number|not finite"),
    "pixels of 3e38": ("data.npz", _npz(images=np.full_like(FLOATS, 3e38)), "infinit|3e|too large|not a number|NaN"),
    "EPS called png": ("photo.png", _eps(), "photo.png(?!.*Ghostscript)"),
    "PNG of 2^62 pixels": ("photo.png", _png(2**31 - 1, 2**31 - 1), "photo.png"),
    "PNG of 900 million pixels": ("photo.png", _png(30_000, 30_000), "photo.png"),
    "PNG that is cut off": ("photo.png", _png(8, 8)[:50], "photo.png"),
    "no image": ("photo.png", b"hello", "photo.png"),
    "empty": ("photo.jpg", b"", "photo.jpg"),
}


@pytest.mark.parametrize("name", all_but(REFUSED_DATA, list(REFUSED_DATA)[::3]))
def test_data_are_refused_by_a_true_sentence(worker: Worker, tmp_path: Path, name: str) -> None:
    shutil.copy(DIGITS / "digits.onnx", tmp_path / MODEL)
    file, content, fragment = REFUSED_DATA[name]
    (tmp_path / file).write_bytes(content)
    for arguments in (["evaluate", MODEL, file], [*COMPRESS, "--calibration", file]):
        outcome, faults = worker.run(arguments, tmp_path, outputs=("out.onnx",), **SECONDS)
        assert faults == []
        assert outcome.code == 2
        assert re.search(fragment, outcome.stderr), outcome.stderr


def test_the_image_that_failed_is_refused(worker: Worker, tmp_path: Path, shared_cases: Path) -> None:
    shutil.copy(DIGITS / "digits.onnx", tmp_path / MODEL)
    shutil.copy(shared_cases / "hostile" / "img_3.png", tmp_path)
    outcome, faults = worker.run(["evaluate", MODEL, "img_3.png", "--normalize", "none"], tmp_path, **SECONDS)
    assert faults == []
    assert outcome.code == 2 and "img_3.png" in outcome.stderr
