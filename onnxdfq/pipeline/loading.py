"""A file becomes a `FloatModel`, and whatever is wrong with it for these targets is said at once."""

from collections.abc import Sequence

import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.evaluation import Session, load_evaluation_data
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods.method import FloatModel, Note, Run
from onnxdfq.model_file import Opening, batch_of
from onnxdfq.model_file.loading import CONVERTED
from onnxdfq.pipeline.request import Request
from passes.canonical.canonicalize import Canonicalize
from passes.target.target import Target
from passes.write.provenance import read_provenance
from passes.write.set_opset import SetOpset


def load(request: Request, opening: Opening, run: Run) -> tuple[FloatModel, Session]:
    """The network in canonical form, and a session of the file itself, which all that is written is held against.

    opening: of the request's file.

    Raises:
        ModelFileError: the file cannot be converted.
        DataError: the data to evaluate on does not fit it.
        InputError: a target's opset lacks an operator.
    """
    opened = opening.opened()
    graph = opened.model
    if request.dynamic_batch and batch_of(graph) is not None:
        raise InputError(
            f"{request.source} computes something else at other batches than {batch_of(graph)}; leave --dynamic-batch "
            "out, or export the model with a dynamic batch."
        )
    if (gone := graph.metadata_props.pop(CONVERTED, None)) is not None:
        run.tell(Note(text=f"The model is of {gone}; it is computed and written in float32, inputs and outputs too."))
    text = request.recipe.normalize or read_provenance(graph).get("norm")
    normalization = None if text is None else Normalization.parse(text)
    if not opened.reference.own:
        run.tell(
            Note(
                text=f"What is written is held against the float network as it was read, and not against "
                f"{request.source.name} itself. {opened.reference.why}"
            )
        )
    session = Session(request.source, original=opened)
    if request.evaluation is not None:  # data that does not fit is found now, not after the images are made
        load_evaluation_data(request.evaluation, session, request.recipe.normalize)
    Canonicalize()(graph)
    _check_opsets(graph, request.targets)
    return (
        FloatModel(graph=graph, source=request.source, digest=opened.reference.digest, normalization=normalization),
        session,
    )


def _check_opsets(graph: ir.Model, targets: Sequence[Target]) -> None:
    for target in targets:
        if graph.opset_imports[""] <= target.opset:
            continue
        try:
            SetOpset(target.opset).requires(graph)
        except ir.passes.PreconditionError as error:
            raise InputError(f"The target {target.name} reads opset {target.opset} and older. {error}") from error
