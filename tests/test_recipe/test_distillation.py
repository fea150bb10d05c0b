"""Settings of a distillation: what they take."""

import pytest

from onnxdfq.errors import InputError
from onnxdfq.recipe.distillation import KnowledgeDistillation


def test_defaults_are_within_bounds() -> None:
    found = KnowledgeDistillation()
    assert found.temperature == 3 and found.momentum == 0.1 and found.statistics == "batch"


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("train_steps", 0, "train_steps is 0; it must be at least 1"),
        ("train_steps", 1.5, "must be a whole number"),
        ("temperature", 0, "above 0"),
        ("features", -1, "at least 0"),
        ("momentum", 1.5, "at most 1"),
        ("rate", -0.1, "above 0"),
        ("statistics", "running", "Unknown statistics: 'running'"),
        ("optimizer", "lion", "Unknown optimizer: 'lion'"),
    ],
)
def test_what_is_no_value_is_refused(field: str, value: object, sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        KnowledgeDistillation(**{field: value})  # type: ignore[arg-type]
    assert sentence in str(raised.value) and raised.value.field == field
