"""What only training, validation or a chain meets is met before any worker starts, and said with its line."""

import inspect
import pickle
import traceback
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.train import WorkerGroupError

import failing_networks
from bend_ray.cluster import failures
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import BendError, ConfigError, ModelError, ResourceError, TrainingError, place
from bend_ray.models import base as bases
from bend_ray.models import faithful, faults
from bend_ray.run import Run
from bend_ray.snapshots import rehearsal
from bend_ray.stages import pipeline
from bend_ray.store.folders import Folder
from bend_ray.training import loop
from conftest import changed

STEP = "training the base classifier, step 0: the classifier fails "
FAIL: dict[str, tuple[str, str]] = {
    "FailsBackward": (STEP + "(RuntimeError: this backward pass was never written", "raise RuntimeError"),
    "ModifiedInPlace": (STEP + "(RuntimeError: one of the variables needed for gradient", "squared * squared"),
    "LeafInPlace": (STEP + "(RuntimeError: a leaf Variable that requires grad", "self.scale.mul_"),
    "FailsInTraining": (STEP + "(KeyError: 'teacher'", 'raise KeyError("teacher")'),
    "NanGradient": ("training: the gradient of 'body.1.weight' is not finite in the first step", ".sqrt()"),
    "NanInTraining": ("training: the loss of the first step is nan", ""),
    "NoGradient": ("training: the loss reaches no parameter", ""),
    "Writes": ("forward pass in training mode writes into its parameter 'mean'", ""),
    "Replaces": ("forward pass in training mode writes into its parameter 'mean'", ""),
    "BatchBuffer": ("the classifier's buffer 'last' changes its type or shape as it trains", ""),
    "NewBuffer": ("the classifier's buffer 'last' changes its type or shape as it trains", ""),
}


@cache
def digits() -> Dataset:
    return load_dataset(changed().data, 0)


def run_of(target: str, **sections: Any) -> Run:
    classifier = {"name": None, "target": target, "kwargs": sections.pop("kwargs", {})}
    collect = {"subset": "head"} | sections.pop("collect", {})
    config = changed(classifier=classifier | sections.pop("classifier", {}), collect=collect, **sections)
    return Run(config, loaded=digits())


def line_of(text: str) -> str:
    """Where in `failing_networks` ``text`` stands."""
    file = inspect.getsourcefile(failing_networks) or ""
    lines = Path(file).read_text().splitlines()
    return f", at {file}, line {next(n for n, line in enumerate(lines, 1) if text in line)}"


@pytest.mark.parametrize("name", FAIL)
def test_what_only_training_meets_is_said_with_its_line(name: str) -> None:
    (said, at), run = FAIL[name], run_of(f"failing_networks:{name}")
    with pytest.raises(ModelError) as error:
        rehearsal.training(rehearsal.few(run), partial(pipeline._made, run))
    message = str(error.value)
    assert said in message and (line_of(at) if at else "") in message


def test_layers_that_set_themselves_from_their_first_batch_are_refused_or_hold_buffers() -> None:
    with pytest.raises(ModelError, match=r"writes into its parameter 'norm\.shift'.*register_buffer"):
        pipeline._classifier(run_of("odd_networks:Flow"))
    pipeline._classifier(run_of("odd_networks:Flow", kwargs={"in_buffers": True}))


@pytest.mark.parametrize("name", ["Quantised", "PlainProjection", "CacheForEver", "InList"])
def test_what_is_not_followed_or_not_read_back_is_refused_in_the_dry_run(name: str) -> None:
    with pytest.raises(ModelError, match=r"fake\.|projection|cache|'weight'"):
        pipeline._classifier(run_of(f"odd_networks:{name}", collect={"subset": "regex:^weight|head"}))


@pytest.mark.parametrize("features", ["auto", "none"])
def test_a_chain_is_tried_as_it_will_be_trained(features: str) -> None:
    run = run_of("failing_networks:FailsInChains", collect={"features": features})
    if features == "auto":  # the tail alone is trained
        pipeline._classifier(run)
        return
    with pytest.raises(ModelError, match=r"chain 0, step 0: the classifier fails \(ValueError: not made for that, at"):
        pipeline._classifier(run)


def test_a_gradient_that_chains_cannot_take_is_said() -> None:
    pipeline._classifier(run_of("failing_networks:Sparse"))  # the base can
    with pytest.raises(ModelError, match=r"chain 0, step 0: the classifier fails \(RuntimeError: .*sparse"):
        pipeline._classifier(run_of("failing_networks:Sparse", collect={"subset": "regex:table"}))


