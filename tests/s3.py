"""An S3 endpoint on this machine (moto's server), for tests of remote folders."""

import contextlib
import logging
from collections.abc import Iterator

import boto3
import moto.settings
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "bend-ray-tests"


class Store:
    """The endpoint, and URIs in it that carry all that is needed to reach it."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="key",
            aws_secret_access_key="word",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def uri(self, path: str, bucket: str = BUCKET) -> str:
        options = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://key:word@{bucket}/{path}?{options}"

    def stop(self) -> None:
        """No connection to it; what it holds is kept."""
        self.server.stop()

    def start(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def names(self, prefix: str) -> list[str]:
        """Keys of the objects that begin so."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return sorted(entry["Key"] for entry in found)

    @contextlib.contextmanager
    def asking_who(self) -> Iterator[None]:
        """Only known keys are let in, and none is known."""
        before, moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = moto.settings.INITIAL_NO_AUTH_ACTION_COUNT, 0
        try:
            yield
        finally:
            moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = before


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    made = Store()
    yield made
    made.client.close()
    made.stop()
