#!/usr/bin/env bash
# Guess: torch.func.functional_call runs a module with other weights and puts its own back, as its documentation says,
# also where a layer is used twice; ties are its own topic there (tie_weights).
# Seen (torch 2.13.0, CPU): true where two layers share a Parameter. Where one layer is registered under two names, which
# is how most people share one, the call swaps under both, takes what it has just put in for the original, and puts that
# back: the module keeps the weights of the call, as a plain Tensor that no longer asks for a gradient, and answers by
# them from then on. parameters() still counts it, so that nothing looks amiss. An ensemble that is run member by member
# this way leaves the last member in the network. (Reported as pytorch/pytorch issue 164759; a mend is proposed there.)
# Output seen:
#   two layers, one Parameter: the weight is the Parameter it was: True; answers as before: True
#   one layer, two names: the weight is the Parameter it was: False (a Tensor, requires_grad False, all zero: True);
#     answers as before: False; parameters still counted: 2
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
python3 -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$where/venv/bin/python" - <<'END'
import sys

import torch
from torch import nn
from torch.func import functional_call


class Twice(nn.Module):
    def __init__(self, one_layer):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first if one_layer else nn.Linear(3, 3)
        self.again.weight, self.again.bias = self.first.weight, self.first.bias

    def forward(self, x):
        return self.again(self.first(x))


kept = {}
for what, one_layer in (("two layers, one Parameter", False), ("one layer, two names", True)):
    torch.manual_seed(0)
    network, x = Twice(one_layer), torch.randn(2, 3)
    before, weight = network(x), network.first.weight
    with torch.no_grad():
        functional_call(network, {"first.weight": torch.zeros(3, 3)}, (x,))
    after = network.first.weight
    same, alike = after is weight, torch.equal(network(x), before)
    print(f"{what}: the weight is the Parameter it was: {same}", end="")
    if not same:
        zero = bool((after == 0).all())
        print(f" (a {type(after).__name__}, requires_grad {after.requires_grad}, all zero: {zero})", end="")
    print(f"; answers as before: {alike}; parameters still counted: {len(list(network.parameters()))}")
    kept[one_layer] = same and alike
sys.exit(kept != {False: True, True: False})
END
