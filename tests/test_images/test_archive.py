"""Archives and arrays that are broken, or made to do harm: each kind has its own sentence."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxdfq.errors import DataError
from onnxdfq.images.archive import ArrayFile

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
GOOD = "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 5, 6, 3), }"


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def raw(header: str, version: tuple[int, int] = (1, 0)) -> bytes:
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header.encode("latin1") + PIXELS.tobytes()


def packed(path: Path, *entries: tuple[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def test_arrays_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "a.npz",
        ("images.npy", npy(np.asfortranarray(PIXELS))),
        ("labels.npy", npy(np.arange(4))),
        ("big.npy", npy(np.ones((2, 3), ">f4"))),
        ("note.npy", npy(np.array("text"))),
        ("readme.txt", b"hello"),
    )
    file = ArrayFile(path)
    assert list(file) == ["images", "labels", "big", "note", "readme.txt"]
    assert file.shapes == {"images": (4, 5, 6, 3), "labels": (4,), "big": (2, 3), "note": ()}
    np.testing.assert_array_equal(file["images"], PIXELS)
    np.testing.assert_array_equal(file["big"], np.ones((2, 3)))
    assert str(file["note"]) == "text" and "absent" not in file and file.get("absent") is None
    with pytest.raises(DataError, match=r"the entry 'readme.txt' is no array of numpy; save plain arrays"):
        file["readme.txt"]
    (tmp_path / "a.npy").write_bytes(npy(PIXELS) + b"more behind it")
    np.testing.assert_array_equal(ArrayFile(tmp_path / "a.npy")["images"], PIXELS)


HEADERS = {
    "hello": "has a header that is none of an array",
    "{'descr'": "has a header that is none of an array",
    "(" * 5000: "has a header that is none of an array",
    "__import__('os').abort()": "has a header that is none of an array",
    GOOD.replace("|u1", "zz"): "has a header that is none of an array",
    GOOD.replace("(4,", "(4.0,"): "has a header that is none of an array",
    GOOD.replace("4", "9" * 5000): "has a header that is none of an array",
    GOOD + " " * 20_000: r"has a header of 20,065 bytes; at most 10,000 are read",
    GOOD.replace("4", "-4"): r"has the shape \(-4, 5, 6, 3\) by its header",
    GOOD.replace("4", "9" * 30): "has the shape .* by its header, which no array of 2,147,483,648 bytes has",
    GOOD.replace("(4,", "(0, 99999999999999999999,"): "has the shape .* by its header, which no array",
    GOOD.replace("|u1", "<U0").replace("4", "9999999999"): "has the shape .* by its header, which no array",
    GOOD.replace("4", "7"): "is cut off or damaged: by its header it has 630 bytes of numbers, and there are 360",
    GOOD.replace("|u1", "|O"): "would need pickle, which can run code and is refused",
    GOOD.replace("'|u1'", "[('a', '|O')]"): "would need pickle",
    GOOD.replace("'|u1'", "[('a', '|u1')]"): r"holds records, raw bytes or dates \(\[\('a', 'u1'\)\]\)",
    GOOD.replace("|u1", "<m8[s]"): "holds records, raw bytes or dates",
    GOOD.replace("|u1", "|V1"): "holds records, raw bytes or dates",
}


@pytest.mark.parametrize(("header", "said"), HEADERS.items(), ids=range(len(HEADERS)))
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_headers(header: str, said: str, version: tuple[int, int], tmp_path: Path) -> None:
    path = packed(tmp_path / "a.npz", ("images.npy", raw(header, version)))
    with pytest.raises(DataError, match=f"a.npz: the entry 'images' {said}"):
        ArrayFile(path)["images"]
    with pytest.raises(DataError, match=said):
        ArrayFile(path).shapes  # noqa: B018
    (tmp_path / "a.npy").write_bytes(raw(header, version))
    with pytest.raises(DataError, match=f"a.npy {said}"):
        ArrayFile(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x93NUMPY\x02\0\xff\xff\xff\xff", "has a header of 4,294,967,295 bytes"),
        (b"\x93NUMPY\x01\0", "is cut off within its header"),
        (b"\x93NUMPY", "is no array of numpy"),
        (raw(GOOD, (9, 9)), r"is an array of version 9.9 of .npy"),
        (npy(PIXELS)[:-1], "there are 359"),
        (b"", "is empty"),
        (b"\x80\x04\x95pickle", "cannot be read as .npz: it is none"),
    ],
)
def test_what_is_no_array(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(DataError, match=said):
        ArrayFile(tmp_path / "a.npy")


def test_what_expands_to_too_much_is_refused_by_its_size(tmp_path: Path) -> None:
    """5.8 GB out of 29 kB, here: the list of entries says so, and nothing is expanded."""
    data = bytearray(packed(tmp_path / "a.npz", ("images.npy", npy(PIXELS))).read_bytes())
    place = data.find(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 4_000_000_000)
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"expands to 4,000,000,000 bytes; at most 2,147,483,648 are read"):
        ArrayFile(tmp_path / "a.npz")
    with (tmp_path / "a.npy").open("wb") as stream:
        stream.write(npy(PIXELS))
        stream.truncate(2**32)
    with pytest.raises(DataError, match=r"expands to 4,294,967,296 bytes"):
        ArrayFile(tmp_path / "a.npy")


def test_an_entry_that_says_less_than_it_expands_to(tmp_path: Path) -> None:
    data = bytearray(packed(tmp_path / "a.npz", ("images.npy", npy(np.zeros(10**7)))).read_bytes())
    place = data.find(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 1000)
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"entry 'images' is (damaged|cut off)"):
        ArrayFile(tmp_path / "a.npz")["images"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"flag": 1}, "is encrypted; save it without a password"),
        ({"how": 12}, r"is compressed as numpy never does \(12\)"),
        ({"how": 99}, r"is compressed as numpy never does \(99\)"),
        ({"data": b"\xff" * 40}, "is damaged: "),
        ({"crc": 7}, "is damaged: Bad CRC-32"),
        ({"local": b"XXXX"}, "is damaged: Bad magic number"),
        ({"offset": 2**30}, "is damaged: "),
    ],
)
def test_entries(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = packed(tmp_path / "a.npz", ("images.npy", npy(PIXELS)))
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    match change:
        case {"flag": flag}:
            data[place + 8] |= flag
        case {"how": how}:
            data[place + 10] = how
        case {"data": broken}:
            data[60 : 60 + len(broken)] = broken
        case {"crc": crc}:
            data[place + 16] ^= crc
        case {"local": begin}:
            data[:4] = begin
        case {"offset": offset}:
            data[place + 42 : place + 46] = struct.pack("<I", offset)
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"a.npz: the entry 'images' {said}"):
        ArrayFile(path)["images"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["images.npy", "images"])
def test_two_entries_of_one_name(second: str, tmp_path: Path) -> None:
    path = packed(tmp_path / "a.npz", ("images.npy", npy(PIXELS)), (second, npy(PIXELS)))
    with pytest.raises(DataError, match="has 2 entries called 'images', and nothing tells which is meant"):
        ArrayFile(path)


def test_lists_of_entries(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.npz", *((f"{'x' * 40}{number}.npy", b"") for number in range(12_000)))
    with pytest.raises(DataError, match="its list of entries is longer than any needs"):
        ArrayFile(path)
    good = packed(tmp_path / "b.npz", ("images.npy", npy(PIXELS))).read_bytes()
    for end in (10, 100, len(good) - 30, len(good) - 3):
        path.write_bytes(good[:end])
        with pytest.raises(DataError, match=r"cannot be read as .npz: it is none, or is cut off"):
            ArrayFile(path)


def test_whatever_bytes_change_it_is_an_array_or_a_sentence(tmp_path: Path) -> None:
    good, random = packed(tmp_path / "a.npz", ("images.npy", npy(PIXELS))).read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for place in random.integers(len(data), size=random.integers(1, 6)):
            data[place] = random.integers(256)
        (tmp_path / "a.npz").write_bytes(data)
        try:
            {name: array.shape for name, array in ArrayFile(tmp_path / "a.npz").items()}
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 200
