"""One process that answers: what Ray Serve runs as many times as is asked for."""

import asyncio
import json
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI
from torch import Tensor

from bend_ray.cluster import processes
from bend_ray.config import Serving
from bend_ray.config.choices import AGGREGATIONS
from bend_ray.ensemble.aggregate import Prediction, Strategy
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.serving.app import Served, make_app
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder

WARM_SECONDS = 10.0
"""How long a replica may measure plans before it answers."""
ROUTES = ("/predict", "/ensemble", "/v2/health", "/v2/models")
LATENCY_MS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000]
ROWS: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
SHARES = [0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]

Answered = tuple[Prediction, Tensor]


class Arguments(Serving):
    """What the application is built from: the keys of `args:` in jobs/serve.yaml."""

    run: str
    """Folder or URI of a run or an ensemble."""


@dataclass(frozen=True)
class Question:
    """Some rows of one request."""

    images: Tensor
    strategy: Strategy


class Replica:
    """The ensemble, loaded by path and asked before anybody waits for it, behind the routes of `serving.app`."""

    def __init__(self, arguments: dict[str, Any], token_digest: str | None) -> None:
        from ray import serve

        self.arguments, self.token_digest = Arguments.model_validate(arguments), token_digest
        limits, settings = self.arguments.serve, self.arguments.ensemble
        processes.threads(limits.cpus_per_replica)
        if settings.plan == "graph":
            settings = settings.model_copy(update={"plan": "measured"})
        self.ensemble = Ensemble.load(self.arguments.run, processes.device(limits.gpus_per_replica), settings)
        self.ensemble.warm(limits.batch, WARM_SECONDS)
        self.thread, self.metrics = ThreadPoolExecutor(1, "members"), Metrics()
        self.idle = asyncio.Event()
        self.idle.set()

        @serve.batch(max_batch_size=limits.batch, batch_wait_timeout_s=0, batch_size_fn=_rows)
        async def together(questions: list[Question]) -> list[Answered]:
            return await asyncio.get_running_loop().run_in_executor(self.thread, self._answer, questions)

        self.together = together

    def app(self) -> FastAPI:
        """The routes, for Ray Serve."""
        ensemble, arguments = self.ensemble, self.arguments
        return make_app(
            Served(
                answer=self.answer,
                fit=ensemble.spec.preprocess,
                class_names=ensemble.spec.class_names,
                facts=facts(ensemble, arguments),
                limits=arguments.serve,
                token_digest=self.token_digest,
                seen=self.metrics.request,
            )
        )

    async def answer(self, images: Tensor, strategy: Strategy) -> Answered:
        """Prediction and ``label_MB``. What is long goes part by part, so that others get in between."""
        parts = images.split(self.arguments.serve.batch)
        answers = [await self._queued(Question(part, strategy)) for part in parts]
        return answers[0] if len(answers) == 1 else _joined(answers)

    async def _queued(self, question: Question) -> Answered:
        """Wait until no batch runs, then go with all who waited: batches are as large as the load makes them."""
        await self.idle.wait()
        self.idle.clear()
        try:
            return await self.together(question)
        finally:
            self.idle.set()

    def _answer(self, questions: list[Question]) -> list[Answered]:
        """One batch, in the thread of its own."""
        with torch.inference_mode():
            strategies = {question.strategy for question in questions}
            tally = self.ensemble.tally(torch.cat([question.images for question in questions]), *strategies)
            label_MB = tally.label_MB.cpu()
            by_strategy = {strategy: tally.prediction(strategy).cpu() for strategy in strategies}
        self.metrics.batch(next(iter(by_strategy.values())))
        answers, start = [], 0
        for question in questions:
            rows = slice(start, start + len(question.images))
            answers.append((by_strategy[question.strategy].rows(rows), label_MB[:, rows]))
            start = rows.stop
        return answers


def _rows(questions: list[Question]) -> int:
    return sum(len(question.images) for question in questions)


def _joined(answers: list[Answered]) -> Answered:
    return Prediction.joined([prediction for prediction, _ in answers]), torch.cat(
        [label_MB for _, label_MB in answers], dim=1
    )


def facts(ensemble: Ensemble, arguments: Arguments) -> dict[str, Any]:
    """What ``GET /ensemble`` says."""
    manifest, fit = ensemble.manifest, ensemble.spec.preprocess
    limits = arguments.serve.model_dump(include={"max_rows", "max_body", "timeout", "queue"})
    return {
        "model": next((part for part in arguments.run.split("/")[::-1] if part not in ("", "ensemble")), "ensemble"),
        "run": arguments.run,
        "members": ensemble.members,
        "classes": len(ensemble.spec.class_names),
        "class_names": list(ensemble.spec.class_names),
        "image": {"channels": fit.channels, "size": fit.image_size},
        "subset_size": ensemble.subset.D,
        "trunks": ensemble.trunks,
        "accuracy": _accuracy(Folder(arguments.run), manifest.digest),
        "hash": manifest.hash,
        "digest": manifest.digest,
        "inputs": manifest.inputs,
        "made_by": manifest.made_by,
        "strategies": list(AGGREGATIONS),
        "plan": ensemble.settings.plan,
        "temperature": ensemble.temperature.to_json(),
        "distance": ensemble.distance.facts() if ensemble.distance else {},
        "limits": limits,
    }


def _accuracy(run: Folder, digest: str) -> dict[str, float]:
    """On the test split, from the run's report; empty if that is not of this very ensemble."""
    report = artifacts.read_manifest(run / "report", "report")
    if report is None or report.inputs.get("ensemble") != digest:
        return {}
    metrics = json.loads((run / "report").read("metrics.json"))
    return {strategy: metrics[strategy]["accuracy"] for strategy in AGGREGATIONS if strategy in metrics}


class Metrics:
    """What Prometheus sees (Ray's metrics port), and one line of the access log a request (JSON, with its id)."""

    def __init__(self) -> None:
        from ray.serve import metrics

        self.log = logging.getLogger("ray.serve")
        self.latency = metrics.Histogram(
            "bend_ray_request_latency_ms",
            description="From a request's arrival at the replica to the end of its answer, ms.",
            boundaries=LATENCY_MS,
            tag_keys=("path", "status"),  # type: ignore[arg-type]  # Ray says tuple[str]
        )
        self.rows = metrics.Histogram(
            "bend_ray_batch_rows", description="Images that were answered at once.", boundaries=ROWS
        )
        self.entropy = metrics.Histogram(
            "bend_ray_entropy", description="Entropy of an answer over that of a uniform one.", boundaries=SHARES
        )
        self.disagreement = metrics.Histogram(
            "bend_ray_disagreement", description="Share of members that vote otherwise.", boundaries=SHARES
        )

    def request(self, entry: dict[str, Any]) -> None:
        """Note one request."""
        path = next((route for route in ROUTES if entry["path"].startswith(route)), "other")
        self.latency.observe(entry["latency_ms"], tags={"path": path, "status": str(entry["status"])})
        self.log.info("request", extra=entry)

    def batch(self, prediction: Prediction) -> None:
        """Note one batch and each of its rows."""
        self.rows.observe(len(prediction.label_B))
        whole = math.log(max(2, prediction.prob_BK.shape[1]))
        for entropy, disagreement in zip(
            prediction.entropy_B.tolist(), prediction.disagreement_B.tolist(), strict=True
        ):
            self.entropy.observe(max(1e-6, entropy / whole))  # Ray's histograms take nothing below
            self.disagreement.observe(max(1e-6, disagreement))
