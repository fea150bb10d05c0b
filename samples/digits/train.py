"""Trains the sample network on scikit-learn's handwritten digits and writes digits.onnx and digits_test.npz beside it.

    python samples/digits/train.py          (about half a minute on two cores; needs the extra `samples`)

Same library versions, same thread count: same bytes.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from onnxdfq.exporting import export
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import atomic_write

SEED = 0
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 0.1
# Mean and deviation of the training pixels in the unit range, rounded.
NORMALIZATION = Normalization(mean=(0.3,), std=(0.37,))


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNormalization and a residual sum; the shortcut is a 1×1 where the size changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Digits(nn.Module):
    """(N, 1, 8, 8) normalised grey images to (N, 10) logits: a stem and three stages of 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stages = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn(self.stem(image))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def split() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Train and test images (N, 8, 8, 1) and labels; a third of each class is held out."""
    digits = load_digits()
    # The pixels are counts of 0 to 16 ink dots.
    images = np.round(digits.images / 16 * 255).astype(np.uint8)[..., np.newaxis]
    return train_test_split(  # type: ignore[no-any-return]
        images, digits.target.astype(np.int64), test_size=1 / 3, random_state=SEED, stratify=digits.target
    )


def train(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Digits:
    torch.manual_seed(SEED)
    network = Digits()
    x, y = torch.from_numpy(NORMALIZATION(images)), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            loss = F.cross_entropy(network(shifted(x[rows])), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def shifted(images: Tensor) -> Tensor:
    """Each image moved by up to one pixel; what comes in from outside is background, which is byte 0."""
    background = -NORMALIZATION.mean[0] / NORMALIZATION.std[0]
    padded = F.pad(images, (1, 1, 1, 1), value=background)
    moves = torch.randint(0, 3, (len(images), 2)).tolist()
    return torch.stack(
        [image[:, down : down + 8, right : right + 8] for image, (down, right) in zip(padded, moves, strict=True)]
    )


def main() -> None:
    folder = Path(__file__).parent
    torch.set_num_threads(1)  # sums in one order on every machine
    torch.use_deterministic_algorithms(True)
    train_images, test_images, train_labels, test_labels = split()
    network = train(train_images, train_labels)
    export(network, torch.zeros(1, 1, 8, 8), folder / "digits.onnx", normalize=NORMALIZATION, force=True)
    with atomic_write(folder / "digits_test.npz", force=True) as temporary:
        np.savez_compressed(temporary, images=test_images, labels=test_labels)
    with torch.no_grad():
        predicted = network(torch.from_numpy(NORMALIZATION(test_images))).argmax(1).numpy()
    right = int((predicted == test_labels).sum())
    print(f"float accuracy {100 * right / len(test_labels):.2f} % ({right} of {len(test_labels)} held-out images)")


if __name__ == "__main__":
    main()
