"""Cases: a command line and the files that it reads, made of a seed and a number alone."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from . import archives, texts
from .extremes import Random, chop, pick
from .fields import mutate_field
from .graphs import MUTATORS
from .seeds import Seed, seeds

OUT = "out.onnx"
MODEL = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class Case:
    """family: what was broken. files: by name, what is laid down. mutated: the broken one, "" where none is.

    outputs: what a success may leave. pipes: names of FIFOs that nobody writes to.
    """

    family: str
    arguments: tuple[str, ...]
    files: dict[str, bytes]
    mutated: str = ""
    outputs: tuple[str, ...] = ()
    pipes: tuple[str, ...] = field(default=("fifo",))


def make_case(seed: int, number: int) -> Case:
    """The case; the same for the same two numbers."""
    random = np.random.default_rng([seed, number])
    names = list(FAMILIES)
    weights = np.array([FAMILIES[name][0] for name in names], float)
    family = names[int(random.choice(len(names), p=weights / weights.sum()))]
    return FAMILIES[family][1](random, family)


def _model_case(random: Random, family: str) -> Case:
    """A model with one to three mutations of one family, under any command."""
    seed = _seed(random)
    proto = seed.proto()
    for _ in range(pick(random, (1, 1, 1, 2, 3))):
        (mutate_field if family == "field" else MUTATORS[family])(random, proto)
    return _of_model(random, family, seed, proto.SerializeToString())


def _bytes_case(random: Random, family: str) -> Case:
    seed = _seed(random)
    return _of_model(random, family, seed, chop(random, seed.data))


def _of_model(random: Random, family: str, seed: Seed, data: bytes) -> Case:
    arguments, files, outputs = _command(random, seed)
    return Case(family=family, arguments=arguments, files={**files, MODEL: data}, mutated=MODEL, outputs=outputs)


def _command(random: Random, seed: Seed) -> tuple[tuple[str, ...], dict[str, bytes], tuple[str, ...]]:
    """A command on a model: arguments, files, what it may write."""
    few = ("--images", "2", "--steps", "2", "--seed", "0")
    said = ("--json",) if random.random() < 0.3 else ()
    files = dict(seed.files)
    compress = ("compress", MODEL, "-o", OUT, "-q", *said)
    commands: tuple[tuple[str, ...], ...] = (
        ("inspect", MODEL, *said),
        ("inspect", MODEL, "--pairs", *said),
        ("lint", MODEL, *said),
        ("lint", MODEL, *said, "--target", pick(random, ("qnn", "openvino", "tensorrt", "compact"))),
        (*compress, "--method", "noise", *few),
        (*compress, *few),
        (*compress, *few, "--dynamic-batch", "--target", pick(random, ("ort", "qnn", "compact", "generic", "tflite"))),
        (*compress, "--method", "dfq", "--images", "2"),
        (*compress, "--method", "dfmpc", "--bits", pick(random, ("w2/6a8", "w2/6")), *few),
        (*compress, "--calibration", "data.npz"),
        (*compress, "--calibration", "data.npz", "--evaluate", "data.npz"),
        ("evaluate", MODEL, "data.npz", *said),
        ("evaluate", "clean.onnx", "data.npz", "--against", MODEL, *said),
        ("synthesize", MODEL, "-o", "images.npz", "-q", *few, *said),
    )
    weights = np.array([8, 2, 8, 4, 10, 8, 4, 7, 6, 6, 2, 6, 3, 4], float)
    arguments = commands[int(random.choice(len(commands), p=weights / weights.sum()))]
    if "data.npz" in arguments:
        files["data.npz"] = _data(seed)
    if "clean.onnx" in arguments:
        files["clean.onnx"] = seed.data
    outputs = tuple(name for name in (OUT, "images.npz") if name in arguments)
    return arguments, files, outputs


def _archive_case(random: Random, family: str) -> Case:
    seed = _seed(random)
    arrays = _arrays(seed)
    data = archives.archive(random, arrays)
    name = "data.npy" if data[:6] == b"\x93NUMPY" else "data.npz"
    return _of_data(random, family, seed, name, {name: data})


def _image_case(random: Random, family: str) -> Case:
    """A folder of photographs of which one is broken; flat, or a folder per class."""
    wanted = pick(random, ("cnn", "cnn", "bytes", "depthwise"))
    seed = next(one for one in seeds() if one.name == wanted)
    folders = random.random() < 0.5
    files = {}
    for number in range(3):
        suffix, data = archives.picture(random, broken=number == 0)
        folder = f"photos/{pick(random, ('a', 'b', 'c'))}/" if folders else "photos/"
        files[f"{folder}{number}{suffix}"] = data
    whole = "photos" if random.random() < 0.8 else next(iter(files))
    return _of_data(random, family, seed, whole, files, ("--normalize", "none"))


def _of_data(
    random: Random, family: str, seed: Seed, name: str, files: dict[str, bytes], more: tuple[str, ...] = ()
) -> Case:
    said = ("--json",) if random.random() < 0.3 else ()
    evaluate = ("evaluate", MODEL, name, *more, *said)
    compress = ("compress", MODEL, "-o", OUT, "-q", "--calibration", name, *more, *said)
    arguments = evaluate if random.random() < 0.5 else compress
    return Case(
        family=family,
        arguments=arguments,
        files={MODEL: seed.data, **seed.files, **files},
        mutated=next(iter(files)),
        outputs=(OUT,) if OUT in arguments else (),
    )


def _toml_case(random: Random, family: str) -> Case:
    seed = seeds()[0]
    kind = pick(random, ("recipe", "plan", "target"))
    name = f"{kind}.toml"
    few = () if kind == "recipe" and random.random() < 0.3 else ("--images", "2", "--steps", "2")
    given = ("--method", "noise") if kind != "recipe" else ()
    arguments = ("compress", MODEL, "-o", OUT, "-q", f"--{kind}", name, *few, *given)
    if kind == "target" and random.random() < 0.5:
        arguments = pick(random, (("targets", name), ("lint", MODEL, "--target", name)))
    return Case(
        family=family,
        arguments=arguments,
        files={MODEL: seed.data, name: texts.toml(random, kind)},
        mutated=name,
        outputs=_outputs(arguments),
    )


def _argument_case(random: Random, family: str) -> Case:
    seed = pick(random, [one for one in seeds() if one.name != "digits"])
    files = {**seed.files, MODEL: seed.data, "data.npz": _data(seed), "notes.txt": b"hello\n"}
    given = tuple(texts.arguments(random))
    few = ("--images", "2", "--steps", "2")
    command = pick(random, ("compress", "compress", "compress", "synthesize", "lint", "inspect", "evaluate", "methods"))
    if command in ("compress", "synthesize"):
        output = OUT if command == "compress" else "images.npz"
        few = () if random.random() < 0.1 else few
        first: tuple[str, ...] = (command, MODEL, "-o", output, "-q", "--method", "noise", *few)
    elif command == "evaluate":
        first = (command, MODEL, "data.npz")
    elif command == "methods":
        first = (pick(random, ("methods", "targets", "nonsense")),)
    else:
        first = (command, MODEL)
    if random.random() < 0.1:
        first = tuple(pick(random, given) if part in (MODEL, "data.npz") else part for part in first)
    arguments = tuple(part.replace("\0", "") for part in (*first, *given))
    return Case(family=family, arguments=arguments, files=files, outputs=_outputs(arguments))


def _outputs(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Names that follow the options that write."""
    pairs = list(pairwise(arguments))
    named = [value for option, value in pairs if option in ("-o", "--save-plan", "--save-images")]
    bits = [value.lower().replace("/", "-") for option, value in pairs if option == "--bits"]
    return (*named, *(f"model.{one}.onnx" for one in bits))


def _seed(random: Random) -> Seed:
    """Any of the models; the network of the demo, which takes a second, now and then."""
    few = seeds()
    weights = np.array([0.25 if one.name == "digits" else 1.0 for one in few])
    return few[int(random.choice(len(few), p=weights / weights.sum()))]


def _arrays(seed: Seed) -> dict[str, Any]:
    return {**seed.feeds, "labels": np.arange(4) % 3}


def _data(seed: Seed) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **_arrays(seed))
    return archives.zipped({name: zipfile.ZipFile(stream).read(name) for name in zipfile.ZipFile(stream).namelist()})


FAMILIES: dict[str, tuple[float, Callable[[Random, str], Case]]] = {
    "field": (24, _model_case),
    "node": (8, _model_case),
    "edge": (7, _model_case),
    "attribute": (9, _model_case),
    "shape": (7, _model_case),
    "type": (6, _model_case),
    "name": (7, _model_case),
    "tensor": (10, _model_case),
    "bytes": (6, _bytes_case),
    "archive": (5, _archive_case),
    "image": (4, _image_case),
    "toml": (3, _toml_case),
    "arguments": (5, _argument_case),
}
"""Weight, and what makes a case."""
