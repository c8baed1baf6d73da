"""The stage evaluate as a Ray job: baselines and the report, on a run that has an ensemble.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/evaluate.py jobs/digits.yaml --run-dir s3://BUCKET/runs/digits

RAY_ADDRESS names the dashboard, http://HEAD:8265; RAY_AUTH_MODE=token sends what is in ~/.ray/auth_token to a cluster
that asks for a token. bend_ray need not be installed there: it is in the working directory.
"""

import sys

from bend_ray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
