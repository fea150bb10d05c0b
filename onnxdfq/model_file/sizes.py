"""Sizes of inputs that the file leaves open: from the user, from the data at hand, or from what reads the input."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxdfq.errors import ShapeError
from onnxdfq.model_file.inputs import CHANNELS, FREE_BATCH, InputSpec, batch_axes, fed_inputs, inputs, main_input
from onnxdfq.model_file.trial import first_that_runs
from passes.graph.editing import name_of

Shape = tuple[int, ...]
_Dims = list[int | ir.SymbolicDim]
MOST_AXES, MOST_NUMBERS = 16, 2**28  # of an input whose sizes the user gives

# Tried in this order until the model runs: sides of images, lengths of signals and sequences.
_SIDES = (224, 64, 128, 256, 320, 416, 512, 640, 48, 96)
MOST_NUMBERS = 2**27
"""Of all inputs, for one run: images of 8K, in color, are within it."""
_LENGTHS = (16, 128, 1, 512, 64, 100, 256, 1024, 4000, 16000)


def parse_input_shapes(texts: Iterable[str]) -> dict[str, Shape]:
    """The shapes of `--input-shape`: `["x=1,3,224,224"]`, or `["1,3,224,224"]` for the main input.

    Returns:
        By input name, "" for the main input.

    Raises:
        ShapeError: A text has another form, or a size below 1.
    """
    shapes: dict[str, Shape] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError as error:
            raise ShapeError(f"--input-shape {text!r} is not NAME=1,3,224,224 or 1,3,224,224.") from error
        shapes[name.strip()] = shape
    _check_given(shapes)
    return shapes


def _check_given(shapes: Mapping[str, Shape]) -> None:
    """Raises ShapeError where a shape of the user's own holds a size below 1, or more numbers than an input may."""
    for name, shape in shapes.items():
        which = f"--input-shape {name}={','.join(map(str, shape[:MOST_AXES]))}".replace(" =", " ")
        if not shape or len(shape) > MOST_AXES:
            raise ShapeError(f"{which} has {len(shape)} sizes; give 1 to {MOST_AXES}.")
        if min(shape) < 1:
            raise ShapeError(f"{which} holds a size below 1; give the real sizes, such as 1,3,224,224.")
        if math.prod(shape) > MOST_NUMBERS:
            raise ShapeError(f"{which} comes to {math.prod(shape):,} numbers; an input may have {MOST_NUMBERS:,}.")


def forget_placeholders(model: ir.Model) -> None:
    """Open sizes of inputs that are called "?", as some exporters do, lose that name: it stands for several."""
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([None if _is_placeholder(dim) else dim for dim in value.shape])


def _is_placeholder(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, ir.SymbolicDim) and not (dim.value or "").replace(".", "_").isidentifier()


