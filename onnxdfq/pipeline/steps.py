"""The steps of a compression, in the order of `compression.STEPS`. Each reads and fills in the job."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version

import onnx_ir as ir

from onnxdfq.budget import Budget, check_budget, choose_bits
from onnxdfq.calibration.by_outputs import thresholds_by_outputs
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.observation import Observations
from onnxdfq.errors import InputError, ModelFileError
from onnxdfq.evaluation.evaluation import Session, evaluate, load_evaluation_data
from onnxdfq.evaluation.saturation import saturation_note
from onnxdfq.images.dataset import Dataset, Normalization, load_dataset
from onnxdfq.methods import Images, evaluate_images, input_range, method_named
from onnxdfq.methods.dfq.equalization import equalize
from onnxdfq.methods.dfq.ranges import image_spread, observations_from_batch_norm
from onnxdfq.methods.probing import channel_moments, layer_inputs_of_images, probed_covariances
from onnxdfq.model_file import atomic_write, image_input, load_model, model_hash, save_model
from onnxdfq.pipeline.job import File, Job
from onnxdfq.pipeline.settings import calibration_of, tuning_of
from onnxdfq.recipe.bits import Bits, bits_of_plan, check_layers, layer_bits_toml
from onnxdfq.recipe.recipe import DFMPC, DFQ
from onnxdfq.synthesis.network import no_batch_norm
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm, unfolded_batch_norms
from passes.dfmpc.compensate import Compensation, plan_compensation
from passes.dfmpc.noise_probe import Covariance, input_covariances
from passes.dfmpc.plan import CompensateWeights, quantized_weights
from passes.graph.batch_norm import read_batch_norms
from passes.moments.moments import Moments, batch_norm_moments, moments_after_edit
from passes.ocs import SplitChannels, channel_splits, widened_values
from passes.quantize.plan import QuantPlan, TensorQuant, same_numbers
from passes.quantize.points import find_quant_points
from passes.write.batch_norm_to_conv import BatchNormToConv
from passes.write.provenance import WriteProvenance, read_provenance
from passes.write.set_opset import SetOpset
from passes.write.write_for_target import WriteForTarget

PLAN_COMMENT = """Bits of each layer's weight, and of the activation that it reads.
Change a line and give the file back with --plan; layers that it leaves out take --bits, or what --budget allows."""
CALIBRATION_IMAGES = 512  # of the user's own, when the recipe names no count


def load(job: Job) -> None:
    job.model = load_model(job.source, input_shape=job.input_shape)
    text = job.recipe.normalize or read_provenance(job.model).get("norm")
    job.normalization = None if text is None else Normalization.parse(text)
    # as loaded and not as in the file: there the batch may be fixed
    job.original = Session(job.source, job.model)
    if job.evaluation is not None:  # data that does not fit is found now, not after the images are made
        load_evaluation_data(job.evaluation, job.original, job.recipe.normalize)


def canonicalize(job: Job) -> None:
    Canonicalize()(job.model)
    for target in [file.target for file in job.files if job.model.opset_imports[""] > file.target.opset]:
        try:  # an operator that the target's opset lacks is found now, not after the images are made
            SetOpset(target.opset).requires(job.model)
        except ir.passes.PreconditionError as error:
            raise InputError(f"The target {target.name} reads opset {target.opset} and older. {error}") from error
    if not job.pins and job.recipe.budget is None:
        return
    folded = job.model.clone()  # its layers are those that bits are given to
    _fold(job, folded)
    for file in job.files:
        check_layers(job.pins, find_quant_points(folded, file.target))
        if job.recipe.budget is not None:
            check_budget(folded, calibration_of(job), file.target, Budget.parse(job.recipe.budget))


def make_images(job: Job) -> None:
    """Images from the statistics that the model carries, or the user's own."""
    recipe = job.recipe
    if job.by_batch_norm:
        if not read_batch_norms(job.model):
            raise no_batch_norm(job.model, recipe.method)
        job.pixel_range = input_range(job.model, job.normalization)
        return
    if job.calibration is not None:
        data = load_dataset(job.calibration, spec=image_input(job.model), normalization=job.normalization)
        pixels = next(data.batches(recipe.images or CALIBRATION_IMAGES))
        job.images = Images(pixels=pixels, method="file", seed=recipe.seed)
    else:
        method, count = method_named(
            "dgh" if recipe.method == DFMPC else recipe.method,
            effort=recipe.effort,
            images=recipe.images,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
        )
        job.images = method.synthesize(
            job.model,
            count=count,
            seed=recipe.seed,
            normalization=job.normalization,
            device=job.device,
            progress=job.progress("synthesizing images"),
        )
    job.metrics["images"] = len(job.images)
    if read_batch_norms(job.model):
        job.metrics |= asdict(evaluate_images(job.model, job.images, device=job.device))
    if job.save_images is not None:
        with atomic_write(job.save_images, force=job.force) as temporary:
            job.images.save(temporary)


