"""Running models in ONNX Runtime on given images: accuracy, and how close a compressed model stays to its float one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int, Shaped
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.evaluation.session import Session
from onnxdfq.images.dataset import Dataset, load_data
from onnxdfq.images.normalization import Normalization
from onnxdfq.progress import Progress
from passes.graph.parts import Parts, split_into

TRACED_AT = (1, 2, 4, 8, 16, 32)

Outputs: TypeAlias = Shaped[NDArray[Any], "..."]
Classes: TypeAlias = Int[NDArray[np.integer[Any]], "..."]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Shares are between 0 and 1; what could not be measured is None.

    Attributes:
        count: Of samples.
        top1: Share of samples whose class is the label: the arg-max over axis 1 of the output that tells classes apart.
        top1_float: The same of the float original.
        agreement: Share of equal classes between the model and its float original; None for outputs that are no
            classes, or scores of them.
        sqnr_db: 10 log10 of signal over error energy of the worst of the compared values (see
            `passes.graph.compared`), or of their parts (`passes.graph.parts`). Where the number of rows depends on the
            sample (a detector's boxes) and the two models give different ones, that output of that batch is left out.
        nothing_compared: True where no compared value held any number but 0 (a detector that finds nothing), so that
            nothing is known of `sqnr_db`; else None.
        not_finite: How many numbers are NaN or infinite where those of the float original are not; None for none.
        notes: What to know about these figures, a sentence each.
    """

    count: int
    top1: float | None = None
    top1_float: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    nothing_compared: bool | None = None
    not_finite: int | None = None
    notes: tuple[str, ...] = ()


def load_evaluation_data(source: Any, session: Session, normalize: str | None) -> Dataset:
    """Images and labels for a model; normalised as `normalize` says, else as the model remembers.

    Args:
        source: whatever `onnxdfq.images.dataset.load_data` reads.

    Raises:
        DataError: they do not fit the model.
    """
    text = normalize or session.normalization
    normalization = None if text is None else Normalization.parse(text)
    return load_data(
        source, spec=session.main, others=session.others, normalization=normalization, classes=session.classes
    )


def evaluate(
    session: Session, data: Dataset, *, against: Session | None = None, progress: Progress | None = None
) -> Evaluation:
    """Run the model, and its float original `against` beside it, on all of `data`.

    Raises:
        DataError: the images do not run, or the two models are not the same network.
    """
    return evaluate_all({"": session}, data, against=against, progress=progress)[""]


