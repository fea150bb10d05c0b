"""GPTQ of networks beyond 2 GB, in miniature: the limit is lowered."""

import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.errors import InputError, OutputError
from onnxdfq.evaluation import Session
from onnxdfq.images.images import Images
from onnxdfq.methods.method import FloatModel, Run
from onnxdfq.model_file import loading, saving
from onnxdfq.model_file.loading import read_any_model
from onnxdfq.model_file.uncached import UncachedTensor
from onnxdfq.pipeline import gptq_files, streamed_gptq, weights_only
from onnxdfq.recipe.recipe import Recipe
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.quantize.blocks import BlockLayer, BlockWeight, block_layers

RUN = Run(recipe=Recipe(bits="w4a32", block=16, rounding="gptq"))
RANDOM = np.random.default_rng(0)
# Two layers read the input, two share a weight, and a normalization goes into the layer behind the pooling.
NETWORK = """(float[N,8,24] x) => (float[N,40] y) {
    a = MatMul (x, w1)
    b = MatMul (x, w2)
    c = Relu (a)
    d = MatMul (c, w3)
    e = MatMul (d, w4)
    f = MatMul (e, w4)
    g = Add (f, b)
    g4 = Unsqueeze (g, axes)
    gt = Transpose <perm=[0,2,1,3]> (g4)
    h = BatchNormalization (gt, scale, bias, mean, var)
    p = GlobalAveragePool (h)
    q = Flatten (p)
    y = Gemm <transB=1> (q, w5)
}"""


