"""Real inputs for the models of `run`, as arrays by input name: photographs; and where the data has none, made signals.

Speech is made of vowels (harmonics of a gliding pitch under formants) and noise; hands are of a fixed skeleton that is
turned, bent and scaled. States of recurrent models are those that the model itself arrives at on such signals.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Array = NDArray[Any]
Arrays = dict[str, Array]
RATE, FRAME = 16000, 512


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Photographs as one model takes them: x = (byte / 255 - mean) / std.

    file: of images. name: of the input. size: height, width; None for that of the file. bgr: channels turned round.
    last: channels behind.
    """

    name: str
    file: str = "coco_val128_352"
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    last: bool = False

    @property
    def normalize(self) -> str:
        """For `--normalize`."""
        return "/".join(",".join(map(str, numbers)) for numbers in (self.mean, self.std))

    def __call__(self, count: int) -> Arrays:
        """The first `count`."""
        images = np.load(DATA / f"{self.file}.npz")["images"][:count]
        if self.size is not None:
            height, width = self.size
            images = np.stack(
                [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in images]
            )
        images = images[..., ::-1] if self.bgr else images
        found = ((images / 255.0 - np.array(self.mean)) / np.array(self.std)).astype(np.float32)
        return {self.name: np.ascontiguousarray(found if self.last else found.transpose(0, 3, 1, 2))}


def speech(samples: int, seed: int) -> NDArray[np.float32]:
    """(samples,) at 16 kHz, from -1 to 1."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    pitch = (
        120 + 40 * np.sin(2 * np.pi * random.uniform(0.5, 2) * time + random.uniform(0, 6)) + random.uniform(-30, 90)
    )
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sound = np.zeros(samples)
    formants = random.uniform((300, 900, 2200), (900, 2200, 3200))
    for harmonic in range(1, 30):
        gains = np.exp(-(((harmonic * pitch[:, None] - formants) / 200) ** 2)).sum(1)
        sound += gains * np.sin(harmonic * phase + random.uniform(0, 6)) / harmonic**0.5
    loudness = np.clip(np.sin(2 * np.pi * random.uniform(1.5, 4) * time + random.uniform(0, 6)) + 0.3, 0, None)
    sound = loudness * sound / np.abs(sound).max() + random.uniform(0.001, 0.05) * random.normal(size=samples)
    return (random.uniform(0.1, 0.6) * sound).astype(np.float32)


def mel_features(count: int) -> Arrays:
    """Log-mel features as openWakeWord makes them: 76 frames of 10 ms, 32 bands, x / 10 + 2."""
    window, hop, bins = 400, 160, 257
    frequencies = np.linspace(0, RATE / 2, bins)
    edges = 700 * (10 ** (np.linspace(np.log10(1 + 60 / 700), np.log10(1 + 3800 / 700), 34)) - 1)
    filters = np.maximum(
        0,
        np.minimum(
            (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None],
            (edges[2:, None] - frequencies) / np.diff(edges)[1:, None],
        ),
    )
    found = []
    for seed in range(count):
        sound = 32767 * speech(window + 75 * hop, seed)
        frames = np.stack([sound[start : start + window] for start in range(0, 76 * hop, hop)]) * np.hanning(window)
        power = np.abs(np.fft.rfft(frames, 512)) ** 2 @ filters.T
        decibel = 10 * np.log10(np.maximum(power, 1e-10))
        found.append(np.maximum(decibel - decibel.max(), -80)[..., None] / 10 + 2)
    return {"input_1": np.stack(found).astype(np.float32)}


def frames_with_states(
    model: str, signal: str, state: str, given: Callable[[Array], Array], more: Mapping[str, Array]
) -> Callable[[int], Arrays]:
    """Frames of speech, each with the state that the model had come to: frame 8 of each of `count` sounds."""

    def make(count: int) -> Arrays:
        session = onnxruntime.InferenceSession(DATA / "models" / f"{model}.onnx", providers=["CPUExecutionProvider"])
        shape = next(value.shape for value in session.get_inputs() if value.name == state)
        first = np.zeros([size if isinstance(size, int) else 1 for size in shape], np.float32)
        rows = []
        for seed in range(count):
            sound, now = speech(8 * FRAME, seed), first
            for start in range(0, 7 * FRAME, FRAME):
                feeds = {signal: given(sound[start : start + FRAME]), state: now, **more}
                now = np.asarray(session.run(None, feeds)[1], np.float32)
            rows.append((given(sound[7 * FRAME :]), now))
        axis = 0 if shape[0] == 1 else 1
        return {
            signal: np.concatenate([frame for frame, _ in rows]),
            state: np.concatenate([now for _, now in rows], axis),
            **more,
        }

    return make


def hands(count: int) -> Arrays:
    """21 points of a hand, x and y from the wrist, by the greatest distance: (N, 42)."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        points = [(0.0, 0.0)]
        for finger, angle in enumerate(np.linspace(-1.0, 0.7, 5)):
            bent = random.uniform(0, 1.2)
            x, y, turn = 0.0, 0.0, angle
            for joint in range(4):
                length = (0.45, 0.22, 0.16, 0.12)[joint] * (0.8 if finger == 0 else 1)
                x, y = x + length * np.sin(turn), y - length * np.cos(turn)
                points.append((x, y))
                turn += bent * (1 if joint else 0.1)
        turn = random.uniform(-0.6, 0.6)
        rotated = np.array(points) @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        rotated = rotated + 0.01 * random.normal(size=rotated.shape)
        rotated -= rotated[0]
        found.append((rotated / np.abs(rotated).max()).reshape(-1))
    return {"input": np.array(found, np.float32)}