def evaluate_all(
    sessions: Mapping[str, Session],
    data: Dataset,
    *,
    against: Session | None = None,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """Run several models of one network, and their float original `against` once beside them, on all of `data`.

    Returns:
        By the names of `sessions`, what was measured.

    Raises:
        DataError: the images do not run, or the models are not the same network.
    """
    every = [*sessions.values(), *([] if against is None else [against])]
    size = min(session.batch_size(next(data.samples(2))) for session in every)
    try:
        return _evaluated(sessions, data, size, against, progress)
    except DataError:
        # a file may declare a free batch and hold the one that it was traced at
        other = next((one for one in TRACED_AT if one != size and _runs(every, data, one)), None)
        if other is None or _runs(every, data, size):
            raise
        return _evaluated(sessions, data, other, against, progress)


def _evaluated(
    sessions: Mapping[str, Session], data: Dataset, size: int, against: Session | None, progress: Progress | None
) -> dict[str, Evaluation]:
    labels, done = data.labels, 0
    scores = {name: _Score(parts=(against or session).parts) for name, session in sessions.items()}
    for samples in data.samples(size):
        wanted = None if labels is None else labels[done : done + len(samples)]
        expected, right = (None, None) if against is None else against.run_with_answers(samples, against.answer)
        for name, session in sessions.items():
            outputs, answer = session.run_with_answers(samples, session.answer_like((against or session).answer))
            if against is not None and expected is not None:
                _check_same_network(session, outputs, against, expected)
            scores[name].add(
                outputs, expected, _classes(answer, outputs, wanted), _classes(right, expected, wanted), wanted
            )
        done += len(samples)
        if progress is not None:
            progress(done, len(data), "evaluating")
    return {name: score.evaluation(done, labelled=labels is not None) for name, score in scores.items()}


def _runs(sessions: Sequence[Session], data: Dataset, size: int) -> bool:
    try:
        for session in sessions:
            session.run(next(data.samples(size)))
    except DataError:
        return False
    return True


@dataclass(kw_only=True)
class _Score:
    """What was counted so far of one model."""

    right: int = 0
    right_float: int = 0
    equal: int = 0
    positions: int = 0
    parts: Sequence[Parts | None]
    signal: dict[tuple[int, int], float] = field(default_factory=dict)  # by place of the output, and of its part
    noise: dict[tuple[int, int], float] = field(default_factory=dict)
    not_finite: int = 0
    classifies: bool = False
    compared: bool = False

    def add(
        self,
        outputs: Sequence[Outputs],
        expected: Sequence[Outputs] | None,
        chosen: Classes | None,
        other: Classes | None,
        labels: Int[NDArray[np.integer[Any]], "_"] | None,
    ) -> None:
        """Take in one batch.

        Args:
            outputs: Of the model, each as a rule (N, ...).
            expected: The float model's.
            chosen: (N, ...) the model's classes.
            other: The float model's.
            labels: Of these samples.
        """
        # outputs that mix the samples of a batch have rows of their own
        self.classifies = chosen is not None and (chosen.ndim == 1 if labels is None else chosen.shape == labels.shape)
        if labels is not None and chosen is not None and self.classifies:
            self.right += int((chosen == labels).sum())
        if expected is None:
            return
        self.compared = True
        if chosen is not None and other is not None and other.shape == chosen.shape:
            self.equal, self.positions = self.equal + int((chosen == other).sum()), self.positions + chosen.size
        if labels is not None and other is not None and self.classifies and other.shape == labels.shape:
            self.right_float += int((other == labels).sum())
        for place, (value, reference) in enumerate(zip(outputs, expected, strict=True)):
            self.not_finite += _not_finite(value, reference)
            if value.shape == reference.shape:
                both = (split_into(array, self.parts[place]) for array in (value, reference))
                for part, (found, right) in enumerate(zip(*both, strict=True)):
                    self._compare((place, part), found, right)

    def _compare(self, place: tuple[int, int], value: Outputs, reference: Outputs) -> None:
        finite = np.isfinite(reference)
        if not finite.all():  # nothing is close to an infinity, or far from it
            value, reference = value[finite], reference[finite]
        self.signal[place] = self.signal.get(place, 0.0) + _energy(reference)
        self.noise[place] = self.noise.get(place, 0.0) + _energy(np.asarray(value - reference))

    def evaluation(self, count: int, *, labelled: bool) -> Evaluation:
        """What the counts say."""
        scored = labelled and self.classifies
        found = [_decibel(self.signal[place], self.noise[place]) for place in self.signal]
        levels = [level for level in found if level is not None]
        energies = (*self.signal.values(), *self.noise.values())
        return Evaluation(
            count=count,
            top1=self.right / count if scored else None,
            top1_float=self.right_float / count if scored and self.compared else None,
            agreement=self.equal / self.positions if self.positions else None,
            sqnr_db=min(levels) if levels else None,
            nothing_compared=True if self.compared and not any(energies) else None,
            not_finite=self.not_finite or None,
        )


def _classes(
    answer: Outputs | None, outputs: Sequence[Outputs] | None, labels: Int[NDArray[np.integer[Any]], "_"] | None
) -> Classes | None:
    """(N, ...) classes: the answer itself, or its arg-max; whoever brings labels means the first output by them."""
    if answer is None and labels is not None and outputs:
        answer = outputs[0]
    if answer is None:
        return None
    return answer.astype(np.int64) if np.issubdtype(answer.dtype, np.integer) else _arg_max(answer)


def _not_finite(value: Outputs, reference: Outputs) -> int:
    """How many numbers of the one are NaN or infinite where those of the other are not."""
    broken, finite = ~np.isfinite(value), np.isfinite(reference)
    return int((broken & finite).sum() if value.shape == reference.shape else broken.sum() * bool(finite.all()))


def _energy(values: Outputs) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _check_same_network(
    session: Session,
    outputs: Sequence[Outputs],
    other: Session,
    others: Sequence[Outputs],
) -> None:
    """Raises DataError unless the outputs have equal shapes, but for sizes that the model itself leaves open."""
    if len(outputs) == len(others):
        pairs = zip(outputs, others, session.output_shapes, strict=True)
        if all(_fits(value.shape, reference.shape, declared) for value, reference, declared in pairs):
            return
    raise DataError(f"The outputs of {other.path} and {session.path} differ in shape; they are not the same network.")


def _fits(shape: tuple[int, ...], other: tuple[int, ...], declared: Sequence[int | None] | None) -> bool:
    if shape == other or len(shape) != len(other) or declared is None or len(declared) != len(shape):
        return shape == other
    return all(size == given or free is None for size, given, free in zip(shape, other, declared, strict=True))


def _arg_max(output: Outputs) -> Classes:
    """(N, K, ...) → (N, ...); trailing axes of size 1 are dropped, so that (N, K, 1, 1) classifies too."""
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return np.asarray(output.argmax(axis=min(1, output.ndim - 1)))


def _decibel(signal: float, noise: float) -> float | None:
    """Infinite when nothing differs, or when something is infinite, which JSON cannot say: None then."""
    return 10 * float(np.log10(signal / noise)) if 0 < noise < np.inf and signal > 0 else None
