"""The images, or other samples, that numbers are decided by: the method's, or the user's own; and those held back."""

from dataclasses import replace

from onnxdfq.images.dataset import load_data
from onnxdfq.images.feeding import Feeding
from onnxdfq.images.images import Images
from onnxdfq.images.merging import rows_of, shard_origin
from onnxdfq.images.samples import Samples
from onnxdfq.images.shards import Shards, shard_files
from onnxdfq.images.source import FixedImages, ImageSource
from onnxdfq.methods.effort import check_images, images_in_memory
from onnxdfq.methods.kept_images import shard_facts
from onnxdfq.methods.method import Distances, FloatModel, Measurement, Method, Note, Run, Synthesis
from onnxdfq.model_file import fillings, given_by_user, main_input
from onnxdfq.pipeline import held_back
from onnxdfq.pipeline.request import Request
from onnxdfq.pipeline.trainers import agree_on_images
from onnxdfq.synthesis.input_range import ASSUMED, other_range
from onnxdfq.synthesis.quality import evaluate_images
from onnxdfq.synthesis.start import starting_samples
from passes.graph.batch_norm import read_batch_norms


def make_images(
    model: FloatModel, method: Method, request: Request, run: Run
) -> tuple[ImageSource | None, ImageSource | None, tuple[Images, ...]]:
    """Where the method's images come from, and the same with what other inputs are fed; both None where nothing is
    decided by images. And others, that files are judged by.

    They are made, or read, here. Of the others there are several sets where the range of an input is not known, and
    none where there are too few of the user's own to hold any back. Of several workers only the first returns, unless
    they train together.

    Raises:
        DataError: The user's own do not fit.
        NoBatchNorm, ShapeError: They cannot be made.
    """
    stay = run.trainers.size > 1
    if not stay and (request.calibration is not None or not isinstance(method, Synthesis)):
        run.workers.release()
    if request.calibration is not None:
        check_images(model.graph, run.recipe.images, None)
        images, spared = _own(model, request, run)
        own: ImageSource | None = FixedImages(images.first)
    else:
        own, spared = _made(model, method, run), None
    source = None if own is None else _completed(own, model, run)
    if source is not None:
        images = source.fixed(run.image_count)
        if stay:
            agree_on_images(run, images)
        else:
            run.workers.release()
        run.tell(Measurement(values={"images": len(images)}))
        if read_batch_norms(model.graph):
            quality = evaluate_images(model.graph, images, device=run.device)
            run.tell(Measurement(values={"bn_distance": quality.bn_distance, "confident": quality.confident}))
            run.tell(Distances(by_layer=quality.distances))
    return own, source, judging_images(model, spared, request, run)


def judging_images(model: FloatModel, spared: Images | None, request: Request, run: Run) -> tuple[Images, ...]:
    """What files are judged by: what was spared of the user's own, else made here; none where no model is written."""
    if request.models and request.calibration is None:
        judging = held_back_or_drawn(model, run)
    elif spared is None:
        return ()
    else:
        judging = completed(spared, model, run)
    if request.calibration is None and judging.provenance.get("input_range") == ASSUMED:
        _tell_of_range(model, run)
        return held_back.at_several_scales(judging, model)
    return (judging,)


def choosing_images(
    model: FloatModel, judging: tuple[Images, ...], request: Request, run: Run
) -> tuple[Images | None, tuple[Images, ...]]:
    """Inputs that a budget of answers is held by, and others that files are judged by, which then decide nothing.

    Of the user's own, those that were held back are halved; None where none were.
    """
    if request.calibration is not None:
        if not judging or len(judging[0]) < 2:
            return None, judging
        half = len(judging[0]) // 2
        return judging[0].taken(slice(half)), (judging[0].taken(slice(half, None)),)
    count, seed = min(held_back.CHOOSING, images_in_memory(model.graph)), held_back.CHOOSING_SEED
    found = _drawn(model, count, run.recipe.seed + seed) or held_back.made(model, run, count=count, seed=seed)
    return completed(found, model, run), judging


def held_back_or_drawn(model: FloatModel, run: Run) -> Images:
    """Inputs that decide nothing, for all inputs of the model: `held_back.made`, or integers where it takes these."""
    found = _drawn(model, held_back.COUNT, run.recipe.seed + held_back.SEED) or held_back.made(model, run)
    return completed(found, model, run)


