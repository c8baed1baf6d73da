"""An endpoint on the cluster, or a new version of it, as a Ray job: it deploys and ends, the endpoint stays.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/serve.py s3://BUCKET/runs/digits --host 0.0.0.0

RAY_ADDRESS names the dashboard, http://HEAD:8265; RAY_AUTH_MODE=token sends what is in ~/.ray/auth_token to a cluster
that asks for a token. bend_ray need not be installed there: it is in the working directory.
"""

import sys

from bend_ray.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