def compensate(job: Job) -> None:
    """DF-MPC: low-bit weights in closed form, and the BatchNormalizations behind them recalibrated."""
    bits = Bits.parse(job.recipe.bits)
    if job.recipe.method != DFMPC or bits.low is None:
        return
    paper = job.recipe.dfmpc == "paper"
    settings = (Compensation.paper if paper else Compensation)(low_bits=bits.low, high_bits=bits.weight)
    known: Mapping[str, Moments] = {}
    shown: Mapping[str, Covariance] | None = None
    if job.calibration is not None and job.images is not None:
        values = layer_inputs_of_images(job.model, job.source, job.images.pixels)
        known = channel_moments(values)
        shown = None if paper else input_covariances(job.model, values)
    elif not paper:
        shown = probed_covariances(job.model, job.source, seed=job.recipe.seed)
    try:
        job.compensation = plan_compensation(job.model, settings, moments=known, covariances=shown)
    except ValueError as error:
        raise InputError(str(error)) from error
    job.notes.extend(job.compensation.notes)
    if tuning_of(job) is not None:
        job.reference = job.model.clone()
    CompensateWeights(job.compensation)(job.model)


def fold_batch_norms(job: Job) -> None:
    before = len(read_batch_norms(job.model))
    job.known = batch_norm_moments(job.model)
    unfolded = _fold(job, job.model)
    if job.reference is not None:
        _fold(job, job.reference)
    left = unfolded_batch_norms(job.model)
    job.metrics["batch_norms_folded"] = before - unfolded
    if rewritten := unfolded - len(left):
        job.notes.append(
            f"{rewritten} BatchNormalization that no layer can take in became Conv of one tap per channel."
        )
    if left:
        others = {1: "", 2: " So does one other."}.get(len(left), f" So do {len(left) - 1} others.")
        job.notes.append(left[0].reason + others)


def _fold(job: Job, model: ir.Model) -> int:
    """BatchNormalizations into the layers beside them, else into layers of their own. How many no layer took in."""
    FoldBatchNorm()(model)
    unfolded = len(unfolded_batch_norms(model))
    if Bits.parse(job.recipe.bits).activation < 32:
        BatchNormToConv(file.target for file in job.files)(model)
    return unfolded


def equalize_channels(job: Job) -> None:
    """The same float function by weights that lose less: DFQ's equalisation, and outlier channels split."""
    recipe, bits = job.recipe, Bits.parse(job.recipe.bits).weight
    per_channel = all(file.target.per_channel_weights for file in job.files)
    if recipe.equalize or recipe.method == DFQ:
        aligned = bits if recipe.scheme == "power-of-two" and per_channel else None
        done = equalize(job.model, job.known, aligned_bits=aligned)
        job.known = done.known
        job.metrics |= {"layers_equalized": done.scaled, "biases_absorbed": done.absorbed}
        job.notes.extend(f"{name}: the upper bound of its Clip cuts next to nothing, and went." for name in done.lifted)
    if recipe.split_channels:
        splits = channel_splits(
            job.model,
            ratio=recipe.split_channels,
            bits=bits,
            power_of_two=recipe.scheme == "power-of-two",
            per_channel=per_channel,
        )
        widened = widened_values(job.model, splits)
        SplitChannels(splits)(job.model)
        job.known = moments_after_edit(job.known, widened, Moments.taken)
        job.metrics["layers_split"] = len(splits)


