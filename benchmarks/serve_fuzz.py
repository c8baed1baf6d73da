"""A served ensemble against bodies that nobody should send: no 5xx but 503, no replica that dies.

5,000 bodies of all kinds that the routes read (images, JSON, .npy, Arrow, forms, tensors of the Open Inference
Protocol), each with some bytes changed, cut or put in, or mere noise; then requests that schemathesis makes up from the
OpenAPI document. After all of it the same process answers as before. Writes benchmarks/serve_fuzz.json.

    python benchmarks/serve_fuzz.py RUN [--bodies 5000] [--examples 50] [--seed 0]
"""

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
from common import BEND_RAY
from PIL import Image
from serve_fire import replicas
from serve_sides import adopt_orphans, end, free_port

from bend_ray.data.preprocess import Preprocess
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.serving import oip
from bend_ray.serving.client import Client

Body = tuple[str, bytes, dict[str, str]]
"""Path, bytes, headers."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run")
    arguments.add_argument("--bodies", type=int, default=5000)
    arguments.add_argument("--examples", type=int, default=50, help="of schemathesis, for each route")
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    adopt_orphans()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile() as log:
        words = [BEND_RAY, "serve", args.run, "--port", str(port)]
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        try:
            while b"new one:" not in Path(log.name).read_bytes():
                assert process.poll() is None, Path(log.name).read_text()
                time.sleep(0.2)
            result = attack(url, process.pid, args)
        finally:
            end(process)
    Path("benchmarks/serve_fuzz.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if result["server_errors"] or result["replicas_died"] or result["schemathesis_failed"]:
        sys.exit("FAILED")


def attack(url: str, server: int, args: argparse.Namespace) -> dict[str, Any]:
    """All of it; what was counted."""
    fit = Ensemble.load(args.run).spec.preprocess
    before: list[psutil.Process] = replicas(server)
    images = np.random.default_rng(args.seed).integers(0, 256, (2, fit.channels, fit.image_size, fit.image_size))
    images = images.astype(np.uint8)
    with Client(url) as client:
        answer = client.predict(images)
        counts, odd, longest = fuzz(url, bodies(images, fit), args.bodies, random.Random(args.seed))
        words = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{url}/openapi.json",
            "--checks",
            "not_a_server_error",
        ]
        words += ["--max-examples", str(args.examples), "--seed", str(args.seed)]
        made_up = subprocess.run(words, capture_output=True, text=True)
        same = bool((client.predict(images).label_B == answer.label_B).all())
    alive = [process.pid for process in before if process.is_running()]
    return {
        "bodies": args.bodies,
        "statuses": dict(sorted(counts.items())),
        "longest_s": round(longest, 3),
        "server_errors": odd,
        "schemathesis_failed": made_up.returncode != 0,
        "schemathesis": [line.strip() for line in made_up.stdout.splitlines() if "case" in line or "passed" in line][
            -4:
        ],
        "answers_as_before": same,
        "replicas_died": len(before) - len(alive),
    }


def bodies(images: np.ndarray, fit: Preprocess) -> list[Body]:
    """Valid ones, of every kind."""

    def saved(form: str) -> bytes:
        stream = io.BytesIO()
        pixels = images[0, 0] if fit.channels == 1 else images[0].transpose(1, 2, 0)
        Image.fromarray(pixels).resize((40, 40)).save(stream, form)
        return stream.getvalue()

    npy, sink = io.BytesIO(), io.BytesIO()
    np.save(npy, images)
    table = pa.table({"image": [image.reshape(-1).tolist() for image in images]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    encoded = io.BytesIO()
    table = pa.table({"image": [{"bytes": saved("PNG"), "path": "a.png"}]})
    with pa.ipc.new_file(encoded, table.schema) as writer:
        writer.write_table(table)
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}
    plain = json.dumps({"inputs": [tensor | {"data": images.reshape(-1).tolist()}]}).encode()
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": images.nbytes}}]}).encode()
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    arrow, infer = "application/vnd.apache.arrow.stream", "/v2/models/bend/infer"
    bodies_of_kinds = [(f"image/{form.lower()}", saved(form)) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]
    bodies_of_kinds += [("application/x-npy", npy.getvalue()), (arrow, sink.getvalue()), (arrow, encoded.getvalue())]
    bodies_of_kinds += [("application/json", json.dumps({"images": images.tolist(), "members": True}).encode())]
    bodies_of_kinds += [("multipart/form-data; boundary=b", part + saved("PNG") + b"\r\n--b--\r\n")]
    return [
        *(("/predict", body, {"Content-Type": kind}) for kind, body in bodies_of_kinds),
        (infer, plain, {"Content-Type": "application/json"}),
        (infer, head + images.tobytes(), {oip.LENGTH: str(len(head))}),
    ]


def fuzz(url: str, valid: list[Body], count: int, chance: random.Random) -> tuple[Counter[str], list[str], float]:
    """Statuses, what should not have been, and the longest wait, seconds."""
    counts: Counter[str] = Counter()
    odd: list[str] = []
    longest = 0.0
    with httpx.Client(base_url=url, timeout=60) as http:
        for number in range(count):
            path, body, headers = chance.choice(valid)
            broken = changed(body, chance) if number % 10 else chance.randbytes(chance.randrange(2000))
            start = time.perf_counter()
            answer = http.post(path, content=broken, headers=headers)
            longest = max(longest, time.perf_counter() - start)
            counts[str(answer.status_code)] += 1
            explained = answer.status_code in (200, 503) or "error" in answer.json()
            if (answer.status_code >= 500 and answer.status_code != 503) or not explained:
                odd.append(f"body {number} ({headers}): {answer.status_code} {answer.text[:200]}")
    return counts, odd, longest


def changed(body: bytes, chance: random.Random) -> bytes:
    """``body`` with a few bytes changed, cut or put in."""
    changed_body = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        where = chance.randrange(len(changed_body) + 1)
        how = chance.randrange(4)
        if how == 0 and where < len(changed_body):
            changed_body[where] = chance.randrange(256)
        elif how == 1:
            del changed_body[where : where + chance.randrange(1, 20)]
        elif how == 2:
            changed_body[where:where] = chance.randbytes(chance.randrange(1, 20))
        elif where < len(changed_body):
            changed_body[where] ^= 1 << chance.randrange(8)
    return bytes(changed_body)


if __name__ == "__main__":
    main()