@pytest.fixture
def source(nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The network with all that is large beside it, where large begins at a hundred bytes."""
    weights = {
        name: RANDOM.normal(0, 0.3, shape).astype("f4")
        for name, shape in {"w1": (24, 40), "w2": (24, 24), "w3": (40, 24), "w4": (24, 24), "w5": (40, 8)}.items()
    }
    channels = {name: np.linspace(low, 2, 8).astype("f4") for name, low in {"scale": 1, "bias": -1, "mean": 0}.items()}
    model = nets.build(NETWORK, **weights, **channels, var=np.ones(8, "f4"), axes=np.array([1]))
    monkeypatch.setattr(saving, "INLINE_LIMIT", 100)
    monkeypatch.setattr(loading, "CARRIED_INLINE", 50)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    return tmp_path / "m.onnx"


def read(source: Path) -> FloatModel:
    graph = read_any_model(source)
    FoldBatchNorm()(graph)
    assert isinstance(graph.graph.initializers["w1"].const_value, UncachedTensor)
    return FloatModel(graph=graph, source=source)


def images(count: int = 20) -> Images:
    return Images(pixels=RANDOM.normal(size=(count, 8, 24)).astype("f4"), method="noise", seed=0)


def ordinary(model: FloatModel, given: Images) -> dict[str, BlockWeight]:
    """What GPTQ makes of each weight with the network in memory."""
    layers = list(block_layers(model.graph.graph))
    choose = weights_only._by_hessian(4, 16, weights_only._hessians(model.graph, layers, given, RUN), model.graph)
    firsts = [layer for several in streamed_gptq.read_by(model.graph, layers).values() for layer in several]
    return {layer.weight: choose(layer, matrix(model, layer)) for layer in firsts}


def streamed(model: FloatModel, given: Images, run: Run = RUN) -> dict[str, BlockWeight]:
    layers = list(block_layers(model.graph.graph))
    with streamed_gptq.streamed_gptq(model, layers, given, run) as choose:
        return {layer.weight: choose(layer, matrix(model, layer)) for layer in layers}


def matrix(model: FloatModel, layer: BlockLayer) -> np.ndarray:
    tensor = model.graph.graph.initializers[layer.weight].const_value
    assert tensor is not None
    return layer.matrix(np.asarray(tensor.numpy(), np.float32))


@pytest.mark.parametrize("in_protobuf", [streamed_gptq.IN_PROTOBUF, 0])
@pytest.mark.parametrize(("parts", "tile"), [(1, 2**22), (10**6, 50)])
def test_the_integers_are_those_of_a_network_in_memory(
    in_protobuf: int, parts: int, tile: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_gptq, "IN_PROTOBUF", in_protobuf)
    monkeypatch.setattr(streamed_gptq, "PARTS", parts)
    monkeypatch.setattr(gptq_files, "NUMBERS_AT_A_TIME", tile)
    model, given = read(source), images()
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.graph)
    expected, found = ordinary(model, given), streamed(model, given)
    assert found.keys() == {"w1", "w2", "w3", "w4", "w5"}
    for name, one in found.items():
        np.testing.assert_array_equal(one.integers, expected[name].integers)
        np.testing.assert_allclose(one.scales, expected[name].scales, rtol=1e-5)
    assert any((one.integers != rounded.integers).any() for one, rounded in nearest(model, found))


def nearest(model: FloatModel, found: dict[str, BlockWeight]) -> list[tuple[BlockWeight, BlockWeight]]:
    choose = weights_only._nearest(4, 16)
    return [(found[layer.weight], choose(layer, matrix(model, layer))) for layer in block_layers(model.graph.graph)]


def test_one_sum_at_a_time_is_in_memory_and_few_values_in_a_run(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[weakref.ref[Any]] = []
    runs: list[tuple[list[str], int]] = []
    real = streamed_gptq.inverse_of

    def inverse_of(hessian: np.ndarray, layer: BlockLayer, *, in_place: bool) -> np.ndarray:
        assert not any(one() is not None for one in sums)
        inverse = real(hessian, layer, in_place=in_place)
        assert inverse is hessian
        sums.append(weakref.ref(hessian))
        return inverse

    def opened(*arguments: Any, **settings: Any) -> Any:
        found = Session(*arguments, **settings)
        assert settings["lean"] and found._session is None
        assert not any(one() is not None for one in sums)
        runs.append((found.outputs, len(arguments[1].graph)))
        return found

    monkeypatch.setattr(streamed_gptq, "inverse_of", inverse_of)
    monkeypatch.setattr(streamed_gptq, "Session", opened)
    monkeypatch.setattr(streamed_gptq, "PARTS", 2)
    streamed(read(source), images())
    assert runs == [(["x"], 0), (["c"], 2), (["d", "q"], 11)]


def test_the_scratch_folder_goes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    streamed(read(source), images())
    assert not list((tmp_path / "scratch").iterdir())


def test_a_network_of_one_batch(source: Path) -> None:
    model, given = read(source), images(10)
    model.graph.graph.inputs[0].shape = ir.Shape([4, 8, 24])
    expected, found = ordinary(model, given), streamed(model, given)
    for name, one in found.items():
        np.testing.assert_array_equal(one.integers, expected[name].integers)


def test_a_value_that_onnx_runtime_does_not_compute(source: Path) -> None:
    model = read(source)
    model.graph.graph.node("Relu_c").domain = "nobody"
    model.graph.opset_imports["nobody"] = 1
    with pytest.raises(InputError, match=r"refuses .*m\.onnx.* for what 'MatMul_.*' reads; use --rounding rtn"):
        streamed(model, images())


def test_inputs_that_become_infinite(source: Path) -> None:
    given = images()
    given.pixels[3] = np.inf
    for way in (ordinary, streamed):
        with pytest.raises(InputError, match=r"cannot weigh what '\w+' reads .*not finite"):
            way(read(source), given)


def test_a_temporary_folder_without_room(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gptq_files.Sum, "add", full)
    with pytest.raises(OutputError, match=r"No space left on device.*set TMPDIR"):
        streamed(read(source), images())


@pytest.mark.slow
def test_a_whole_run_writes_the_integers_of_a_small_one(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ir.save(nets.vit(), tmp_path / "m.onnx")
    settings: dict[str, Any] = {"bits": "w4a32", "block": 16, "rounding": "gptq", "method": "noise", "images": 16}
    small = onnxdfq.compress(tmp_path / "m.onnx", output=tmp_path / "small.onnx", **settings)
    monkeypatch.setattr(saving, "INLINE_LIMIT", 100)
    large = onnxdfq.compress(tmp_path / "m.onnx", output=tmp_path / "large.onnx", **settings)
    assert (tmp_path / "large.onnx.data").exists() and not (tmp_path / "small.onnx.data").exists()
    assert large.metrics["sqnr_db_held_back"] > 10  # type: ignore[operator]
    assert integers(tmp_path / "large.onnx") == integers(tmp_path / "small.onnx")
    for name, value in small.model.graph.initializers.items():  # what was chosen is gone, the file is not
        assert value.const_value is not None
        kept = large.model.graph.initializers[name].const_value
        assert kept is not None and kept.shape == value.const_value.shape and len(kept.tobytes())


def integers(path: Path) -> dict[str, list[Any]]:
    found: Sequence[onnx.TensorProto] = onnx.load(path).graph.initializer
    kinds = (onnx.TensorProto.INT4, onnx.TensorProto.INT8)
    return {one.name: onnx.numpy_helper.to_array(one).tolist() for one in found if one.data_type in kinds}
