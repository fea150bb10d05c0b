"""`--target images`: the float model and the images beside it, for tools that quantize by themselves."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import onnxdfq
from onnxdfq.errors import InputError, OutputError
from onnxdfq.images.images import Images
from onnxdfq.pipeline.result import Result

from ..graphs import DIGITS
from .conftest import Level, run
from .test_targets import write_network

MODEL = DIGITS / "digits.onnx"


def compress(output: Path, **settings: object) -> Result:
    plain = {"method": "noise", "images": 8, "target": "images", "normalize": "0/1"}
    return onnxdfq.compress(MODEL, output=output, **(plain | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return compress(tmp_path_factory.mktemp("handed") / "m.onnx")


def test_the_model_is_the_float_network_with_one_image_a_run(result: Result) -> None:
    assert result.path is not None and result.images is not None
    model = onnx.load(result.path)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear", "BatchNormalization"}
    assert model.opset_import[0].version == 17
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    name = model.graph.input[0].name
    for image in result.images.pixels:
        (expected,), (found,) = (run(path, {name: image[None]}, Level.ORT_ENABLE_ALL) for path in (MODEL, result.path))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert "nodes_float" not in result.metrics and result.metrics["verdict"] == "good"


def test_the_images_lie_beside_it_in_the_forms_that_tools_read(result: Result) -> None:
    assert result.path is not None and result.images is not None
    stem, pixels = result.path.with_suffix(""), result.images.pixels
    np.testing.assert_array_equal(Images.load(Path(f"{stem}.npz")).pixels, pixels)
    np.testing.assert_array_equal(np.load(f"{stem}.npy"), pixels.transpose(0, 2, 3, 1))
    files = sorted(Path(f"{stem}.pictures").iterdir())
    assert [file.name for file in files] == [f"{number:05}.png" for number in range(8)]
    bytes_ = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_allclose(bytes_ / 255, np.clip(pixels[:, 0], 0, 1), atol=0.5 / 255 + 1e-6)


def test_the_note_says_what_to_type_next(result: Result) -> None:
    (note,) = (note for note in result.notes if "hailo parser" in note)
    assert f"hailo parser onnx {result.path} " in note and "--calib-set-path" in note and "{" not in note


def test_without_a_normalization_there_are_no_pictures(tmp_path: Path) -> None:
    source = write_network(tmp_path / "source.onnx")
    result = onnxdfq.compress(source, output=tmp_path / "m.onnx", target="images", method="noise", images=8)
    assert {file.name for file in tmp_path.iterdir()} == {"source.onnx", "m.onnx", "m.npz", "m.npy"}
    assert any("No PNG files are written: nothing tells" in note for note in result.notes)


def test_a_folder_of_pictures_is_replaced_as_a_whole_and_no_other_is(tmp_path: Path) -> None:
    compress(tmp_path / "m.onnx", images=9)
    with pytest.raises(OutputError, match=r"exists; .* --force"):
        compress(tmp_path / "m.onnx")
    compress(tmp_path / "m.onnx", force=True)
    assert len(list((tmp_path / "m.pictures").iterdir())) == 8
    (tmp_path / "m.pictures" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'mine.txt', which a folder of pictures does not"):
        compress(tmp_path / "m.onnx", force=True)
    assert (tmp_path / "m.pictures" / "mine.txt").read_text() == "mine"


def test_a_method_without_images_has_nothing_to_hand_over(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--method dfq makes no images, and --target images needs some"):
        compress(tmp_path / "m.onnx", method="dfq", images=None)
