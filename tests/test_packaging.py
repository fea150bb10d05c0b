"""The wheel: complete, and working from another folder in an environment where only it was installed."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_both_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"onnxdfq/targets/ort.toml", "onnxdfq/py.typed", "passes/py.typed", "passes/write/insert_qdq.py"} <= set(
        names
    )
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"onnxdfq", "passes"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are lent by this environment through a .pth file; the project's own folder is not among them."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    zipfile.ZipFile(wheel).extractall(site)
    python, model = home / "bin" / "python", REPOSITORY / "samples" / "digits" / "digits.onnx"
    lent = sysconfig.get_path("purelib")
    program = f"import sys; sys.path.append({lent!r}); from onnxdfq.cli.main import main; main()"
    output = tmp_path / "out.onnx"
    run(python, "-c", program, "compress", model, "-m", "noise", "--images", "8", "-o", output, cwd=tmp_path)
    assert output.exists()
    where = f"import sys; sys.path.append({lent!r}); import onnxdfq, passes; print(onnxdfq.__file__, passes.__file__)"
    assert run(python, "-c", where, cwd=tmp_path).count(str(site)) == 2


def test_a_folder_that_hides_passes_is_named(tmp_path: Path) -> None:
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "__init__.py").write_text("")
    said = run(sys.executable, "-m", "onnxdfq.cli.main", "--help", cwd=tmp_path, code=1)
    assert "is hidden by" in said and str(tmp_path / "passes") in said
