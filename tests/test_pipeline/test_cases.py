"""Small models that failed once, here or in other tools: each with what is right for it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.errors import InputError
from onnxdfq.evaluation import Session, evaluate, load_evaluation_data
from onnxdfq.images.feeding import Feeding
from onnxdfq.model_file import inputs, load_model

from ..slow import all_but
from .conftest import Level, run

CASES = sorted(path.stem for path in (Path(__file__).resolve().parents[3] / "shared" / "cases").glob("*.onnx")) or [
    "none"
]
LEAST = 26.0  # dB of the worst output, on fresh inputs of the kind that calibrated
REFUSED = {"nan_weight": "tensor 'a_w' holds NaN"}
SIZES = {"channel_shuffle_dynamic_shape": {"x": (1, 3, 16, 16)}}
KEPT_FLOAT = {"lstm_head_after_cnn": {"LSTM"}, "wrong_input_shape_advice": {"LSTM"}}


@pytest.fixture(params=all_but(CASES, CASES[::8]))
def case(request: pytest.FixtureRequest, shared_cases: Path) -> Path:
    """One of the files."""
    return shared_cases / f"{request.param}.onnx"


def samples(path: Path, count: int, seed: int) -> dict[str, Any]:
    """Random arrays by input name, as a user would save them."""
    random, given = np.random.default_rng(seed), {}
    for spec in inputs(load_model(path, input_shape=SIZES.get(path.stem))):
        shape = spec.with_batch(count)
        drawn = random.integers(0, 256, shape) if spec.dtype == ir.DataType.UINT8 else random.normal(size=shape)
        given[spec.name] = drawn.astype(spec.dtype.numpy())
    return given


def held_against_the_file(written: Path, source: Path, given: dict[str, Any]) -> float:
    """SQNR in dB of the worst output, against the file itself in ONNX Runtime."""
    # as it is loaded: ONNX Runtime refuses two of the files themselves (names of nodes, a training mode)
    against = Session(source, load_model(source, input_shape=SIZES.get(source.stem)))
    session = Session(written)
    found = evaluate(session, load_evaluation_data(given, session, None), against=against)
    return float("inf") if found.sqnr_db is None else found.sqnr_db


def compressed(case: Path, folder: Path, **settings: Any) -> onnxdfq.Result:
    arguments: dict[str, Any] = {"images": 16, "input_shape": SIZES.get(case.stem), "force": True, "seed": 3}
    return onnxdfq.compress(case, output=folder / "q.onnx", **arguments | settings)


WAYS: dict[str, dict[str, Any]] = {"calibration": {}, "noise": {"method": "noise"}, "auto": {"steps": 8}}
"""Settings that a case is tried with: inputs of its own, noise, and what the model allows (dgh, dead leaves)."""


@pytest.mark.parametrize("way", all_but(WAYS, ["calibration"]))
def test_works_every_way_or_is_refused_by_a_true_sentence(
    case: Path, way: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if case.stem in REFUSED:
        with pytest.raises(InputError, match=REFUSED[case.stem]):
            compressed(case, tmp_path, **WAYS[way])
        return
    settings = {"calibration": samples(case, 16, 0)} if way == "calibration" else WAYS[way]
    result = compressed(case, tmp_path, **settings)
    assert result.path is not None
    if way == "calibration":
        assert held_against_the_file(result.path, case, samples(case, 16, 1)) > LEAST
        assert result.metrics["verdict"] == "good"
    else:
        images = result.images
        given = {Session(result.path).main.name: images.pixels, **images.others}
        specs = {spec.name: spec for spec in inputs(ir.load(result.path))}
        given = {name: specs[name].joined(array) for name, array in given.items()}
        assert held_against_the_file(result.path, case, given) > LEAST
    _is_well_formed(result.path, case)
    _loads_quietly(result, capfd)


def _is_well_formed(written: Path, source: Path) -> None:
    """Boundary as it was, nothing unused, names told apart, and no warning when it is loaded."""
    proto, before = onnx.load(written), onnx.load(source, load_external_data=False)
    constants = {tensor.name for tensor in before.graph.initializer}
    declared = [value for value in before.graph.input if value.name not in constants]
    for old, new in zip(declared, proto.graph.input, strict=True):
        assert old.name == new.name
        sizes = SIZES.get(source.stem, {}).get(old.name)
        for axis, (was, now) in enumerate(zip(_dims(old), _dims(new), strict=True)):
            assert was == now or (not isinstance(was, int) and sizes is not None and now == sizes[axis])
    assert [value.name for value in proto.graph.output] == [value.name for value in before.graph.output]
    read = {name for node in proto.graph.node for name in node.input} | {value.name for value in proto.graph.output}
    assert [tensor.name for tensor in proto.graph.initializer if tensor.name not in read] == []
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names) and all(names)
    integers = {node.op_type for node in proto.graph.node}
    assert "QuantizeLinear" in integers or source.stem in KEPT_FLOAT


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _loads_quietly(result: onnxdfq.Result, capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime has nothing to warn of."""
    assert result.path is not None and result.images is not None
    feeding = Feeding(ir.load(result.path))
    given = result.images.samples[: feeding.batch or 4]
    capfd.readouterr()
    run(result.path, feeding.arrays(given), Level.ORT_ENABLE_ALL, quiet=False)
    assert "onnxruntime" not in capfd.readouterr().err