def calibrate(job: Job) -> None:
    """One look at the images, and each target decides by it."""
    calibration = calibration_of(job)
    decided = {} if job.compensation is None else quantized_weights(job.model, job.compensation)
    quants = {name: weight.quant for name, weight in decided.items()}
    integers = {name: weight.integers for name, weight in decided.items()}
    if decided and job.by_batch_norm:
        for file in job.files:
            file.plan = QuantPlan(activations={}, weights=quants, integers=integers)
        return
    observations = _observations(job, calibration)
    measured: dict[tuple[object, ...], dict[str, TensorQuant]] = {}
    shiftable = 0
    for file in job.files:
        own = calibration if job.recipe.budget is None else _within_budget(job, file, calibration, observations)
        plan = own.decide(job.model, observations, file.target, decided=quants)
        if job.images is not None and job.recipe.clipping == "mse":
            tails = own.takes_tails(file.target)
            steps = (
                tails,
                frozenset(
                    (name, float(quant.scale), quant.signed, quant.range) for name, quant in plan.activations.items()
                ),
            )
            if steps not in measured:
                measured[steps] = thresholds_by_outputs(
                    job.model,
                    plan,
                    job.images.pixels,
                    scheme=job.recipe.scheme,
                    tails=tails,
                    device=job.device,
                    progress=job.progress("choosing thresholds"),
                )
            if measured[steps]:
                plan = own.decide(job.model, observations, file.target, decided=quants | measured[steps])
        if not own.shift_negative and file.target.unsigned_activations != "none":
            shiftable = max(shiftable, own.shiftable(job.model, observations, plan))
        kept = {name: found for name, found in integers.items() if plan.weights[name] is quants[name]}
        file.plan = replace(plan, integers={**kept, **plan.integers})
        if job.save_plan is not None:
            bits = bits_of_plan(job.model, file.plan, find_quant_points(job.model, file.target))
            with atomic_write(job.plan_path(file), force=job.force) as temporary:
                temporary.write_text(layer_bits_toml(bits, comment=PLAN_COMMENT), encoding="utf-8")
    if shiftable:
        what = "activation has" if shiftable == 1 else "activations have"
        job.notes.append(
            f"{shiftable} {what} a small negative tail, which costs a bit; --shift-negative gives it back."
        )


def _within_budget(job: Job, file: File, calibration: Calibration, observations: Observations) -> Calibration:
    assert job.images is not None
    assert job.recipe.budget is not None
    chosen = choose_bits(
        job.model,
        job.images.pixels,
        observations,
        calibration,
        file.target,
        Budget.parse(job.recipe.budget),
        device=job.device,
        progress=job.progress("measuring layers"),
    )
    file.metrics |= {"weight_bytes": round(chosen.size), "bit_operations": chosen.bops}
    containers = {bits: file.target.weight_container(bits) for bits in set(chosen.weight_bits.values())}
    if wider := sorted({name for bits, name in containers.items() if name != f"int{bits}"}):
        job.notes.append(
            f"--budget counts weights at their bits; the target {file.target.name} keeps some of them in "
            f"{' and '.join(wider)}, so its file is larger."
        )
    return replace(calibration, layer_bits=chosen.layers)


def _observations(job: Job, calibration: Calibration) -> Observations:
    targets = [file.target for file in job.files]
    if job.images is not None:
        return calibration.observe(
            job.model, job.images.pixels, targets, device=job.device, progress=job.progress("calibrating")
        )
    pixels, name = job.pixel_range, image_input(job.model).name
    assert pixels is not None
    low, high = (pixels.mean + pixels.std * limit for limit in (pixels.low, pixels.high))
    spread = image_spread(name, mean=pixels.mean, std=pixels.std, low=low, high=high)
    return observations_from_batch_norm(
        job.model, {**job.known, name: spread}, targets, activations=Bits.parse(job.recipe.bits).activation < 32
    )


