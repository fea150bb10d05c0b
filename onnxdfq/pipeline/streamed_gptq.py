"""GPTQ for networks beyond 2 GB: ONNX Runtime computes what layers read, and what is found lies in a scratch folder.

Memory holds one after the other: the network while it runs, and then a sum of x xᵀ with one weight.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64
from numpy.typing import NDArray
from onnx_ir.passes import common

from onnxdfq.errors import DataError, InputError, ModelFileError
from onnxdfq.evaluation import Session
from onnxdfq.images.feeding import Feeding
from onnxdfq.images.images import Images
from onnxdfq.images.samples import Samples
from onnxdfq.methods.method import FloatModel, Run
from onnxdfq.model_file.through_proto import CARRIED_INLINE, float_bytes
from onnxdfq.pipeline.gptq_files import Sum, keep, kept, room_in
from onnxdfq.progress import Steps
from onnxdfq.scratch import scratch_folder
from passes.graph.editing import required_name
from passes.quantize.blocks import BlockLayer, BlockWeight, Choose, gptq, inverse_factor

BATCH_SIZE = 8  # inputs that run at once, where the network leaves it open
PARTS = 2  # of the network: sums of one pass over the inputs take the bytes of one such part, on the disk
IN_PROTOBUF = 2**26  # bytes of weights that lie in no file of the user's, and that ONNX Runtime gets without one


@contextmanager
def streamed_gptq(model: FloatModel, layers: Sequence[BlockLayer], images: Images, run: Run) -> Iterator[Choose]:
    """Rounds all layers, and yields what tells of each what it became, as long as the block lasts.

    Args:
        model: Folded; its weights lie on the disk.
        layers: In graph order.
        images: That the network runs on.
        run: Whose bits and block are meant.

    Raises:
        InputError: ONNX Runtime does not compute what a layer reads, or that is not finite.
        OutputError: The temporary folder has no room.
    """
    readers, most = read_by(model.graph, layers), float_bytes(model.graph) // PARTS
    passes = list(_passes({name: 8 * found[0].depth ** 2 for name, found in readers.items()}, most))
    batches = list(Feeding(model.graph).parts(images.samples, BATCH_SIZE))
    advance = Steps(run.progress("measuring inputs and rounding"), len(passes) * len(batches) + len(readers))
    files: dict[tuple[str, bool], Path] = {}
    with scratch_folder() as folder:
        with room_in(folder):
            network = _runnable(model, folder)
            for names in passes:
                sums = {name: Sum(folder / f"sum{i}", readers[name][0].depth) for i, name in enumerate(names)}
                with _blaming(readers[names[0]][0]):
                    _add_up(network.session([readers[name][0] for name in names]), batches, sums, advance)
                for name in names:
                    for layer, found in _rounded(model.graph, readers[name], sums[name], run):
                        files[layer.weight, layer.transposed] = file = folder / f"layer{len(files)}"
                        keep(file, found)
                    advance("layers")
        yield lambda layer, weight: kept(files[layer.weight, layer.transposed], layer)


def _add_up(session: Session, batches: Sequence[Samples], sums: Mapping[str, Sum], advance: Steps) -> None:
    for batch in batches:
        for name, value in zip(session.outputs, session.run(batch), strict=True):
            sums[name].add(value)
        advance("inputs")


def _rounded(
    model: ir.Model, layers: Sequence[BlockLayer], added: Sum, run: Run
) -> Iterator[tuple[BlockLayer, BlockWeight]]:
    """Layers that read the same, and what GPTQ makes of them."""
    block, inverse = run.recipe.block, inverse_of(added.taken(), layers[0], in_place=True)
    assert block is not None
    for layer in layers:
        tensor = model.graph.initializers[layer.weight].const_value
        assert tensor is not None
        matrix = layer.matrix(np.asarray(tensor.numpy(), np.float32))
        yield layer, gptq(matrix, inverse, run.bits.weight, block)


def read_by(model: ir.Model, layers: Sequence[BlockLayer]) -> dict[str, list[BlockLayer]]:
    """Name of a value → the layers that read it, both in graph order; of those that share a weight the first alone."""
    nodes, seen = {node.name: node for node in model.graph}, set()
    found: dict[str, list[BlockLayer]] = {}
    for layer in layers:
        if (key := (layer.weight, layer.transposed)) not in seen:
            seen.add(key)
            found.setdefault(required_name(nodes[layer.node].inputs[0]), []).append(layer)
    return found


def inverse_of(
    hessian: Float64[NDArray[np.float64], "k k"], layer: BlockLayer, *, in_place: bool = False
) -> Float64[NDArray[np.float64], "k k"]:
    """`inverse_factor`. Raises InputError: there is none, for what the layer reads is not finite."""
    try:
        return inverse_factor(hessian, in_place=in_place)
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"GPTQ cannot weigh what {layer.node!r} reads on these inputs ({error}); give others (--calibration), or "
            "use --rounding rtn.",
            field="rounding",
        ) from error


def _passes(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Names one behind the other whose sizes together are at most `most`; at least one at a time."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > most:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    if names:
        yield names


@dataclass(frozen=True, kw_only=True)
class _Network:
    """model: its weights lie beside `path`, as far as the protobuf does not hold them. called: in error messages."""

    model: ir.Model
    path: Path
    called: Path

    def session(self, layers: Sequence[BlockLayer]) -> Session:
        """Of what these layers read, and of the nodes alone that this takes. Raises ModelFileError: as Session does."""
        cut = self.model.clone()
        nodes = {node.name: node for node in cut.graph}
        cut.graph.outputs.clear()
        for layer in layers:
            value = nodes[layer.node].inputs[0]
            assert value is not None
            value.type = ir.TensorType(ir.DataType.FLOAT)  # as the weight has it, wherever nobody inferred it
            cut.graph.outputs.append(value)
        common.RemoveUnusedNodesPass()(cut)
        return Session(self.path, cut, called=self.called, lean=True)


@contextmanager
def _blaming(layer: BlockLayer) -> Iterator[None]:
    try:
        yield
    except (ModelFileError, DataError) as error:
        raise InputError(
            f"{error} GPTQ of a model beyond 2 GB needs ONNX Runtime for what {layer.node!r} reads; use --rounding "
            "rtn for this one.",
            field="rounding",
        ) from error


def _runnable(model: FloatModel, folder: Path) -> _Network:
    """The network with its weights where they are; where these are edited or of another type, all in a new file."""
    copy = model.graph.clone()
    tensors = [value.const_value for graph in copy.graphs() for value in graph.initializers.values()]
    if sum(one.nbytes for one in tensors if one is not None and not isinstance(one, ir.ExternalTensor)) <= IN_PROTOBUF:
        return _Network(model=copy, path=model.source, called=model.source)
    ir.external_data.unload_from_model(copy, folder, "weights", size_threshold_bytes=CARRIED_INLINE)
    return _Network(model=copy, path=folder / "network", called=model.source)
