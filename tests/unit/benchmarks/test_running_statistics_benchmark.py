"""The benchmark of running statistics: new statistics, and documented figures."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import running_statistics
from cdl_jax.run import results
from tests.unit.methods.test_dkt import batch, build

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def test_new_statistics_are_those_of_the_images_whatever_the_old_ones_were():
    method, images = build(1), batch(1)["images"][0]
    own = method.init(jax.random.key(0))["learner_0"]
    wanted = (images.reshape(6, -1) @ own["params"]["body"]).mean(axis=0)
    for old in (own, {**own, "batch_stats": {"mean": jnp.full(5, 7.0)}}):
        found = running_statistics._anew(method, old, images)
        np.testing.assert_allclose(found["batch_stats"]["mean"], wanted, atol=1e-5)
        assert found["params"] is own["params"]


def test_the_table_shows_the_last_task_and_the_largest_loss():
    found = {"runs": {"a/seed_0": {"running": [40.0, 70.0], "anew": [90.0, 72.5]}}}
    assert running_statistics.table(found).splitlines()[2] == "| a/seed_0 | 70.00 | 72.50 | 50.00 |"


def test_the_documents_show_the_stored_figures_which_are_the_runs():
    found = json.loads((RESULTS / "dkt" / "running_statistics.json").read_text())
    assert running_statistics.table(found) in (RESULTS / "dkt.md").read_text()
    for name, matrices in found["runs"].items():
        stored = results.read(RESULTS / "dkt" / name)
        np.testing.assert_allclose(
            matrices["running"][-1], stored["mean_over_learners"]["mean"]["metrics"]["last"], atol=1e-9
        )
