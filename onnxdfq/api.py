"""The Python door: what the command line does, with arrays and objects as well as paths and names.

None means the default everywhere. Nothing heavy is imported before it is needed, so that wrong names and values are
refused at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdfq.errors import InputError
from onnxdfq.methods.method import Method
from onnxdfq.model_file.runtime import op_libraries
from onnxdfq.pipeline.arguments import as_file, chosen_targets, members_of, settled_recipe, target_names
from onnxdfq.pipeline.request import Output, Request, for_target
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.recipe.bits import read_layer_bits
from onnxdfq.recipe.choices import Clipping, Effort, Scheme
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.pruning import MULTIPLE, Pruning, parse_repair
from onnxdfq.recipe.recipe import Recipe, Settings
from passes.target.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdfq.evaluation import Evaluation
    from onnxdfq.pipeline.arguments import ModelLike, ZooLike
    from onnxdfq.pipeline.result import Result
    from onnxdfq.synthesis.card import ImageCard

DEVICES = ("auto", "cpu", "cuda")


def compress(
    model: ModelLike,
    *,
    output: Path | str | None = None,
    recipe: Recipe | None = None,
    method: str | Method | None = None,
    bits: str | None = None,
    target: str | Target | Sequence[str | Target] | None = None,
    scheme: Scheme | None = None,
    effort: Effort | None = None,
    minutes: float | None = None,
    images: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    normalize: str | None = None,
    tuning: str | None = None,
    clipping: Clipping | None = None,
    shift_negative: bool | None = None,
    equalize: bool | None = None,
    split_channels: float | None = None,
    budget: str | None = None,
    settings: Settings | None = None,
    zoo: ZooLike = None,
    calibration: Any = None,
    evaluate: Any = None,
    plan: Path | str | None = None,
    save_plan: Path | str | None = None,
    save_images: Path | str | None = None,
    work_dir: Path | str | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, str] | None = None,
    dynamic_batch: bool = False,
    op_library: Sequence[Path | str] = (),
    device: str | None = None,
    force: bool = False,
    progress: ProgressFactory = silent,
) -> Result:
    """Quantize a float model without data.

    Args:
        model: a path, or a model in memory.
        output: where to write; by default `model.w8a8.onnx` beside a model that is a path, and nowhere for one in
            memory. With several targets each file has the target in its name: `model.w8a8.ort.onnx`.
        recipe: settings all at once; the arguments that follow overrule it.
        method: a name, or an object with settings of its own: `Dgh(steps=500)`. By default what the model allows.
        bits: of weights and activations, "w4a8"; "w2/6" for a method that takes two widths.
        target: what to write for: names, paths of target files, or `Target` objects; one or several.
        scheme: which scales are powers of two. effort: how many images and steps; making them is bounded by the work of
            about 3 minutes (fast) or 15 (standard) of two ordinary cores, minutes: another bound. images and steps
            overrule both; batch_size: how many images are made at once.
        seed: same seed, same bytes. normalize: how the network's inputs were normalised.
        tuning: "none", "adaround", "brecq" or "distil". clipping: thresholds by "mse", "aciq" or "max".
        shift_negative, equalize, split_channels: see `Recipe`. budget: "size=0.5MB" or "bops=1.2G".
        settings: by method, values of its fields.
        zoo: models that images are made by, for a method that takes several: paths, models in memory, a
            `zoo.toml` (see `onnxdfq.recipe.zoo`) or `Member` objects; by default the model itself.
        calibration: inputs of the user's own instead of synthesised ones: a path, an array uint8 (N, H, W, C) or
            float32 (N, C, H, W), a mapping of arrays by input name, a dataset of images or (image, label) pairs, or an
            iterable of batches.
        evaluate: labelled images to measure accuracy on, in any of these forms.
        plan: a TOML file that pins the bits of single layers; save_plan: where to write those of all layers.
        save_images: where to keep the images (.npz). input_shape: by input, sizes that the file leaves open.
        work_dir: a folder where distillation keeps how far it is; the same call goes on from there.
        inputs: by input, what it is fed where no data is given: "normal:0:1", "uniform:0:255", "image", or a number.
        op_library: shared libraries with custom operators that the model holds; they are code that runs.
        dynamic_batch: let the written file take any batch, whatever the model was declared for.
        device: "auto", "cpu" or "cuda". force: replace files that exist. progress: see `onnxdfq.progress`.

    Raises:
        InputError: what was given cannot be used. OutputError: what came out cannot be written.
    """
    settled, chosen = settled_recipe(
        recipe,
        method,
        where="compress()",
        bits=bits,
        target=target_names(target),
        scheme=scheme,
        effort=effort,
        minutes=minutes,
        images=images,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        normalize=normalize,
        tuning=tuning,
        clipping=clipping,
        shift_negative=shift_negative,
        equalize=equalize,
        split_channels=split_channels,
        budget=budget,
        settings=settings,
    )
    targets = chosen_targets(target, settled)
    pins = {} if plan is None else read_layer_bits(Path(plan))
    one_of("device", device or "auto", DEVICES, field="device")
    from onnxdfq.pipeline.compression import run_compression

    with op_libraries(op_library), as_file(model) as path, members_of(zoo) as members:
        in_memory = not isinstance(model, str | Path)  # it then lies in a temporary folder, and so does the output
        width = (
            settled.bits.replace("/", "-") if budget is None and settled.budget is None and plan is None else "mixed"
        )
        stem = path.parent / f"{path.stem}.{width}.onnx" if output is None else Path(output)
        request = Request(
            source=path,
            recipe=settled,
            method=chosen,
            outputs=[
                Output(target=one, path=stem if len(targets) == 1 else for_target(stem, one.name)) for one in targets
            ],
            zoo=members,
            calibration=calibration,
            # looked at before the images are made and again at the end, which would use an iterator up
            evaluation=list(evaluate) if isinstance(evaluate, Iterator) else evaluate,
            device=device or "auto",
            input_shape=input_shape or {},
            inputs=inputs or {},
            dynamic_batch=dynamic_batch,
            save_images=None if save_images is None else Path(save_images),
            pins=pins,
            save_plan=None if save_plan is None else Path(save_plan),
            work_dir=None if work_dir is None else Path(work_dir),
            force=force,
            progress=progress,
        )
        result = run_compression(request)
    return result.unwritten() if in_memory and output is None else result


def synthesize(
    model: ModelLike,
    *,
    output: Path | str | None = None,
    files: int | None = None,
    recipe: Recipe | None = None,
    method: str | Method | None = None,
    effort: Effort | None = None,
    minutes: float | None = None,
    images: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    normalize: str | None = None,
    settings: Settings | None = None,
    zoo: ZooLike = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, str] | None = None,
    op_library: Sequence[Path | str] = (),
    device: str | None = None,
    force: bool = False,
    progress: ProgressFactory = silent,
) -> Result:
    """Only the images, as `compress` would make them; the arguments are its own.

    Args:
        output: the .npz file to write; by default none.
        files: as many files, each of so many images and of the next seed; `output` is their folder, and what trains
            takes it as `calibration`.

    Returns:
        The images (none of several files), and as model the float network that they were made for, in canonical form.

    Raises:
        InputError, OutputError: as `compress`.
    """
    settled, chosen = settled_recipe(
        recipe,
        method,
        where="synthesize()",
        effort=effort,
        minutes=minutes,
        images=images,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        normalize=normalize,
        settings=settings,
    )
    one_of("device", device or "auto", DEVICES, field="device")
    from onnxdfq.pipeline.compression import run_synthesis

    with op_libraries(op_library), as_file(model) as path, members_of(zoo) as members:
        request = Request(
            source=path,
            recipe=settled,
            method=chosen,
            zoo=members,
            device=device or "auto",
            input_shape=input_shape or {},
            inputs=inputs or {},
            save_images=None if output is None else Path(output),
            force=force,
            progress=progress,
        )
        if files is None:
            return run_synthesis(request)
        from onnxdfq.pipeline.sharding import run_synthesis_in_files

        if output is None:
            raise InputError("Several files need a folder; name it with -o.", field="files")
        return run_synthesis_in_files(request, Path(output), files)


def prune(
    model: ModelLike,
    *,
    output: Path | str | None = None,
    sparsity: float | None = None,
    channels: float | None = None,
    pattern: str | None = None,
    multiple: int | None = None,
    repair: str | Sequence[str] | None = None,
    train_steps: int | None = None,
    recipe: Recipe | None = None,
    method: str | Method | None = None,
    effort: Effort | None = None,
    minutes: float | None = None,
    images: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    normalize: str | None = None,
    settings: Settings | None = None,
    zoo: ZooLike = None,
    calibration: Any = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, str] | None = None,
    op_library: Sequence[Path | str] = (),
    device: str | None = None,
    force: bool = False,
    progress: ProgressFactory = silent,
) -> Result:
    """Prune a float model without data; it stays a float model with its BatchNormalizations, for `compress` to take.

    Args:
        model: a path, or a model in memory.
        output: where to write; by default `model.pruned.onnx` beside a model that is a path, and nowhere for one in
            memory.
        sparsity: the share of each layer's weights that becomes zero, those of least magnitude.
        channels: the share of each layer's channels that is removed, those of the smallest filters.
        pattern: "2:4": two of four neighbouring weights along the input channels become zero. One of these three.
        multiple: of channels, of which each layer keeps one; 8 by default.
        repair: "none", "moments" (means in closed form, no images), "least-squares" (on images), "distillation" (on
            images, towards the model that was pruned), or several; by default the first two. train_steps: of the last.
        recipe, method, effort, minutes, images, steps, batch_size, seed, normalize, settings, zoo, calibration: of the
            images for the repair, as for `compress`.
        input_shape, inputs, op_library, device, force, progress: as for `compress`.

    Raises:
        InputError, OutputError: as `compress`; and where nothing can be pruned, or a layer would be left empty.
    """
    pruning = Pruning(
        sparsity=sparsity,
        channels=channels,
        pattern=pattern,
        multiple=MULTIPLE if multiple is None else multiple,
        repair=parse_repair(repair),
        train_steps=train_steps,
    )
    settled, chosen = settled_recipe(
        recipe,
        method,
        where="prune()",
        effort=effort,
        minutes=minutes,
        images=images,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        normalize=normalize,
        settings=settings,
    )
    one_of("device", device or "auto", DEVICES, field="device")
    for field, given in (("calibration", calibration is not None), ("zoo", bool(zoo))):
        if given and not pruning.looks_at_images:
            raise InputError("Only least squares and distillation look at inputs: name one with --repair.", field=field)
    from onnxdfq.pipeline.pruning import PruneRequest, run_pruning

    with op_libraries(op_library), as_file(model) as path, members_of(zoo) as members:
        result = run_pruning(
            PruneRequest(
                source=path,
                recipe=settled,
                method=chosen if pruning.looks_at_images else None,
                pruning=pruning,
                zoo=members,
                output=path.parent / f"{path.stem}.pruned.onnx" if output is None else Path(output),
                calibration=calibration,
                device=device or "auto",
                input_shape=input_shape or {},
                inputs=inputs or {},
                force=force,
                progress=progress,
            )
        )
    return result.unwritten() if output is None and not isinstance(model, str | Path) else result


def evaluate(
    model: ModelLike,
    data: Any,
    *,
    against: ModelLike | None = None,
    normalize: str | None = None,
    op_library: Sequence[Path | str] = (),
    progress: ProgressFactory = silent,
) -> Evaluation:
    """Measure a model on images or other inputs: accuracy where they are labelled, closeness to its float original.

    Args:
        model: a path, or a model in memory.
        data: a path, an array, a mapping of arrays by input name, a dataset or an iterable of batches, as for
            `compress`.
        against: the float model to compare with.
        normalize: how inputs are normalised; a model that onnxdfq wrote remembers it.
        op_library: as for `compress`.

    Raises:
        ModelFileError: ONNX Runtime refuses a model. DataError: the images do not fit, or the models differ.
    """
    from onnxdfq.evaluation import Session, load_evaluation_data
    from onnxdfq.evaluation import evaluate as run
    from onnxdfq.evaluation.saturation import saturation_note

    with (
        op_libraries(op_library),
        as_file(model) as path,
        nullcontext() if against is None else as_file(against) as other,
    ):
        session = Session(path)
        original = None if other is None else Session(other)
        images = load_evaluation_data(data, session, normalize)
        found = run(session, images, against=original, progress=progress("evaluating"))
        note = saturation_note(path, exact=session.exact)
        return found if note is None else replace(found, notes=(note,))


def image_card(images: Any, zoo: ZooLike, *, device: str | None = None) -> ImageCard:
    """What pictures are worth, without labels, by each of several models: share that it is sure of, distance of their
    statistics from those that it remembers, diversity, entropy of its mean answer.

    Args:
        images: of a synthesis for several models, an array uint8 (N, H, W, C), or the path of an .npz file of either.
        zoo: models, as for `compress`; each resizes and normalises its own view.
        device: "auto", "cpu" or "cuda".

    Raises:
        DataError: these are no pictures. InputError: there is no model, or one cannot look at them.
    """
    one_of("device", device or "auto", DEVICES, field="device")
    from onnxdfq.pipeline.card import card_of_pictures, pictures_of
    from onnxdfq.pipeline.checks import found_device

    pictures = pictures_of(images)
    with members_of(zoo) as members:
        return card_of_pictures(pictures, members, device=found_device(device or "auto"))


def load(model: Path | str, *, input_shape: Mapping[str, Sequence[int]] | None = None) -> ir.Model:
    """A float model as passes take it: checked, converted to a current opset, in canonical form, its
    BatchNormalizations in place.

    Raises:
        ModelFileError, ShapeError, UnsupportedOperator: the file cannot be used.
    """
    from onnxdfq.model_file import load_model
    from passes.canonical.canonicalize import Canonicalize

    graph = load_model(Path(model), input_shape=input_shape or {})
    Canonicalize()(graph)
    return graph


__all__ = ["compress", "evaluate", "image_card", "load", "prune", "synthesize"]