def _tell_of_range(model: FloatModel, run: Run) -> None:
    spec = main_input(model.graph)
    kind = "images" if spec.image is not None else "normal numbers"
    advice = "--normalize" if spec.image is not None else f"--input {spec.name}=uniform:LOW:HIGH or normal:MEAN:STD"
    run.tell(
        Note(
            text=f"Nothing tells the range of the input {spec.name!r}: {kind} of mean 0 and deviation 1 are fed. Say "
            f"what it takes with {advice}, or give inputs of your own with --calibration."
        )
    )


def _completed(source: ImageSource, model: FloatModel, run: Run) -> FixedImages:
    return FixedImages(lambda count: completed(source.fixed(count), model, run))


def completed(images: Images, model: FloatModel, run: Run) -> Images:
    """The images, with what the model's other inputs are fed beside them, which is told."""
    found = fillings(model.graph)
    others = dict(images.others)
    rows = rows_of(images)  # of a shard: what all are fed is drawn together
    for spec in Feeding(model.graph).others:
        if spec.name in others:
            continue
        if found[spec.name].kind == "image" and spec.image is not None:
            scale = other_range(spec, model.normalization)
            others[spec.name] = starting_samples(spec, scale, rows.stop, seed=images.seed)[rows]
        else:
            others[spec.name] = found[spec.name].draw(spec, rows.stop, images.seed)[rows]
        text = f"The input {spec.name!r} ({spec.dtype.name.lower()} {spec.text() or 'scalar'}) is fed "
        advice = "" if spec.name in given_by_user(model.graph) else f"; --input {spec.name}=... says otherwise"
        run.tell(Note(text=f"{text}{found[spec.name].sentence}{advice}."))
    return replace(images, others=others)


def _made(model: FloatModel, method: Method, run: Run) -> ImageSource | None:
    if _drawn(model, 1, 0) is None or not method.makes_images(run.recipe):
        return method.images(model, run)
    spec = main_input(model.graph)
    sentence = fillings(model.graph)[spec.name].sentence
    run.tell(Note(text=f"The input {spec.name!r} is no picture to search for: it is fed {sentence}."))

    def drawn(count: int) -> Images:
        found = _drawn(model, count, run.recipe.seed) or held_back.made(model, run)
        if run.shard.is_whole:
            return found
        rows = run.shard.part(count, "samples")
        origin = shard_origin(run.shard, rows.start, rows.stop - rows.start) | shard_facts(method, model, count, run)
        return replace(found.taken(rows), provenance=found.provenance | origin)

    return FixedImages(drawn)


def _drawn(model: FloatModel, count: int, seed: int) -> Images | None:
    """Samples of a main input of integers (tokens, flags), or of one that is a constant; None where it is neither."""
    spec = main_input(model.graph)
    filling = fillings(model.graph)[spec.name]
    if (spec.is_float or spec.is_bytes) and filling.kind != "constant":
        return None
    return Images(pixels=filling.draw(spec, count, seed), method="noise", seed=seed)


def own_shards(model: FloatModel, request: Request) -> tuple[Shards, Samples | None] | None:
    """The user's own samples that lie in several files, and some of the last that are held back; None where they do
    not. Raises DataError where they do not fit."""
    files = shard_files(request.calibration)
    if not files:
        return None
    feeding = Feeding(model.graph)
    shards = Shards.of(files, feeding.main, feeding.others, model.normalization)
    spared = len(shards) // held_back.EVERY if len(shards) >= held_back.LEAST_GIVEN else 0
    return shards.parted(min(spared, held_back.MOST))


def _own(model: FloatModel, request: Request, run: Run) -> tuple[Images, Images | None]:
    """The user's own, as many as calibrate, and others that are held back."""
    count, most = run.image_count, images_in_memory(model.graph)
    if (found := own_shards(model, request)) is not None:
        shards, spared = found
        return _images(shards.first(min(count, most)), request), None if spared is None else _images(spared, request)
    return held_back.parted(_read(model, request, min(count + held_back.MOST, most)), count)


def _read(model: FloatModel, request: Request, count: int) -> Images:
    feeding = Feeding(model.graph)
    data = load_data(
        request.calibration, spec=feeding.main, others=feeding.others, normalization=model.normalization, limit=count
    )
    return _images(next(data.samples(count)), request)


def _images(samples: Samples, request: Request) -> Images:
    return Images(pixels=samples.main, others=samples.others, method="file", seed=request.recipe.seed)
