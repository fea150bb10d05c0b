"""Workers on two machines: two network namespaces, which reach one another by a cable of their own and nothing else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxdfq.workers.interface import INTERFACE, address_towards, set_interface

from ..graphs import DIGITS, REPOSITORY

HOSTS, ADDRESSES = ("onnxdfq-a", "onnxdfq-b"), ("10.97.31.1", "10.97.31.2")
COMMAND = [
    "synthesize",
    str(DIGITS / "digits.onnx"),
    "-m",
    "zeroq",
    "--steps",
    "2",
    "--images",
    "16",
    "--batch-size",
    "4",
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, ...]]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces take root and the command ip (iproute2)")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "cable-a", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable-b", "netns", HOSTS[1])
        for host, cable, address in zip(HOSTS, ("cable-a", "cable-b"), ADDRESSES, strict=True):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", cable)
            for link in ("lo", cable):
                ip("-n", host, "link", "set", link, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel makes no network namespaces: {error.stderr.decode().strip()}")
    else:
        yield HOSTS
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)


def run_on(hosts: tuple[str, ...], output: Path, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """torchrun on each, by rank. The workers are named "localhost", as machines that know no other name are."""
    given = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment}
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", ADDRESSES[0], "--master-port", "29517"]
    within = ["ip", "netns", "exec"]
    command = ["-m", "onnxdfq", *COMMAND, "--normalize", "none", "-o", str(output), "--force"]
    started = [
        subprocess.Popen(
            [*within, host, sys.executable, "-m", "torch.distributed.run", *meeting, "--node-rank", rank, *command],
            env=given,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank, host in zip("01", hosts, strict=True)
    ]
    said = [process.communicate(timeout=240) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(started, said, strict=True)
    ]


@pytest.mark.slow
def test_two_machines_write_what_one_does(hosts: tuple[str, ...], tmp_path: Path) -> None:
    done = run_on(hosts, tmp_path / "two.npz")
    assert [one.returncode for one in done] == [0, 0], done[0].stderr + done[1].stderr
    command = [sys.executable, "-m", "onnxdfq", *COMMAND, "--normalize", "none", "-o", str(tmp_path / "one.npz")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


@pytest.mark.slow
def test_machines_that_do_not_reach_one_another_end_soon(hosts: tuple[str, ...], tmp_path: Path) -> None:
    done = run_on(hosts, tmp_path / "two.npz", **{INTERFACE: "lo"})
    assert all(one.returncode == 1 for one in done)
    said = "".join(one.stderr for one in done)
    assert said.count("onnxdfq: ") == 1 and "cannot exchange tensors with the others; GLOO_SOCKET_IFNAME names" in said
    assert not (tmp_path / "two.npz").exists()


def test_the_way_to_this_machine_is_loopback() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("a name that nobody has") == ""


def test_the_interface_is_that_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Address:
        def __init__(self, address: str) -> None:
            self.address = address

    cards = {"lo": [Address("127.0.0.1")], "eth0": [Address("fe80::1%eth0"), Address("192.0.2.7")]}
    monkeypatch.setattr("onnxdfq.workers.interface.psutil.net_if_addrs", lambda: cards)
    monkeypatch.setattr("onnxdfq.workers.interface.address_towards", {"192.0.2.9": "192.0.2.7"}.__getitem__)
    monkeypatch.setenv(INTERFACE, "")  # and it is as it was when the test ends
    for own, every, expected in (
        ("192.0.2.7", ["127.0.1.1", "192.0.2.7"], "eth0"),
        ("127.0.1.1", ["127.0.1.1", "192.0.2.9"], "eth0"),  # at home where all meet, as Debian calls its own name
        ("127.0.0.1", ["127.0.0.1", "127.0.0.1"], "lo"),
        ("fe80::1", ["fe80::1", "fe80::2"], "eth0"),
        ("198.51.100.1", ["198.51.100.1"], None),
    ):
        os.environ.pop(INTERFACE, None)
        set_interface(own, every)
        assert os.environ.get(INTERFACE) == expected
    os.environ[INTERFACE] = "ib0"
    set_interface("192.0.2.7", ["192.0.2.7"])
    assert os.environ[INTERFACE] == "ib0", "whoever names one is believed"
