"""All stages as a Ray job: what is there already in the run is kept, so the same command goes on after a stop.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/pipeline.py jobs/digits.yaml --run-dir s3://BUCKET/runs/digits

RAY_ADDRESS names the dashboard, http://HEAD:8265; RAY_AUTH_MODE=token sends what is in ~/.ray/auth_token to a cluster
that asks for a token. bend_ray need not be installed there: it is in the working directory.
"""

import sys

from bend_ray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
