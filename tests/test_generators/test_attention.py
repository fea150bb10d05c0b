"""The generator of EnhancingDFQ: mixing labels, flows, levels, memory and label embeddings."""

import onnx
import onnx_ir as ir
import pytest
import torch

from onnxdfq.generators.attention import AttentionGenerator, LabelMixer, PlanarFlow
from onnxdfq.generators.conditional import ConditionalGenerator
from onnxdfq.generators.embeddings import label_embeddings
from onnxdfq.generators.labels import Labels, mixtures
from onnxdfq.generators.memory import LabelMemory
from onnxdfq.generators.preparing import prepared_task
from onnxdfq.generators.task import GeneratorLoss, GeneratorTask
from onnxdfq.training.levels import feature_levels, pooled
from onnxdfq.training.loop import Loop

from ..graphs import build


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixtures_have_one_label_of_a_half_at_least() -> None:
    shares = mixtures(500, 6, random())
    assert torch.allclose(shares.sum(1), torch.ones(500)) and ((shares > 0).sum(1) == 3).all()
    assert (shares.amax(1) >= 0.5).all()
    assert ((mixtures(50, 2, random()) > 0).sum(1) == 2).all(), "of two labels there is one other"


def test_the_mixer_is_attention() -> None:
    """Eq. 6 with projections that are no identity, written out image by image."""
    torch.manual_seed(0)
    mixer, embeddings, shares = LabelMixer(4), torch.randn(5, 4), mixtures(3, 5, random())
    with torch.no_grad():
        for weight in (mixer.query, mixer.key, mixer.value):
            weight.copy_(torch.randn(4, 4))
    vector, labels = mixer(embeddings, shares)
    for n in range(3):
        query = sum(shares[n, k] * embeddings[k] for k in range(5)) @ mixer.query
        attention = torch.stack([query @ (embeddings[k] @ mixer.key) / 2 for k in range(5)]).softmax(0)
        wanted = sum(attention[k] * (embeddings[k] @ mixer.value) for k in range(5))
        assert torch.allclose(vector[n], wanted, atol=1e-5) and torch.allclose(labels[n], attention, atol=1e-5)
    assert not labels.requires_grad and vector.requires_grad


def test_a_new_mixer_asks_for_what_it_was_given() -> None:
    torch.manual_seed(0)
    shares = mixtures(200, 10, random())
    _, labels = LabelMixer(64)(torch.randn(10, 64), shares)
    assert (labels.argmax(1) == shares.argmax(1)).float().mean() > 0.9


def test_a_planar_flow_can_be_undone() -> None:
    """Its Jacobian has a positive determinant everywhere, however the weights are."""
    torch.manual_seed(0)
    for scale in (0.1, 1.0, 10.0):
        flow = PlanarFlow(3)
        with torch.no_grad():
            for weight in flow.parameters():
                weight.mul_(scale)
        for z in 3 * torch.randn(20, 3, generator=random()):
            jacobian = torch.func.jacrev(flow)(z[None])[0, :, 0]
            assert torch.linalg.det(jacobian) > 0
    assert not torch.allclose(PlanarFlow(3)(z[None]), z[None])


@pytest.mark.parametrize(("mixes", "attends"), [(True, True), (False, True), (True, False), (False, False)])
def test_each_part_of_the_generator_can_be_left_out(mixes: bool, attends: bool) -> None:
    torch.manual_seed(0)
    made = AttentionGenerator((2, 9, 12), torch.randn(5, 8), levels=3, width=6, mixes=mixes, attends=attends)
    images, labels = made(8, random())
    assert images.shape == (8, 2, 9, 12) and torch.allclose(labels.sum(1), torch.ones(8))
    assert bool((labels.amax(1) == 1).all()) != mixes
    assert len(made.levels) == (3 if attends else 0) and (made.mixer is not None) == mixes
    images.square().mean().backward()
    assert all(weight.grad is not None for weight in made.parameters())
    assert torch.equal(made(8, random())[0], images) and not torch.equal(made(8, random(1))[0], images)


def test_levels_are_the_last_activations_of_each_size() -> None:
    text = """(float[N,1,8,8] x) => (float[N,1,4,4] y) {
        a = Relu(x) b = Relu(a) p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (b) c = Relu(p) y = Sigmoid(c)
    }"""
    assert feature_levels(build(text)) == ("b", "y")
    assert feature_levels(build(text), most=1) == ("y",)


