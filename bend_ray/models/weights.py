"""What a classifier has learnt elsewhere, put into the module that it fits."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bend_ray.config import Classifier
from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import ModelError, shown
from bend_ray.models import checkpoints, faithful, hub, zoo
from bend_ray.models import subset as subsets
from bend_ray.models.checkpoints import Tensors
from bend_ray.models.reading import reach_of

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into names, at any place."""
COUNTER = "num_batches_tracked"
"""A batch norm's counter, which torch has saved since 0.4.1; where it is missing it stays as it is."""
SHOWN = 4
"""Names that are written out where there may be hundreds."""


def bring(module: nn.Module, classifier: Classifier, fit: Preprocess) -> list[str]:
    """Give ``module`` what the user's ``classifier`` has learnt elsewhere, as `load_weights`; nothing where it has
    not. ``fit`` says what images it is for."""
    notes: list[str] = []
    if classifier.weights is not None:
        notes = load_weights(module, classifier.weights, bool(classifier.body_only), _example(fit))
    elif classifier.hub is not None:
        where, tensors = f"classifier.hub: {classifier.hub}", hub.tensors(classifier, fit)
        notes = put(module, tensors, where, classifier.body_only is not False, _example(fit))
    if classifier.is_filled:
        faithful.settle(module)
    return notes


def _example(fit: Preprocess) -> Tensor:
    return torch.zeros(2, fit.channels, fit.image_size, fit.image_size)


def load_weights(module: nn.Module, path: str, body_only: bool = False, example_x: Tensor | None = None) -> list[str]:
    """Put the user's trained parameters into ``module``: a state_dict in a file, or a folder of files, see
    `checkpoints.read`. With ``body_only`` the head stays as it is: the subset of that name, which
    inputs like ``example_x`` reach last.

    Returns what is to be said of it, a line each. Raises ModelError where names or shapes do not fit (all are listed)
    or a value is not finite; ``module`` is then as it was.
    """
    where = f"classifier.weights: {shown(path)}"
    tensors, notes = checkpoints.read(path, where)
    return notes + put(module, tensors, where, body_only, example_x)


def put(
    module: nn.Module, tensors: Tensors, where: str, body_only: bool = False, example_x: Tensor | None = None
) -> list[str]:
    """`load_weights` of ``tensors``, which stand at ``where``."""
    state = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    head = _head(module, example_x) if body_only else set[str]()
    named, notes = _renamed(tensors, state, where)
    problems = _problems(named, state, head, body_only)
    if problems and (converted := zoo.current_names(module, tensors)) is not None:
        named, notes = converted, ["names of an older transformers are read as its own from_pretrained reads them"]
        problems = _problems(named, state, head, body_only)
    if problems:
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items())
        raise ModelError(
            f"{where} does not fit the classifier: {listed}{_hint(notes, problems, _head(module, example_x))}"
        )
    taken = {name: tensor for name, tensor in named.items() if name in state and name not in head}
    for name, tensor in taken.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not torch.isfinite(tensor).all():
            raise ModelError(f"{where}: {name!r} is not finite")
    module.load_state_dict(taken, strict=False)
    if body_only:
        left = [name for name in named if name not in taken]
        notes.append(
            f"the head ({_some(sorted(head))}) stays as initialised" + f"; left out: {_some(left)}" * bool(left)
        )
    return notes


def _problems(named: Tensors, state: Tensors, head: set[str], body_only: bool) -> dict[str, list[str]]:
    """What does not fit, by its kind."""
    given = {id(state[name]) for name in named if name in state}
    missing = [
        name
        for name in state
        if id(state[name]) not in given and name not in head and name.rpartition(".")[2] != COUNTER
    ]  # any one name of a tied parameter will do
    unexpected = [] if body_only else [name for name in named if name not in state]
    wrong = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(state[name].shape)}"
        for name, tensor in named.items()
        if name in state and name not in head and tensor.shape != state[name].shape
    ]
    cut = [
        f"{name} {tensor.dtype} instead of {state[name].dtype}"
        for name, tensor in named.items()
        if name in state and name not in head and tensor.is_complex() and not state[name].is_complex()
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong, "of another type": cut}
    return {kind: sorted(names) for kind, names in kinds.items() if names}


def _head(module: nn.Module, example_x: Tensor | None) -> set[str]:
    """Names of the head's parameters. None where the rule finds no head, which `_problems` then asks for whole."""
    try:
        reach = None if example_x is None else reach_of(module, example_x)[0]
        return set(subsets.choose(module, "head", reach).names)
    except ModelError:
        return set()


def _hint(notes: list[str], problems: dict[str, list[str]], head: set[str]) -> str:
    """What else is to be known where weights do not fit."""
    said = f" ({'; '.join(notes)})" if notes else ""
    wrong = {line.partition(" ")[0] for line in problems.get("of another shape", ())}
    of_head = len(problems) == 1 and bool(wrong) and wrong <= head
    return said + "; a head of other classes is left out with classifier.body_only: true" * of_head


def _renamed(tensors: Tensors, state: Tensors, where: str) -> tuple[Tensors, list[str]]:
    """``tensors`` by the names that ``state`` has for them: without what wrappers put into names, and without or with
    what stands before all of them. And what was done, in words. Raises ModelError where it may be one or another."""
    names = {_unwrapped(name): name for name in state}
    plain, notes = {_unwrapped(name): tensor for name, tensor in tensors.items()}, list[str]()
    if len(plain) < len(tensors):
        return dict(tensors), notes
    if plain.keys() != tensors.keys() and names.keys() == state.keys():
        notes.append(f"names taken without {', '.join(w for w in WRAPPERS if any(w in name for name in tensors))}")
    if len(prefixes := _prefixes(plain, names)) > 1:
        raise ModelError(
            f"{where}: holds the classifier's names several times, under {', '.join(prefixes)}; save one of them alone"
        )
    if prefixes:
        before = prefixes[0]
        rest = [name for name in plain if not name.startswith(before)]
        plain = {name.removeprefix(before): tensor for name, tensor in plain.items() if name.startswith(before)}
        notes.append(f"names taken without {before!r}" + f", and left out: {_some(rest)}" * bool(rest))
    elif len(prefixes := _prefixes(names, plain)) == 1:
        before = prefixes[0]
        plain = {before + name: tensor for name, tensor in plain.items()}
        notes.append(f"names taken with {before!r} before them")
    return {names.get(name, name): tensor for name, tensor in plain.items()}, notes


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(longer: Iterable[str], names: Iterable[str]) -> list[str]:
    """What stands in ``longer`` before most of ``names``: one prefix, or several under which they stand there as often.
    None where they stand there as they are, or most do not."""
    wanted, counts = set(names), Counter[str]()
    for name in longer:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    most = max(counts.values(), default=0)
    before = sorted(prefix for prefix, count in counts.items() if count == most)
    return [] if 2 * most < len(wanted) or "" in before else before


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
