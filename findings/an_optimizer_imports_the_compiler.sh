#!/usr/bin/env bash
# Guess: making an optimizer costs nothing; torch's compiler is imported by who compiles.
# Seen (torch 2.13.0, CPU, Python 3.11, two cores): the first optimizer that is made, SGD like AdamW, imports
# torch._dynamo and 823 modules with it, though nothing is compiled. Where their bytecode is kept already, `import
# torch` takes 1.0 s of CPU time, the first optimizer 1.0 s more, the second one nothing. Where many short processes
# train a little each, that is a good part of what they do. Why: the decorator torch._compile._disable_dynamo, which
# marks methods of torch.optim.Optimizer as not to be compiled, imports the compiler at the first call to say so.
# Output seen, in a fresh environment, so with the bytecode still to be made:
#   AdamW: imports torch._dynamo: True; modules more: 823; CPU: 2.7 s, then 0.000 s
#   SGD: imports torch._dynamo: True; modules more: 823; CPU: 2.2 s, then 0.000 s
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
python3 -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
for name in AdamW SGD; do
    "$where/venv/bin/python" - "$name" <<'END'
import sys
import time

import torch

parameter = torch.nn.Parameter(torch.zeros(1))
make = getattr(torch.optim, sys.argv[1])
before, was_there, seconds = len(sys.modules), "torch._dynamo" in sys.modules, []
for _ in range(2):
    start = time.process_time()
    make([parameter], lr=0.1)
    seconds.append(time.process_time() - start)
more = len(sys.modules) - before
print(
    f"{sys.argv[1]}: imports torch._dynamo: {'torch._dynamo' in sys.modules and not was_there}; modules more: {more};"
    f" CPU: {seconds[0]:.1f} s, then {seconds[1]:.3f} s"
)
sys.exit(was_there or "torch._dynamo" not in sys.modules or more < 100)
END
done
