"""Attention through the whole pipeline: its products are integers, in whatever form it is written."""

import pytest

import onnxdfq

from ..graphs import ATTENTION, ATTENTION_IN_ONE, vit


@pytest.mark.parametrize(("attention", "opset"), [(ATTENTION, 21), (ATTENTION_IN_ONE, 23)], ids=["parts", "one"])
def test_products_of_an_attention_are_integers(attention: str, opset: int) -> None:
    result = onnxdfq.compress(
        vit(attention=attention, opset=opset), method="dead-leaves", images=16, bits="w8a8", normalize="0.5/0.25"
    )
    assert float(result.metrics["sqnr_db_held_back"] or 0) > 20
    products = [node for node in result.model.graph if node.op_type == "MatMul"]
    assert len(products) == 5 and not any(node.op_type == "Attention" for node in result.model.graph)
    for node in products:
        producers = [value.producer() for value in node.inputs if value is not None]
        assert [producer and producer.op_type for producer in producers] == ["DequantizeLinear"] * 2
