#!/usr/bin/env bash
# Guess: torchmetrics.functional.classification loads the functions of classification; what plots, and what scores
# texts and sounds, is loaded by who asks for it.
# Seen (torchmetrics 1.9.0 with transformers 5.24.0 and matplotlib 3.11.2 in the environment, torch 2.13.0, CPU): the one
# import that a calibration error needs loads the metrics of text, sound, images and detection as well, with them
# transformers (whose version it asks for) and, for plots that nobody draws, matplotlib.pyplot. So what a metric of ten
# lines costs a process depends on what else is installed. A worker that is started to compute one number pays it anew.
# Output seen: calibration error 0.25; modules more: 758; among them: torchmetrics.functional.text.bert,
#   torchmetrics.functional.audio, transformers, matplotlib.pyplot
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
python3 -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0 transformers==5.24.0 matplotlib==3.11.2
"$where/venv/bin/python" - <<'END'
import sys

import torch

before = set(sys.modules)
from torchmetrics.functional.classification import binary_calibration_error

error = binary_calibration_error(torch.tensor([0.25, 0.75]), torch.tensor([0, 1]), n_bins=15, norm="l1").item()
more = set(sys.modules) - before
others = ("torchmetrics.functional.text.bert", "torchmetrics.functional.audio", "transformers", "matplotlib.pyplot")
print(f"calibration error {error:.2f}; modules more: {len(more)}; among them: {', '.join(n for n in others if n in more)}")
sys.exit(not all(name in more for name in others))
END
