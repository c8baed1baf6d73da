"""The configuration: plain frozen data, unknown keys rejected, one docstring a key.

The command line (``--section.key VALUE``), the table in ``docs/config.md`` and the checks all come from these models.
A key marked as `placement` says where work runs or a file lies, not what is computed (files enter by their content;
other threads or a GPU round otherwise): it is in no hash, so that a run begun on a laptop can be finished on a cluster.
"""

from bend_ray.config.choices import BASELINES
from bend_ray.config.cluster import Cluster
from bend_ray.config.collect import Collect
from bend_ray.config.data import Augment, Base, Classifier, Data
from bend_ray.config.generator import Autoencoder, Diffusion, Sample
from bend_ray.config.keys import meaning, nearest
from bend_ray.config.members import Ensemble, Evaluate, Serve
from bend_ray.config.reading import Parsed, Settings, complaint, dump, inference, load, loads, parse
from bend_ray.config.search import SEARCHED, SPACE, Domain, Objective, Search
from bend_ray.config.section import RENAMED, Gpus, Section, current, placement_keys
from bend_ray.config.whole import Config, Inference, Serving, keys, off_value

__all__ = [
    "BASELINES",
    "RENAMED",
    "SEARCHED",
    "SPACE",
    "Augment",
    "Autoencoder",
    "Base",
    "Classifier",
    "Cluster",
    "Collect",
    "Config",
    "Data",
    "Diffusion",
    "Domain",
    "Ensemble",
    "Evaluate",
    "Gpus",
    "Inference",
    "Objective",
    "Parsed",
    "Sample",
    "Search",
    "Section",
    "Serve",
    "Serving",
    "Settings",
    "before",
    "complaint",
    "current",
    "dump",
    "inference",
    "keys",
    "load",
    "loads",
    "meaning",
    "nearest",
    "off_value",
    "parse",
    "placement_keys",
]
