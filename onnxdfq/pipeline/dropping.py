"""`--budget drop=…`: the fewest bits, or the fewest layers that stay float, at which so few answers change."""

import json
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
import onnx_ir as ir

from onnxdfq.budget import BitChoices, Budget
from onnxdfq.budget.costs import read_layers
from onnxdfq.budget.ladder import WIDE_ACTIVATION, Choice, Widths, cost_of, first_that_holds, raised
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.observation import Observations
from onnxdfq.errors import InputError, ModelFileError
from onnxdfq.evaluation import Session, evaluate
from onnxdfq.images.dataset import Dataset
from onnxdfq.images.images import Images
from onnxdfq.methods.method import FloatModel, Measurement, Note, Run
from onnxdfq.pipeline.verdict import layer_losses
from onnxdfq.recipe.budget import Budgets
from onnxdfq.shown import some
from onnxdfq.work.checkpoint import Findings
from passes.quantize.plan import QuantPlan
from passes.target.kept_float import KeptFloat
from passes.target.target import Target
from passes.write.write_for_target import WriteForTarget

SIZES = 17  # between the least and that of the bits that are asked for; five of them are tried
NAMED = 4  # layers that a note names


def check_drop(original: Session, images: Images | None) -> None:
    """Raises InputError where no answers can be counted."""
    if original.answer is None:
        raise InputError(
            f"--budget drop counts classes that stay the same, and no output of {original.path} tells classes apart; "
            "use --budget size or bops, and --require sqnr.",
            field="budget",
        )
    if images is None:
        raise InputError(
            "--budget drop is held by inputs that calibrate nothing; give at least 32 with --calibration.",
            field="budget",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Dropping:
    """The search for one target. What is tried is measured as it is decided at first: thresholds chosen by outputs, and
    tuning, come later and better it as a rule.

    model: folded. original: the float network. images: that decide nothing else. calibration, target: of the widths
    that hold for all. lost: what was measured so far, by the choice.
    """

    model: FloatModel
    observations: Observations
    original: Session
    images: Images
    budgets: Budgets
    calibration: Calibration
    target: Target
    run: Run
    lost: Findings = field(default_factory=lambda: Findings(None))

    def cheapest(self, start: Choice, fewer: BitChoices | None) -> Choice:
        """The cheapest choice that holds.

        Args:
            start: what a budget of cost allows; nothing where there is none.
            fewer: choices of fewer bits than hold for all, None where these gain nothing.

        Raises:
            InputError: none holds; tells the least that is possible, and what it costs.
        """
        if self._points(start) > self._limit:
            return self._raised(start)
        return start if fewer is None else self._lowered(start, fewer)

    def applied(self, choice: Choice) -> tuple[Calibration, Target]:
        """Calibration and target with the choice, which is told."""
        layers = {layer.node for layer in read_layers(self.model.graph, self.target)}
        floats = sorted(choice.floats & layers)
        wide = sum(bits.activation == WIDE_ACTIVATION for bits in choice.bits.values())
        parts = [f"{wide} layers read 16 bits"] if wide and self.calibration.activation_bits < WIDE_ACTIVATION else []
        parts += [f"{some(floats, NAMED)} stay float"] if floats else []
        points, count = self._points(choice), len(self.images)
        self.run.tell(Measurement(values={"drop": points, "layers_float": len(floats)}, target=self.target.name))
        what = f"so that {' and '.join(parts)}" if parts else "with no layer that needs more than it has"
        self.run.tell(
            Note(
                text=f"--budget drop={self._limit:g} is held for the target {self.target.name}, {what}: {points:.2f} "
                f"points on {count} inputs that decide nothing else, each worth {100 / count:.2f}."
            )
        )
        return self._with(choice)

    def _lowered(self, start: Choice, fewer: BitChoices) -> Choice:
        sizes = np.linspace(fewer.least, fewer.most, SIZES)
        steps = [Choice(bits=fewer.within(float(np.ceil(size))).layers, floats=start.floats) for size in sizes]
        place = first_that_holds(SIZES, lambda step: self._points(steps[step]) <= self._limit)
        return start if place is None else steps[place]

    def _raised(self, start: Choice) -> Choice:
        layers = read_layers(self.model.graph, self.target)
        losses = layer_losses(self.model, self._plan(start), self.target, self.images, self.run, most_nodes=None)
        worst = sorted((layer.node for layer in layers), key=lambda name: -losses.get(name, 0.0))
        named = {layer.node for layer in layers}
        others = (node.name or "" for node in self.model.graph.graph if node.name not in named)
        steps = raised(start, layers, worst, self._widths, others)
        cost = self.budgets.cost
        prices = [0.0 if cost is None else cost_of(step, layers, self._widths, cost) for step in steps]
        allowed = [place for place, price in enumerate(prices) if cost is None or price <= cost.limit]
        place = first_that_holds(len(allowed), lambda step: self._points(steps[allowed[step]]) <= self._limit)
        if place is not None:
            return steps[allowed[place]]
        self._refuse(steps, prices, allowed, cost)

    def _refuse(self, steps: list[Choice], prices: list[float], allowed: list[int], cost: Budget | None) -> NoReturn:
        least = min(map(self._points, (steps[place] for place in allowed)), default=self._points(steps[0]))
        text = f"--budget drop={self._limit:g} cannot be met for the target {self.target.name}: the least possible is "
        if cost is None:
            raise InputError(f"{text}drop={least:.2f}, with all layers float but one.", field="budget")
        text += f"drop={least:.2f} within {cost}"
        holding = first_that_holds(len(steps), lambda step: self._points(steps[step]) <= self._limit)
        if holding is None:
            raise InputError(f"{text}, and {self._points(steps[-1]):.2f} with nearly all layers float.", field="budget")
        price = cost.rounded_up(prices[holding])
        raise InputError(f"{text}; drop={self._limit:g} takes {price}.", field="budget")

    @property
    def _limit(self) -> float:
        assert self.budgets.drop is not None
        return self.budgets.drop

    @property
    def _widths(self) -> Widths:
        calibration, target = self.calibration, self.target
        takes_wide = WIDE_ACTIVATION in target.activation_bits and calibration.activation_bits < WIDE_ACTIVATION
        widest = max(target.weight_bits)
        return Widths(
            weight=calibration.weight_bits,
            activation=calibration.activation_bits,
            wide_activation=WIDE_ACTIVATION if takes_wide else None,
            wide_weight=widest if self.budgets.cost is None and calibration.weight_bits < widest else None,
        )

    def _with(self, choice: Choice) -> tuple[Calibration, Target]:
        kept = self.target.kept_float
        kept = KeptFloat(nodes=kept.nodes | choice.floats, values=kept.values)
        bits = {
            name: pin for name, pin in {**self.calibration.layer_bits, **choice.bits}.items() if name not in kept.nodes
        }
        calibration = replace(self.calibration, layer_bits=bits)
        if choice.activation is not None:
            calibration = replace(calibration, activation_bits=choice.activation)
        return calibration, replace(self.target, kept_float=kept)

    def _plan(self, choice: Choice) -> QuantPlan:
        calibration, target = self._with(choice)
        return calibration.decide(self.model.graph, self.observations, target)

    def _points(self, choice: Choice) -> float:
        """How many of a hundred answers change."""
        bits = sorted((name, str(bits)) for name, bits in choice.bits.items())
        key = json.dumps([bits, sorted(choice.floats), choice.activation])
        return float(self.lost(key, lambda: self._lost(choice)))

    def _lost(self, choice: Choice) -> float:
        graph = self.model.graph.clone()
        WriteForTarget(self._plan(choice), replace(self.target, static_shapes=False))(graph)
        data = Dataset(images=self.images.pixels, others=self.images.others)
        agreement = evaluate(self._session(graph), data, against=self.original).agreement
        if agreement is None:  # of outputs that mix the samples of a batch
            raise InputError("--budget drop counts classes, and these outputs have none that can be told apart.")
        return 100 * (1 - agreement)

    def _session(self, graph: ir.Model) -> Session:
        try:
            return Session(self.model.source, graph)
        except ModelFileError:
            return Session(self.model.source, graph, fuse=False)
