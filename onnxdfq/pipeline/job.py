"""What the steps of a compression hand on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from onnxdfq.evaluation.evaluation import Session
from onnxdfq.images.dataset import Normalization
from onnxdfq.methods import Images, InputRange
from onnxdfq.progress import Progress
from onnxdfq.recipe.bits import Bits, LayerBits
from onnxdfq.recipe.recipe import DFMPC, DFQ, Recipe
from passes.dfmpc.plan import CompensationPlan
from passes.moments.moments import Moments
from passes.quantize.plan import QuantPlan
from passes.target.target import Target

ProgressFactory = Callable[[str], Progress | None]


@dataclass(kw_only=True)
class File:
    """One target's part of the job: its numbers, its graph, its file."""

    target: Target
    path: Path
    plan: QuantPlan = field(init=False)
    model: ir.Model = field(init=False)
    metrics: dict[str, float | int | None] = field(default_factory=dict)


@dataclass(kw_only=True)
class Job:
    """What the steps hand on. One name for one graph: `model` is the float one, edited in place until numbers are
    decided on it; each of `files` then has a graph of its own.

    images: None where the method makes none. pixel_range: what the image input takes, for a method that sees no image.
    compensation: what DF-MPC decided; reference: the model without it, towards which it is tuned. known: moments by
    value name, which BatchNormalization told before it was folded.
    """

    source: Path
    recipe: Recipe
    device: str
    input_shape: Mapping[str, Sequence[int]]
    force: bool
    progress: ProgressFactory
    files: Sequence[File] = ()
    calibration: Path | None = None
    evaluation: Path | None = None
    save_images: Path | None = None
    pins: Mapping[str, LayerBits] = field(default_factory=dict)
    save_plan: Path | None = None
    model: ir.Model = field(init=False)
    original: Session = field(init=False)
    normalization: Normalization | None = None
    images: Images | None = None
    pixel_range: InputRange | None = None
    known: Mapping[str, Moments] = field(default_factory=dict)
    compensation: CompensationPlan | None = None
    reference: ir.Model | None = None
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, float | int | None] = field(default_factory=dict)

    @property
    def by_batch_norm(self) -> bool:
        """Whether no image is looked at: all numbers come from the weights and from BatchNormalization."""
        recipe = self.recipe
        closed_form = Bits.parse(recipe.bits).activation == 32 and recipe.tuning in (None, "none")
        return self.calibration is None and (recipe.method == DFQ or (recipe.method == DFMPC and closed_form))

    def plan_path(self, file: File) -> Path:
        """Where the bits of each layer are written for one target."""
        assert self.save_plan is not None
        return self.save_plan if len(self.files) == 1 else for_target(self.save_plan, file.target.name)


def for_target(path: Path, target: str) -> Path:
    """`model.w8a8.onnx` → `model.w8a8.ort.onnx`."""
    return path.with_name(f"{path.stem}.{target}{path.suffix}")
