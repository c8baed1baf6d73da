"""Where data comes from: folders of images, .npy files and the user's own callables give what the same rows in an .npz
give; and so does data that memory is too small for."""

import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bend_ray.config import Data
from bend_ray.data import datasets, images
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import ConfigError, DataError
from conftest import changed

NAMES = ("cat", "dog")


def rows(count: int, seed: int, *channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of 6x6 pixels and labels, sorted by label."""
    x = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, *channels), dtype=np.uint8)
    return x, np.arange(count) // (count // 2)


def encoded(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def parquet(path: Path, x: np.ndarray, y: np.ndarray, names: tuple[str, ...] = NAMES) -> None:
    cells = pa.array([{"bytes": encoded(image)} for image in x], pa.struct({"bytes": pa.binary()}))
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    table = pa.table({"image": cells, "label": pa.array(y)})
    path.parent.mkdir(parents=True, exist_ok=True)
    note = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": note}), path, row_group_size=7)


def pictures(root: Path, x: np.ndarray, y: np.ndarray) -> None:
    for row, (image, label) in enumerate(zip(x, y, strict=True)):
        path = root / NAMES[label] / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))


def npz(root: Path, **arrays: np.ndarray) -> Data:
    np.savez(root / "d.npz", **arrays)
    return Data(path=str(root / "d.npz"))


def lengths(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.val), len(dataset.test)


THREE = {"train": rows(40, 0), "val": rows(6, 1), "test": rows(10, 2)}


def whole(root: Path) -> Dataset:
    """The three splits by the plainest way in."""
    arrays = {f"{kind}_{split}": array for split, pair in THREE.items() for kind, array in zip("xy", pair, strict=True)}
    return load_dataset(npz(root, **arrays), seed=0)


# --- folders of images


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
@pytest.mark.parametrize("form", ["path", "path/", "uri"])
def test_folders_of_classes_under_folders_of_splits(tmp_path: Path, validation: str, form: str) -> None:
    root = tmp_path / "pets"
    for name, split in {"train": "train", validation: "val", "test": "test"}.items():
        pictures(root / name, *THREE[split])
    (root / "README.txt").write_text("no image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / ".cache" / "x.png").write_bytes(b"hidden")
    path = {"path": str(root), "path/": f"{root}/", "uri": root.as_uri()}[form]
    dataset = load_dataset(Data(path=path), seed=0)
    assert (dataset.name, dataset.class_names) == ("pets", NAMES)
    assert lengths(dataset) == (40, 6, 10) and dataset.digest() == whole(tmp_path).digest()


def test_folders_of_classes_alone_are_cut(tmp_path: Path) -> None:
    x, y = rows(40, 0)
    pictures(tmp_path / "pets", x, y)
    inner = tmp_path / "pets" / "cat" / "of mine"  # a class may have folders of its own
    inner.mkdir()
    (tmp_path / "pets" / "cat" / "000.png").rename(inner / "000.png")
    dataset = load_dataset(Data(path=str(tmp_path / "pets")), seed=0)
    x, y = np.concatenate([x[1:20], x[:1], x[20:]]), y  # "of mine" stands behind the digits
    assert lengths(dataset) == (25, 5, 10)
    assert dataset.digest() == load_dataset(npz(tmp_path, x_train=x, y_train=y), seed=0).digest()


@pytest.mark.parametrize(("in_memory", "divided"), [(2.0, True), (0.0, True), (2.0, False)])
def test_limits_take_the_first_of_each_class_in_turn(tmp_path: Path, in_memory: float, divided: bool) -> None:
    root = tmp_path / "d"
    x, y = rows(40, 0)
    pictures(root / "train" if divided else root, x[:26], y[:26])  # 20 cats, 6 dogs
    if divided:
        pictures(root / "test", *THREE["test"])

    def load(**more: int) -> Dataset:
        return load_dataset(Data(path=str(root), in_memory=in_memory, val_fraction=0.25, **more), seed=0)

    few, whole_one = load(train_limit=16, test_limit=5), load()
    assert few.test.labels.tolist() == [0, 0, 0, 1, 1]
    train = torch.cat([few.train.labels, few.val.labels])
    assert train.bincount().tolist() == ([10, 6] if divided else [12, 4])  # all dogs that there are
    tested = {image.numpy().tobytes() for image in whole_one.test.images}
    assert {image.numpy().tobytes() for image in few.test.images} < tested
    if divided:
        given = torch.cat([few.train.images, few.val.images])
        assert {image.numpy().tobytes() for image in given} == {image.tobytes() for image in [*x[:10], *x[20:26]]}
        assert torch.equal(few.test.images[:, 0], torch.from_numpy(THREE["test"][0][[0, 1, 2, 5, 6]]))
    assert load(train_limit=26, test_limit=99).digest() == whole_one.digest()


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    x, y = rows(40, 0)
    pictures(tmp_path / "d", x, y)
    (tmp_path / "d" / "dog").rename(tmp_path / "d" / "train")
    assert load_dataset(Data(path=str(tmp_path / "d")), seed=0).class_names == ("cat", "train")


def _odd(name: str, data: bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_odd("train/cat/007.png", b"nothing"), r"train/cat/007\.png is a broken image"),
        (_odd("train/cat/007.png", encoded(rows(2, 0)[0][0])[:60]), r"train/cat/007\.png is a broken image"),
        (_odd("train/dog/a.png", encoded(np.zeros((7, 7), np.uint8))), r"dog/a\.png is 7x7, .*cat/000\.png 6x6"),
        (_odd("train/dog/a.png", encoded(np.zeros((6, 7), np.uint8))), r"dog/a\.png is 7x6; all images must be square"),
        (_odd("test/cow/a.png", encoded(np.zeros((6, 6), np.uint8))), r"test/cow/a\.png: .*its class, cow"),
        (_odd("more/cow/a.png", encoded(np.zeros((6, 6), np.uint8))), r"d/more: stands beside training images"),
        (_odd("train/a.png", encoded(np.zeros((6, 6), np.uint8))), r"train/a\.png: is in no folder of a class"),
        (_odd("a.png", encoded(np.zeros((6, 6), np.uint8))), r"d/a\.png: is in no folder of a class"),
        (lambda root: (root / "train" / "cow").mkdir(), r"train/cow: a folder without an image"),
        (lambda root: (root / "val").mkdir(), r"d/val: a folder without an image"),
        (lambda root: (root / "train" / "dog").rename(root / "dogs"), r"d/dogs: stands beside|d/dogs/020\.png: is in"),
    ],
)
def test_files_and_folders_that_cannot_be_used(tmp_path: Path, change: Callable[[Path], None], said: str) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / "d" / split, *THREE[split])
    change(tmp_path / "d")
    with pytest.raises(DataError, match=rf"^data\.path: .*{said}"):
        load_dataset(Data(path=str(tmp_path / "d")), seed=0)


def test_one_class_alone(tmp_path: Path) -> None:
    pictures(tmp_path / "d", *rows(40, 0))
    for file in (tmp_path / "d" / "dog").iterdir():
        file.unlink()
    (tmp_path / "d" / "dog").rmdir()
    with pytest.raises(DataError, match=r"/d: .*one class"):
        load_dataset(Data(path=str(tmp_path / "d")), seed=0)


def test_grey_and_coloured_images_together_are_all_coloured(tmp_path: Path) -> None:
    x, y = rows(40, 0)
    pictures(tmp_path / "d", x, y)
    coloured = rows(2, 3, 3)[0][0]
    (tmp_path / "d" / "dog" / "030.png").write_bytes(encoded(coloured))
    expected = x[..., None].repeat(3, axis=3)
    expected[30] = coloured
    dataset = load_dataset(Data(path=str(tmp_path / "d")), seed=0)
    assert dataset.digest() == load_dataset(npz(tmp_path, x_train=expected, y_train=y), seed=0).digest()


# --- .npy


@pytest.mark.parametrize("form", ["path", "uri"])
def test_npy_files_are_what_an_npz_is(tmp_path: Path, form: str) -> None:
    root = tmp_path / "d"
    root.mkdir()
    for split, (x, y) in THREE.items():
        np.save(root / f"x_{split}.npy", x)
        np.save(root / f"y_{split}.npy", y)
    np.save(root / "notes.npy", np.zeros(3))
    dataset = load_dataset(Data(path=str(root) if form == "path" else root.as_uri()), seed=0)
    assert dataset.digest() == whole(tmp_path).digest() and dataset.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_test": THREE["test"][0]}, r"no x_train\.npy \(it has x_test\.npy\)"),
        ({"x_train": THREE["train"][0]}, r"x_train and y_train must both be there"),
        ({"x_train": np.zeros((40, 2, 6, 6)), "y_train": THREE["train"][1]}, r"x_train: .*1 or 3 channels"),
        ({"x_train": np.zeros((40, 6, 6, 4)), "y_train": THREE["train"][1]}, r"x_train: .*1 or 3 channels"),
        ({"x_train": np.full((40, 6, 6), "a"), "y_train": THREE["train"][1]}, r"x_train: must be finite numbers"),
        ({"x_train": np.full((40, 6, 6), None), "y_train": THREE["train"][1]}, r"x_train\.npy: is no \.npy array"),
        ({"x_train": THREE["train"][0], "y_train": np.zeros(40)}, r"y_train is float64"),
    ],
)
def test_npy_files_that_cannot_be_used(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(DataError, match=rf"^data\.path: {tmp_path}.*{said}"):
        load_dataset(Data(path=str(tmp_path)), seed=0)


def test_long_arrays_are_read_in_pieces_and_name_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(40, 0)
    expected = load_dataset(npz(tmp_path, x_train=x / 255, y_train=y), seed=0)
    monkeypatch.setattr("bend_ray.data.arrays.PIECE", 16)
    assert load_dataset(npz(tmp_path, x_train=x / 255, y_train=y), seed=0).digest() == expected.digest()
    odd = x.astype(int)
    odd[20] = 256
    with pytest.raises(DataError, match=r"x_train, rows 16 to 31: pixels from \d+ to 256"):
        load_dataset(npz(tmp_path, x_train=odd, y_train=y), seed=0)


# --- the user's own

OWN = """
import numpy as np, torch
from PIL import Image


class Rows(torch.utils.data.Dataset):
    def __init__(self, x, y, form="pillow", **facts):
        self.x, self.y, self.form = x, y, form
        self.__dict__.update(facts)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        image, label = self.x[row], int(self.y[row])
        if self.form == "broken" and row == 7:
            raise OSError("disk on fire")
        if self.form == "tensor":  # as torchvision's ToTensor
            return torch.from_numpy(image).float()[None] / 255, torch.tensor(label)
        if self.form == "array":
            return image[..., None], np.int64(label)
        if self.form == "word":
            return image, "cat"
        if self.form == "drawn":
            return torch.randint(256, (6, 6), dtype=torch.uint8), label
        return (Image.fromarray(image), label) if self.form in ("pillow", "broken") else self.form


def three(form="pillow", **facts):
    npz = np.load(PATH)
    names = {"train": "train", "validation": "val", "test": "test"}
    return {name: Rows(npz[f"x_{split}"], npz[f"y_{split}"], form, **facts) for name, split in names.items()}


def train(form="pillow", **facts):
    return three(form, **facts)["train"]


def pairs(form):
    change = torch.from_numpy if form == "tensors" else np.asarray
    return {name: (change(rows.x), change(rows.y)) for name, rows in three().items()}


def pair(x=None, y=None):
    rows = train()
    return (rows.x if x is None else np.full(x, 1), rows.y if y is None else np.array(y))


def names_differ():
    found = three(classes=["cat", "dog"])
    found["test"].classes = ["dog", "cat"]
    return found


def gives(what):
    return {"nothing": None, "word": "abc", "loader": torch.utils.data.DataLoader(train()), "list": [1, 2],
            "split": {"train": train(), "exam": train()}, "test": {"test": train()}, "none": {}, "empty": Rows([], []),
            "one": train(form=3)}[what]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Dataset]]:
    """Loads what a callable of a module of the user's gives."""
    whole(tmp_path)
    (tmp_path / "own_data.py").write_text(f"PATH = {str(tmp_path / 'd.npz')!r}\n{OWN}")
    monkeypatch.syspath_prepend(tmp_path)

    def load(name: str, **kwargs: Any) -> Dataset:
        return load_dataset(Data(target=f"own_data:{name}", kwargs=kwargs), seed=0)

    yield load
    sys.modules.pop("own_data", None)


