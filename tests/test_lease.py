"""One driver a run: the second is refused, one that is gone is not waited for longer than its lease."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bend_ray.cluster import lease
from bend_ray.cluster.lease import Driver
from bend_ray.cluster.watchdog import watchdog
from bend_ray.errors import ArtifactError
from bend_ray.store.folders import Folder


def other(run: Path, **changes: object) -> Driver:
    """A driver on another machine, with ten seconds to go."""
    driver = Driver(id="other", machine="elsewhere pid:[1]", pid=7, until=time.time() + 10).model_copy(update=changes)
    run.mkdir(exist_ok=True)
    (run / lease.FILE).write_text(driver.model_dump_json())
    return driver


def test_a_lease_is_there_while_it_is_held(tmp_path: Path) -> None:
    with lease.held(Folder(tmp_path)):
        holder = json.loads((tmp_path / lease.FILE).read_text())
        assert holder["pid"] == os.getpid() and 20 < holder["until"] - time.time() <= lease.LASTS_S
        with (
            pytest.raises(ArtifactError, match=rf"another bend-ray \(process {os.getpid()} on .*use another --run-dir"),
            lease.held(Folder(tmp_path)),
        ):
            pass
    assert not (tmp_path / lease.FILE).exists()


def test_a_folder_that_nothing_came_into_goes_with_the_lease(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "runs/new", "runs/used"):
        with lease.held(Folder(tmp_path / name)):
            assert (tmp_path / name / lease.FILE).exists()
            if name == "runs/used":
                (tmp_path / name / "config.yaml").touch()
        if name == "runs/new":
            assert not (tmp_path / "runs").exists()
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == ["runs", "runs/used", "runs/used/config.yaml", "there"]


def test_another_machines_lease_is_respected_until_it_runs_out(tmp_path: Path) -> None:
    other(tmp_path)
    with (
        pytest.raises(ArtifactError, match=r"on elsewhere\) .*free in (9|10) s"),
        lease.held(Folder(tmp_path)),
    ):
        pass
    assert json.loads((tmp_path / lease.FILE).read_text())["id"] == "other"
    other(tmp_path, until=time.time() - 1)
    with lease.held(Folder(tmp_path)):
        assert json.loads((tmp_path / lease.FILE).read_text())["pid"] == os.getpid()


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    other(tmp_path, machine=lease._machine(), pid=dead.pid)
    with lease.held(Folder(tmp_path)):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 3}', '{"id": "x", "machine": "y", "pid": "z", "until": "w"}'])
def test_a_lease_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / lease.FILE).write_text(text)
    with lease.held(Folder(tmp_path)):
        pass


def test_a_lease_that_is_given_up_while_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "exists", lambda *_: True)  # it was there a moment ago
    with lease.held(Folder(tmp_path)):
        pass
    assert not (tmp_path / lease.FILE).exists()


def test_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED_S", 0.05)
    with lease.held(Folder(tmp_path)):
        first = json.loads((tmp_path / lease.FILE).read_text())["until"]
        end = time.monotonic() + 10
        while json.loads((tmp_path / lease.FILE).read_text())["until"] == first:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_driver_whose_run_was_taken_over_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a sleep of the laptop's: it is broken off where it is, and leaves the other's lease alone."""
    monkeypatch.setattr(lease, "RENEWED_S", 0.05)
    with pytest.raises(ArtifactError, match="process 7 on elsewhere"), lease.held(Folder(tmp_path)):
        other(tmp_path)
        threading.Event().wait(30)
    assert json.loads((tmp_path / lease.FILE).read_text())["id"] == "other"


def test_of_two_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    code = (
        "import sys; from bend_ray.cluster import lease; from bend_ray.store.folders import Folder\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n    with lease.held(Folder(sys.argv[1])): print('held', flush=True); sys.stdin.readline()\n"
        "except lease.ArtifactError: print('refused', flush=True)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = sorted(process.stdout.readline() for process in both if process.stdout)
    assert said == ["held\n", "refused\n", "refused\n", "refused\n"]
    for process in both:
        process.communicate("\n")


def test_watching_ends_a_block_and_leaves_real_interrupts_alone() -> None:
    def complain() -> None:
        raise ArtifactError("enough")

    with pytest.raises(ArtifactError, match="enough"), watchdog(complain, 0.01):
        threading.Event().wait(30)
    looked: list[int] = []
    with watchdog(lambda: looked.append(1), 30.0):
        pass
    assert looked == [1]  # once when the block has ended
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # none where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt), watchdog(lambda: None, 0.01):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(30)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ArtifactError, match="enough"), watchdog(complain, 30.0):
        raise ValueError("the block's own")


def test_a_watcher_ends_what_ignores_control_c_and_stays_out_of_other_threads() -> None:
    def complain() -> None:
        raise ArtifactError("enough")

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        with pytest.raises(ArtifactError, match="enough"), watchdog(complain, 0.01):
            threading.Event().wait(30)
    finally:
        signal.signal(signal.SIGINT, before)
    found: list[Exception] = []

    def work() -> None:
        try:
            with watchdog(complain, 0.01):
                time.sleep(0.2)
        except ArtifactError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()  # nothing interrupts this one
    assert [str(error) for error in found] == ["enough"]


def test_a_watcher_that_breaks_is_not_passed_over() -> None:
    with pytest.raises(ZeroDivisionError), watchdog(lambda: print(1 / 0), 0.01):
        threading.Event().wait(30)
