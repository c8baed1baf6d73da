"""The stage collect as a Ray job: the base classifier, then chains and their snapshots.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/collect.py jobs/digits.yaml --run-dir s3://BUCKET/runs/digits

RAY_ADDRESS names the dashboard, http://HEAD:8265; RAY_AUTH_MODE=token sends what is in ~/.ray/auth_token to a cluster
that asks for a token. bend_ray need not be installed there: it is in the working directory.
"""

import sys

from bend_ray.cli import main

if __name__ == "__main__":
    main(["collect", *sys.argv[1:]])