@pytest.mark.parametrize("form", ["pillow", "tensor", "array"])
def test_a_torch_dataset_for_each_split(tmp_path: Path, own: Callable[..., Dataset], form: str) -> None:
    dataset = own("three", form=form, classes=["cat", "dog"])
    assert (dataset.name, dataset.class_names) == ("three", NAMES)
    assert lengths(dataset) == (40, 6, 10) and dataset.digest() == whole(tmp_path).digest()


def test_one_torch_dataset_is_cut(tmp_path: Path, own: Callable[..., Dataset]) -> None:
    x, y = THREE["train"]
    dataset = own("train")
    assert dataset.digest() == own("pair").digest()
    assert dataset.digest() == load_dataset(npz(tmp_path, x_train=x, y_train=y), seed=0).digest()
    assert dataset.class_names == ("0", "1")


@pytest.mark.parametrize("form", ["tensors", "arrays"])
def test_pairs_for_each_split(tmp_path: Path, own: Callable[..., Dataset], form: str) -> None:
    assert own("pairs", form=form).digest() == whole(tmp_path).digest()


def test_rows_that_are_drawn_at_random_are_the_same_each_time(own: Callable[..., Dataset]) -> None:
    assert own("train", form="drawn").digest() == own("train", form="drawn").digest()


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("nowhere", {}, r"cannot be imported .*nowhere"),
        ("PATH", {}, r"is a str, not a callable"),
        ("three", {"from": 3, "x": 1}, r"fails with \{.*multiple values for argument 'x'"),
        ("gives", {}, r"fails with no arguments \(.*what"),
        ("gives", {"what": "nothing"}, r"train is a NoneType; expected a torch Dataset of \(image, label\), a pair"),
        ("gives", {"what": "word"}, r"train is a str"),
        ("gives", {"what": "loader"}, r"train is a DataLoader"),
        ("gives", {"what": "list"}, r"train row 0 cannot be had .*int"),
        ("gives", {"what": "one"}, r"train row 0 cannot be had .*int"),
        ("gives", {"what": "split"}, r"gave a split 'exam'; expected train, validation, test"),
        ("gives", {"what": "test"}, r"gave no training split, but test"),
        ("gives", {"what": "none"}, r"gave no training split, but an empty dict"),
        ("gives", {"what": "empty"}, r"the train split is empty"),
        ("train", {"form": "broken"}, r"train row 7 cannot be had \(disk on fire\)"),
        ("train", {"form": "word"}, r"train row 0 has label 'cat'; labels must be whole numbers"),
        ("train", {"form": ["a", 0]}, r"train row 0 has a str for an image"),
        ("train", {"classes": ["cat"]}, r"train row 20 has label 1, not one of 0 to 0"),
        ("names_differ", {}, r"its splits name other classes"),
        ("pair", {"x": [40, 2, 6, 6]}, r"train x: has shape \(40, 2, 6, 6\); expected square images of 1 or 3"),
        ("pair", {"x": [40, 6, 6, 4]}, r"train x: has shape \(40, 6, 6, 4\); expected square images of 1 or 3"),
        ("pair", {"x": []}, r"train x: has shape \(\)"),
        ("pair", {"y": [0, 1]}, r"train y has 2 labels for 40 images"),
        ("pair", {"y": [0.5] * 40}, r"train y is float64"),
        ("pair", {"y": [0] * 40}, r"one class"),
        ("pair", {"y": [0] * 20 + [1] * 19 + [-1]}, r"train row 39 has label -1"),
    ],
)
def test_targets_that_cannot_be_used(own: Callable[..., Dataset], name: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.target: '?own_data:{name}.*{said}"):
        own(name, **kwargs)


def test_one_source_and_its_kwargs() -> None:
    for data in ({"name": "digits", "target": "a:b"}, {"path": "x", "target": "a:b"}):
        with pytest.raises(ConfigError, match=r"exactly one of data\.name, data\.path and data\.target"):
            changed(data={"name": None} | data)
    with pytest.raises(ConfigError, match=r"data\.kwargs: are those of data\.target"):
        changed(data={"kwargs": {"a": 1}})


# --- more than fits into memory


def every_way(root: Path) -> dict[str, str]:
    """The same rows of one colour, and some where a coloured one comes late, in all layouts."""
    pictures(root / "pictures", *THREE["train"])
    parquet(root / "parquet" / "train-0.parquet", *(a[:23] for a in THREE["train"]))
    parquet(root / "parquet" / "train-1.parquet", *(a[23:] for a in THREE["train"]))
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
        for module in (images, datasets):
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
    pile = images.Pile(0.0)
    pile.add(THREE["train"][0][:, None])
    found = pile.tensor()
    opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert any(str(tmp_path / "scratch") in str(link) for link in opened)
    assert list((tmp_path / "scratch").iterdir()) == []
    del pile
    assert np.array_equal(found[:, 0].numpy(), THREE["train"][0])
    found[0] = 0  # as a tensor in memory would let anyone
    assert not found[0].any()


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(DataError, match=r"^data\.in_memory: .*No space left on device.*TMPDIR"):
        load_dataset(
            npz(tmp_path, x_train=THREE["train"][0], y_train=THREE["train"][1]).model_copy(update={"in_memory": 0.0}),
            seed=0,
        )


def test_statistics_and_cuts_copy_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No single step may hold all rows: what is asked of torch at once is never more than a piece."""
    sizes = []
    monkeypatch.setattr(images, "PIECE", 8)
    monkeypatch.setattr(datasets, "PIECE", 8)
    count = torch.bincount
    monkeypatch.setattr(torch, "bincount", lambda x, **options: (sizes.append(x.numel()), count(x, **options))[1])
    dataset = load_dataset(npz(tmp_path, x_train=THREE["train"][0], y_train=THREE["train"][1]), seed=0)
    assert max(sizes) == 8 * 36 and sum(sizes) == dataset.train.images.numel()


# --- Parquet, file by file


def test_files_whose_classes_differ_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "train-0.parquet", *THREE["train"])
    parquet(tmp_path / "test-0.parquet", *THREE["test"], names=("dog", "cat"))
    with pytest.raises(DataError, match=r"train-0\.parquet: its 2 classes .*test-0\.parquet: they differ in their ord"):
        load_dataset(Data(path=str(tmp_path)), seed=0)
    parquet(tmp_path / "test-0.parquet", *THREE["test"], names=("cat", "dog", "cow"))
    with pytest.raises(DataError, match=r"differ in 'cow'"):
        load_dataset(Data(path=str(tmp_path)), seed=0)


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_row_of_a_later_batch_is_counted_from_the_files_beginning(tmp_path: Path, column: str) -> None:
    x, y = rows(1200, 0)
    parquet(tmp_path / "a.parquet", x, y)
    table = pq.read_table(tmp_path / "a.parquet")
    cells = table.column(column).to_pylist()
    cells[1100] = None
    k = table.schema.get_field_index(column)
    changed_table = table.set_column(k, table.schema.field(k), pa.array(cells, table.schema.field(k).type))
    pq.write_table(changed_table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet: row 1100 of '{column}'"):
        load_dataset(Data(path=str(tmp_path / "a.parquet")), seed=0)
