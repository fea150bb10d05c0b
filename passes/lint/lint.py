"""`lint`: whether a target will compute the nodes of a model on integers or in float, or refuse the file."""

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace

import onnx_ir as ir

from passes.graph.bodies import named_subgraphs, prefix_of, taken_branch
from passes.graph.editing import is_op, name_of, node_titles, producer_within, rank, sole_consumer
from passes.graph.operators import ACTIVATIONS, JUDGED
from passes.lint.checks import CHECKS, Obstacle, Site
from passes.lint.pairs import pairs_of
from passes.lint.quantized_graph import WHOLE_FILE, Grid, OutputQuantization, QuantizedGraph, zero_point_of
from passes.lint.redundant import is_redundant
from passes.lint.sites import biased_matmul, data_inputs, site_of, trips_over_captured
from passes.lint.unjudged import FLOATS, reason_for_float
from passes.quantize.points import is_within_function
from passes.target.operator_rule import OperatorRule, Verdict
from passes.target.target import Target

# Operators on integers themselves (ONNX's, and ONNX Runtime's own). One without a rule of its own takes QLinear's.
ON_INTEGERS = ("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "DynamicQuantize")
INTEGER_CLIP = "integer Clip"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How one node is computed. node: its name, else operator and place ("Conv #3"); "" for the whole file.

    A node in the body of another is called by both: "If_y.then_branch.Conv_a", the conv in the then_branch of If_y.

    verdict: "integer": it reads and writes integers; "float"; "refused": the runtime does not take the file because of
    it, or fails when it runs, or computes other numbers. reason: why, a half sentence. advice: what to change, or "".
    exact: whether it is so on every processor; false where an integer kernel saturates on those without VNNI.
    """

    node: str
    op_type: str
    verdict: Verdict
    reason: str
    advice: str
    exact: bool = True


def lint(model: ir.Model, target: Target) -> tuple[Finding, ...]:
    """One finding for every node that computes on floats, or did before it was quantized, in graph order.

    Also for any other node, and for the file as a whole, where the target refuses it. `model` is a float, QDQ or
    QOperator model with inferred types. Left out: nodes of constants alone, which runtimes compute when they load; what
    computes shapes; what only places or compares numbers (but Concat). For an If, Loop or Scan stand the nodes of its
    bodies.
    """
    return *_whole_file(model, target), *_of_graph(model.graph, target)


def _of_graph(
    nodes: ir.Graph, target: Target, *, around: QuantizedGraph | None = None, prefix: str = ""
) -> Iterator[Finding]:
    """Findings about a graph, or about a body of a node of `around`, with those about bodies in it."""
    graph = QuantizedGraph(nodes, target.operators, around=around)
    verdicts: dict[ir.Node, Verdict] = {}
    titles, replaced = node_titles(nodes), _replaced(nodes, graph)
    for node in nodes:
        # onnxdfq itself writes names with the prefix
        title = titles[node] if titles[node].startswith(prefix) else prefix + titles[node]
        found = _judge(node, graph, target, verdicts, replaced)
        if found is not None:
            found = replace(_saturating(found, node, graph, target), node=title)
            verdicts[node] = found.verdict
            yield found
        for attribute, body in _bodies(node):
            yield from _of_graph(body, target, around=graph, prefix=prefix_of(title, attribute))


def _bodies(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """The bodies of a node; of an If with a constant condition the branch that is taken."""
    taken = taken_branch(node)
    return [(name, graph) for name, graph in named_subgraphs(node) if taken in (None, name)]


def _saturating(found: Finding, node: ir.Node, graph: QuantizedGraph, target: Target) -> Finding:
    """The finding with a warning where the kernel saturates on processors without VNNI."""
    pairs = pairs_of(node, graph, target) if found.verdict == "integer" else None
    if pairs is None or pairs.greatest <= pairs.bound:
        return found
    return replace(
        found,
        exact=False,
        reason=f"{found.reason}; it saturates on processors without VNNI, where two weights of one sign may sum to "
        f"{pairs.bound}, and here they reach {pairs.greatest}",
        advice="compress with onnxdfq, which keeps within, or with 7-bit weights (w7a8); ONNX Runtime computes exactly "
        "with the session option session.x64quantprecision=1",
    )


def _whole_file(model: ir.Model, target: Target) -> Iterator[Finding]:
    rule, opset = target.operators.get(WHOLE_FILE), model.graph.opset_imports.get("", 0)
    if rule is not None and 0 < rule.newest_opset < opset:
        yield _finding(
            None,
            "refused",
            f"the file is of opset {opset}, and {target.title} reads up to {rule.newest_opset}",
            f"convert the file to opset {rule.newest_opset} or older",
        )
    open_inputs = [
        name_of(value)
        for value in model.graph.inputs
        if not value.is_initializer()
        and (value.shape is None or not all(isinstance(side, int) for side in value.shape))
    ]
    if target.static_shapes and open_inputs:
        yield _finding(
            None,
            "refused",
            f"the shape of its input {', '.join(open_inputs)} is open, and {target.title} takes only fixed shapes",
            "write the batch and every other size as numbers",
        )


def _judge(
    node: ir.Node,
    graph: QuantizedGraph,
    target: Target,
    verdicts: dict[ir.Node, Verdict],
    replaced: Set[ir.Node],
) -> Finding | None:
    rules = graph.rules
    if is_op(node, "QuantizeLinear", "DequantizeLinear"):
        return _refused_type(node, rules.get(WHOLE_FILE), target)
    if node.op_type.startswith(ON_INTEGERS):
        rule = rules.get(node.op_type, rules.get("QLinear"))
        return _finding(node, "float", _no_kernel(node, target), "") if rule is None else _fixed(node, rule, target)
    if graph.trips_over_move(node):
        return _lost_type(node, target)
    if all(map(graph.is_of_shapes, node.outputs)):
        return None
    if not is_op(node, *JUDGED):
        reason = None if all(map(graph.is_constant, node.outputs)) else reason_for_float(node, target)
        return None if reason is None else _finding(node, "float", reason, "")
    kinds = {value.dtype for value in node.outputs[:1]}
    if node.op_type == "Clip" and not kinds <= FLOATS | {None}:
        return _refused_type(node, rules.get(INTEGER_CLIP), target)
    if not kinds <= FLOATS | {None} or all(map(graph.is_constant, filter(None, node.inputs))):
        return None
    rule = rules.get(node.op_type, OperatorRule())
    if rule.verdict != "judged":
        return _fixed(node, rule, target)
    if node.op_type == "Add" and (matmul := biased_matmul(node, graph)) is not None and matmul in verdicts:
        return _finding(node, verdicts[matmul], "the MatMul before it takes it as its bias", "")
    return _merged(node, rule, graph, target, verdicts, replaced) or _judged(node, rule, graph, target)


def _refused_type(node: ir.Node, rule: OperatorRule | None, target: Target) -> Finding | None:
    """A finding only where an element type is refused as such."""
    values = [value for value in (*node.inputs[:1], *node.outputs[:1]) if value is not None and value.dtype is not None]
    types = {value.dtype.name.lower() for value in values if value.dtype is not None}
    wrong = sorted(types & set(rule.refused)) if rule is not None else []
    if rule is None or not wrong:
        return None
    reason = rule.reason or f"{target.title} knows no {wrong[0]} here"
    return _finding(node, "refused", reason, rule.advice or "hold the same values in int8 or uint8")


def _fixed(node: ir.Node, rule: OperatorRule, target: Target) -> Finding:
    assert rule.verdict != "judged"
    default = "it is written on integers" if rule.verdict == "integer" else _no_kernel(node, target)
    end = OutputQuantization(grid=None)
    site = Site(node=node, inputs=(), bias="none", bias_value=None, bias_grid=None, output=end, known={})
    for name in rule.checks:
        if (found := CHECKS[name](site)) is not None:
            return _finding(node, "refused" if found.refused else "float", found.reason, found.advice)
    return _finding(node, rule.verdict, rule.reason or default, rule.advice)


def _merged(
    node: ir.Node,
    rule: OperatorRule,
    graph: QuantizedGraph,
    target: Target,
    verdicts: dict[ir.Node, Verdict],
    replaced: Set[ir.Node],
) -> Finding | None:
    """An activation function that needs no kernel of its own, or that the runtime trips over when it takes it out."""
    grid = graph.output_quantization(node.outputs[0]).grid
    if rule.vanishes and grid is not None and grid.container in rule.refused and not _reads_input(node):
        reason = f"{target.title} fails when it looks whether the {grid.container} behind makes it redundant"
        return _finding(node, "refused", reason, "hold the same values in int8 or uint8")
    if rule.vanishes and node in replaced:
        return _finding(node, "integer", "the QuantizeLinear behind it saturates where it would", "")
    source = node.inputs[0]
    producer = producer_within(node.graph, source)
    if producer is None or source is None or sole_consumer(source) is not node or producer not in verdicts:
        return None
    before = graph.rules.get(producer.op_type, OperatorRule())
    if verdicts[producer] != "integer":
        if before.fuses_when != "always" or node.op_type not in before.fuses:
            return None
        return _finding(node, "float", f"it goes with the {producer.op_type} before it, which is not on integers", "")
    quantized = graph.output_quantization(source, fuses=before.fuses).grid is not None
    if node.op_type not in before.fuses or not (quantized or before.fuses_when == "always"):
        return None
    return _finding(node, "integer", f"the {producer.op_type} before it computes it along", "")


def _replaced(nodes: ir.Graph, graph: QuantizedGraph) -> Set[ir.Node]:
    """Activation functions before a QuantizeLinear that saturates where they would, across others that are such."""
    grids: dict[ir.Node, Grid] = {}
    for node in reversed(nodes):
        if not (is_op(node, *JUDGED) and graph.rules.get(node.op_type, OperatorRule()).vanishes):
            continue
        output = node.outputs[0]
        grid, consumer = graph.output_quantization(output).grid, sole_consumer(output)
        if grid is None and consumer is not None and is_op(consumer, *ACTIVATIONS):
            grid = grids.get(consumer)
        left_alone = node.op_type == "Clip" and _reads_input(node)
        if grid is None or left_alone or _zero_point_missed(node, grid, graph):
            continue
        if is_redundant(node, grid, rounded=False):
            grids[node] = grid
    return grids.keys()


def _zero_point_missed(node: ir.Node, grid: Grid, graph: QuantizedGraph) -> bool:
    """Whether a Relu would vanish if the zero point behind it were the body's own."""
    return (
        is_op(node, "Relu") and graph.is_out_of_reach(zero_point_of(grid)) and is_redundant(node, grid, rounded=False)
    )


def _reads_input(node: ir.Node) -> bool:
    """Whether no node stands before `node`: ONNX Runtime then leaves a Clip alone."""
    return node.inputs[0] is not None and producer_within(node.graph, node.inputs[0]) is None


def _judged(node: ir.Node, rule: OperatorRule, graph: QuantizedGraph, target: Target) -> Finding:
    if not rule.containers:
        data = node.inputs[0]
        before = producer_within(node.graph, data)
        if data is not None and before is not None and is_within_function(data, target):
            return _finding(node, "float", f"{_no_kernel(node, target)}, nor {before.op_type}, right before it", "")
        grid = graph.output_quantization(node.outputs[0]).grid
        if rule.vanishes and grid is not None and _zero_point_missed(node, grid, graph):
            reason = "the zero point of the QuantizeLinear behind it stands outside of the body"
            return _finding(node, "float", reason, "put that constant into the body")
        return _finding(node, "float", rule.reason or _no_kernel(node, target), rule.advice)
    if filled := graph.tripping_inputs(node):
        names = ", ".join(map(name_of, filled))
        reason = f"{names} is filled to a size that is left open, and {target.title} then computes wrong"
        return _finding(node, "refused", reason, "write the batch as a number")
    site = site_of(node, rule, graph)
    add = sole_consumer(node.outputs[0])
    if add is not None and biased_matmul(add, graph) is node:
        rule = target.operators[rule.with_add]
        if rank(node.inputs[0]) != 2:  # a Reshape then stands before the Gemm, and one behind it
            if graph.type_breaks(node):
                return _lost_type(node, target)
            rule = replace(rule, fuses=())
        site = site_of(node, rule, graph, add)
    if trips_over_captured(site, graph):
        reason = f"{target.title} fails to pack its weight, which stands outside of the body, or packs it wrongly"
        return _finding(node, "refused", reason, "put the constants of the weight into the body")
    missing = [value for value, grid in zip(data_inputs(node), site.inputs, strict=True) if grid is None]
    if missing:
        names = ", ".join(name_of(value) for value in missing)
        inside = " in the body" if any(map(graph.is_captured, missing)) else ""
        return _finding(
            node,
            "float",
            f"it reads {names} in float: no DequantizeLinear stands before it{inside}",
            rule.advice or f"put QuantizeLinear and DequantizeLinear on {names}{inside}",
        )
    types = [grid.container for grid in site.inputs if grid is not None]
    obstacles = list(_obstacles(site, rule, types, target, graph.opset))
    blocking = [found for found in obstacles if not found.refused]
    if blocking or not obstacles:
        verdict: Verdict = "float" if blocking else "integer"
    else:
        verdict, blocking = "refused", obstacles
    reasons = "; ".join(found.reason for found in blocking)
    advice = "; ".join(dict.fromkeys(found.advice for found in blocking if found.advice))
    return _finding(node, verdict, reasons or rule.reason or f"{' and '.join(types)} in", advice)


def _obstacles(site: Site, rule: OperatorRule, types: list[str], target: Target, opset: int) -> Iterator[Obstacle]:
    """All that stands between a node whose inputs are quantized and an integer kernel."""
    taken = " or ".join(" and ".join(entry.split()) for entry in rule.containers).replace("|", "/")
    if _among(types, rule.refused):
        yield Obstacle(
            reason=f"{target.title} does not load, or fails to run, a quantized {site.node.op_type} on "
            f"{' and '.join(types)}",
            advice=f"hold the same values in {taken}",
            refused=True,
        )
    elif not _among(types, rule.containers):
        advice = "quantize the constant too" if "float" in types else f"hold the same values in {taken}"
        yield Obstacle(reason=f"there is no integer kernel for {' and '.join(types)}", advice=advice)
    if site.bias not in rule.bias:
        known = " or ".join(form for form in rule.bias if form != "none") or "left out"
        yield Obstacle(reason=f"its bias is {site.bias}", advice=f"let the bias be {known}")
    end = site.output
    between = end.activation if rule.fuses_when == "redundant" else None
    if between is not None and end.grid is not None and not is_redundant(between, end.grid, rounded=True):
        yield _not_redundant(between, end.grid)
    if end.grid is None and rule.output == "required":
        yield Obstacle(
            reason=f"no QuantizeLinear follows alone: {end.obstacle}",
            advice="put one QuantizeLinear behind it and let all readers use its DequantizeLinear",
        )
    if rule.same_type and end.grid is not None and end.grid.container != types[0]:
        yield Obstacle(
            reason=f"it goes from {types[0]} to {end.grid.container}",
            advice="use one element type for input and output",
        )
    first = site.inputs[0]
    if rule.same_parameters and end.grid is not None and first is not None and not _same_grid(first, end.grid):
        yield Obstacle(
            reason="scale or zero point differ between its input and its output",
            advice="give its output the parameters of its input",
        )
    if opset < rule.oldest_opset:
        yield Obstacle(
            reason=f"the file is of opset {opset}",
            advice=f"convert it to opset {rule.oldest_opset} or newer",
        )
    for name in rule.checks:
        if (found := CHECKS[name](site)) is not None:
            yield found


def _among(types: list[str], combinations: tuple[str, ...]) -> bool:
    """Whether a combination allows these element types; its last entry stands for all inputs that follow."""
    for combination in combinations:
        entries = [entry.split("|") for entry in combination.split()]
        entries += entries[-1:] * (len(types) - len(entries))
        if all(name in entry for name, entry in zip(types, entries, strict=False)):
            return True
    return False


def _same_grid(one: Grid, other: Grid) -> bool:
    if one.scale is None or other.scale is None or one.zero_point is None or other.zero_point is None:
        return False
    return (
        one.container == other.container
        and bool((one.scale == other.scale).all())
        and bool((one.zero_point == other.zero_point).all())
    )


def _not_redundant(activation: ir.Node, grid: Grid) -> Obstacle:
    zero = "" if grid.zero_point is None else f" with zero point {int(grid.zero_point.reshape(-1)[0])}"
    relu = is_op(activation, "Relu")
    return Obstacle(
        reason=f"the {activation.op_type} behind it stays in float: the {grid.container}{zero} that follows reaches "
        f"{'below 0' if relu else 'beyond its bounds'}",
        advice="quantize there without a sign, as uint8 with zero point 0"
        if relu
        else "quantize there with a threshold within the bounds, or clip the integers instead",
    )


def _lost_type(node: ir.Node, target: Target) -> Finding:
    reason = f"{target.title} moves the int8 DequantizeLinear before it onwards, trips over its type, and does not load"
    return _finding(node, "refused", reason, "put QuantizeLinear and DequantizeLinear behind it too, or use uint8")


def _no_kernel(node: ir.Node, target: Target) -> str:
    if not target.verified:
        return f"no source says that {target.title} computes {node.op_type} on integers"
    return f"{target.title} has no integer {node.op_type}"


def _finding(node: ir.Node | None, verdict: Verdict, reason: str, advice: str) -> Finding:
    op_type = "" if node is None else node.op_type
    return Finding(node=name_of(node), op_type=op_type, verdict=verdict, reason=reason, advice=advice)
