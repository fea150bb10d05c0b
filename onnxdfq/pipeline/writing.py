"""Plans carried out, and every file written aside, once all is decided."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version

import onnx_ir as ir

from onnxdfq.images.images import Images
from onnxdfq.methods.method import FloatModel, Measurement, Method, Note, Run
from onnxdfq.model_file.declared import restore_shapes
from onnxdfq.model_file.saving import stage_model
from onnxdfq.model_file.untrusted import bytes_of
from onnxdfq.model_file.writing import Staged
from onnxdfq.pipeline.bodies import ObservedBody, with_quantized_bodies
from onnxdfq.pipeline.checks import calibration_of
from onnxdfq.pipeline.finite import check_tensors
from onnxdfq.pipeline.handing import stage_handed
from onnxdfq.pipeline.request import Request
from onnxdfq.recipe.bits import bits_of_plan
from onnxdfq.recipe.plan_file import plan_text
from passes.graph.editing import drop_unused_initializers, node_titles
from passes.lint.quantized_graph import QuantizedGraph
from passes.quantize.plan import QuantPlan
from passes.quantize.points import find_quant_points
from passes.target.target import Target
from passes.write.provenance import WriteProvenance
from passes.write.write_for_target import WriteForTarget

PLAN_COMMENT = """[layers]: bits of each layer's weight, and of the activation that it reads.
[tensors]: the grids of activations. keep_float: what is not quantized.
Change a line and give the file back with --plan; layers that it leaves out take --bits, or what --budget allows, and
tensors that it leaves out are calibrated."""


def write(
    model: FloatModel,
    plan: QuantPlan,
    target: Target,
    method: Method,
    images: Images | None,
    bodies: list[ObservedBody],
    request: Request,
    run: Run,
) -> ir.Model:
    """The quantized graph for one target, with the provenance of its numbers and the boundary of the file."""
    graph = model.graph.clone()
    target = _with_batch(graph.graph, target, request, run)
    WriteForTarget(plan, target)(graph)
    graph = with_quantized_bodies(graph, plan, bodies, target, calibration_of(request))
    drop_unused_initializers(graph.graph)
    restore_shapes(graph, dynamic_batch=request.dynamic_batch, static=target.static_shapes)
    recipe = run.recipe
    entries = {
        "version": version("onnxdfq"),
        "method": method.name if images is None else images.method,
        "bits": "float" if target.format == "float" else recipe.bits,
        "scheme": recipe.scheme,
        "seed": str(recipe.seed),
        "images": str(0 if images is None else len(images)),
        "recipe": hashlib.sha256(recipe.to_toml().encode()).hexdigest()[:16],
        "source": model.digest[:16],
        "target": target.name,
    }
    if images is not None and (steps := getattr(method, "steps", None)) is not None and images.method == method.name:
        entries["steps"] = str(steps)
    if images is not None and (zoo := images.provenance.get("zoo")) is not None:
        entries["zoo"] = " ".join(member["digest"] for member in json.loads(zoo))
    if model.normalization is not None:
        entries["norm"] = str(model.normalization)
    WriteProvenance(entries)(graph)
    return graph


def _with_batch(graph: ir.Graph, target: Target, request: Request, run: Run) -> Target:
    """The target, with every size as a number where its runtime computes wrong with an open batch."""
    trips = any(rule.trips_over_filled for rule in target.operators.values())
    if not trips or target.static_shapes or request.dynamic_batch:
        return target
    quantized = QuantizedGraph(graph, target.operators)
    tripping = next((node for node in graph if quantized.tripping_inputs(node)), None)
    if tripping is None:
        return target
    title = node_titles(graph)[tripping]
    run.tell(
        Note(
            text=f"The batch is written as 1 for the target {target.name}: {title} joins data with what is filled to "
            f"the size of the batch, and {target.title} computes wrong where that is open (--dynamic-batch keeps it)."
        )
    )
    return replace(target, static_shapes=True)


def stage_images(request: Request, images: Images | None, staged: Staged) -> None:
    """The images that the run made, where they are wanted. Raises OutputError."""
    if request.save_images is not None and images is not None:
        with staged.file(request.save_images) as temporary:
            images.save(temporary)


def stage_all(
    request: Request,
    model: FloatModel,
    plans: Mapping[str, QuantPlan],
    written: Mapping[str, ir.Model],
    images: Images | None,
    staged: Staged,
    run: Run,
) -> None:
    """Models, bits of layers and images, as far as the request names files for them, beside their places.

    Raises:
        OutputError: a file cannot be written, or one would hold NaN.
    """
    stage_images(request, images, staged)
    run.tell(Measurement(values={"bytes_float": bytes_of(request.source)}))
    for output in request.outputs:
        name = output.target.name
        if request.save_plan is not None:
            bits = bits_of_plan(model.graph, plans[name], find_quant_points(model.graph, output.target))
            with staged.file(request.plan_path(output)) as temporary:
                kept = output.target.kept_float
                text = plan_text(
                    request.plan_path(output),
                    bits,
                    plans[name],
                    sorted(kept.nodes | kept.values),
                    containers=_containers(plans[name], output.target),
                    comment=PLAN_COMMENT,
                )
                temporary.write_text(text, encoding="utf-8")
        assert output.path is not None
        check_tensors(output, written[name], model.graph)
        if output in request.handed and images is not None:
            stage_handed(output, model, images, staged, run)
        stage_model(written[name], output.path, staged, inner_shapes=output.target.inner_shapes)
        run.tell(Measurement(values={"bytes": bytes_of(staged.where(output.path))}, target=name))


def _containers(plan: QuantPlan, target: Target) -> dict[str, str]:
    """Name of each activation and weight → its element type in the file."""
    activations = {
        name: target.activation_container(quant.bits, signed=quant.signed) for name, quant in plan.activations.items()
    }
    return activations | {name: target.weight_container(quant.bits) for name, quant in plan.weights.items()}
