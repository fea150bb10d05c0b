"""Weights alone as integers, with a scale for every block: for transformers beside float activations.

No image is looked at for nearest rounding, and no model has to fit into memory: weights are read, rounded and written
one by one. GPTQ runs the network on its inputs once; a few layers of it at a time beyond 2 GB (`streamed_gptq`).
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib.metadata import version

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import InputError
from onnxdfq.evaluation import Session
from onnxdfq.images.images import Images
from onnxdfq.methods.method import FloatModel, Measurement, Note, Run
from onnxdfq.model_file import batch_of
from onnxdfq.model_file.declared import restore_shapes
from onnxdfq.model_file.saving import runs_lean, stage_model
from onnxdfq.model_file.through_proto import with_inferred_bodies
from onnxdfq.model_file.untrusted import bytes_of
from onnxdfq.model_file.writing import staging
from onnxdfq.pipeline.comparing import compare
from onnxdfq.pipeline.images import judging_images, make_images
from onnxdfq.pipeline.request import Request
from onnxdfq.pipeline.rewriting import fold_batch_norms
from onnxdfq.pipeline.streamed_gptq import BATCH_SIZE, inverse_of, read_by, streamed_gptq
from onnxdfq.progress import Steps
from passes.graph.editing import drop_unused_initializers
from passes.lint.lint import Finding, lint
from passes.quantize.blocks import BlockLayer, BlockWeight, Choose, block_layers, gptq, rounded
from passes.target.target import Target
from passes.write.block_weights import BlockWeights
from passes.write.provenance import WriteProvenance

Hessians = dict[str, NDArray[np.float64]]  # by the name of what a layer reads
EXACT_NOTE = (
    "ONNX Runtime computes these layers as MatMulNBits, which by default rounds what they read to 8 bits; with the "
    "session option session.qdq_matmulnbits_accuracy_level=1 it does not."
)


def with_block_weights(
    model: FloatModel, original: Session, request: Request, run: Run
) -> tuple[dict[str, ir.Model], Images | None, dict[str, tuple[Finding, ...]]]:
    """Writes and measures a file for each target.

    Returns:
        By target name the written graphs; the inputs that GPTQ looked at; and the findings about each file.

    Raises:
        InputError: there is no layer to round, or GPTQ cannot have what one reads.
    """
    recipe = run.recipe
    assert recipe.block is not None
    graph = model.graph
    fold_batch_norms(graph, request)
    layers = list(block_layers(graph.graph))
    if not layers:
        raise InputError(
            f"{request.source} has no MatMul or Gemm with a constant matrix, and --block is for these; leave it out.",
            field="block",
        )
    images, choose = None, _nearest(run.bits.weight, recipe.block)
    with ExitStack() as stack:
        if recipe.rounding == "gptq":
            images, judging = _inputs(model, request, run)
            if streamed := runs_lean(graph):
                choose = stack.enter_context(streamed_gptq(model, layers, images, run))
            else:
                choose = _by_hessian(run.bits.weight, recipe.block, _hessians(graph, layers, images, run), graph)
        else:
            judging, streamed = judging_images(model, None, request, run), False
        written = {target.name: _made(model, choose, request, target, run) for target in request.targets}
        run.tell(Measurement(values={"layers_in_blocks": len(layers)}))
        with staging(force=request.force) as staged:
            for output in request.outputs:
                assert output.path is not None
                made = written[output.target.name]
                stage_model(made, output.path, staged, inner_shapes=output.target.inner_shapes)
                size = bytes_of(staged.where(output.path))
                run.tell(Measurement(values={"bytes": size}, target=output.target.name))
            run.tell(Measurement(values={"bytes_float": bytes_of(request.source)}))
            compare(request, staged, original, images, judging, run)
    if streamed:  # what was chosen is gone
        written = {output.target.name: ir.load(output.path) for output in request.outputs if output.path is not None}
    run.tell(Note(text=EXACT_NOTE))
    findings = {target.name: lint(with_inferred_bodies(written[target.name]), target) for target in request.targets}
    return written, images, findings


def _made(model: FloatModel, choose: Choose, request: Request, target: Target, run: Run) -> ir.Model:
    assert run.recipe.block is not None
    made = model.graph.clone()
    BlockWeights(run.bits.weight, run.recipe.block, choose)(made)
    drop_unused_initializers(made.graph)
    restore_shapes(made, dynamic_batch=request.dynamic_batch, static=target.static_shapes)
    WriteProvenance(_entries(model, request, target.name))(made)
    return made


def _entries(model: FloatModel, request: Request, target: str) -> dict[str, str]:
    recipe = request.recipe
    entries = {
        "version": version("onnxdfq"),
        "method": recipe.rounding,
        "bits": recipe.bits,
        "block": str(recipe.block),
        "seed": str(recipe.seed),
        "source": model.digest[:16],
        "target": target,
    }
    return entries | ({} if model.normalization is None else {"norm": str(model.normalization)})


def _inputs(model: FloatModel, request: Request, run: Run) -> tuple[Images, tuple[Images, ...]]:
    from onnxdfq.pipeline.compression import fitted, settled_method

    method, run = fitted(settled_method(request, model, run), model, run)
    _, source, judging = make_images(model, method, request, run)
    if source is None:
        raise InputError(f"--method {method.name} makes no inputs, and GPTQ needs some.", field="method")
    return source.fixed(run.image_count), judging


def _hessians(graph: ir.Model, layers: list[BlockLayer], images: Images, run: Run) -> Hessians:
    """Sums of x xᵀ over all inputs x of each layer."""
    engine = TorchGraph(graph, outputs=list(read_by(graph, layers))).to(run.device).eval()
    feeds, sums = Feeds(graph), dict[str, torch.Tensor]()
    size = batch_of(graph) or BATCH_SIZE
    advance = Steps(run.progress("measuring inputs"), -(-len(images) // size))
    with torch.no_grad():
        for batch in feeds.batches(engine.input_names, images.samples, size, run.device):
            for name, value in engine.stream(*batch):
                rows = value.reshape(-1, value.shape[-1]).double()
                sums[name] = sums.get(name, torch.zeros(())) + rows.T @ rows
            advance("inputs")
    return {name: found.cpu().numpy() for name, found in sums.items()}


def _nearest(bits: int, block: int) -> Choose:
    return lambda layer, weight: rounded(weight, bits, block)


def _by_hessian(bits: int, block: int, hessians: Hessians, graph: ir.Model) -> Choose:
    read = {node.name: node.inputs[0].name or "" for node in graph.graph if node.inputs and node.inputs[0] is not None}
    inverses: Hessians = {}  # of layers that read the same, and of all targets, once

    def choose(layer: BlockLayer, weight: NDArray[np.float32]) -> BlockWeight:
        name = read[layer.node]
        if name not in inverses:
            inverses[name] = inverse_of(hessians.pop(name), layer)
        return gptq(weight, inverses[name], bits, block)

    return choose
