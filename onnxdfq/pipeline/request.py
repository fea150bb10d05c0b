"""What is asked of the pipeline, settled and checked before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onnxdfq.methods.method import Method
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.recipe.bits import LayerBits
from onnxdfq.recipe.budget import Budgets
from onnxdfq.recipe.plan_file import PlanFile
from onnxdfq.recipe.recipe import Recipe
from onnxdfq.recipe.shard import WHOLE, Shard
from onnxdfq.recipe.zoo import Member
from onnxdfq.workers import ALONE, Workers

if TYPE_CHECKING:
    from passes.target.target import Target


@dataclass(frozen=True, kw_only=True)
class Output:
    """One target and where its file goes; None where none is to be written."""

    target: Target
    path: Path | None

    @property
    def handed(self) -> tuple[Path, Path, Path]:
        """Where the images lie that a target of format "float" has beside its model: archive, array and folder."""
        assert self.path is not None
        stem = self.path.parent / self.path.stem
        return Path(f"{stem}.npz"), Path(f"{stem}.npy"), Path(f"{stem}.pictures")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A compression, or with no outputs a synthesis.

    method: None leaves the choice to the model. calibration, evaluation: images of the user's own, as a path, an array
    or whatever `onnxdfq.images.dataset.load_data` reads. zoo: models that images are made by, where these are others
    than the model. plan: what is decided already for single layers and tensors. save_images,
    save_plan: files to write beside the models. work_dir: a folder where long stages keep how far they are, and go on
    from. input_shape: sizes that the file leaves open; inputs: what inputs are
    fed where no data is given. dynamic_batch: whether files take any batch, whatever the model was declared for.
    reported: whether a report follows, which looks at the float network again.
    """

    source: Path
    recipe: Recipe
    method: Method | None
    outputs: Sequence[Output] = ()
    calibration: Any = None
    evaluation: Any = None
    zoo: Sequence[Member] = ()
    plan: PlanFile = field(default_factory=PlanFile)
    save_images: Path | None = None
    save_plan: Path | None = None
    work_dir: Path | None = None
    workers: Workers = ALONE
    shard: Shard = WHOLE
    device: str = "auto"
    input_shape: Mapping[str, Sequence[int]] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    dynamic_batch: bool = False
    reported: bool = False
    force: bool = False
    progress: ProgressFactory = silent
    wants_images_for: ClassVar[str] = "synthesize"  # where no file for a target is written

    @property
    def keeps_float(self) -> tuple[str, ...]:
        """Patterns of what stays float, of the recipe and of the plan."""
        return (*self.recipe.keep_float, *self.plan.keep_float)

    @property
    def budgets(self) -> Budgets:
        """What the recipe's budget comes to."""
        return Budgets() if self.recipe.budget is None else Budgets.parse(self.recipe.budget)

    @property
    def may_lower_bits(self) -> bool:
        """Whether layers may get fewer bits than hold for all: a budget of answers gives some away only where that
        makes a file smaller."""
        return self.budgets.cost is not None or (
            self.budgets.drop is not None and any(target.packs_weights for target in self.targets)
        )

    @property
    def train_slices(self) -> int:
        """Of each batch that trains, for workers to share; the recipe's are those of a compression."""
        return (self.recipe.train_slices or 1) if self.outputs else 1

    @property
    def pins(self) -> Mapping[str, LayerBits]:
        """Bits of single layers, by node name."""
        return self.plan.layers

    @property
    def models(self) -> tuple[Path, ...]:
        """The model files to write."""
        return tuple(output.path for output in self.outputs if output.path is not None)

    @property
    def read(self) -> Mapping[str, Path]:
        """Other model files that are read, by what they are."""
        return {}

    @property
    def targets(self) -> tuple[Target, ...]:
        """Those of the outputs."""
        return tuple(output.target for output in self.outputs)

    @property
    def handed(self) -> tuple[Output, ...]:
        """The outputs that have images beside the model."""
        return tuple(output for output in self.outputs if output.path is not None and output.target.format == "float")

    @property
    def folders(self) -> set[Path]:
        """That files are written to."""
        places = [*self.models, self.save_images, self.save_plan]
        folders = {place.parent for place in places if place is not None}
        return folders if self.work_dir is None else {*folders, self.work_dir}

    def aimed(self, cases: Mapping[str, Any]) -> Request:
        """The same for the targets of these cases, by name, which may keep more in float."""
        outputs = [replace(output, target=cases[output.target.name].target) for output in self.outputs]
        return replace(self, outputs=outputs)

    def plan_path(self, output: Output) -> Path:
        """Where the bits of each layer are written for one target."""
        assert self.save_plan is not None
        return self.save_plan if len(self.outputs) == 1 else for_target(self.save_plan, output.target.name)


def for_target(path: Path, target: str) -> Path:
    """`model.w8a8.onnx` → `model.w8a8.ort.onnx`; a folder stays, for who checks paths to refuse it."""
    if os.path.isdir(path) or not path.name:  # noqa: PTH112  Path's own raises where a name is too long
        return path
    return path.parent / f"{path.stem}.{target}{path.suffix}"
