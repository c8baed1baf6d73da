"""The stage search as a Ray job: trials of generators, on a run that has snapshots.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/search.py jobs/digits_search.yaml --run-dir s3://BUCKET/runs/digits_search

RAY_ADDRESS names the dashboard, http://HEAD:8265; RAY_AUTH_MODE=token sends what is in ~/.ray/auth_token to a cluster
that asks for a token. bend_ray need not be installed there: it is in the working directory.
"""

import sys

from bend_ray.cli import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]])
