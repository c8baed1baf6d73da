"""Every common name of a split is understood alike wherever it stands; one of a class is not taken for a split."""

import pytest

from bend_ray.data.file_splits import hub_configs
from bend_ray.data.listing import base_of, left_out, matching
from bend_ray.data.split_names import UNCLEAR, array_of, missing_shard, only_split, split_of

SPELLINGS = {
    "train": "train Train TRAIN training Training trn seg_train train_images x_train X_train xtrain XTrain trainX"
    " train2017 split=train pets-train train-00000-of-00002 trainset TrainSet train_set asl_alphabet_train"
    " train_data MNIST-Train train.v2 Training_Set 01_train y_train images_train imagesTrain",
    "val": "val valid validation Validation VALID dev dev-set x_valid xval valset val2017 x_validation development"
    " validation-00000-of-00001 split=validation seg_val",
    "test": "test Test testing TESTING seg_test test_images x_test ytest eval evaluation holdout hold_out held_out"
    " held-out HeldOut heldout testset test_batch split=test test-00000-of-00001 cifar_test eval.v1 my_held_out_rows",
    UNCLEAR: "trainval train_val train+test unlabelled unlabeled train_unlabelled unsupervised extra val_from_train"
    " test_unlabeled TrainVal",
}
NO_SPLITS = (
    "cat contest latest strain trains restrain rain invalid devil device evaluated detest attest interval medieval"
)
NO_SPLITS += " protest testament validity hold out_of_distribution data images part-00000-of-00002 0000 x y"


@pytest.mark.parametrize(
    ("split", "name"), [(split, name) for split, all_ in SPELLINGS.items() for name in all_.split()]
)
def test_every_common_spelling(split: str, name: str) -> None:
    assert split_of(name) == split
    assert split_of(f"{name}.parquet") == split and split_of(f"{name}.npy") == split


@pytest.mark.parametrize("name", NO_SPLITS.split())
def test_words_that_only_hold_one(name: str) -> None:
    assert split_of(name) is None


def test_a_name_of_more_than_a_split_is_not_only_that() -> None:
    assert [only_split(name) for name in ("Test", "test_images", "x_valid")] == ["test", "test", "val"]
    assert only_split("test_tube") is None and only_split("bullet_train") is None and split_of("test_tube") == "test"


@pytest.mark.parametrize(
    ("name", "is_what"),
    [
        ("x_train", ("x", "train", True)),
        ("Y_test", ("y", "test", True)),
        ("X_valid", ("x", "val", True)),
        ("train_images", ("x", "train", True)),
        ("val_labels", ("y", "val", True)),
        ("ytest", ("y", "test", True)),
        ("x", ("x", None, True)),
        ("x_extra", ("x", UNCLEAR, False)),
        ("x_train_masked", ("x", "train", False)),
        ("label_names", ("y", None, False)),
        ("mean", (None, None, False)),
        ("train/images", ("x", "train", True)),
    ],
)
def test_names_of_arrays(name: str, is_what: tuple[str | None, str | None, bool]) -> None:
    assert array_of(name) == is_what


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("train-00000-of-00002.parquet train-00001-of-00002.parquet test-00000-of-00001.parquet", None),
        ("a.parquet train-0.parquet", None),
        ("train-00000-of-00002.parquet", r"train-00001-of-00002.parquet: is missing (1 of 2 shards are there); fetch"),
        (
            "train-00001-of-00003-0123456789abcdef.parquet train-00002-of-00003-fedcba9876543210.parquet",
            "train-00000-of",
        ),
        (
            "train-00000-of-00001.parquet train-00000-of-00002.parquet train-00001-of-00002.parquet",
            "take the older ones",
        ),
        ("a-00000-of-00001-0123456789abcdef.parquet a-00000-of-00001-fedcba9876543210.parquet", "the same shard as"),
    ],
)
def test_numbers_of_shards(names: str, said: str | None) -> None:
    sentence = missing_shard(names.split())
    assert sentence is None if said is None else said in str(sentence)


def test_patterns_are_files_folders_and_globs() -> None:
    names = ["a/train/x.png", "a/train/b/y.png", "a/train.csv", "b/train/x.png", "train-0.parquet", "train-1.parquet"]
    assert matching(".", names) == names == matching("**", names)
    assert matching("a/train", names) == matching("a/train/", names) == names[:2]
    assert matching("*/train", names) == [*names[:2], names[3]]
    assert matching("train-*.parquet", names) == names[4:] == matching("train-[0-9].parquet", names)
    assert matching("**/x.png", names) == [names[0], names[3]] and matching("train-?.parquet", names) == names[4:]
    assert matching("a/tr", names) == matching("a.train", names) == matching("[!t]*-0.parquet", names) == []
    assert [base_of(pattern) for pattern in ("a/b", "a/*/b", "*/a", ".")] == ["a/b", "a", "", ""]


def test_left_out_files_are_counted_by_their_endings() -> None:
    said = "5 files left out: 2 .txt, 1 .gz, 1 .heic, 1 no suffix"
    assert left_out(["a.txt", "b/c.TXT", "d", "e.nii.gz", "f.HEIC"]) == said


def test_configurations_of_a_readme() -> None:
    text = b"""---
license: mit
configs:
- config_name: small
  data_files: [{split: train, path: small/train-*}, {split: test, path: [small/a, small/b]}]
- config_name: large
  data_dir: large
  data_files: {train: "t*", dev: d}
  default: true
---
configs: [none]"""
    small = {"train": ["small/train-*"], "test": ["small/a", "small/b"]}
    assert hub_configs(text) == ({"small": small, "large": {"train": ["large/t*"], "dev": ["large/d"]}}, "large")
    assert hub_configs(text.replace(b"  default: true\n", b""))[1] is None
    assert hub_configs(b"# no YAML") == hub_configs(b"---\n[: no\n---\n") == ({}, None)
    assert hub_configs(b"---\nconfigs:\n- data_files: x.parquet\n---\n") == (
        {"default": {"train": ["x.parquet"]}},
        "default",
    )
