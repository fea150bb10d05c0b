"""Proof: what each written file computes, against the float network."""

from collections.abc import Sequence
from dataclasses import asdict

from onnxdfq.errors import ModelFileError, OutputError
from onnxdfq.evaluation import Evaluation, Session, evaluate, evaluate_all, load_evaluation_data
from onnxdfq.evaluation.saturation import saturation_note
from onnxdfq.images.dataset import Dataset
from onnxdfq.images.images import Images
from onnxdfq.methods.method import Measurement, Note, Run
from onnxdfq.model_file.writing import Staged
from onnxdfq.pipeline.finite import check_outputs
from onnxdfq.pipeline.request import Output, Request

UNTOLD = ("notes", "nothing_compared", "not_finite")  # of an evaluation, among the figures of a run


def compare(
    request: Request, staged: Staged, original: Session, images: Images | None, judging: Sequence[Images], run: Run
) -> None:
    """Fidelity on the images that calibrated and on those that did not; accuracy where labelled data is given.

    Of several sets that did not, the worst figure counts.

    The float network runs once over each set of images, whatever the number of files.

    Raises:
        ModelFileError: ONNX Runtime refuses a file that was written for it. DataError: the labelled data does not fit.
        OutputError: a file computes NaN or infinity where the float network does not.
    """
    sessions = {output.target.name: _session(output, staged) for output in request.outputs}
    for kind, sets in (("images", [] if images is None else [images]), ("held_back", judging)):
        found = [
            evaluate_all(
                sessions,
                Dataset(images=some.pixels, others=some.others),
                against=original,
                progress=run.progress("comparing with the float model"),
            )
            for some in sets
        ]
        for output in request.outputs if found else ():
            name = output.target.name
            ones = [by_name[name] for by_name in found]
            check_outputs(output, ones)
            run.tell(Measurement(values=_worst(ones, kind), target=name))
            if kind == "held_back":
                run.tell(Measurement(values={kind: sum(one.count for one in ones)}, target=name))
    if request.evaluation is not None:
        first = next(iter(sessions.values()))
        data = load_evaluation_data(request.evaluation, first, request.recipe.normalize)
        measured = evaluate_all(sessions, data, against=original, progress=run.progress("evaluating"))
        for output in request.outputs:
            one = measured[output.target.name]
            check_outputs(output, [one])
            values = {key: value for key, value in asdict(one).items() if key not in UNTOLD}
            run.tell(Measurement(values=values, target=output.target.name))
    for output in request.outputs:
        _tell_of_runtime(output, staged, sessions[output.target.name], run)


def _worst(found: Sequence[Evaluation], kind: str) -> dict[str, float | None]:
    """The worst figures of several sets of inputs; no signal to noise where none of them gave anything to compare."""
    agreement = min((one.agreement for one in found if one.agreement is not None), default=None)
    sqnr_db = min((one.sqnr_db for one in found if one.sqnr_db is not None), default=None)
    known = not all(one.nothing_compared for one in found)
    return {f"agreement_{kind}": agreement} | ({f"sqnr_db_{kind}": sqnr_db} if known else {})


def _session(output: Output, staged: Staged) -> Session:
    """With integer kernels where ONNX Runtime makes them; only of the files for itself does it have to."""
    assert output.path is not None
    file = staged.where(output.path)
    try:
        return Session(file, called=output.path)
    except ModelFileError:
        if output.target.name == "ort":
            raise
        return Session(file, called=output.path, fuse=False)


def _tell_of_runtime(output: Output, staged: Staged, session: Session, run: Run) -> None:
    assert output.path is not None
    if not output.target.verified and output.target.format != "float":
        run.tell(
            Note(
                text=f"The file for {output.target.title} was measured in ONNX Runtime and not run on that runtime: "
                "its form rests on documents alone."
            )
        )
    if (note := saturation_note(staged.where(output.path), exact=session.exact)) is not None:
        run.tell(Note(text=note))
    if not session.fused:
        name = output.target.name
        run.tell(Note(text=f"ONNX Runtime reads the file for the target {name} only without its fusions, in float."))


def compare_floats(
    session: Session, original: Session, images: Images | None, judging: Sequence[Images], advice: str, run: Run
) -> None:
    """Fidelity of one float file to another network: on the images that decided, and on those held back, of which the
    worst set counts.

    Args:
        session: Of the file that was written.
        original: What it is to compute.
        images, judging: As for `compare`.
        advice: What to do where it computes NaN or infinity.
        run: Takes the figures.

    Raises:
        OutputError: It computes NaN or infinity where the other does not.
    """
    for kind, sets in (("images", [] if images is None else [images]), ("held_back", judging)):
        progress = run.progress("comparing with the float model")
        found = [
            evaluate(session, Dataset(images=one.pixels, others=one.others), against=original, progress=progress)
            for one in sets
        ]
        if any(one.not_finite for one in found):
            raise OutputError(
                f"{session.path} was not written, because it computes NaN or infinity where the model that it is "
                f"compared with does not; {advice}.",
                exit_code=1,
            )
        if found:
            run.tell(Measurement(values=_worst(found, kind)))
    if judging:
        run.tell(Measurement(values={"held_back": sum(map(len, judging))}))