def tune(job: Job) -> None:
    """Roundings, steps and biases by reconstruction; once for all targets whose plans are the same."""
    recipe, tuning = job.recipe, tuning_of(job)
    if tuning is None or job.images is None:
        return
    done: list[tuple[File, QuantPlan]] = []
    for file in job.files:
        plan = file.plan
        file.plan = next(
            (
                other.plan
                for other, planned in done
                if same_numbers(planned, plan) and other.target.pair_limit == file.target.pair_limit
            ),
            plan,
        )
        if file.plan is not plan:
            continue
        file.plan, parts = tuning.tune(
            job.model,
            plan,
            file.target,
            job.images.pixels,
            reference=job.reference,
            seed=recipe.seed,
            device=job.device,
            progress=job.progress("tuning"),
        )
        done.append((file, plan))
        file.metrics |= {"blocks_tuned": len(parts)}
        job.notes.extend(dict.fromkeys(part.block.fallback for part in parts if part.block.fallback))
        uses = find_quant_points(job.model, file.target).weights
        scales = {use.initializer for use in uses if use.scales}
        if untuned := plan.weights.keys() - file.plan.integers.keys() - scales:
            job.notes.append(
                f"{len(untuned)} weights lie in no block with one way in and one way out, and keep "
                f"nearest rounding: {', '.join(sorted(untuned)[:3])}{', ...' if len(untuned) > 3 else ''}."
            )


def write_for_targets(job: Job) -> None:
    for file in job.files:
        file.model = job.model.clone()
        WriteForTarget(file.plan, file.target)(file.model)


def write_provenance(job: Job) -> None:
    recipe = job.recipe
    entries = {
        "version": version("onnxdfq"),
        "method": recipe.method if job.images is None else job.images.method,
        "bits": recipe.bits,
        "scheme": recipe.scheme,
        "seed": str(recipe.seed),
        "images": str(0 if job.images is None else len(job.images)),
        "recipe": hashlib.sha256(recipe.to_toml().encode()).hexdigest()[:16],
        "source": model_hash(job.source)[:16],
    }
    if job.normalization is not None:
        entries["norm"] = str(job.normalization)
    for file in job.files:
        WriteProvenance(entries | {"target": file.target.name})(file.model)


def save(job: Job) -> None:
    job.metrics["bytes_float"] = job.source.stat().st_size
    for file in job.files:
        save_model(file.model, file.path, force=job.force, inner_shapes=file.target.inner_shapes)
        file.metrics["bytes"] = file.path.stat().st_size


def measure(job: Job) -> None:
    """Fidelity on the images that calibrated it, which needs no label; accuracy where the user gave labelled images."""
    for file in job.files:
        compressed, original = _session(file), job.original
        if job.images is not None:
            data, progress = Dataset(images=job.images.pixels), job.progress("comparing with the float model")
            measured = evaluate(compressed, data, against=original, progress=progress)
            file.metrics |= {"agreement_images": measured.agreement, "sqnr_db_images": measured.sqnr_db}
        if job.evaluation is not None:
            data = load_evaluation_data(job.evaluation, compressed, job.recipe.normalize)
            measured = evaluate(compressed, data, against=original, progress=job.progress("evaluating"))
            file.metrics |= asdict(measured)
        if not file.target.verified:
            job.notes.append(
                f"The file for {file.target.title} was measured in ONNX Runtime and not run on that runtime: its form "
                "rests on documents alone."
            )
        if (note := saturation_note(file.path, exact=compressed.exact)) is not None:
            job.notes.append(note)
        if not compressed.fused:
            job.notes.append(
                f"ONNX Runtime reads the file for the target {file.target.name} only without its fusions, in float."
            )


def _session(file: File) -> Session:
    """With integer kernels where ONNX Runtime makes them; only of the files for itself does it have to."""
    try:
        return Session(file.path)
    except ModelFileError:
        if file.target.name == "ort":
            raise
        return Session(file.path, fuse=False)
