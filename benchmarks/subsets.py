"""Which parameters the rules of `collect.subset` choose in networks of timm and transformers, made anew with random
weights, and what members then share: docs/subsets.md.

Wants timm and transformers. Each network's numbers are written as they come, and not made again. Run it as
`python benchmarks/subsets.py [--out benchmarks/subsets.json] [--page docs/subsets.md] [name ...]`.
"""

import argparse
import copy
import gc
import importlib
import json
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray.models.graph import Graph
from bend_ray.models.output import logits
from bend_ray.models.partition import partition
from bend_ray.models.reading import reach_of
from bend_ray.models.subset import Subset, settle
from bend_ray.models.subset_rules import NORM_NAMES

CLASSES = 10
TIMM_NAMES = """
resnet18 resnet50 resnetv2_50 res2net50_26w_4s resnest14d legacy_seresnet18 skresnet18 densenet121 vgg11_bn dla34
dpn68 hrnet_w18_small regnetx_002 regnety_002 cspresnet50 selecsls42 nf_regnet_b1 rexnet_100 repvgg_a0 mobileone_s0
hgnet_tiny inception_v3 inception_v4 legacy_xception mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small
efficientnet_b0 mnasnet_100 lcnet_050 tinynet_e ghostnet_100 repghostnet_050 starnet_s1 convnext_atto convnextv2_atto
convmixer_768_32 mambaout_femto inception_next_atto edgenext_xx_small fastvit_t8 mobilevit_xxs mobilevitv2_050
efficientvit_b0 shvit_s1 vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 beit_base_patch16_224
eva02_tiny_patch14_224 cait_xxs24_224 xcit_nano_12_p16_224 convit_tiny pit_ti_224 tnt_s_patch16_224 crossvit_tiny_240
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 coat_lite_tiny pvt_v2_b0 twins_svt_small nest_tiny volo_d1_224
visformer_tiny levit_128s poolformer_s12 caformer_s18 focalnet_tiny_srf davit_tiny tiny_vit_5m_224 gcvit_xxtiny
efficientformer_l1 coatnet_nano_rw_224 mixer_s32_224 resmlp_12_224 gmlp_s16_224 sequencer2d_s
"""
SIZES = (64, 96, 128)
"""Pixels that are tried, in this order, before those that a network is made for."""

LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = LAYERS | {"image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViT": VIT,
    "DeiT": VIT,
    "DeiTWithTeacher": VIT,
    "Beit": VIT,
    "Data2VecVision": VIT,
    "Dinov2": VIT,
    "Dinov2WithRegisters": VIT,
    "ViTMSN": VIT,
    "IJepa": VIT,
    "CLIP": {"vision_config": VIT},
    "Siglip": {"vision_config": VIT},
    "MetaClip2": {"vision_config": VIT},
    "Swin": SWIN,
    "Swinv2": SWIN,
    "FocalNet": {
        "image_size": 32,
        "embed_dim": 16,
        "hidden_sizes": [16, 32],
        "depths": [2, 2],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "ConvNext": STAGES,
    "ConvNextV2": STAGES,
    "ResNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2], "groups_width": 8},
    "Bit": {"embedding_size": 32, "hidden_sizes": [128, 256], "depths": [2, 2]},
    "PoolFormer": {"hidden_sizes": [8, 8, 16, 16]},
    "Pvt": {"image_size": 32, "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 1, 1, 2]},
    "PvtV2": {"image_size": 32, "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 1, 1, 2]},
    "Segformer": {"hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 1, 1, 2]},
    "Cvt": {"embed_dim": [16, 16, 32], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
    "Levit": {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [1, 2, 3], "depths": [2, 2, 2]},
    "MobileNetV1": {"image_size": 32, "depth_multiplier": 0.25},
    "MobileNetV2": {"image_size": 32, "depth_multiplier": 0.25},
    "MobileViT": {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32]},
    "MobileViTV2": {"image_size": 64, "width_multiplier": 0.25},
    "SwiftFormer": {"image_size": 64, "depths": [2, 2, 2, 2], "embed_dims": [8, 16, 16, 32]},
    "EfficientNet": {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "HGNetV2": {},
    "TextNet": {},
}
"""Image classifiers of transformers, by what precedes ForImageClassification, and the sizes of a small one."""


def of_timm(name: str) -> tuple[nn.Module, Tensor]:
    """A network of timm, and rows of the smallest size that it takes."""
    timm = importlib.import_module("timm")

    own = timm.get_pretrained_cfg(name).input_size[-1]
    for size in (*SIZES, own):
        for options in ({"img_size": size}, {}):
            try:
                module = timm.create_model(name, num_classes=CLASSES, **options).eval()
                x = torch.randn(3, 3, size, size)
                with torch.no_grad():
                    module(x)
                return module, x
            except Exception:  # another size, or none can be asked for
                continue
    raise ValueError(f"{name} takes no images of {own} pixels")


def of_transformers(name: str) -> tuple[nn.Module, Tensor]:
    """A small image classifier of transformers, and rows for it."""
    import transformers

    before, _, after = name.partition("With") if name.endswith("Teacher") else (name, "", "")
    kind = getattr(transformers, f"{before}ForImageClassification{'With' * bool(after)}{after}")
    options = copy.deepcopy(TRANSFORMERS[name])
    config = kind.config_class(**options, num_labels=CLASSES)
    size = options.get("image_size", options.get("vision_config", {}).get("image_size", 64))
    return kind(config).eval(), torch.randn(3, 3, size, size)


def measured(module: nn.Module, x: Tensor) -> dict[str, Any]:
    """What the rules choose, what members then share, and whether they equal a loop over whole networks."""
    reach, graph = reach_of(module, x)
    total = sum(value.numel() for value in module.parameters())
    idle = sum(value.numel() for name, value in module.named_parameters() if name not in reach.places)
    row: dict[str, Any] = {"parameters": total, "pixels": x.shape[-1], "idle": idle, "why": reach.why}
    for rule in ("head", "last_block"):
        subset = settle(module, rule, reach).subset
        row[rule] = {"parts": parts(module, subset.names), "D": subset.D} | compared(module, subset, x, graph)
    try:
        norms = settle(module, "norm", reach).subset
        row["norm"] = {"count": len({name.rpartition(".")[0] for name in norms.names}), "D": norms.D}
    except ValueError:
        row["norm"] = {"count": 0, "D": 0}
    return row


def parts(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Paths of the largest modules that hold these parameters and no others, and the parameters that are left."""
    names, found = set(names), list[str]()

    def look(part: nn.Module, path: str) -> None:
        here = {f"{path}{name}" for name, _ in part.named_parameters()}
        if here and here <= names:
            found.append(path.rstrip("."))
        elif here & names:
            for name, child in part.named_children():
                look(child, f"{path}{name}.")
            found.extend(name for name, _ in part.named_parameters(path.rstrip("."), recurse=False) if name in names)

    look(module, "")
    return found


def compared(module: nn.Module, subset: Subset, x: Tensor, graph: Graph | None) -> dict[str, float]:
    """Share of the multiplications that is the trunk's, and the largest difference to whole networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cut = partition(module, subset, x[:2], graph=graph)
    theta_D = subset.take(module)
    trunk, tail = cut.flops(theta_D, x)
    generator = torch.Generator().manual_seed(0)
    theta_MD = theta_D + 0.02 * torch.randn(2, subset.D, generator=generator)
    with torch.no_grad():
        ours = cut.logits(theta_MD, x)
        whole = [logits(torch.func.functional_call(module, subset.split(theta), (x,))) for theta in theta_MD]
    expected = torch.stack(whole)
    error = ((ours - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    return {"shared": trunk / max(1, trunk + tail), "error": error}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The page."""
    wrong = [name for name, row in rows.items() if max(row[rule]["error"] for rule in ("head", "last_block")) > 1e-5]
    lines = [
        "# Subsets of networks that people have",
        "",
        f"What the rules of `collect.subset` choose in {len(rows)} image classifiers of timm and transformers (random",
        f"weights, {CLASSES} classes; those of transformers are small). `bend-ray run --dry-run` prints the same of",
        "your own network. Made by `benchmarks/subsets.py`.",
        "",
        "* **Head**: the parameters that reach the logits last, found in the exported graph. Several heads that are",
        "  summed or averaged are all of it. What a network names itself (`get_classifier`, `get_output_embeddings`)",
        "  is taken where it holds all of that.",
        "* **Last block**: the last of the blocks that repeat, and all that follows it.",
        "* **Norms**: by type, or by a class whose name ends in",
        f"  {', '.join(f'`{name}`' for name in NORM_NAMES)}",
        "  (an ending such as `2d` left out) and that holds no matrix.",
        "* **D** is the number of values, **shared** the share of an answer's multiplications that all members share.",
        "",
        "For each network, members behind the shared trunk were compared with a loop over whole networks.",
        _agreement(rows, wrong),
        "",
        "| network | head | D | shared | last block | D | shared | norms | D |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [name.removeprefix("transformers ")]
        for rule in ("head", "last_block"):
            one = row[rule]
            cells += [_listed(one["parts"]), f"{one['D']:,}", f"{one['shared']:.2%}"]
        lines.append(f"| {' | '.join([*cells, str(row['norm']['count']), format(row['norm']['D'], ',')])} |")
    return "\n".join(lines) + "\n"


def _agreement(rows: dict[str, dict[str, Any]], wrong: list[str]) -> str:
    largest = max((row[rule]["error"] for row in rows.values() for rule in ("head", "last_block")), default=0.0)
    if not wrong:
        return f"All agree to 1e-5 of the largest logit; the largest difference is {largest:.1e}."
    return f"All agree to 1e-5 of the largest logit but {', '.join(wrong)} (up to {largest:.1e})."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(f"`{name}`" for name in names[:6]) + more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/subsets.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/subsets.md"))
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else {}
    every = [*TIMM_NAMES.split(), *(f"transformers {name}" for name in TRANSFORMERS)]
    for name in args.names or every:
        if name in rows and not args.names:
            continue
        start = time.monotonic()
        torch.manual_seed(0)
        try:
            make = of_transformers if " " in name else of_timm
            rows[name] = measured(*make(name.rpartition(" ")[2]))
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        rows = {key: rows[key] for key in every if key in rows}
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
        args.page.write_text(markdown(rows))
        print(f"{name} ({time.monotonic() - start:.0f} s): {json.dumps(rows[name])}", flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
