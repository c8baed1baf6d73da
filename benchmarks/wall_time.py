"""Wall time of a run beside another version or another job: `bend-ray run` from an empty folder, in turn.

    git worktree add ../before COMMIT
    python benchmarks/wall_time.py [--before ../before] [--jobs fashion_mnist fashion_mnist] [--turns 2]

The first job is run by the code in ``--before`` (this checkout unless given), the second by this one. Prints seconds of
each and the median ratio, and writes benchmarks/wall_time.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT, HERE = Path("benchmarks/wall_time.json"), Path(__file__).parents[1]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", type=Path, default=HERE, help="a checkout")
    arguments.add_argument("--jobs", nargs=2, default=["fashion_mnist", "fashion_mnist"], help="names in jobs/")
    arguments.add_argument("--turns", type=int, default=2)
    args = arguments.parse_args()
    sides = list(zip((args.before.resolve(), HERE), args.jobs, strict=True))
    seconds_of = [[seconds(*side) for side in sides] for _ in range(args.turns)]
    ratio = statistics.median(now / before for before, now in seconds_of)
    result = {
        "jobs": args.jobs,
        "versions": [version(root) for root, _ in sides],
        "seconds": seconds_of,
        "ratio": ratio,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(f"before {before:.0f} s, now {now:.0f} s" for before, now in seconds_of))
    print(f"now / before: {ratio:.2f}")


def seconds(root: Path, job: str) -> float:
    """Of one run, on a Ray of its own that starts with it; the code is that in ``root``."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="wall-") as scratch:
        environment = os.environ | {"PYTHONPATH": str(root), "RAY_ADDRESS": "local", "RAY_TMPDIR": scratch}
        words = [sys.executable, "-m", "bend_ray.cli", "run", f"jobs/{job}.yaml", "--run-dir", f"{scratch}/run"]
        start = time.monotonic()
        subprocess.run(words, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
        spent = time.monotonic() - start
        shutil.rmtree(f"{scratch}/run")
    return spent


def version(root: Path) -> str:
    """The commit."""
    words = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