def fix_input_shapes(
    model: ir.Model, given: Mapping[str, Sequence[int]] | None, data: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Writes sizes into the graph inputs, in place; afterwards only batch axes may be free.

    Args:
        model: Its inputs change.
        given: What the user says, by input name, "" for the main input. Their batch is ignored where the model's is
            free.
        data: Shapes of arrays at hand, by input name, leading size included; what contradicts the model is ignored
            here, and refused where the arrays are read.

    Raises:
        ShapeError: A size stays open or contradicts the model; says which `--input-shape` to give for which input.
    """
    sizes = {name: tuple(shape) for name, shape in (given or {}).items()}
    _check_given(sizes)
    values = {name_of(value): value for value in fed_inputs(model)}
    data = _by_input(model, data or {})
    if "" in sizes:
        sizes.setdefault(main_input(model).name, sizes.pop(""))
    for name in sizes:
        if name not in values:
            known = ", ".join(map(repr, values))
            raise ShapeError(f"--input-shape names the input {name!r}, which the model lacks; it has {known}.")
    for name, value in values.items():
        if value.shape is None:
            shape = sizes.get(name) or data.get(name)
            if shape is None:
                raise ShapeError(f"Input {name!r} has no shape; give it with --input-shape {name}=1,3,224,224.")
            value.shape = ir.Shape([FREE_BATCH, *shape[1:]])
    axes = batch_axes(list(values.values()))
    known_symbols: dict[str, int] = {}
    for name, value in values.items():
        _give(name, value, axes[name], sizes.get(name), known_symbols)
    for name, value in [*values.items(), *values.items()]:  # twice: a later input may tell a symbol of an earlier one
        _follow(value, axes[name], known_symbols, data.get(name))
    for name, value in values.items():
        if any(not _is_size(dim) for axis, dim in enumerate(value.shape or ()) if axis != axes[name]):
            raise ShapeError(f"Input {name!r} has unknown sizes: {_text(_dims(value))}; {_suggestion(model, name)}")
        value.shape = ir.Shape([dim if _is_size(dim) else _symbol(dim) for dim in _dims(value)])
    _refuse_huge(model)


def _refuse_huge(model: ir.Model) -> None:
    counts = {spec.name: math.prod(spec.with_batch(1)) for spec in inputs(model)}
    if sum(counts.values()) > MOST_NUMBERS:
        name = max(counts, key=lambda name: counts[name])
        shape = "×".join(str(size or 1) for spec in inputs(model) if spec.name == name for size in spec.shape)
        raise ShapeError(
            f"The inputs hold {sum(counts.values()):,} numbers for one run, {counts[name]:,} of them the input "
            f"{name!r} ({shape}), and up to {MOST_NUMBERS:,} are taken; export the model with smaller ones."
        )


def _by_input(model: ir.Model, data: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Shapes by input name; those of images in bytes (N, H, W, C) as the main input has them."""
    found = {name: tuple(shape) for name, shape in data.items()}
    if (shape := found.pop("images", None)) is not None and inputs(model):
        main = main_input(model)
        if main.image is not None and len(shape) == 3:  # grey
            shape = (*shape, 1)
        if main.image == "first" and len(shape) == 4 and shape[3] in CHANNELS and shape[1] not in CHANNELS:
            shape = (shape[0], shape[3], shape[1], shape[2])
        found.setdefault(main.name, shape)
    return found


def _give(name: str, value: ir.Value, batch: int | None, given: Shape | None, symbols: dict[str, int]) -> None:
    """Sizes that the user names."""
    dims = _dims(value)
    if given is not None and len(given) != len(dims):
        raise ShapeError(
            f"--input-shape for {name!r} has {len(given)} sizes and the input has {len(dims)}: {_text(dims)}."
        )
    for axis, dim in enumerate(dims):
        if dim == 0:
            raise ShapeError(
                f"Input {name!r} has size 0 on axis {axis} ({_text(dims)}); export the model with its real sizes."
            )
        if given is None or axis == batch:
            continue
        if _is_size(dim) and dim != given[axis]:
            raise ShapeError(
                f"--input-shape gives {given[axis]} for axis {axis} of {name!r}, which the model fixes at {dim}."
            )
        if isinstance(dim, ir.SymbolicDim) and dim.value:
            symbols.setdefault(dim.value, given[axis])
        dims[axis] = given[axis]
    value.shape = ir.Shape(dims)


def _follow(value: ir.Value, batch: int | None, symbols: dict[str, int], data: Sequence[int] | None) -> None:
    """Sizes that follow: from a symbol that is known, from what reads the input, from the data at hand."""
    dims = _dims(value)
    read = dict(_sizes_of_readers(value))
    # an array of one more axis holds one entry per run, all its other sizes are the input's
    shown = None if data is None else tuple(data)[max(len(data) - len(dims), 0) :]
    for axis, dim in enumerate(dims):
        if _is_size(dim) or axis == batch:
            continue
        symbol = (dim.value or "") if isinstance(dim, ir.SymbolicDim) else ""
        if symbol in symbols:
            dims[axis] = symbols[symbol]
        elif axis in read:
            dims[axis] = read[axis]
        elif shown is not None and len(shown) == len(dims):
            dims[axis] = int(shown[axis])
        if symbol and isinstance(found := dims[axis], int):
            symbols.setdefault(symbol, found)
    value.shape = ir.Shape(dims)


def _sizes_of_readers(value: ir.Value) -> Iterator[tuple[int, int]]:
    """Axis and size where a layer's constant weight sets it."""
    rank = len(value.shape or ())
    for use in value.uses():
        node = use.node
        weight = node.inputs[1].const_value if use.idx == 0 and len(node.inputs) > 1 and node.inputs[1] else None
        if weight is None:
            continue
        sizes = weight.shape.numpy()
        match node.op_type:  # a weight of other axes is refused later, with what else the file has wrong
            case "Conv" if len(sizes) > 1:
                yield 1, sizes[1] * node.attributes.get_int("group", 1)
            case "ConvTranspose" | "BatchNormalization" if len(sizes):
                yield 1, sizes[0]
            case "MatMul" if len(sizes) > 1:
                yield rank - 1, sizes[-2]
            case "Gemm" if len(sizes) > 1:
                yield rank - 1, sizes[1 if node.attributes.get_int("transB", 0) else 0]
            case "LSTM" | "GRU" | "RNN" if len(sizes) > 2:
                yield rank - 1, sizes[2]


def _suggestion(model: ir.Model, wanted: str) -> str:
    """What to do, with sizes for one input at which the model runs where all others are filled in likewise."""
    specs = inputs(model)
    guesses = [{spec.name: _guess(spec, *choice) for spec in specs} for choice in zip(_SIDES, _LENGTHS, strict=True)]
    place = first_that_runs(model, guesses)
    sizes = ",".join(map(str, guesses[place or 0][wanted]))
    if place is None:
        return f"give those that it was made for with --input-shape {wanted}=..., as in {wanted}={sizes}."
    return f"give them with --input-shape {wanted}={sizes}."


def _guess(spec: InputSpec, side: int, length: int) -> Shape:
    channel = {"first": 1, "last": 3}.get(spec.image or "")
    free = side if spec.image is not None else length
    guesses = dict.fromkeys(range(len(spec.shape)), free) | {channel: 3, spec.batch_axis: 1}
    return tuple(guesses[axis] if size is None else size for axis, size in enumerate(spec.shape))


def _dims(value: ir.Value) -> _Dims:
    return list(value.shape or ())


def _is_size(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) and dim >= 0  # some exporters write -1 for "unknown"


def _symbol(dim: int | ir.SymbolicDim) -> ir.SymbolicDim:
    return dim if isinstance(dim, ir.SymbolicDim) and dim.value else ir.SymbolicDim(FREE_BATCH)


def _text(dims: Sequence[int | ir.SymbolicDim]) -> str:
    named = [isinstance(dim, ir.SymbolicDim) and dim.value for dim in dims]
    return "×".join(str(dim) if _is_size(dim) or name else "?" for dim, name in zip(dims, named, strict=True))
