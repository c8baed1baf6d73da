"""Files and folders of weights as other programs write them, read without running anything that they name."""

import argparse
import collections
import enum
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bend_ray.errors import ModelError
from bend_ray.models import checkpoints
from bend_ray.models.weights import load_weights
from classifier_helpers import make

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

CALLED: list[str] = []


class Phase(enum.Enum):
    LAST = 1


class Settings(dict[str, Any]):
    """As trainers make them, for attributes."""


def called() -> None:
    CALLED.append("called")


class Evil:
    def __reduce__(self) -> Any:
        return called, ()


def net(seed: int = 2) -> Any:
    return make(name="convnet", seed=seed, kwargs={"width": 4})


def loads(path: Path, expected: nn.Module) -> list[str]:
    """What is said as it is loaded into another one, which is then the same."""
    module = net()
    said = load_weights(module, str(path))
    state = module.state_dict()
    assert all(torch.equal(one, state[name]) for name, one in expected.state_dict().items())
    return said


def objects() -> dict[str, Any]:
    """What trainings leave beside tensors."""
    settings = Settings(lr=0.1, nested=Settings(a=1))
    settings["counts"] = collections.defaultdict(list, a=[1])
    return {
        "args": argparse.Namespace(model="x", output=Path("/out"), phase=Phase.LAST),
        "metric": np.float64(0.5),
        "hyper_parameters": settings,
        "rng": np.zeros(3),
        "optimizer": torch.optim.AdamW([nn.Parameter(torch.zeros(2))]).state_dict(),
    }


@pytest.mark.parametrize("name", ["checkpoint-7.pth.tar", "last.ckpt", "w.bin"])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "anything"])
def test_settings_and_numbers_beside_tensors_are_passed_over(tmp_path: Path, name: str, key: str) -> None:
    torch.save({"epoch": 3, key: net(1).state_dict(), **objects()}, tmp_path / name)
    assert loads(tmp_path / name, net(1)) == []


def test_a_moving_average_comes_first(tmp_path: Path) -> None:
    path, average = tmp_path / "model_best.pth.tar", net(3)
    for key in ("state_dict_ema", "model_ema"):
        torch.save({"state_dict": net(1).state_dict(), key: average.state_dict(), **objects()}, path)
        assert loads(path, average) == [f"{key!r} taken, the moving average of weights, not 'state_dict'"]


def test_several_dicts_of_tensors_are_not_guessed_among(tmp_path: Path) -> None:
    torch.save({"student": net(1).state_dict(), "teacher": net(3).state_dict()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"holds several dicts of tensors \(student, teacher\)"):
        load_weights(net(), str(tmp_path / "w.pt"))


def test_nothing_that_a_file_names_is_called(tmp_path: Path) -> None:
    torch.save({"state_dict": net(1).state_dict(), "evil": Evil(), **objects()}, tmp_path / "w.pt")
    CALLED.clear()
    assert loads(tmp_path / "w.pt", net(1)) == [] and CALLED == []
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert CALLED == ["called"]
    torch.save({"state_dict": net(1).state_dict(), "pid": os.getpid}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt: holds objects that cannot be passed over \(posix\.getpid\); save"):
        load_weights(net(), str(tmp_path / "w.pt"))


def test_a_file_of_before_torch_1_6(tmp_path: Path) -> None:
    torch.save({"state_dict": net(1).state_dict()}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert loads(tmp_path / "w.pth", net(1)) == []


def test_a_folder_of_one_file_or_several(tmp_path: Path) -> None:
    state = net(1).state_dict()
    with pytest.raises(ModelError, match=r"is a folder without weights \(model\.safetensors, "):
        load_weights(net(), str(tmp_path))
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert loads(tmp_path, net(1)) == []
    where, digests = {}, [checkpoints.digest(str(tmp_path))]
    (tmp_path / "pytorch_model.bin").unlink()
    for number, name in enumerate(state):
        where[name] = f"model-{number % 2}.safetensors"
    for file in set(where.values()):
        save_file({name: state[name] for name in state if where[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert loads(tmp_path, net(1)) == []
    digests.append(checkpoints.digest(str(tmp_path)))
    (tmp_path / "README.md").write_text("no weights")
    digests.append(checkpoints.digest(str(tmp_path)))
    assert digests[0] != digests[1] == digests[2]
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is no folder of weights: model-1\.safetensors that can be read"):
        load_weights(net(), str(tmp_path))


def sharded(folder: Path, content: dict[str, Any]) -> Path:
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(content, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.parametrize("under", ["model", ""])
def test_a_folder_of_distributed_checkpoints(tmp_path: Path, under: str) -> None:
    module = net(1)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    more = {"optim": optimizer.state_dict(), "epoch": 3, "evil": Evil()}
    state = module.state_dict()
    folder = sharded(tmp_path / "step-1", {under: state, **more} if under else {**state, **more})
    CALLED.clear()
    assert loads(folder, module) == ([f"names taken without {under + '.'!r}"] if under else [])
    assert CALLED == []
    (folder / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is no folder of torch\.distributed\.checkpoint that can be read"):
        load_weights(net(), str(folder))
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match=r"its \.metadata names test_checkpoints\.called, which is not called"):
        load_weights(net(), str(folder))
    assert CALLED == []


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
FAMILIES: dict[str, Any] = {
    "ViT": {**SMALL, "intermediate_size": 16},
    "DeiT": {**SMALL, "intermediate_size": 16},
    "Beit": {**SMALL, "intermediate_size": 16},
    "Dinov2": SMALL,
    "Swin": {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    "ConvNext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 2},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}


def family(name: str, seed: int, labels: int = 5) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(num_labels=labels, **FAMILIES[name])
    return getattr(transformers, f"{name}ForImageClassification")(config)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_saved_is_read_as_it_reads_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = family(name, 1)
    saved.save_pretrained(tmp_path)
    capsys.readouterr()
    for where in (tmp_path, tmp_path / "model.safetensors"):
        module, drawn = family(name, 2), torch.get_rng_state()
        load_weights(module, str(where))
        state = module.state_dict()
        assert all(torch.equal(one, state[key]) for key, one in saved.state_dict().items())
        assert torch.equal(torch.get_rng_state(), drawn)
    inside = nn.ModuleDict({"backbone": family(name, 2)})  # a module of the user's around it
    load_weights(inside, str(tmp_path))
    assert all(torch.equal(one, inside["backbone"].state_dict()[key]) for key, one in saved.state_dict().items())
    assert capsys.readouterr().err == ""


def test_what_is_missing_from_a_network_of_transformers_is_named(tmp_path: Path) -> None:
    family("ViT", 1, labels=7).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"of another shape: classifier\.bias \(7,\) instead of \(5,\), .*body_only"):
        load_weights(family("ViT", 2), str(tmp_path))
    module = family("ViT", 2)
    assert "stays as initialised" in load_weights(module, str(tmp_path), body_only=True)[-1]
    assert torch.equal(module.vit.embeddings.cls_token, family("ViT", 1, labels=7).vit.embeddings.cls_token)
    tensors, _ = checkpoints.read(str(tmp_path), "here")
    save_file({name: one for name, one in tensors.items() if "classifier" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing: classifier\.bias, classifier\.weight \(names of an older"):
        load_weights(family("ViT", 2), str(tmp_path))
