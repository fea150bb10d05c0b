"""What generators make: sizes, standardised pixels, labels; and how alike images are."""

import numpy as np
import pytest
import torch

from onnxdfq.generators.conditional import FEW_LABELS, ConditionalGenerator
from onnxdfq.generators.labels import Labels, certainty_loss, label_loss
from onnxdfq.generators.margins import generator_margins, student_margins
from onnxdfq.synthesis.diversity import similarity, similarity_by_label


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("planes", [(3, 32, 32), (1, 28, 30), (2, 5, 9), (3, 4, 4), (6, 1, 1), (1, 1, 40)])
@pytest.mark.parametrize("labels", [2, FEW_LABELS + 1])
def test_any_size_comes_out_standardised(planes: tuple[int, int, int], labels: int) -> None:
    torch.manual_seed(0)
    made = ConditionalGenerator(planes, Labels(count=labels), latent=8, width=6)
    images, asked = made(16, random())
    assert images.shape == (16, *planes) and asked.shape == (16, labels)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(planes[0]), atol=1e-4)
    assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(planes[0]), atol=1e-2)
    again, _ = made(16, random())
    assert torch.equal(images, again) and not torch.equal(images, made(16, random(1))[0])


@pytest.mark.parametrize("labels", [3, FEW_LABELS + 1])
def test_the_label_changes_the_image(labels: int) -> None:
    """Of two generators that differ in what one label is to them, images of other labels are the same before the batch
    is normalised; here all are of that label, so they differ."""
    torch.manual_seed(0)
    made = ConditionalGenerator((1, 8, 8), Labels(count=labels), latent=8, width=6)
    table = made.embedding if made.embedding is not None else made.trunk.norms[0].shift
    assert isinstance(table, torch.Tensor)
    before, asked = made(4, random())
    with torch.no_grad():
        table[asked[0].argmax()] += torch.linspace(-1, 1, table.shape[1])
    assert not torch.allclose(before[0], made(4, random())[0][0], atol=1e-3)


def test_labels_are_single_or_mixed() -> None:
    single = Labels(count=5).draw(2000, random())
    assert set(single.unique().tolist()) == {0, 1} and (single.sum(1) == 1).all()
    assert single.mean(0).tolist() == pytest.approx([0.2] * 5, abs=0.04)
    mixed = Labels(count=5, mixed=1.0, several=3).draw(2000, random())
    assert torch.allclose(mixed.sum(1), torch.ones(2000)) and ((mixed > 0).sum(1) == 3).all()
    assert mixed.mean(0).tolist() == pytest.approx([0.2] * 5, abs=0.04)
    assert ((Labels(count=2, mixed=1.0, several=9).draw(8, random()) > 0).sum(1) == 2).all()
    often = [bool((Labels(count=5, mixed=0.4).draw(4, random(seed)) > 0).sum(1).gt(1).all()) for seed in range(400)]
    assert np.mean(often) == pytest.approx(0.4, abs=0.07)


def test_the_label_loss_is_the_cross_entropy_with_shares() -> None:
    scores, shares = torch.randn(4, 3, 1, 1, generator=random()), torch.tensor([[0.2, 0.8, 0.0]] * 4)
    wanted = -(shares * torch.log_softmax(scores[:, :, 0, 0], 1)).sum(1).mean()
    assert float(label_loss(scores, shares)) == pytest.approx(float(wanted), rel=1e-5)


def test_hard_images_count_more() -> None:
    """HAST, Eq. 7: by the power of how far an image is from certain."""
    scores, labels = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    sure = scores.softmax(1)[:, 0]
    wanted = ((1 - sure) ** 2 * -sure.log()).mean()
    assert float(label_loss(scores, labels, hardness=2.0)) == pytest.approx(float(wanted), rel=1e-5)
    assert float(label_loss(scores, labels, hardness=0.0)) == pytest.approx(float(-sure.log().mean()), rel=1e-5)


def test_certainty_is_aimed_at_from_both_sides() -> None:
    scores, labels = torch.tensor([[2.0, 0.0], [2.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0]] * 2)
    sure = float(scores.softmax(1)[0, 0].detach())
    loss = certainty_loss(scores, labels, torch.tensor([sure - 0.1, sure + 0.1]))
    assert loss.item() == pytest.approx(0.01, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[0, 0] > 0 > gradient[1, 0], "one is to be less sure, the other more"


def test_margins_are_the_entropies_of_the_difference() -> None:
    """AdaDFQ: what lies between two bounds costs nothing, and equal answers are the student's best."""
    labels = torch.eye(4)
    expected = torch.randn(4, 4, generator=random())
    same = generator_margins(expected, expected, labels)
    labels_only = 0.2 * label_loss(torch.zeros(4, 4), labels) + 0.1 * label_loss(2 * expected, labels)
    assert float(same) == pytest.approx(float(labels_only) + 0.2, rel=1e-5), "entropy 1, where .8 is the most"
    far = expected - 100 * labels
    apart = 0.2 * label_loss(100 * labels, labels) + 0.1 * label_loss(expected + far, labels)
    assert float(generator_margins(expected, far, labels)) == pytest.approx(float(apart) + 0.1, rel=1e-4)
    between = expected - 2 * labels
    entropy = torch.distributions.Categorical(logits=2 * labels).entropy() / np.log(4)
    assert 0.1 < entropy[0] < 0.8
    none = 0.2 * label_loss(2 * labels, labels) + 0.1 * label_loss(expected + between, labels)
    assert float(generator_margins(expected, between, labels)) == pytest.approx(float(none), rel=1e-5)
    assert float(student_margins(expected, expected + 3, 20.0)) == pytest.approx(0, abs=1e-3)
    assert float(student_margins(expected, between, 20.0)) > 0.1


def test_similarity() -> None:
    noise = np.random.default_rng(0).standard_normal((40, 1, 16, 16)).astype(np.float32)
    assert abs(similarity(noise)) < 0.02
    same = np.repeat(noise[:1], 8, 0) * np.arange(1, 9, dtype=np.float32)[:, None, None, None]
    assert similarity(same) == pytest.approx(1)
    pair = noise[:2]
    cosine = float((pair[0] * pair[1]).sum() / np.sqrt((pair[0] ** 2).sum() * (pair[1] ** 2).sum()))
    assert similarity(pair) == pytest.approx(cosine, abs=1e-6)
    both = np.concatenate([same, noise[:8]])
    labels = np.eye(2, dtype=np.float32)[[0] * 8 + [1] * 8]
    assert similarity_by_label(both, labels) == pytest.approx((1 + similarity(noise[:8])) / 2)
    assert similarity_by_label(noise[:2], np.eye(2, dtype=np.float32)) is None
