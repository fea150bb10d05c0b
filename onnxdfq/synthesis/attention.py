"""A transformer as a synthesis method sees it: image in, what it attends to and outputs out; and patch similarity."""

import math
from collections.abc import Mapping

import onnx_ir as ir
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import NoAttention
from onnxdfq.synthesis.losses import class_logits
from onnxdfq.synthesis.network import as_input
from passes.graph.attention import find_attention
from passes.graph.compared import answer_output, is_float

BANDWIDTH, POINTS, FLOOR = 0.01, 10, 1e-4  # of the density of similarities, as the public code of PSAQ-ViT has them
FARTHEST = -50.0  # exponent of a kernel: where less than 1e-21 is left, exp gives numbers that are slow to compute with
MOST_LEADING = 2  # tokens that stand before the patches: of the class, and of a distilled one


class AttendingNetwork:
    """An ONNX model with taps at what its attentions give.

    Args:
        model: Canonical; it is only read.
        method: Whose name an error begins with.
        device: Where the network runs.

    Raises:
        NoAttention: The model has none, or takes no picture.
        ShapeError: The model has no input.

    spec: of the main input. batch: as of `Feeds`.
    """

    def __init__(self, model: ir.Model, *, method: str, device: str) -> None:
        self.device, self._method = torch.device(device), method
        self._feeds = Feeds(model)
        self.spec, self.batch = self._feeds.main, self._feeds.batch
        self._attentions = find_attention(model.graph)
        if not self._attentions:
            raise _no_attention(method, lacking="the model has none (a product with the Softmax of a product)")
        if self.spec.image is None:
            raise _no_attention(method, lacking=f"the model's input {self.spec.name!r} is no picture")
        names = [str(value.name) for attention in self._attentions for value in (attention.output, attention.weights)]
        place = answer_output(model.graph)
        classes = None if place is None else model.graph.outputs[place]
        self._has_classes = classes is not None and is_float(classes)
        if classes is not None and self._has_classes:
            names.append(str(classes.name))
        self._graph = TorchGraph(model, outputs=names).to(self.device).eval()

    def forward(
        self, images: Float32[Tensor, "n c h w"]
    ) -> tuple[list[Float[Tensor, "rows t d"]], list[Float[Tensor, "..."]], Float32[Tensor, "n k"] | None]:
        """Run a batch.

        Args:
            images: In the model's units; gradients pass.

        Returns:
            What each attention over several patches gives, the mean over its heads, (N · windows, tokens, D); the
            weights of these attentions, (N · windows · heads, T, T) or (N · windows, heads, T, T); and the logits
            (N, K) of a classifier, None of any other network.

        Raises:
            NoAttention: No attention is over the patches of one image.
        """
        given: Mapping[str, Tensor] = {self.spec.name: as_input(self.spec, images)}
        values = self._graph(*self._feeds.of(self._graph.input_names, given))
        features, weights = [], []
        taps = values[: 2 * len(self._attentions)]
        for attention, value, weight in zip(self._attentions, taps[::2], taps[1::2], strict=True):
            found = value.transpose(-2, -1) if attention.transposed else value
            # (N · heads, T, D) of a batched product; (N · windows, heads, T, D) of one that keeps the heads apart
            if len(found) % len(images) == 0 and found.shape[-2] - leading_tokens(found.shape[-2]) > 1:
                heads = found.reshape(len(images), -1, *found.shape[-2:]) if found.dim() == 3 else found
                features.append(heads.float().flatten(0, -4).mean(1))
                weights.append(weight)
        if not features:
            raise _no_attention(self._method, lacking="none of the model's attentions is over the patches of one image")
        return features, weights, class_logits(values[-1]) if self._has_classes else None


def _no_attention(method: str, *, lacking: str) -> NoAttention:
    return NoAttention(
        f"{method} makes pictures by the attention of a transformer, and {lacking}. Without it these still work: "
        "--method dead-leaves, and --calibration FILE with inputs of your own."
    )


def patch_entropy(features: Float[Tensor, "rows t d"], images: int) -> Float32[Tensor, ""]:
    """How different the patches of an image are from one another: mean over images of the differential entropy of the
    cosine similarities between all pairs of their patches.

    The density is estimated by Gaussian kernels at points between the least similarity of the batch and 1, which carry
    no gradient, and integrated by trapezoids.

    Args:
        features: What an attention gives, rows · T tokens of D numbers; N rows, or several to an image (windows), next
            to one another.
        images: N.

    Source: PSAQ-ViT, arXiv 2203.02250, Eq. 6 to 8; constants and form of the public code.
    """
    patches = torch.nn.functional.normalize(features[:, leading_tokens(features.shape[1]) :], dim=2)
    count = patches.shape[1]
    first, second = torch.triu_indices(count, count, 1, device=features.device)
    # of each pair once; a patch and itself are a pair, too, of similarity 1
    pairs = (patches @ patches.transpose(1, 2))[:, first, second].reshape(images, -1)
    themselves = len(features) // images * count
    points = torch.linspace(float(pairs.detach().amin()), 1.0, POINTS, device=features.device)
    densities = []
    for point in points.tolist():
        kernels = (-0.5 * ((pairs - point) / BANDWIDTH).square()).clamp_min(FARTHEST).exp().sum(1)
        itself = themselves * math.exp(-0.5 * ((1 - point) / BANDWIDTH) ** 2)
        densities.append((2 * kernels + itself) / (2 * pairs.shape[1] + themselves))
    density = torch.stack(densities) / (BANDWIDTH * math.sqrt(2 * math.pi)) + FLOOR
    return torch.trapezoid(-density * density.log(), points, dim=0).mean()


def leading_tokens(tokens: int) -> int:
    """How many tokens stand before the patches: so many that the rest is a square; 0 where one or two make none."""
    for leading in range(MOST_LEADING + 1):
        if math.isqrt(tokens - leading) ** 2 == tokens - leading:
            return leading
    return 0
