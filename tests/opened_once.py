"""The sample network, which hundreds of tests compress, is opened once a session: opening it takes longer than they."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from onnxdfq.model_file import opening
from onnxdfq.model_file.runtime import named_libraries

from .graphs import DIGITS

_SAMPLE = (DIGITS / "digits.onnx").read_bytes()


@contextmanager
def sample_opened_once() -> Iterator[None]:
    """Inside, a process of its own opens each way of reading the sample once; copies of it are the same file.

    Everything behind the process goes its way: what it hands over is read again each time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "_Task", _remembering(opening._Task))
        yield


def _remembering(task: type[Any]) -> type[Any]:
    answers: dict[str, tuple[dict[str, Any], dict[str, bytes]]] = {}  # and the files that it left, by name

    class Remembering(task):  # type: ignore[misc]
        """A task that a file of these bytes, asked for in the same way, has had before is answered as it was then."""

        def __init__(self, name: str, path: Path, folder: Path, arguments: Mapping[str, Any]) -> None:
            self._key = ""
            with suppress(OSError):  # what cannot be looked at is no sample
                if path.is_file() and path.stat().st_size == len(_SAMPLE) and path.read_bytes() == _SAMPLE:
                    self._key = json.dumps([name, dict(arguments), named_libraries()])
            self._place, self._answer = folder, answers.get(self._key)
            if self._answer is None:
                super().__init__(name, path, folder, arguments)

        def __enter__(self) -> Any:
            return self if self._answer else super().__enter__()

        def __exit__(self, *given: object) -> None:
            if not self._answer:
                super().__exit__(*given)

        def reached(self, stage: str) -> None:
            if not self._answer:
                super().reached(stage)

        def result(self) -> dict[str, Any]:
            if self._answer:
                found, files = self._answer
                for name, content in files.items():
                    with (self._place / name).open("wb") as file:  # tests break `write_bytes`
                        file.write(content)
                return dict(found)
            found = super().result()
            if self._key:
                answers[self._key] = found, {path.name: path.read_bytes() for path in self._place.iterdir()}
            return found

    return Remembering