def traces(count: int) -> Arrays:
    """16 places of a finger tip, x and y from the first, in shares of the image: circles, lines and rest: (N, 32)."""
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        time = np.linspace(0, 1, 16)[:, None]
        radius, turn = random.uniform(0.03, 0.2), random.uniform(0, 6)
        around = 2 * np.pi * random.choice([-1, 1]) * time + turn
        circle = radius * np.concatenate([np.cos(around), np.sin(around)], 1)
        line = time * random.uniform(-0.3, 0.3, 2)
        trace = (circle, line, np.zeros((16, 2)))[number % 3] + 0.004 * random.normal(size=(16, 2))
        found.append((trace - trace[0]).reshape(-1))
    return {"input": np.array(found, np.float32), "score_threshold": np.array(0.5, np.float32)}


def _dtln(frame: Array) -> Array:
    return frame.reshape(1, 1, FRAME)


def _silero(frame: Array) -> Array:
    return frame.reshape(1, FRAME)


IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.201)}
HALF: dict[str, Any] = {"mean": (0.5,), "std": (0.5,)}
SIGNED: dict[str, Any] = {"mean": (127.5 / 255,), "std": (127.5 / 255,)}
LOSSLESS, JPEG = "cifar10_test932", "cifar10jpeg_train10k"

INPUTS: dict[str, Callable[[int], Arrays]] = {
    "resnet20_cifar10": Pictures(name="image", file=LOSSLESS, **IMAGENET),
    "resnet56_cifar10": Pictures(name="image", file=LOSSLESS, **IMAGENET),
    "resnet20_cifar10jpeg": Pictures(name="image", file=JPEG, **IMAGENET),
    "resnet56_cifar10jpeg": Pictures(name="image", file=JPEG, **IMAGENET),
    "convmixer_cifar10": Pictures(name="image", file=LOSSLESS, **CIFAR),
    "resnet8_cifar10": Pictures(name="image", file=LOSSLESS, mean=(0.0,), std=(1 / 255,)),
    "mobilenetv1_vww": Pictures(name="image", file="vww_coco256"),
    "vit_cifar10": Pictures(name="image", file=LOSSLESS, **CIFAR),
    "fastestdet_coco": Pictures(name="image", bgr=True),
    "ppocr_cls": Pictures(name="x", size=(48, 192), **HALF),
    "ulface_slim320": Pictures(name="input", size=(240, 320), mean=(127 / 255,), std=(128 / 255,)),
    "lprnet_dynamo": Pictures(name="x", size=(24, 94), bgr=True, mean=(127.5 / 255,), std=(128 / 255,)),
    "pplcnet_orientation": Pictures(name="x", size=(224, 224), **IMAGENET),
    "mtcnn_pnet": Pictures(name="input_1", size=(224, 224), last=True, mean=(127.5 / 255,), std=(128 / 255,)),
    "mtcnn_onet": Pictures(name="input_3", size=(48, 48), last=True, mean=(127.5 / 255,), std=(128 / 255,)),
    "oww_embedding_model": mel_features,
    "dtln_2": frames_with_states("dtln_2", "input_4", "input_5", _dtln, {}),
    "silero_vad_16k_op15": frames_with_states(
        "silero_vad_16k_op15", "input", "state", _silero, {"sr": np.array(RATE, np.int64)}
    ),
    "hand_keypoint": hands,
    "hand_lstm": traces,
}