def test_weights_that_are_brought_are_not_trained(tmp_path: Path) -> None:
    untrained = run_of("failing_networks:FailsInTraining")
    bases.save(Folder(tmp_path), untrained.spec.build())
    given = {"weights": str(tmp_path / bases.FILE)}
    pipeline._classifier(run_of("failing_networks:FailsInTraining", classifier=given))
    with pytest.raises(ModelError, match="teacher"):
        pipeline._classifier(run_of("failing_networks:FailsInTraining", classifier=given, base={"cycles": 1}))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"base": {"shards": 4, "batch_size": 8, "ema": 0.9, "precision": "bfloat16"}},
        {"augment": {"flip": True}, "collect": {"optimizer": "sgd", "schedule": "cyclic", "bootstrap": False}},
        {"base": {"class_weights": "balanced", "cycles": 0}, "collect": {"balanced": True}},
        {"collect": {"subset": "auto", "features": "uint8", "init": "fresh"}, "base": {"cycles": 1}},
    ],
    ids=lambda sections: ",".join(sections) or "plain",
)
def test_a_rehearsal_leaves_the_classifier_as_it_was(sections: dict[str, Any]) -> None:
    run = Run(changed(**sections), loaded=digits())
    model = pipeline._classifier(run)
    built = run.spec.build(run.seed)
    assert faithful.changes(faithful.values_of(built), model.module) == []
    assert all(parameter.requires_grad for parameter in model.module.parameters()) and not model.module.training


def test_a_rehearsal_follows_from_a_few_rows_of_all_classes() -> None:
    run = Run(changed(base={"batch_size": 40, "shards": 10, "cycles": 0}), loaded=digits())
    few = rehearsal.few(run)
    assert len(few.dataset.train) == 21 and len(few.dataset.val) == 21
    assert len(few.dataset.train.labels.unique()) == len(few.dataset.val.labels.unique()) == 10
    assert (few.config.base.shards, few.config.base.batch_size) == (10, 21)
    assert loop.steps_of(few.config.base, 21) == 1
    with pytest.raises(ConfigError, match=r"base\.shards: 10 pieces of 16 rows"):
        pipeline._classifier(Run(changed(base={"batch_size": 16, "shards": 10, "cycles": 0}), loaded=digits()))


def test_nothing_is_tried_again_where_all_is_collected() -> None:
    pipeline._classifier(run_of("failing_networks:FailsInTraining"), rehearse=False)


def test_what_fails_starts_no_worker_and_writes_nothing(tmp_path: Path) -> None:
    run = run_of("failing_networks:FailsBackward").but(folder=Folder(tmp_path / "run"))
    for command in (pipeline.execute, pipeline.dry_run):
        with pytest.raises(ModelError, match="never written"):
            command(run, ())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_error_of_a_later_step_says_which() -> None:
    run = run_of("failing_networks:FailsLater")
    pipeline._classifier(run)
    with pytest.raises(
        ModelError, match=r"base classifier, step 2: the classifier fails \(LookupError: no more of"
    ) as e:
        loop.train(run.spec.build(), run)
    assert line_of("raise LookupError") in str(e.value)
    assert pickle.loads(pickle.dumps(e.value)).args == e.value.args


def test_errors_of_the_machine_and_our_own_stay_as_they_are() -> None:
    for error in (TrainingError("not finite"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(type(error)) as raised, faults.said("a step"):
            raise error
        assert raised.value is error
    said = r"^a step: the classifier fails \(ValueError: two lines, at .*test_rehear"
    with pytest.raises(ModelError, match=said), faults.said("a step"):
        raise ValueError("two\nlines")


def test_a_place_is_the_last_line_of_the_users_code() -> None:
    def trace(*files: str) -> str:
        return "".join(f'  File "{file}", line {n}, in f\n' for n, file in enumerate(files, 1))

    torch_file, ours = "/x/lib/python3.11/site-packages/torch/nn/modules/module.py", str(Path(bases.__file__))
    assert place(trace(ours, torch_file, "/home/me/net.py", torch_file)) == ", at /home/me/net.py, line 3"
    assert place(trace("/x/site-packages/timm/layers.py")) == ", at /x/site-packages/timm/layers.py, line 1"
    for without in (("/home/me/script.py", ours, torch_file), (traceback.__file__,), ("<string>",), ()):
        assert place(trace(*without)) == ""


def test_what_failed_in_a_worker_is_said_instead_of_ray_gave_up() -> None:
    """Of a Ray task that fails, see tests/test_pool.py. Ray Train tells of each worker with its traceback as text."""

    def failed(file: str, last: str) -> Exception:
        return RuntimeError(f'Traceback (most recent call last):\n  File "{file}", line 7, in f\n    f()\n{last}\n')

    waited, of_user = failed("<gloo>", "RuntimeError: peer closed"), failed("/home/me/net.py", "KeyError: 'teacher'")
    said = failures.plainly(WorkerGroupError("two failed", {0: waited, 1: of_user}))
    assert isinstance(said, ResourceError)
    assert str(said) == "a Ray process failed (KeyError: 'teacher', at /home/me/net.py, line 7); see --verbose"
    assert "(RuntimeError: peer closed); see" in str(failures.plainly(WorkerGroupError("one failed", {0: waited})))
    died = failures.plainly(WorkerGroupError("it died", {0: ray.exceptions.WorkerCrashedError()}))
    assert "Ray gave up after 3 tries (WorkerGroupError" in str(died)


def test_a_worker_reports_at_once_what_a_line_of_the_users_raised() -> None:
    def of(error: Exception) -> BendError | None:
        try:
            raise error
        except Exception as raised:
            return failures.of_users_code(raised)

    assert "KeyError: 'teacher', at" in str(of(KeyError("teacher")))
    assert of(OSError("the disk")) is None and of(MemoryError()) is None
    assert failures.of_users_code(RuntimeError("never raised")) is None
