"""What DF-MPC notes and refuses: a sentence with a count for the user, the reason for every layer in the log."""

import logging
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from passes.dfmpc.compensate import Compensation, plan_compensation
from passes.dfmpc.plan import CompensateWeights, CompensationPlan


def settings(**given) -> Compensation:
    return Compensation(**{"low_bits": 2, "high_bits": 6} | given)


def test_notes(network):
    plan = plan_compensation(network("basic"), settings(low_bits=6, high_bits=2))
    assert any(note.startswith("The layers that are to pay have 2 bits, fewer than the 6") for note in plan.notes)
    assert any("Without data nothing is known of what Conv_c_stem reads" in note for note in plan.notes)
    assert any("are approximate of what Gemm_y reads" in note for note in plan.notes)


@pytest.mark.parametrize(("low_bits", "high_bits", "rounding"), [(1, 6, "nearest"), (2, 9, "nearest"), (2, 8, "paper")])
def test_bits_out_of_range(low_bits, high_bits, rounding):
    with pytest.raises(ValueError, match=r"layers have [189] bits; (nearest|paper) rounding takes 2 to [78]\."):
        Compensation(low_bits=low_bits, high_bits=high_bits, rounding=rounding)


@pytest.fixture
def reasons(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines that planning logged so far."""
    caplog.set_level(logging.DEBUG, logger="passes.dfmpc.compensate")
    return lambda: [record.getMessage() for record in caplog.records]


def test_layers_that_stay_high_are_counted_and_each_is_logged(network, reasons):
    plan = plan_compensation(network("basic"), settings())
    high = [name for name, weight in plan.weights.items() if weight.bits == 6]
    assert (
        plan.notes[0]
        == f"{len(high)} of {len(plan.weights)} layers stay at 6 bits; the debug log (-v) says why of each."
    )
    assert "Conv 'Conv_c_stem' stays high: it reads the graph input" in reasons()
    assert all(any(f"'{name}' stays high: " in line for line in reasons()) for name in high)


def test_low_layers_without_a_coefficient_are_counted(network, reasons):
    model = network("plain")
    model.graph.node("Relu_b").op_type = "Sigmoid"  # no factor passes it
    plan = plan_compensation(model, settings(coefficients=True))
    assert plan.notes[0] == (
        "3 of 5 layers stay at 6 bits, and of the 2 low ones 1 get no coefficient; the debug log (-v) says why of each."
    )
    (line,) = (line for line in reasons() if "gets no coefficient" in line)
    assert line.startswith("Conv 'Conv_c_b' gets no coefficient: Sigmoid 'Relu_b' is not linear")


def test_a_model_without_a_low_layer_says_why_for_each(build, reasons):
    model = build(
        """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv (x, w)
        n = BatchNormalization (a, s, s, s, s)
        y = Conv (n, v)
    }""",
        w=np.ones((4, 3, 1, 1), np.float32),
        v=np.ones((4, 4, 1, 1), np.float32),
        s=np.ones(4, np.float32),
    )
    with pytest.raises(ValueError, match="No layer can have 2 bits beside others of 6") as caught:
        plan_compensation(model, settings())
    assert ": each of the 2 stays high (the debug log (-v) says why of each). Give" in str(caught.value)
    assert reasons() == [
        "Conv 'Conv_a' stays high: it reads the graph input",
        "Conv 'Conv_y' stays high: its output 'y' leaves the graph",
    ]
    same = plan_compensation(model, settings(low_bits=6))  # all the same: nobody has to pay
    assert {weight.bits for weight in same.weights.values()} == {6}


def test_coefficients_without_a_legal_pair_say_why(network, reasons):
    with pytest.raises(ValueError, match="No pair is legal") as caught:
        plan_compensation(network("basic"), settings(assignment="last", coefficients=True))
    assert "of no low layer (1 in all) all readers can be compensated; the debug log (-v) says why of each." in str(
        caught.value
    )
    assert any(line.startswith("Conv 'Conv_c_b' gets no coefficient: Add 'Add_sum' reads it") for line in reasons())


def test_a_model_without_layers(build):
    with pytest.raises(ValueError, match="no layer with a constant weight"):
        plan_compensation(build("(float[N,3] x) => (float[N,3] y) { y = Relu (x) }"), settings())


def test_a_plan_for_another_graph_is_refused(network):
    plan = plan_compensation(network("plain"), settings())
    with pytest.raises(ir.passes.PreconditionError, match="the plan names nodes that the graph lacks"):
        CompensateWeights(plan)(network("basic"))


def test_an_empty_plan_changes_nothing(network):
    assert not CompensateWeights(CompensationPlan(weights={}, norms={}, biases={}))(network("basic")).modified
