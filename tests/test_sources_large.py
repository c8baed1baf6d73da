"""Data that memory is too small for is the same data, read piece by piece from files without a name."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bend_ray.config import Data
from bend_ray.data import arrays, datasets, images
from bend_ray.data.datasets import load_dataset
from bend_ray.errors import DataError
from image_files import encoded, npz
from source_helpers import THREE, parquet, pictures, rows


def every_way(root: Path) -> dict[str, str]:
    """The same rows of one colour, and some where a coloured one comes late, in all layouts."""
    pictures(root / "pictures", *THREE["train"])
    x, y = THREE["train"]
    parquet(root / "parquet" / "train-0.parquet", x[:23], y[:23])
    parquet(root / "parquet" / "train-1.parquet", x[23:], y[23:])
    (root / "npy").mkdir()
    for kind, array in zip("xy", THREE["train"], strict=True):
        np.save(root / "npy" / f"{kind}_train.npy", array)
    pictures(root / "mixed", *THREE["train"])
    (root / "mixed" / "dog" / "030.png").write_bytes(encoded(rows(2, 3, 3)[0][0]))
    parquet(root / "late" / "train-0.parquet", *THREE["train"])
    parquet(root / "late" / "test-0.parquet", *rows(10, 2, 3))
    return {name: str(root / name) for name in ("pictures", "parquet", "npy", "mixed", "late")}


@pytest.mark.parametrize("piece", [7, 4096])
def test_data_in_files_is_that_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    for name, path in every_way(tmp_path).items():
        held = load_dataset(Data(path=path), seed=0)
        for module in (arrays, images, datasets):
            monkeypatch.setattr(module, "PIECE", piece)
        for in_memory in (0.0, 300 / 2**30):  # nothing; some rows
            mapped = load_dataset(Data(path=path, in_memory=in_memory), seed=0)
            assert mapped.digest() == held.digest(), name
            assert mapped.preprocess == held.preprocess and mapped.class_names == held.class_names
            index = torch.tensor([3, 3, 0])
            assert torch.equal(mapped.train.take(index).images, held.train.take(index).images)
    assert held.channels == 3


def test_files_of_images_have_no_name_and_go_with_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    buffer = images.SpillBuffer(0.0)
    buffer.add(THREE["train"][0][:, None])
    found = buffer.tensor()
    opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert any(str(tmp_path / "scratch") in str(link) for link in opened)
    assert list((tmp_path / "scratch").iterdir()) == []
    del buffer
    assert np.array_equal(found[:, 0].numpy(), THREE["train"][0])
    found[0] = 0  # as a tensor in memory would let anyone
    assert not found[0].any()


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(DataError, match=r"^data\.in_memory: .*No space left on device.*TMPDIR"):
        load_dataset(
            npz(tmp_path / "d.npz", x_train=THREE["train"][0], y_train=THREE["train"][1]).model_copy(
                update={"in_memory": 0.0}
            ),
            seed=0,
        )


def test_statistics_and_cuts_copy_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No single step may hold all rows: what is asked of torch at once is never more than a piece."""
    sizes: list[int] = []
    monkeypatch.setattr(images, "PIECE", 8)
    monkeypatch.setattr(datasets, "PIECE", 8)
    count = torch.bincount

    def counted(x: torch.Tensor, **options: Any) -> torch.Tensor:
        if options.get("minlength") == 256:  # of pixels, not of labels
            sizes.append(x.numel())
        return count(x, **options)

    monkeypatch.setattr(torch, "bincount", counted)
    dataset = load_dataset(npz(tmp_path / "d.npz", x_train=THREE["train"][0], y_train=THREE["train"][1]), seed=0)
    assert max(sizes) == 8 * 36 and sum(sizes) == dataset.train.images.numel()
