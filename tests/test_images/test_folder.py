"""Image files that are broken, or made to do harm: one sentence that names the file."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import DataError
from onnxdfq.images.dataset import load_dataset
from onnxdfq.images.folder import FORMATS, decoded, image_files
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import InputSpec

Image = pytest.importorskip("PIL.Image", reason="Pillow is optional and not here")

SPEC = InputSpec(name="x", shape=(None, 3, 8, 8), dtype=ir.DataType.FLOAT, image="first")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def encoded(kind: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((9, 7), 60).convert(mode).save(stream, kind)
    return stream.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], colour: int = 2, data: bytes = b"\0" * 1000) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    parts = [head, *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in parts
    )


def refusal(content: bytes, folder: Path, name: str = "x.png") -> str:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} ") as found:
        decoded(folder / name, (8, 8, 3))
    assert str(found.value).isprintable()
    return str(found.value)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_formats_go_by_their_content(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(encoded(kind))
    assert decoded(tmp_path / name, (8, 8, 3)).shape == (8, 8, 3)
    assert decoded(tmp_path / name, (8, 8, 1)).dtype == np.uint8


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "PDF", "DDS", "SGI"])
def test_other_formats_are_not_opened(kind: str, tmp_path: Path) -> None:
    assert "it is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP" in refusal(encoded(kind), tmp_path)


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    Image.init()  # with every format known, as in a program that opened one of them before
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    for name in ("x.png", "x.jpg", "x.tif"):
        assert "it is none of" in refusal(EPS, tmp_path, name)


@pytest.mark.parametrize("size", [(100_000, 100_000), (9000, 10_000), (2**31 - 1, 2**31 - 1), (2**32 - 1, 5)])
def test_pixels_are_counted_before_they_are_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    assert "80,000,000" in refusal(png(*size), tmp_path)
    assert "80,000,000" in refusal(f"P6 {size[0]} {size[1]} 255\n".encode(), tmp_path, "x.ppm")


BOMB = zlib.compress(b"x" * 10**8)
BROKEN = {
    "no width": png(0, 5),
    "no height": png(5, 0),
    "short of pixels": png(8900, 8900),
    "text": png(5, 5, (b"zTXt", b"a\0\0" + BOMB)),
    "profile": png(5, 5, (b"iCCP", b"a\0\0" + BOMB)),
    "wild palette": png(9, 9, (b"PLTE", b"\1\2\3" * 400), colour=3),
    "wild palette, bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 5, 5, 1, 8, 0, 0, 0, 0, 2**31, 0),
    "endless number": b"P6 " + b"9" * 5000 + b" 5 255\n",
    "no range": b"P6 5 5 0\n" + b"a" * 75,
    "no number": b"Pf\n5 5\nnan\n" + b"a" * 100,
    "nothing": b"",
    "words": b"no image",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_images(content: bytes, tmp_path: Path) -> None:
    assert any(said in refusal(content, tmp_path) for said in ("it is damaged: ", "or is damaged", "is empty"))


def test_the_shared_case(shared_cases: Path, tmp_path: Path) -> None:
    assert "broken PNG file" in refusal((shared_cases / "hostile" / "img_3.png").read_bytes(), tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_whatever_bytes_change_it_is_an_image_or_a_sentence(kind: str, tmp_path: Path) -> None:
    good, random = encoded(kind), np.random.default_rng(0)
    variants = [good[:end] for end in range(0, len(good) - 1, max(1, len(good) // 40))]
    for _ in range(60):
        data = bytearray(good)
        for place in random.integers(min(len(data), 200), size=random.integers(1, 8)):
            data[place] = random.integers(256)
        variants.append(bytes(data))
    refused = 0
    for data in variants:
        (tmp_path / "x.png").write_bytes(data)
        try:
            assert decoded(tmp_path / "x.png", (8, 8, 3)).shape == (8, 8, 3)
        except DataError as error:
            refused += 1
            assert str(error).isprintable() and "x.png" in str(error)
    assert refused > 20


def make_large(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(2**27)


@pytest.mark.parametrize("place", [".", "class"])
def test_what_is_called_as_an_image_and_is_none_is_not_opened(place: str, tmp_path: Path) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(encoded("PNG"))
    for name, make, said in (
        ("pipe.png", lambda path: os.mkfifo(path), "is a pipe"),
        ("device.png", lambda path: path.symlink_to("/dev/zero"), "is a device"),
        ("loop.png", lambda path: path.symlink_to("loop.png"), "its links lead in a circle"),
        ("gone.png", lambda path: path.symlink_to("nowhere.png"), "there is no such file"),
        ("large.png", make_large, "has 134,217,728 bytes"),
    ):
        make(folder / name)
        with pytest.raises(DataError, match=f"{name}.*{said}"):
            image_files(tmp_path)
        (folder / name).unlink()
    (folder / "folder.png").mkdir()
    assert image_files(tmp_path)[0] == (folder / "a.png",)


@pytest.mark.parametrize("name", ["pipe.png", "pipe.npz", "pipe"])
def test_a_pipe_as_data_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="is a pipe; give an ordinary file"):
        load_dataset(tmp_path / name, spec=SPEC, normalization=Normalization.parse("none"))


@pytest.mark.parametrize(
    ("number", "said"), [(3e38, "holds numbers from 0 to 3e"), (-1e20, "they are at least -1e"), (np.nan, "NaN")]
)
def test_numbers_of_which_a_layer_makes_infinity(number: float, said: str, tmp_path: Path) -> None:
    images = np.zeros((2, 3, 8, 8), np.float32)
    images[1, 2, 3, 4] = number
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(DataError, match=said):
        load_dataset(tmp_path / "a.npz", spec=SPEC)
    np.savez(tmp_path / "a.npz", images=np.full((2, 3, 8, 8), 1e300))
    with pytest.raises(DataError, match="holds numbers that are too large for float"):
        load_dataset(tmp_path / "a.npz", spec=SPEC)
