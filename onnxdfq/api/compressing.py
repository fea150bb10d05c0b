"""Compression: `compress`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdfq.methods.method import Method
from onnxdfq.model_file.runtime import op_libraries
from onnxdfq.pipeline.arguments import as_file, chosen_targets, members_of, settled_recipe, target_names
from onnxdfq.pipeline.request import Output, Request, for_target
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.recipe.choices import DEVICES, Clipping, Effort, Scheme
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.plan_file import PlanFile, read_plan
from onnxdfq.recipe.recipe import Recipe, Settings
from onnxdfq.workers import ALONE, Workers
from passes.target.target import Target

if TYPE_CHECKING:
    from onnxdfq.pipeline.arguments import ModelLike, ZooLike
    from onnxdfq.pipeline.result import Result


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
    train_slices: int | None = None,
    clipping: Clipping | None = None,
    shift_negative: bool | None = None,
    equalize: bool | None = None,
    split_channels: float | None = None,
    budget: str | None = None,
    keep_float: str | Sequence[str] | None = None,
    block: int | None = None,
    rounding: str | None = None,
    settings: Settings | None = None,
    zoo: ZooLike = None,
    calibration: Any = None,
    evaluate: Any = None,
    plan: Path | str | None = None,
    save_plan: Path | str | None = None,
    save_images: Path | str | None = None,
    work_dir: Path | str | None = None,
    report: Path | str | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, str] | None = None,
    dynamic_batch: bool = False,
    op_library: Sequence[Path | str] = (),
    device: str | None = None,
    force: bool = False,
    workers: Workers = ALONE,
    progress: ProgressFactory = silent,
) -> Result:
    """Quantize a float model without data.

    Args:
        model: a path, or a model in memory.
        output: where to write; by default `model.w8a8.onnx` beside a model that is a path, and nowhere for one in
            memory. With a budget or a plan it is `model.mixed.onnx`; with several targets each file has the target in
            its name: `model.w8a8.ort.onnx`.
        recipe: settings all at once; the arguments that follow overrule it.
        method: a name, or an object with settings of its own: `Dgh(steps=500)`. By default what the model allows.
        bits: of weights and activations, "w4a8"; "w2/6" for a method that takes two widths.
        target: what to write for: names, paths of target files, or `Target` objects; one or several.
        scheme: which scales are powers of two: "power-of-two" (all), "power-of-two-activations", "free" (none), or
            "paper", free and of activations only what a Relu or Clip gives.
        effort: how many images and steps; making them is bounded by the work of about 3 minutes (fast) or 15 (standard)
            of two ordinary cores. minutes: another bound. images and steps overrule both; batch_size: how many images
            are made at once.
        seed: same seed, same bytes, on one kind of processor and with as many threads. normalize: how the network's
            inputs were normalised: "imagenet", "cifar10", "none" (0 to 1) or "M1,M2,M3/S1,S2,S3"; by default what the
            model remembers, else what its first BatchNormalization tells.
        tuning: "none", "adaround", "brecq" or "distil". train_slices: of each batch that it trains on, for as many
            workers to share. clipping: thresholds by "mse", "aciq" or "max".
        shift_negative: shift activations with a small negative tail to a grid without sign. equalize: even out channels
            across layers; by default where weights below 8 bits with power-of-two scales meet depthwise convolutions.
            split_channels: split this share of channels, those with outliers, in two.
        budget: "size=0.5MB", "bops=1.2G", "drop=0.5", or drop and one of these between commas.
        settings: by method, values of its fields.
        zoo: models that images are made by, for a method that takes several: paths, models in memory, a
            `zoo.toml` (see `onnxdfq.recipe.zoo`) or `Member` objects; by default the model itself.
        calibration: inputs of the user's own instead of synthesised ones: a path, an array uint8 (N, H, W, C) or
            float32 (N, C, H, W), a mapping of arrays by input name, a dataset of images or (image, label) pairs, or an
            iterable of batches.
        evaluate: labelled images to measure accuracy on, in any of these forms.
        plan: a TOML file that pins bits of layers, grids of tensors and what stays float, or a file of AIMET's
            encodings or ONNX Runtime's TensorQuantOverrides; save_plan: where to write what was decided, by its suffix
            as .toml, .encodings or .json.
        block: of weights beside float activations ("w4a32"), how many inputs of a layer share a scale; rounding:
            theirs, "rtn" or "gptq".
        keep_float: what stays float: names, globs, "type:Softmax", "before:VALUE", "after:VALUE".
        save_images: where to keep the images (.npz). input_shape: by input, sizes that the file leaves open.
        report: where to tell of the run: verdict, images, every layer with its noise and its remedies, provenance. An
            .html file gets the same as .json beside it, and a graph for Model Explorer as .me.json.
        work_dir: a folder where long stages keep what they found; the same call goes on from there.
        inputs: by input, what it is fed where no data is given: "normal:0:1", "uniform:0:255", "image", or a number.
        op_library: shared libraries with custom operators that the model holds; they are code that runs.
        dynamic_batch: let the written file take any batch, whatever the model was declared for.
        device: "auto", "cpu" or "cuda". force: replace files that exist. workers: those that `onnxdfq.workers.joined`
            found this process among; of these only the first returns. progress: see `onnxdfq.progress`.

    Returns:
        What came out: by target the model, its plan, path and metrics (`Result.targets`), images, notes.

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
        train_slices=train_slices,
        clipping=clipping,
        shift_negative=shift_negative,
        equalize=equalize,
        split_channels=split_channels,
        budget=budget,
        block=block,
        rounding=rounding,
        keep_float=(keep_float,) if isinstance(keep_float, str) else keep_float or None,
        settings=settings,
    )
    targets = chosen_targets(target, settled)
    decided = PlanFile() if plan is None else read_plan(Path(plan))
    one_of("device", device or "auto", DEVICES, field="device")
    from onnxdfq.pipeline.compression import run_compression, run_weights_only

    if report is not None:
        from onnxdfq.report.writing import check_report

        check_report(Path(report), targets=tuple(one.name for one in targets), force=force)
    with op_libraries(op_library), as_file(model) as path, members_of(zoo) as members:
        in_memory = not isinstance(model, str | Path)  # it then lies in a temporary folder, and so does the output
        width = (
            settled.bits.replace("/", "-") if budget is None and settled.budget is None and plan is None else "mixed"
        )
        width = "float" if all(one.format == "float" for one in targets) else width
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
            reported=report is not None,
            save_images=None if save_images is None else Path(save_images),
            plan=decided,
            save_plan=None if save_plan is None else Path(save_plan),
            work_dir=None if work_dir is None else Path(work_dir),
            force=force,
            workers=workers,
            progress=progress,
        )
        result = (run_compression if settled.block is None else run_weights_only)(request)
        if report is not None:
            from onnxdfq.report.assembling import tell_of_compression

            tell_of_compression(request, result, Path(report))
            result = replace(result, original=None)
    return result.unwritten() if in_memory and output is None else result
