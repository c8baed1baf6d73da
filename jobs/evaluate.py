"""The stage evaluate as a Ray job: null models and the report, on a run that has an ensemble.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/evaluate.py jobs/digits.yaml --run-dir s3://BUCKET/runs/digits

RAY_ADDRESS names the dashboard, http://HEAD:8265. bend_ray need not be installed there: it is in the working directory.
"""

import sys

from bend_ray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
