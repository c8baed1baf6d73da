"""What is held at once does not grow with the rows: the largest tensor is the same for few and for many."""

import errno
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bend_ray.ensemble import doubt, laplace, select, spill, temperature, vector_scaling
from bend_ray.ensemble import ensemble as ensembles
from bend_ray.ensemble.spill import Spill
from bend_ray.errors import DataError, ResourceError
from bend_ray.report.scored import Scored, score
from serving_helpers import ensemble

M, K, PART = 8, 64, 64
"""Members, classes, and rows that come at once."""
FEW, MANY = 2 * PART, 16 * PART
KEPT = 8 * MANY * temperature.GRID
"""Bytes of a number a row for each temperature that is tried; less than one for each class."""


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [value.nbytes for value in tree_leaves(result) if isinstance(value, Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return result


def largest(work: Callable[[], object]) -> int:
    with Largest() as seen:
        work()
    return seen.bytes


def labels(rows: int) -> Tensor:
    return torch.arange(rows) % K


def parts(rows: int, seed: int = 0, members: int = M) -> Iterator[Tensor]:
    """``logits_MbK``, made as they are asked for."""
    label_B = labels(rows)
    for number, label_b in enumerate(label_B.split(PART)):
        stream = torch.Generator().manual_seed(1000 * seed + number)
        noise = 2 * torch.randn(members, len(label_b), K, generator=stream)
        yield noise + 3 * torch.nn.functional.one_hot(label_b, K)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all of it in the file, and in small pieces."""
    monkeypatch.setattr(spill, "IN_MEMORY", 2 * M * PART * K * 4)
    monkeypatch.setattr(spill, "VALUES", M * PART * K)
    monkeypatch.setattr(temperature, "VALUES", M * PART * K)


def scored(rows: int) -> Scored:
    strange = {"noise": parts(rows, 2)}
    return score(parts(rows), labels(rows), parts(rows, 1), labels(rows), 1.0, strange=strange)


WORK: dict[str, Callable[[int], object]] = {
    "score": scored,
    "temperature": lambda rows: temperature.fit(Spill(parts(rows)), labels(rows)),
    "doubt": lambda rows: doubt.largest_scale(lambda scale: Spill(parts(rows, int(scale > 0))), labels(rows)),
    "select": lambda rows: select.greedy(Spill(parts(rows)), labels(rows), 3),
    "vector scaling": lambda rows: vector_scaling.fit(Spill(parts(rows, members=1)), labels(rows)),
}


@pytest.mark.parametrize("name", WORK)
def test_the_largest_tensor_is_no_larger_for_many_rows(name: str) -> None:
    """Of one part, or of what is kept for each row: a number for a member or a temperature, never one for a class."""
    few, many = (largest(partial(WORK[name], rows)) for rows in (FEW, MANY))
    assert few >= PART * K * 4 and many <= max(few, KEPT) < MANY * K * 8


def test_laplace_chooses_its_prior_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laplace, "SAMPLES", M)
    monkeypatch.setattr(laplace, "PRIORS", laplace.PRIORS[:2])
    stream = torch.Generator().manual_seed(0)

    def phi(rows: int) -> Iterator[Tensor]:
        return (torch.randn(1, PART, 5, generator=stream, dtype=torch.float64) for _ in range(rows // PART))

    posterior = laplace.fit(torch.nn.Linear(4, K), [next(phi(PART))[0]])

    def choose(rows: int) -> float:
        return laplace.chosen_prior(posterior, Spill(phi(rows)), labels(rows), 0)

    few, many = (largest(partial(choose, rows)) for rows in (FEW, MANY))
    assert many <= max(few, KEPT, 8 * MANY * temperature.FAR_GRID) < M * MANY * K * 4


def test_many_images_are_answered_part_by_part_to_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensembles, "AT_ONCE", 8)
    stream, one = torch.Generator().manual_seed(0), ensemble()
    fit = one.spec.preprocess
    shape = (fit.channels, fit.image_size, fit.image_size)
    images = torch.randint(256, (400, *shape), generator=stream, dtype=torch.uint8)
    few, many = (largest(partial(one.predict, images[:rows])) for rows in (16, 400))
    assert many <= max(few, 8 * 400 * fit.channels * len(one.spec.class_names))  # the answer's own tensors
    for strategy, stop_early in (("abend", False), ("sbend", False), ("sbend", True)):
        whole = one.tally(images, strategy).prediction(strategy)
        found = one.predict(images, strategy, stop_early)
        assert torch.equal(found.label_B, whole.label_B) and len(found.members_B) == 400
        if not stop_early:
            torch.testing.assert_close(found.prob_BK, whole.prob_BK)
    assert len(one.predict(images[:0]).label_B) == 0
    with pytest.raises(DataError, match=r"images: a ndarray given; expected a uint8 tensor"):
        one.predict(images.numpy())  # type: ignore[arg-type]  # that is what is refused


def test_a_choice_and_a_temperature_are_made_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensembles, "ROWS", 32)
    stream, one = torch.Generator().manual_seed(0), ensemble()
    fit, K = one.spec.preprocess, len(one.spec.class_names)
    shape = (fit.channels, fit.image_size, fit.image_size)
    images = torch.randint(256, (320, *shape), generator=stream, dtype=torch.uint8)
    label_B, logits_MBK = torch.arange(320) % K, one.logits(images)
    wanted = select.greedy(logits_MBK, label_B, 3)
    assert torch.equal(one.select(images, label_B, 3).theta_MD, one.theta_MD[wanted])
    fitted = one.temperature_scale(images, label_B).temperature
    assert fitted.low == pytest.approx(temperature.fit(logits_MBK, label_B).low, rel=1e-4)
    with pytest.raises(DataError, match="give one label a row"):
        one.select(images, label_B[:-1], 3)


def test_parts_give_what_the_whole_gives() -> None:
    """Temperature, choice and every number that is reported, in parts and whole, in memory and in a file."""
    rows = 5 * PART
    whole, val = (torch.cat(list(parts(rows, seed)), dim=1) for seed in (0, 1))
    label_B, found = labels(rows), Spill(parts(rows))
    assert found.shape == whole.shape and torch.equal(torch.cat(list(found), dim=1), whole)
    assert [*map(torch.Tensor.tolist, found)] == [*map(torch.Tensor.tolist, found)]  # as often as wanted
    assert temperature.fit(found, label_B) == temperature.fit(whole, label_B)
    assert temperature.lowest_loss(found, label_B) == temperature.lowest_loss(whole, label_B)
    assert select.best(found, label_B, 3) == select.best(whole, label_B, 3)
    one, other = score(parts(rows), label_B, parts(rows, 1), label_B, 1.0), score(whole, label_B, val, label_B, 1.0)
    assert one.temperature == other.temperature and one.abend_curve == other.abend_curve
    for name in ("accuracy_M", "nll_M", "val_accuracy_M", "predicted_MB", "val_tempered_nll_B", "val_votes_nll_B"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for name in ("mean", "votes", "tempered"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert all(torch.equal(value, vars(theirs)[key]) for key, value in vars(mine).items())


def test_snapshots_of_whom_nobody_asks_a_temperature_have_none_and_leave_no_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    one = score(parts(MANY), labels(MANY), parts(MANY, 1), labels(MANY), 1.0, tempered=False)
    assert one.temperature == temperature.NONE and torch.equal(one.tempered.nll_B, one.mean.nll_B)


def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one: the file may not grow beyond a limit of the process."""
    import resource
    import signal

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * M * PART * K * 4, before[1]))
    try:
        with pytest.raises(
            ResourceError, match=rf"of {M} members for \d+ rows do not fit into {tmp_path}.*TMPDIR"
        ) as caught:
            Spill(parts(MANY))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert f"[Errno {errno.EFBIG}]" in str(caught.value) and not list(tmp_path.iterdir())
