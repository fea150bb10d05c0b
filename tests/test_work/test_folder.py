"""The work folder: who may use it, what it keeps apart, and what it lists."""

import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from onnxdfq.cli.main import main
from onnxdfq.errors import InputError, OutputError
from onnxdfq.work.folder import KEY_LENGTH, kept_in, work_folder


def test_one_run_at_a_time(tmp_path: Path) -> None:
    said: list[str] = []
    place = tmp_path / "work"
    with (
        work_folder(place, "m.onnx", said.append),
        pytest.raises(InputError, match="Another run is at work in"),
        work_folder(place, "m.onnx", said.append),
    ):
        pass
    with work_folder(place, "m.onnx", said.append) as found:
        assert found is not None and found.path == place
    with work_folder(None, "m.onnx", said.append) as found:
        assert found is None
    assert not said


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()
    (place / ".onnxdfq-lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="takes no files"), work_folder(place, "m.onnx", print):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_what_rests_on_something_else_is_kept_apart_and_told(tmp_path: Path) -> None:
    said: list[str] = []
    with work_folder(tmp_path, "m.onnx", said.append) as folder:
        assert folder is not None
        one = folder.checkpoint("images", "digest", "seed 0")
        one.save({"a": torch.ones(2)}, {"count": 2}, done=True)
        assert not said
        other = folder.checkpoint("images", "digest", "seed 1")
        assert other.load(done=True) is None and one.path != other.path
        assert said == [f"{tmp_path} keeps images of another model, recipe or version; here it is done anew."]
        folder.checkpoint("tuning", "digest", "seed 1")
        assert len(said) == 1
        assert folder.checkpoint("images", "digest", "seed 0").load(done=True) is not None
        # parts do not run into one another
        assert folder.checkpoint("images", "digests", "eed 0").path != one.path


def test_a_change_of_version_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with work_folder(tmp_path, "m.onnx", said.append) as folder:
        assert folder is not None
        folder.checkpoint("images", "digest").save({"a": torch.ones(2)}, {}, done=True)
        monkeypatch.setattr("onnxdfq.work.folder.version", lambda _: "9.9")
        assert folder.checkpoint("images", "digest").load(done=True) is None and len(said) == 1


def test_it_lists_what_it_keeps(tmp_path: Path) -> None:
    with work_folder(tmp_path, "m.onnx", print) as folder:
        assert folder is not None
        folder.checkpoint("images", "a").save({"a": torch.ones(2)}, {}, done=True)
        folder.checkpoint("tuning", "b").save({"a": torch.ones(2)}, {})
    found = {one.stage: one for one in kept_in(tmp_path)}
    assert found["images"].done and not found["tuning"].done and found["images"].model == "m.onnx"
    assert found["images"].bytes == (tmp_path / found["images"].file).stat().st_size
    assert len(found["images"].file) == len("images..safetensors") + KEY_LENGTH
    listed = CliRunner().invoke(main, ["runs", str(tmp_path)])
    assert listed.exit_code == 0 and "on its way" in listed.stdout and "m.onnx" in listed.stdout
    as_json = json.loads(CliRunner().invoke(main, ["runs", str(tmp_path), "--json"]).stdout)
    assert {one["stage"]: one["done"] for one in as_json["kept"]} == {"images": True, "tuning": False}


def test_the_newest_comes_first_within_a_second(tmp_path: Path) -> None:
    with work_folder(tmp_path, "m.onnx", print) as folder:
        assert folder is not None
        for stage in ("b", "a", "c"):
            folder.checkpoint(stage, "digest").save({"a": torch.ones(2)}, {}, done=True)
    for place, stage in enumerate(("b", "a", "c")):
        (file,) = tmp_path.glob(f"{stage}.*")
        os.utime(file, ns=(0, 10**18 + place))
    assert [one.stage for one in kept_in(tmp_path)] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no folder; name one that was given as --work-dir"),
        ({}, "keeps nothing of onnxdfq"),
        ({"a.safetensors": "x"}, "is no checkpoint"),
    ],
)
def test_what_is_no_work_folder_is_refused(content: dict[str, str] | None, said: str, tmp_path: Path) -> None:
    place = tmp_path / "work"
    if content is not None:
        place.mkdir()
        for name, text in content.items():
            (place / name).write_text(text)
    found = CliRunner().invoke(main, ["runs", str(place)])
    assert found.exit_code == 2 and said in found.stderr
