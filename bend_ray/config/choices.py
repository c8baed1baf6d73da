"""What can be chosen by its name, and where each of it stands: a new one is a file of its own and one line here.

Everything that needs to know a choice reads these tables: keys and their help, checks, errors, the report's labels, the
HTTP routes. Each is named as a user's own classifier is, "package.module:callable", and imported when it is first
called (`target.imported`), for the command line loads neither torch nor NumPy. CONTRIBUTING.md has a recipe of each.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

CLASSIFIERS = {
    "convnet": "bend_ray.models.classifiers:ConvNet",
    "mlp": "bend_ray.models.classifiers:MLP",
    "resnet18": "bend_ray.models.resnet:resnet18",
    "resnet34": "bend_ray.models.resnet:resnet34",
    "vit_tiny": "bend_ray.models.vit:ViT",
}
"""`classifier.name`: each is called with `classifier.kwargs`, and with those of classes, channels and image_size that
its signature takes."""

SUBSETS = {
    "head": "bend_ray.models.subset:head",
    "norm": "bend_ray.models.subset:norm",
    "norm+head": "bend_ray.models.subset:norm_and_head",
    "last_block": "bend_ray.models.subset:last_block",
    "auto": "bend_ray.models.subset:auto",
}
"""`collect.subset`, rules: ``(module) -> names`` of its parameters."""


@dataclass(frozen=True)
class Format:
    """How data at `data.path` may lie: ``read(place) -> (splits, class names)``, see `sources.Place`."""

    read: str
    file: tuple[str, ...] = ()
    """How the name of a file ends that is a data set by itself."""
    folder: tuple[str, ...] = ()
    """How names of files end in a folder that is one."""
    takes: str = ""
    """Where endings do not tell: ``(listing, names) -> names`` of its files."""
    beside: tuple[str, ...] = ()
    """What files are called that it has beside them."""


FORMATS = {
    "npz": Format("bend_ray.data.arrays:read_npz", file=(".npz",)),
    "parquet": Format("bend_ray.data.parquet:read_parquet", folder=(".parquet",)),
    "npy": Format("bend_ray.data.arrays:read_npy", takes="bend_ray.data.arrays:takes"),
    "images": Format(
        "bend_ray.data.image_folder:read_images",
        takes="bend_ray.data.image_folder:takes",
        beside=("metadata.csv", "metadata.jsonl", "metadata.parquet"),
    ),
}
"""The first that fits is taken."""


@dataclass(frozen=True)
class Sampler:
    """A way from noise to latents: ``sample(denoise, z_MZ, path) -> z_MZ``."""

    sample: str
    noise: Literal["never", "eta", "always"] = "never"
    """Whether it adds noise on the way, and is called with ``noise_NMZ`` as well: `eta` says how much, and it is called
    with ``eta`` too; or always."""


SAMPLERS = {
    "ddim": Sampler("bend_ray.generator.samplers:ddim", noise="eta"),
    "ddpm": Sampler("bend_ray.generator.samplers:ddpm", noise="always"),
    "dpm++": Sampler("bend_ray.generator.samplers:dpm_solver"),
    "heun": Sampler("bend_ray.generator.samplers:heun"),
}
"""`sample.sampler`."""


@dataclass(frozen=True)
class Baseline:
    """A cheap way to members: ``make(seen, ids, seed) -> theta_MD``, see `baselines.Seen`."""

    label: str
    """What the report calls it."""
    make: str
    single: bool = False
    """Whether it is one model, of which more would be copies."""
    as_trained: bool = False
    """Whether its members were trained as they are, so that they keep their batch-norm statistics, and there are no
    more of them than there are snapshots."""


BASELINES = {
    "base_model": Baseline(
        "the base classifier alone", "bend_ray.generator.baselines:base_model", single=True, as_trained=True
    ),
    "weight_average": Baseline(
        "one model: average of all snapshots", "bend_ray.generator.baselines:weight_average", single=True
    ),
    "random_originals": Baseline("random snapshots", "bend_ray.generator.baselines:random_originals", as_trained=True),
    "noised_originals": Baseline("snapshots with noise added", "bend_ray.generator.baselines:noised_originals"),
    "averaged_originals": Baseline("averages of snapshots", "bend_ray.generator.baselines:averaged_originals"),
    "gaussian": Baseline("Gaussian over parameters (diagonal)", "bend_ray.generator.baselines:gaussian"),
    "swag": Baseline("SWAG (low-rank Gaussian)", "bend_ray.generator.baselines:swag"),
    "autoencoder_only": Baseline("autoencoder, no diffusion", "bend_ray.generator.baselines:autoencoder_only"),
}
"""`evaluate.baselines`, in the report's order."""


@dataclass(frozen=True)
class Aggregation:
    """One answer of many members: ``answer(mean_BK, vote_BK) -> (label_B, prob_BK)``, from the mean over members of
    their probabilities, and the share of members that vote for each class."""

    label: str
    """What it is, in a word or two."""
    answer: str
    mean: str = ""
    """What ``mean_BK`` is the mean of, where that is not probability: ``(logits_MBK) -> (M, B, K)``."""
    tempered: bool = False
    """Whether ``prob_BK`` is the mean probability as it is, so that the ensemble's temperature belongs to it."""
    early: Literal["never", "exact", "error"] = "never"
    """Whether members that are left may be passed over: they can, where ``prob_BK`` is a mean of shares that add up to
    1 and the largest one wins; `error`: also with a chance of error."""


AGGREGATIONS = {
    "abend": Aggregation("mean probability", "bend_ray.ensemble.aggregate:most_probable", tempered=True, early="error"),
    "sbend": Aggregation("votes", "bend_ray.ensemble.aggregate:most_votes", early="exact"),
}
"""``strategy`` of a prediction."""

if TYPE_CHECKING:
    ClassifierName = str
    SamplerName = str
    BaselineName = str
    Strategy = str
else:  # what a key takes follows from its table
    ClassifierName = Literal[tuple(CLASSIFIERS)]
    SamplerName = Literal[tuple(SAMPLERS)]
    BaselineName = Literal[tuple(BASELINES)]
    Strategy = Literal[tuple(AGGREGATIONS)]


def listed(words: Iterable[str]) -> str:
    """One or another: "a, b or c"."""
    *before, last = words
    return f"{', '.join(before)} or {last}" if before else last


def strategies() -> str:
    """All aggregations and what they are, for errors."""
    return listed(f"{name} ({one.label})" for name, one in AGGREGATIONS.items())
