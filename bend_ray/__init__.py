"""bend_ray: an ensemble of deep classifiers, sampled from a diffusion model over their parameters.

BEND (arXiv 2403.15766) as a distributed system on Ray: collect snapshots of a subset of a trained classifier's
parameters, fit an autoencoder and a diffusion model on them, sample new parameter sets, and aggregate the classifiers
they make by vote (sBEND) or by mean probability (aBEND).

Shape suffixes, used everywhere: ``theta_SD`` reads "S by D".

    S  snapshots          M  members (base classifiers)   B  batch of images   K  classes
    D  subset parameters  R  rank of the span             Z  latent            T  diffusion steps
"""

from typing import TYPE_CHECKING, Any

from bend_ray.version import __version__

__all__ = ["Client", "Ensemble", "__version__"]

if TYPE_CHECKING:
    from bend_ray.ensemble.ensemble import Ensemble
    from bend_ray.serving.client import Client


def __getattr__(name: str) -> Any:
    # torch and httpx load when they are used.
    if name == "Client":
        from bend_ray.serving.client import Client

        return Client
    if name == "Ensemble":
        from bend_ray.ensemble.ensemble import Ensemble

        return Ensemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
