"""Broken TOML files and arguments."""

from pathlib import Path

from . import extremes
from .extremes import Random, pick

TARGETS = Path(__file__).resolve().parents[2] / "onnxdfq" / "targets"
RECIPE = """method = "noise"
bits = "w8a8"
target = ["ort"]
scheme = "power-of-two"
images = 2
steps = 2
batch_size = 2
seed = 0
clipping = "mse"
split_channels = 0.0

[dgh]
steps = 2
"""
PLAN = '[layers]\n"Conv_a" = "w4a8"\n"Conv_d" = "w8"\n'
_VALUES = (
    "0", "-1", "1e400", "nan", "inf", "-inf", "9" * 5000, "-" + "9" * 30, "0x" + "f" * 40, "true", '""',
    '"\\u001b[31m"', '"w8a8"', '"w99999999999999999999a8"', "[]", "[1, 2]", "{}", '["ort", "ort"]',
    "[" * 1000 + "]" * 1000, "{a=" * 800 + "1" + "}" * 800, "1979-05-27T07:32:00Z", '"""a\nFORGED"""',
    '"' + "x" * 50_000 + '"', '"\\u202e"', '"noise"', '"dgh"', '"/dev/zero"', '"../../etc/passwd"',
    "18446744073709551616", "1_0", "0.5", "2", '"nan"',
)  # fmt: skip
_NUMBERS = (
    "0", "-1", "1", "2", "3", "1000000000000", "18446744073709551616", "9" * 5000, "1e400", "nan", "inf", "-inf", "",
    " ", "0.5", "1e-300", "0x10", "１", "1_000", "--", "None", "true",
)  # fmt: skip
_WORDS = (
    "noise", "dgh", "zeroq", "dead-leaves", "dfq", "dfmpc", "auto", "none", "ort", "qnn", "openvino", "tensorrt",
    "compact", "generic", "tflite", "vitisai", "mse", "aciq", "max", "free", "power-of-two", "adaround", "brecq",
    "imagenet", "cifar10", "w8a8", "w4a8", "w2/6", "w2/6a8", "w2a2", "w8a16", "w8a32", "size=0.001MB", "bops=1.2G",
    "size=nanMB", "size=1e999GB", "sqnr=10", "sqnr=nan", "sqnr=", "integer:Conv", "exact", "0.5,0.5,0.5/0.2,0.2,0.2",
    "nan/0", "1/0", "0/1e-300", "a/b/c", "image", "normal:0:1", "uniform:1:0", "normal:nan:inf", "uniform:-1e38:1e38",
)  # fmt: skip
_PATHS = (
    "/dev/zero", "/dev/null", "/dev/stdin", "/dev/random", "/proc/self/mem", "/proc/self/fd/0", "/", ".", "..", "",
    "absent", "a/b/c", "x" * 300, "a" * 5000, "a\x1b[31mb", "fifo", "model.onnx", "data.npz", "a\nFORGED", "é.onnx",
    "-", "~", "file:///x", "http://localhost/x", "model.onnx/x", "/sys/kernel/x", "notes.txt",
)  # fmt: skip
_SIZES = ("1,3,8,8", "0,3,8,8", "1,3,1000000,1000000", "-1,3,8,8", "1", ",,,", "1,3,8,9" * 999, "a,b")
_SETTINGS = ("dgh.steps", "dgh.rate", "dfmpc.form", "noise.x", "dfq.", ".", "dead-leaves.shapes", "a.b.c")
NUMBERED = ("--images", "--steps", "--seed", "--batch-size", "--minutes", "--split-channels")
WORDED = (
    "--method", "--bits", "--target", "--scheme", "--tuning", "--clipping", "--effort", "--device", "--normalize",
    "--budget", "--require",
)  # fmt: skip
PATHED = ("--calibration", "--evaluate", "--plan", "--save-plan", "--save-images", "--recipe", "--op-library", "-o")
FLAGS = ("--equalize", "--shift-negative", "--dynamic-batch", "--force", "-v", "--json")


def toml(random: Random, kind: str) -> bytes:
    """A recipe, a plan or a target file with a few things wrong."""
    text = {"recipe": RECIPE, "plan": PLAN}.get(kind) or (TARGETS / f"{pick(random, ('ort', 'qnn'))}.toml").read_text()
    lines = text.splitlines()
    for _ in range(random.integers(1, 3)):
        at = int(random.integers(len(lines)))
        key, equals, _ = lines[at].partition(" = ")
        what = random.integers(7)
        if what < 3 and equals:
            lines[at] = f"{key} = {pick(random, _VALUES)}"
        elif what == 3:
            lines[at] = f"{pick(random, _VALUES)} = 1"
        elif what == 4:
            lines.insert(at, lines[int(random.integers(len(lines)))])
        elif what == 5:
            lines.insert(at, f"[{'a.' * 900}a]" if random.random() < 0.5 else f"[{pick(random, _VALUES)}]")
        else:
            lines.insert(
                at, f"{pick(random, ('extra', 'settings', 'images', 'layers', 'title'))} = {pick(random, _VALUES)}"
            )
    data = "\n".join(lines).encode()
    return extremes.chop(random, data) if random.random() < 0.2 else data


def arguments(random: Random) -> list[str]:
    """A few options with values that nobody meant."""
    found: list[str] = []
    for _ in range(random.integers(1, 4)):
        what = random.random()
        if what < 0.3:
            found += [pick(random, NUMBERED), pick(random, _NUMBERS)]
        elif what < 0.5:
            found += [pick(random, WORDED), pick(random, _WORDS)]
        elif what < 0.7:
            found += [pick(random, PATHED), _path(random)]
        elif what < 0.8:
            place = pick(
                random, ("dgh.steps", "dgh.rate", "dfmpc.form", "noise.x", "dfq.", ".", "dead-leaves.shapes", "a.b.c")
            )
            found += ["--set", f"{place}={pick(random, (*_NUMBERS, *_VALUES[:20]))}".replace("\0", "")]
        elif what < 0.9:
            name = pick(random, ("", "image=", "ids=", "x=", "\x1b="))
            sizes, feed = pick(random, _SIZES), pick(random, (*_WORDS, *_NUMBERS))
            found += pick(random, (("--input-shape", name + sizes), ("--input", name + feed)))
        else:
            found.append(pick(random, (*FLAGS, "--nonsense", "\x1b[31m", "extra")))
    return found


def _path(random: Random) -> str:
    return pick(random, _PATHS) if random.random() < 0.8 else extremes.name(random).replace("\0", "")