def test_levels_of_a_network_that_keeps_its_size() -> None:
    layers = "".join(f"v{n + 1} = Relu(v{n}) " for n in range(8))
    image = build(f"(float[N,1,8,8] v0) => (float[N,1,8,8] v8) {{ {layers} }}")
    assert feature_levels(image) == ("v2", "v4", "v6", "v8")
    tokens = build(
        "(float[N,5,3] x) => (float[N,5,3] y) { t = LayerNormalization(x, s) y = LayerNormalization(t, s) }",
        s=torch.ones(3).numpy(),
    )
    assert feature_levels(tokens) == ("t", "y")
    unnamed = build("(float[N,5,3] x) => (float[M,5,3] y) { y = Relu(x) }")
    fixed = build("(float[2,5,3] x) => (float[2,5,3] y) { t = Transpose <perm=[1,0,2]> (x) u = Relu(t) y = Relu(x) }")
    assert feature_levels(unnamed) == ("y",) and feature_levels(fixed) == ("y",)
    flat = build("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert feature_levels(flat) == ()


def test_features_are_pooled_over_places() -> None:
    image, tokens = torch.randn(2, 3, 4, 5, generator=random()), torch.randn(2, 4, 3, generator=random())
    one, other = pooled([image, tokens])
    assert torch.allclose(one, image.mean((2, 3))) and torch.allclose(other, tokens.mean(1))


def test_the_memory_is_a_moving_average_by_label() -> None:
    memory, labels = LabelMemory(3, 2), torch.tensor([[0.7, 0.3, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    assert float(memory.similarity(features, labels)) == 0
    memory.remember(features, labels)
    assert memory.features.tolist() == [[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    assert float(memory.similarity(features, labels)) == pytest.approx(1)
    assert float(memory.similarity(features.flip(1), labels)) == pytest.approx(0)
    memory.remember(features[:1] * 12, labels[:1])
    assert memory.features[0, 0].item() == pytest.approx(0.9 * 2 + 0.1 * 12) and memory.features[1, 1].item() == 2


def task_of(model: ir.Model, loss: GeneratorLoss) -> GeneratorTask:
    """With the levels of the small model."""
    shaped = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    levels = feature_levels(shaped)
    assert len(levels) == 2
    return prepared_task(
        shaped,
        lambda planes, labels: ConditionalGenerator(planes, Labels(count=labels), latent=16, width=16),
        loss,
        method="test",
        seed=0,
        levels=levels,
    )


def test_embeddings_tell_labels_apart(small_model: ir.Model) -> None:
    task = task_of(small_model, GeneratorLoss())
    task.warm_up(Loop(steps=40, batch_size=32), 2e-3, seed=0)
    found = label_embeddings(task, 12, Loop(steps=60, batch_size=32), seed=0)
    assert found.shape == (5, 12) and not found.requires_grad
    assert torch.allclose(found.mean(0), torch.zeros(12), atol=1e-5)
    assert found.std().item() == pytest.approx(1, abs=0.15)
    units = torch.nn.functional.normalize(found, dim=1)
    others = (units @ units.T)[~torch.eye(5, dtype=torch.bool)]
    assert others.max() < 0.6, "no two labels share one"
    assert torch.equal(found, label_embeddings(task, 12, Loop(steps=60, batch_size=32), seed=0))


def test_likeness_counts_and_is_remembered_when_it_trains(small_model: ir.Model) -> None:
    task = task_of(small_model, GeneratorLoss(likeness=2.0))
    with_memory = task.with_generator(task.generator, LabelMemory(5, 12))
    assert with_memory.memory is not None
    batch = task.draw(16, random())
    plain = float(task.loss(batch).detach())
    with torch.no_grad():
        assert float(with_memory.loss(batch)) == pytest.approx(plain) and not with_memory.memory.known.any()
    with_memory.loss(batch)
    similarity = with_memory.memory.similarity(pooled(batch.features[-1:])[0], batch.labels).item()
    assert 0 < similarity < 1
    assert float(with_memory.loss(batch).detach()) == pytest.approx(plain + 2 * similarity)
    with torch.no_grad():
        assert float(with_memory.loss(batch)) == pytest.approx(plain), "held-back losses stay comparable"
    copied = with_memory.copy()
    copied.loss(task.draw(16, random(1)))
    assert copied.memory is not None and not torch.equal(copied.memory.features, with_memory.memory.features)
