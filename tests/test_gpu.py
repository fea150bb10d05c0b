"""Whatever runs on a processor runs with `device="cuda"`: on a GPU (`make test-gpu`), and on one that is pretended."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import onnxdfq
from onnxdfq.methods import Dafl, DeadLeaves, DeepInversion, Dgh, Edfq, Gdfq, Genie, Mixmix, Noise, Psaq, ZeroQ
from onnxdfq.training import distilling
from onnxdfq.tuning import tuning

from .graphs import plain_network, vit
from .pretended_gpu import PretendedGpu
from .slow import all_but

CLOSE = 3.0  # dB between the files of two devices, whose sums come out in other orders
Made = Callable[[Path, Path, str], onnxdfq.Result]


def compressed(model: Path, output: Path, device: str, **settings: Any) -> onnxdfq.Result:
    return onnxdfq.compress(model, output=output, device=device, **{"images": 32, "normalize": "none"} | settings)


def with_report(model: Path, output: Path, device: str) -> onnxdfq.Result:
    given = {"method": Noise(), "report": output.with_suffix(".html"), "evaluate": images()}
    return compressed(model, output, device, **given)


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)


def pruned(model: Path, output: Path, device: str, **settings: Any) -> onnxdfq.Result:
    return onnxdfq.prune(
        model, output=output, device=device, method=DeadLeaves(steps=2), images=16, normalize="none", **settings
    )


def distilled(model: Path, output: Path, device: str, **settings: Any) -> onnxdfq.Result:
    given = {"images": 16, "train_steps": 4, "train_batch": 8, "normalize": "none"} | settings
    return onnxdfq.distill(model, model, output=output, device=device, **given)


RUNS: dict[str, Made] = {
    "dgh": partial(compressed, method=Dgh(steps=3, batch_size=8)),
    "zeroq": partial(compressed, method=ZeroQ(steps=3, batch_size=8)),
    "genie": partial(compressed, method=Genie(steps=3, batch_size=8, latent=8, width=4)),
    "mixmix": partial(compressed, method=Mixmix(steps=3, batch_size=8)),
    "deepinversion": partial(compressed, method=DeepInversion(steps=3, batch_size=8)),
    "dead-leaves": partial(compressed, method=DeadLeaves(steps=3, batch_size=8)),
    "psaq": partial(compressed, method=Psaq(steps=3, batch_size=8)),
    "gdfq": partial(compressed, method=Gdfq(steps=4, warm_up=4)),
    "edfq": partial(compressed, method=Edfq(steps=4)),
    "brecq": partial(compressed, method=Noise(), bits="w4a4", tuning="brecq", effort="fast"),
    "adaround": partial(compressed, method=Noise(), bits="w4a8", tuning="adaround", effort="fast"),
    "distil": partial(compressed, method=Noise(), bits="w4a4", tuning="distil", effort="fast"),
    "dfmpc": partial(compressed, method="dfmpc", bits="w2/6a8", steps=3),
    "budget": partial(compressed, method=Noise(), budget="size=2kB,drop=5"),
    "equalize": partial(compressed, method=Noise(), equalize=True, shift_negative=True, split_channels=0.1),
    "gptq": partial(compressed, method=Noise(), bits="w4a32", block=16, rounding="gptq"),
    "report": with_report,
    "prune": partial(pruned, channels=0.3),
    "prune and distillation": partial(pruned, sparsity=0.5, repair="moments,distillation", train_steps=4),
    "distill": partial(distilled, method=DeadLeaves(steps=2)),
    "distill dafl": partial(distilled, method=Dafl(steps=4)),
}
NETWORKS = {"psaq": "transformer.onnx"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of convolutions, and a transformer."""
    found = tmp_path_factory.mktemp("networks")
    ir.save(plain_network(channels=3, side=16), found / "network.onnx")
    ir.save(vit(), found / "transformer.onnx")
    return found


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with PretendedGpu() as gpu:
        yield gpu


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tuning.EFFORTS, "fast", replace(tuning.EFFORTS["fast"], steps=10))
    shorter = replace(distilling.EFFORTS["fast"], loop=replace(distilling.EFFORTS["fast"].loop, steps=4))
    monkeypatch.setitem(distilling.EFFORTS, "fast", shorter)


def model_of(name: str, folder: Path) -> Path:
    return folder / NETWORKS.get(name, "network.onnx")


def on_processor(name: str, folder: Path, tmp_path: Path) -> onnxdfq.Result:
    return RUNS[name](model_of(name, folder), tmp_path / "cpu.onnx", "cpu")


@pytest.mark.parametrize("name", all_but(RUNS, ["dgh", "brecq"]))
def test_on_a_pretended_gpu(
    name: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for instructions in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):  # the pretended one has none either
        monkeypatch.setattr(torch.cpu, instructions, lambda: False)
    on_processor(name, folder, tmp_path)
    gpu = request.getfixturevalue("pretended")
    RUNS[name](model_of(name, folder), tmp_path / "gpu.onnx", "cuda")
    assert gpu.moved > 0, "nothing was computed there"
    assert (tmp_path / "gpu.onnx").read_bytes() == (tmp_path / "cpu.onnx").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
@pytest.mark.parametrize("name", RUNS)
def test_on_a_gpu(name: str, folder: Path, tmp_path: Path) -> None:
    expected = on_processor(name, folder, tmp_path)
    torch.cuda.reset_peak_memory_stats()
    found = RUNS[name](model_of(name, folder), tmp_path / "gpu.onnx", "cuda")
    assert torch.cuda.max_memory_allocated() > 0, "nothing was computed there"
    operators = [
        [node.op_type for node in onnx.load(tmp_path / f"{device}.onnx").graph.node] for device in ("cpu", "gpu")
    ]
    assert operators[0] == operators[1]
    key = "sqnr_db_held_back" if "sqnr_db_held_back" in expected.metrics else "sqnr_db_images"
    assert found.metrics[key] == pytest.approx(expected.metrics[key], abs=CLOSE)  # type: ignore[literal-required]


def test_a_pretended_gpu_refuses_what_a_gpu_refuses(pretended: PretendedGpu) -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert (there.device.type, (2 * there).device.type, there.cpu().device.type) == ("cuda", "cuda", "cpu")
    assert torch.nn.Linear(3, 2).to("cuda")(there).device.type == "cuda"
    with pytest.raises(RuntimeError, match="on the same device"):
        _ = there + here
    with pytest.raises(TypeError, match="to numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    np.testing.assert_array_equal((there + torch.tensor(1.0)).cpu().numpy(), 2)
