"""What splits are called in data, whoever made it: folders, files, arrays, keys; and what is too unclear to take."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"),
}
"""What splits are called in data, and here."""
LONG = {"train": "training", "val": "validation", "test": "test"}
"""What they are called in sentences."""
UNCLEAR = "unclear"
"""Of a name that says a split, but not which of the three."""
UNCLEAR_WORDS = {"unlabelled", "unlabeled", "unlabel", "unsupervised", "extra", "trainval", "traindev", "traintest"}
ARRAYS = {
    "x": {"x", "image", "images", "img", "imgs", "data", "features", "inputs", "input", "pixels"},
    "y": {"y", "label", "labels", "target", "targets"},
}
"""What arrays of images and of labels are called."""
PLAIN = ARRAYS["x"] | ARRAYS["y"] | {"set", "sets", "split", "the", "full", "all", "files", "rows", "batch", "part"}
"""Words that say nothing beside the name of a split."""

_SPLIT = {word: split for split, words in WORDS.items() for word in words}
_JOINED = re.compile(
    rf"(x|y|images?|imgs?|labels?|data)?({'|'.join(sorted(_SPLIT, key=len, reverse=True))})"
    r"(x|y|images?|imgs?|labels?|data|sets?|split)?"
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?(?=\.|$)")
_SUFFIX = re.compile(r"(\.(parquet|npy|npz|csv|jsonl?|zip|tar|gz))+$", re.IGNORECASE)


def words_of(name: str) -> list[str]:
    """Its words, in small letters: of a name without its suffix, cut at what is no letter and where CamelCase is, with
    `held_out` one word and `xtrain` two."""
    text = _SUFFIX.sub("", name)
    text = re.sub(r"([a-z])([A-Z])|([A-Z])(?=[A-Z][a-z])", r"\1\3 \2", text).lower()
    text = re.sub(r"\b_*h(?:eld|old)[\W_]?out(?![a-z])", " holdout ", text.replace("_", " "))
    words = []
    for word in re.findall(r"[^\W\d_]+", text):
        joined = None if word in _SPLIT else _JOINED.fullmatch(word)
        words += [part for part in joined.groups() if part] if joined else [word]
    return words


def split_of(name: str) -> str | None:
    """train, val or test, as a name says it; `UNCLEAR` where it says two of them, or rows of an unknown kind; None
    where it says nothing of a split."""
    words = words_of(name)
    splits = {_SPLIT[word] for word in words if word in _SPLIT}
    if len(splits) > 1 or UNCLEAR_WORDS & set(words):
        return UNCLEAR
    return next(iter(splits), None)


def only_split(name: str) -> str | None:
    """As `split_of`, of a name that says nothing else: `Test`, `x_train`, `test_set`, but not `test_tube`."""
    return split_of(name) if all(word in _SPLIT or word in PLAIN for word in words_of(name)) else None


def array_of(name: str) -> tuple[str | None, str | None, bool]:
    """Whether an array of that name is x (images) or y (labels), of which split, and whether it says nothing else."""
    words = words_of(name)
    rest = [word for word in words if word not in _SPLIT]
    kinds = [kind for kind, called in ARRAYS.items() if any(word in called for word in rest)]
    # `train_images_y` would be both
    return (kinds[0] if len(kinds) == 1 else None), split_of(name), all(word in PLAIN for word in rest)


@dataclass(frozen=True)
class Shard:
    """A file as one of several that a writer numbered."""

    stem: str
    number: int = 0
    count: int = 0
    """0: it is not numbered by `-00000-of-00002`."""


def shard_of(name: str) -> Shard:
    match = _SHARD.search(name)
    if not match:
        return Shard(name)
    return Shard(name[: match.start()] + name[match.end() :], int(match[1]), int(match[2]))


def missing_shard(names: Iterable[str]) -> str | None:
    """What is wrong with the numbers of files in one folder, as a sentence that begins with a name."""
    groups: dict[str, dict[int, list[tuple[int, str]]]] = {}
    for name in names:
        shard = shard_of(name)
        if shard.count:
            groups.setdefault(shard.stem, {}).setdefault(shard.count, []).append((shard.number, name))
    for by_count in groups.values():
        first, *others = sorted((count, name) for count, rows in by_count.items() for _, name in rows[:1])
        if others:
            return f"{others[0][1]}: stands beside {first[1]}, of another number of shards; take the older ones away"
        ((count, rows),) = by_count.items()
        numbers = [number for number, _ in rows]
        if twice := [name for number, name in rows if numbers.count(number) > 1]:
            return f"{twice[1]}: is the same shard as {twice[0]}; take one of them away"
        gone = sorted(set(range(count)) - set(numbers))
        if gone:
            missing = _SHARD.sub(f"-{gone[0]:05d}-of-{count:05d}", rows[0][1])
            return f"{missing}: is missing ({len(rows)} of {count} shards are there); fetch it again"
    return None


def choose() -> str:
    """What to do where names do not say it."""
    return "say which rows are which with data.files, as in {train: ..., test: ...}"
