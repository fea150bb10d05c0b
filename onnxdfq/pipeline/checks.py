"""What can be wrong about names, paths and their combinations: found before minutes of work, not after."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdfq.errors import InputError, ModelFileError
from onnxdfq.images.shards import shard_files
from onnxdfq.methods.method import Method, Need
from onnxdfq.model_file import check_writable
from onnxdfq.model_file.writing import check_folder, check_replaceable
from onnxdfq.paths import check_ordinary, look_at
from onnxdfq.pipeline.request import Request
from onnxdfq.recipe.bits import WEIGHT_BITS, Bits

if TYPE_CHECKING:
    from onnxdfq.calibration.calibration import Calibration
    from onnxdfq.training.distilling import Distilling
    from onnxdfq.tuning import Tuning

NOTHING_THERE = "there is no such file or folder"


def calibration_of(request: Request) -> Calibration:
    """How thresholds are decided."""
    from onnxdfq.calibration.calibration import Calibration  # loads torch, and paths are looked at before

    recipe, bits = request.recipe, Bits.parse(request.recipe.bits)
    return Calibration(
        weight_bits=bits.weight,
        activation_bits=bits.activation,
        scheme=recipe.scales,
        only_activated=recipe.scheme == "paper",
        clipping=recipe.clipping,
        shift_negative=recipe.shift_negative,
        layer_bits=request.pins,
        tensors=request.plan.tensors,
    )


def tuning_of(request: Request, method: Method) -> Tuning | None:
    """How what is rounded is tuned, where it is."""
    from onnxdfq.tuning import tuning_for  # loads torch, as above

    recipe = request.recipe
    if not looks_at_images(request, method) or recipe.block is not None:
        return None
    asked = [Bits.parse(recipe.bits).weight, *(pin.weight for pin in request.pins.values() if pin.weight is not None)]
    name = method.default_tuning if recipe.tuning is None else recipe.tuning
    return tuning_for(
        "brecq" if name == "distil" else name,
        weight_bits=min(WEIGHT_BITS) if request.may_lower_bits else min(asked),
        # what the user decided is not learned anew
        learn_scales=recipe.scales == "free" and not request.plan.tensors,
        learn_weight_scales=recipe.scales != "power-of-two" and not request.plan.tensors,
        effort=recipe.effort,
        slices=request.train_slices,
    )


def distilling_of(request: Request, method: Method) -> Distilling | None:
    """How the whole quantized graph is trained behind that, where it is."""
    from onnxdfq.training.distilling import EFFORTS  # loads torch, as above

    if not looks_at_images(request, method) or request.recipe.tuning != "distil":
        return None
    distilling = EFFORTS[request.recipe.effort]
    return replace(distilling, loop=replace(distilling.loop, slices=request.train_slices))


def found_device(name: str) -> str:
    """ "cpu" or "cuda", as it was asked for or, for "auto", as it is there. Raises InputError."""
    if name == "cpu":
        return name
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise InputError("torch sees no CUDA device here; use --device cpu.", field="device")
    return "cuda" if found else "cpu"


def looks_at_images(request: Request, method: Method) -> bool:
    """Whether numbers are decided by images, the method's or the user's own."""
    return request.calibration is not None or method.makes_images(request.recipe)


def check_method(request: Request, method: Method) -> None:
    """Refuse what the method cannot do.

    Raises:
        InputError: the recipe, the targets or other options do not go with it.
    """
    recipe = request.recipe
    method.check(recipe, request.targets)
    if request.zoo and request.calibration is not None:
        raise InputError("Images of your own need no zoo to be made by; leave --zoo or --calibration out.", field="zoo")
    if request.zoo and not method.takes_zoo:
        raise InputError(
            f"--method {method.name} makes images by the model itself; leave --zoo out, or name a method that takes "
            "one (mixmix, deepinversion).",
            field="zoo",
        )
    low = Bits.parse(recipe.bits).low
    for target in request.targets:
        calibration_of(request).check(target)
        if low is not None:
            replace(calibration_of(request), weight_bits=low).check(target)
    if Need.TWO_WIDTHS in method.needs and (request.plan.tensors or request.keeps_float):
        raise InputError(
            f"{method.name} decides the weights and their grids, and which layers pay for which; leave --keep-float "
            "and --plan with tensors out, or choose another --method.",
            field="plan" if request.plan.tensors else "keep_float",
        )
    if Need.TWO_WIDTHS in method.needs and any(pin.weight is not None for pin in request.pins.values()):
        raise InputError(
            f"{method.name} decides the weights and their bits; leave --plan with bits of weights out, or choose "
            "another --method.",
            field="plan",
        )
    if not looks_at_images(request, method):
        _refuse_what_needs_images(request, method)
    tuning = tuning_of(request, method)
    if tuning is not None and recipe.images is not None:
        tuning.check(recipe.images)


def check_paths(request: Request) -> None:
    """Refuse paths that clash, that are not there, or that cannot be written.

    Raises:
        InputError, OutputError.
    """
    check_ordinary(request.source, kind=ModelFileError)
    outputs = [("-o", path) for path in request.models]
    if request.save_plan is not None:
        outputs += [("--save-plan", request.plan_path(output)) for output in request.outputs]
    for output in request.handed:
        archive, array, folder = output.handed
        outputs += [("-o", archive), ("-o", array)]
        check_replaceable(folder, force=request.force)
    for member in request.zoo:
        check_ordinary(member.path, kind=ModelFileError)
    data = {"the calibration data": request.calibration, "the labelled data": request.evaluation}
    for file in request.read.values():
        check_ordinary(file, kind=ModelFileError)
    given = {what: Path(path) for what, path in data.items() if isinstance(path, str | Path)}
    if not isinstance(request.calibration, str | Path):
        given |= {f"the calibration data ({n})": file for n, file in enumerate(shard_files(request.calibration), 1)}
    for source in given.values():
        if not stat.S_ISDIR(look_at(source, missing=NOTHING_THERE).st_mode):
            check_ordinary(source)
    given |= {"the model itself": request.source, **request.read}
    if request.work_dir is not None:
        check_folder(request.work_dir)
    given |= {f"a model of the zoo ({number})": member.path for number, member in enumerate(request.zoo, 1)}
    for option, path in outputs + ([] if request.save_images is None else [("--save-images", request.save_images)]):
        for what, source in given.items():
            if _same(path, source):
                raise InputError(f"{path} is {what}; give another name with {option}.")
        check_writable(path, force=request.force)
    for _, path in outputs:
        if request.save_images is not None and path.resolve() == request.save_images.resolve():
            raise InputError(f"{path} cannot take both the model and the images; give another name with -o.")


def _same(path: Path, source: Path) -> bool:
    """Whether a path is that of a file that is read."""
    try:
        return path.samefile(source)
    except (OSError, ValueError):  # nothing lies there, or it is no path, which is told when it is written to
        return False


def _refuse_what_needs_images(request: Request, method: Method) -> None:
    recipe = request.recipe
    wanted = {
        "--budget": recipe.budget is not None,
        "--save-images": request.save_images is not None,
        request.wants_images_for: not request.outputs,
        "--target images": bool(request.handed),
        f"--tuning {recipe.tuning}": recipe.tuning not in (None, "none"),
    }
    for option, given in wanted.items():
        if given:
            raise InputError(
                f"--method {method.name} makes no images, and {option} needs some; choose another --method, or give "
                "images of your own with --calibration."
            )
