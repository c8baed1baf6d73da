"""What is learnt from the heads of seen trunks: generators of what is left around an expected head, and a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pays_heads as heads
import torch
from pays_common import MEMBERS, OURS, fit_cost, gaussian, generator_of, sampled
from pays_features import Trunk, statistics_cost
from pays_frames import ClassFrame, Frame, Rotated, regression
from pays_hypernetwork import fitted
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bend_ray.generator.generator import Generator
from bend_ray.models.subset import Subset
from bend_ray.report.flops import STEP
from bend_ray.run import Run

AROUND = " around the hypernetwork"


@dataclass(frozen=True)
class Family:
    """A generator of what is left of seen heads in a frame, once what was expected of them is taken off."""

    frame: Callable[[Trunk], Frame]
    expected: Callable[[Trunk], Tensor]
    """``theta_1D`` that it is added to in an unseen trunk."""
    left_SD: Tensor
    generator: Generator
    fit: float
    """FLOPs."""
    frame_cost: float
    """FLOPs of statistics and frame of one trunk."""
    sampling: float
    """FLOPs of sampling members."""

    @property
    def there(self) -> float:
        """FLOPs for one trunk."""
        return self.frame_cost + self.sampling

    def members(self, trunk: Trunk, run: Run, kind: str) -> Tensor:
        """``w_MKP``."""
        left_MD = {
            "BEND": lambda: sampled(self.generator, run),
            "Gaussian": lambda: gaussian(self.left_SD, run.seed),
            "mean": lambda: self.left_SD.mean(0, keepdim=True),
        }[kind]()
        return self.frame(trunk).decode(self.expected(trunk) + left_MD)


@dataclass(frozen=True)
class Learnt:
    """All that is learnt from seen trunks."""

    families: dict[str, Family]
    hypernetwork: nn.Module
    run: Run
    heads_cost: float
    """FLOPs of training the hypernetwork."""
    ensemble_BK: Tensor
    """Mean logits of the seen trunks' own heads on training rows."""

    @staticmethod
    def of(trunks: Sequence[Trunk], run: Run, iterations: int) -> "Learnt":
        x_TKPI = torch.stack([trunk.inputs_KPI for trunk in trunks])
        standard = [(trunk.train_BF.double() - trunk.statistics.mean_F) / trunk.spread_F for trunk in trunks]
        phi_TBF, label_B = torch.stack(standard).float(), run.dataset.train.labels
        network = fitted(x_TKPI, phi_TBF, label_B, iterations, run.seed)
        reference_BF = trunks[0].whitened_BF
        on_rows = torch.stack([heads.logits(trunk.train_BF, trunk.own_KP[None])[0] for trunk in trunks])

        def rotated(trunk: Trunk) -> Frame:
            return Rotated.onto(trunk.train_BF, trunk.statistics, reference_BF)

        def by_network(trunk: Trunk) -> Tensor:
            return rotated(trunk).encode(trunk.of_hypernetwork(network)[None])

        in_frame = [ClassFrame(trunk.statistics).encode(trunk.warm_SKP).mean(0) for trunk in trunks]
        predict, left_TD = regression(torch.stack([trunk.geometry_G for trunk in trunks]), torch.stack(in_frame))
        expected = {
            id(trunk): in_frame[i] - left_TD[i] for i, trunk in enumerate(trunks)
        }  # leave-one-out, of seen ones

        def by_geometry(trunk: Trunk) -> Tensor:
            return expected[id(trunk)][None] if id(trunk) in expected else predict(trunk.geometry_G[None])

        def apart(trunk: Trunk) -> Tensor:
            """Chains' mean: the hypernetwork is not after it, so that only their deviations are learnt."""
            return rotated(trunk).encode(trunk.warm_SKP).mean(0, keepdim=True)

        none_1D = torch.zeros(1, 1)
        families = {
            AROUND: _family(trunks, run, rotated, by_network, apart),
            " by class geometry": _family(trunks, run, lambda trunk: ClassFrame(trunk.statistics), by_geometry),
            " in rotated features": _family(trunks, run, rotated, lambda trunk: none_1D),
        }
        with FlopCounterMode(display=False) as counter:
            network(x_TKPI[:4])
        products = 2.0 * 256 * 4 * trunks[0].own_KP.numel()  # of the heads on rows of a step
        return Learnt(
            families, network, run, STEP * iterations * (counter.get_total_flops() + products), on_rows.mean(0)
        )

    def members(self, trunk: Trunk, share: int) -> dict[str, tuple[Tensor, float]]:
        """``w_MKP`` and FLOPs of each way; of what was learnt once each of ``share`` unseen trunks bears a part."""
        ways: dict[str, tuple[Tensor, float]] = {}
        for name, family in self.families.items():
            of_network = self.heads_cost if name == AROUND else 0.0
            for kind, fit in {"BEND": family.fit, "Gaussian": 0.0, "mean": 0.0}.items():
                there = family.there if kind == "BEND" else family.frame_cost
                label = OURS if (kind, name) == ("BEND", AROUND) else kind + name
                ways[label] = (family.members(trunk, self.run, kind), (of_network + fit) / share + there)
        ways["hypernetwork"] = ways.pop("mean" + AROUND)
        distilled_KP = heads.least_squares(trunk.train_BF, self.ensemble_BK, trunk.statistics)
        ways["least squares onto the seen trunks' logits"] = (distilled_KP[None], statistics_cost(trunk))
        return ways


def _family(
    trunks: Sequence[Trunk],
    run: Run,
    frame: Callable[[Trunk], Frame],
    expected: Callable[[Trunk], Tensor],
    of_seen: Callable[[Trunk], Tensor] | None = None,
) -> Family:
    """``of_seen``: what is taken off the heads of seen trunks, where that is not what is expected."""
    taken = of_seen or expected
    left_SD = torch.cat([frame(trunk).encode(trunk.warm_SKP) - taken(trunk) for trunk in trunks])
    numbers = [number for number, trunk in enumerate(trunks) for _ in trunk.warm_SKP]
    subset = Subset(("head",), ((left_SD.shape[1],),), ("float32",))
    generator = generator_of(subset, left_SD, numbers, run)
    fit = fit_cost(generator, run, len(left_SD), 0)
    sampling = fit_cost(generator, run, len(left_SD), MEMBERS) - fit
    rows, n = trunks[0].train_BF.shape
    return Family(frame, expected, left_SD, generator, fit, statistics_cost(trunks[0]) + 2.0 * rows * n * n, sampling)
