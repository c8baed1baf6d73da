"""What is classified and by what, and how that is trained: data, classifier, base, augment."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bend_ray.config.choices import ClassifierName
from bend_ray.config.section import Section, added, placement

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Data(Section):
    one_of: ClassVar[tuple[str, ...]] = ("name", "path", "target")
    name: Literal["digits"] | None = None
    """A built-in data set: `digits` (scikit-learn's 1,797 images of 8x8 pixels)."""
    path: str | None = placement(None)
    """A Parquet file or folder in the Hugging Face Hub's layout; a folder of images, CLASS/x.png or train/CLASS/x.png,
    test/CLASS/x.png, or listed in a metadata.csv; an .npz with x_train, y_train, x_test, y_test; or a folder with
    x_train.npy, y_train.npy, ..."""
    target: str | None = placement(None)
    """Your own, "package.module:callable" returning a torch Dataset of (image, label), a pair (x, y) of arrays or
    tensors, or a dict of either for train, validation and test."""
    kwargs: dict[str, Any] = placement({})
    """Keyword arguments of the target."""
    files: dict[str, str | list[str]] = placement({})
    """Which rows are of which split, where names do not tell: for train, validation and test a file, folder or glob in
    `path`, or several. Of arrays it names that of images and that of labels, of a target the key of its dict. What is
    not named is left out."""
    config: str | None = placement(None)
    """The configuration that is read, where `path` has several, each in a folder or named in its README.md."""
    image_column: str | None = None
    """Column of the images, or of their files' names in a metadata.csv; None: found from the schema."""
    label_column: str | None = None
    """Column of the labels; None: found from the schema."""
    val_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of the training split kept for validation (stratified), where the data has no validation split."""
    test_fraction: float = Field(0.25, gt=0, lt=1)
    """Share of all rows kept for testing (stratified), where the data has no test split."""
    train_limit: int | None = Field(None, ge=1)
    """Use only the first so many training rows (before the validation split), of a folder of images the first of each
    class in turn; None: all."""
    test_limit: int | None = Field(None, ge=1)
    """Use only the first so many test rows, likewise; None: all."""
    image_size: int | None = added(None, off=None, ge=1)
    """Height and width, pixels, to which the middle square of each image is resized, here and where images are sent
    later; None: images are as they are, all square and of one size."""
    interpolation: Interpolation | None = added(None, off=None)
    """How images are resized; None: bilinear."""
    rgb: bool | None = added(None, off=None)
    """Whether grey images are repeated over three channels; None: where others are in colour."""
    mean: tuple[float, ...] | None = added(None, off=None)
    """What is subtracted from pixels over 255, a number or one for each channel; None: the training split's mean."""
    std: tuple[float, ...] | None = added(None, off=None)
    """By what they are then divided, likewise; None: the training split's standard deviation."""
    test: Literal["auto", "none"] = added("auto", off="auto")
    """`auto`: the data's own test split where it has one with labels; `none`: that is left out. Either way one is cut
    from the training rows where there is then none."""
    bits: int | None = added(None, off=None, ge=8, le=16)
    """Bits in use of grey images of 16 bits; None: 8, 10, 12, 14 or 16, the least that hold all training
    images."""
    in_memory: float = placement(2.0, ge=0)
    """GiB of decoded images of one split that a process keeps in memory; more lie in a temporary file (in TMPDIR),
    which goes with the process."""

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if sum(getattr(self, name) is not None for name in self.one_of) != 1:
            raise ValueError("give exactly one of data.name, data.path and data.target")
        if self.kwargs and self.target is None:
            raise ValueError("data.kwargs: are those of data.target; give one, or leave them out")
        if any(len(values) not in (1, 3) for values in (self.mean, self.std) if values is not None):
            raise ValueError("data.mean and data.std: give one number, or three (red, green, blue)")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("data.std: must be above 0")
        if self.files and self.name is not None:
            raise ValueError("data.files: says what is in data.path or data.target; give one of them")
        if self.config is not None and self.path is None:
            raise ValueError("data.config: is one of those in data.path; give data.path")
        return self

    @field_validator("files", mode="before")
    @classmethod
    def _names_of_numbers(cls, files: Any) -> Any:
        """A folder may be called 2019, which YAML reads as a number."""

        def name(value: Any) -> Any:
            return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

        if not isinstance(files, dict):
            return files
        return {k: [name(one) for one in v] if isinstance(v, list) else name(v) for k, v in files.items()}

    @field_validator("files")
    @classmethod
    def _splits_that_there_are(cls, files: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        if unknown := [key for key in files if key not in ("train", "validation", "val", "test")]:
            raise ValueError(f"{unknown[0]} is no split; name train, validation and test")
        if files and "train" not in files:
            raise ValueError("names no training rows; give train as well")
        if "val" in files and "validation" in files:
            raise ValueError("names the validation rows twice; give validation alone")
        if empty := [key for key, value in files.items() if not value]:
            raise ValueError(f"{empty[0]} names nothing; leave it out, or give a file")
        return files


class Classifier(Section):
    one_of: ClassVar[tuple[str, ...]] = ("name", "target", "hub")
    name: ClassifierName | None = None
    """A built-in classifier. In `kwargs` convnet takes width (16), mlp hidden (128) and depth (2), resnet18 and
    resnet34 width (64) and stem (cifar, imagenet), vit_tiny patch (4), width (192), depth (12) and heads (3)."""
    target: str | None = None
    """Your own, "package.module:callable" returning an nn.Module; called with `kwargs` and with those of classes,
    channels and image_size that its signature takes."""
    hub: str | None = placement(None)
    """A pretrained classifier of timm or transformers: a folder that one of them wrote (config.json and weights), or a
    name on the Hugging Face Hub (`timm/resnet18.a1_in1k`, or with `@revision`). The size of images, grey or colour,
    mean, standard deviation and interpolation are those of its configuration where `data` does not say otherwise."""
    kwargs: dict[str, Any] = Field({})
    """Keyword arguments of the classifier."""
    output: int | str = added("auto", off="auto")
    """Which part of what it returns is the logits. `auto`: the tensor, `.logits` of an object, "logits" of a dict.
    Where that is a tuple, a list or (B, k, K), also in training mode alone: `first`, `mean` (of all), a number from 0;
    a name: the part of an object or a dict that has it."""
    weights: str | None = placement(None)
    """What a classifier has learnt, so that the base is not trained: a state_dict, as .safetensors or saved by torch
    (.pt, .pth, .bin, .ckpt, .pth.tar; read with weights_only). Or a folder of transformers, timm or
    torch.distributed.checkpoint."""
    body_only: bool | None = added(None, off=None)
    """Of the weights take all but the head, which stays as initialised; the base is then trained from there, all of it.
    None: true for those of `hub`, false for `weights`."""
    classes: int | None = added(None, off=None, ge=2)
    """Outputs of the classifier, at least as many as the data has classes; further ones are called by their numbers.
    None: as many."""

    @property
    def is_filled(self) -> bool:
        """Whether it gets weights that it did not learn here."""
        return self.weights is not None or self.hub is not None

    @property
    def is_trained(self) -> bool:
        """Whether it comes as a trained classifier, so that no base is trained."""
        return (self.weights is not None and not self.body_only) or (self.hub is not None and self.body_only is False)

    @model_validator(mode="after")
    def _one_source(self) -> "Classifier":
        if sum(getattr(self, name) is not None for name in self.one_of) != 1:
            raise ValueError("give exactly one of classifier.name, classifier.target and classifier.hub")
        if self.body_only is not None and self.weights is None and self.hub is None:
            raise ValueError("classifier.body_only: is about classifier.weights or hub; give one, or leave it out")
        return self


CYCLES = 4
"""Cycles after a base that is trained here, unless told otherwise."""
CYCLE = 0.38
"""Length of a cycle in trainings of the base, unless told otherwise."""


class Base(Section):
    epochs: int | float = Field(20, ge=1)
    """Passes over the training split."""
    batch_size: int = Field(64, ge=2)
    """Rows a step, over all workers."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["onecycle", "cosine", "falling"] = "onecycle"
    """How the learning rate comes and goes: up for a third of the steps and down (one-cycle), up for a twentieth and
    down along a cosine (cosine), or down along a cosine from the first step (falling). In one-cycle AdamW's beta1 falls
    from 0.95 to 0.85 as the rate comes and rises as it goes; else it is 0.9."""
    weight_decay: float = Field(1e-2, ge=0)
    """Decoupled weight decay."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes."""
    class_weights: Literal["none", "balanced"] | tuple[Annotated[float, Field(gt=0)], ...] = added("none", off="none")
    """Weight of each class in the loss of the base, its cycles and whole trainings beside it: `none`, all alike;
    `balanced`, the less frequent among training rows the more, N / (K N_k); or a number for each class, in order."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the exponential moving average of weights and batch-norm statistics, which is what is then validated and
    saved; 0: the last ones are."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type in which the network runs (autocast; weights stay float32); auto: float32 on a CPU, bfloat16 on a GPU that
    has it."""
    frozen_batch_norms: Literal["move", "stay"] = added("move", off="move")
    """What statistics of batch norms do whose parameters are all frozen, in the base, its cycles and their average:
    `move`: they follow the batches, by which such a norm normalises; `stay`: it normalises by those it has."""
    shards: int = Field(2, ge=1)
    """Fixed pieces a step's batch is cut into and shared out over the workers; at most so many workers train the
    base. The bits depend on it, and not on the number of workers."""
    count: int = added(1, off=1, ge=1)
    """Bases, trained side by side from seeds of their own, each with its own cycles; members are dealt out to all of
    them, and an answer costs a forward pass of each."""
    cycles: int | None = Field(None, ge=0)
    """Further trainings of the whole network after the base, each from where the one before ended (cyclic training);
    each end is kept in `trunks/`. 0: none; None: 4, but none where `classifier.weights` brings a trained classifier or
    `collect.trunk` is base."""
    cycle_epochs: float | None = Field(None, gt=0)
    """Passes over the training split of one cycle; None: 0.38 times `epochs`, so that four cost one and a half
    trainings."""
    cycle_lr: float | None = Field(None, gt=0)
    """Learning rate of AdamW at the start of a cycle, from where it falls to 0 along a cosine; None: `lr`."""

    @field_validator("epochs")
    @classmethod
    def _whole(cls, epochs: int | float) -> int | float:
        return int(epochs) if epochs == int(epochs) else epochs

    @property
    def cycle(self) -> "Base":
        """What one cycle is trained by: an optimizer and a schedule of its own, no moving average."""
        epochs = CYCLE * self.epochs if self.cycle_epochs is None else self.cycle_epochs
        lr = self.lr if self.cycle_lr is None else self.cycle_lr
        return self.model_copy(update={"epochs": epochs, "lr": lr, "schedule": "falling", "ema": 0.0})


class Augment(Section):
    """Random changes of training images, the label kept, for the base and for chains; all off by default."""

    crop: int = Field(0, ge=0)
    """Shift by at most so many pixels up or down and left or right, black coming in; 0: no shift."""
    flip: bool = False
    """Mirror each image left and right, or not, as a coin falls."""
    cutout: int = Field(0, ge=0)
    """Side, in pixels, of a square that takes the image's mean, its middle anywhere; 0: none."""
