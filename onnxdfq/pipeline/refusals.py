"""What can be wrong about names, paths and their combinations: found before minutes of work, not after."""

from dataclasses import replace

from onnxdfq.errors import InputError
from onnxdfq.methods import METHODS
from onnxdfq.model_file import check_writable
from onnxdfq.pipeline.job import Job
from onnxdfq.pipeline.settings import calibration_of, tuning_of
from onnxdfq.recipe.bits import Bits
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.recipe import DFMPC, DFQ


def refuse_early(job: Job) -> None:
    """The first step. Raises InputError, OutputError."""
    one_of("method", job.recipe.method, (*METHODS, DFQ, DFMPC))
    low = Bits.parse(job.recipe.bits).low
    for file in job.files:
        calibration_of(job).check(file.target)
        if low is not None:
            replace(calibration_of(job), weight_bits=low).check(file.target)
        if job.recipe.method == DFMPC and (file.target.power_of_two or not file.target.per_channel_weights):
            raise InputError(
                f"dfmpc gives each output channel a scale of its own, no power of two; the target {file.target.name} "
                "does not take that. Choose another --target."
            )
    if job.recipe.method == DFMPC:
        _refuse_what_changes_weights(job)
    if job.by_batch_norm:
        _refuse_what_needs_images(job)
    tuning = tuning_of(job)
    if tuning is not None and job.recipe.images is not None:
        tuning.check(job.recipe.images)
    outputs = [("-o", file.path) for file in job.files]
    given = {
        "the model itself": job.source,
        "the calibration data": job.calibration,
        "the labelled data": job.evaluation,
    }
    if job.save_plan is not None:
        outputs += [("--save-plan", job.plan_path(file)) for file in job.files]
    for option, path in outputs + ([] if job.save_images is None else [("--save-images", job.save_images)]):
        for what, source in given.items():
            if source is not None and path.exists() and source.exists() and path.samefile(source):
                raise InputError(f"{path} is {what}; give another name with {option}.")
        check_writable(path, force=job.force)
    for _, path in outputs:
        if job.save_images is not None and path.resolve() == job.save_images.resolve():
            raise InputError(f"{path} cannot take both the model and the images; give another name with -o.")
    for data in (job.calibration, job.evaluation):
        if data is not None and not data.exists():
            raise InputError(f"{data}: there is no such file or folder.")


def _refuse_what_changes_weights(job: Job) -> None:
    wanted = {
        "--budget": job.recipe.budget is not None,
        "--equalize": job.recipe.equalize,
        "--split-channels": job.recipe.split_channels > 0,
        "--plan with bits of weights": any(pin.weight is not None for pin in job.pins.values()),
    }
    for option, given in wanted.items():
        if given:
            raise InputError(f"dfmpc decides the weights and their bits; leave {option} out, or choose --method dgh.")


def _refuse_what_needs_images(job: Job) -> None:
    wanted = {
        "--budget": job.recipe.budget is not None,
        "--save-images": job.save_images is not None,
        "synthesize": not job.files,
        f"--tuning {job.recipe.tuning}": job.recipe.tuning not in (None, "none"),
    }
    for option, given in wanted.items():
        if given:
            method = job.recipe.method
            raise InputError(f"--method {method} makes no images, and {option} needs some; choose --method dgh.")
