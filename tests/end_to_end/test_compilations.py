"""A longer stream compiles nothing more: tasks differ in arrays only."""

import jax.monitoring
import pytest

from cdl_jax import main
from tests.end_to_end.command import ROOT, TINY

SEEDS = ["configs/quickstart.py:distill=none", "--config.train.epochs=1", "--config.data.max_train_per_class=16",
         "--config.train.batch_size=16", "--config.seeds=(0,3)"]  # fmt: skip
PEERS = ["configs/okddip_glyph.py:epochs=1", "--config.data.max_train_per_class=16", "--config.train.batch_size=16"]


@pytest.mark.parametrize("config", [[f"{TINY}:learner=l2p"], PEERS, SEEDS], ids=["cdl", "okddip", "seeds"])
def test_two_and_six_tasks_compile_equally_often(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    counts = {}
    for tasks in (2, 2, 6):  # the first run also compiles what the process keeps for all later ones
        compiled.clear()
        code = main.main(
            ["--config", *config, "--workdir", str(tmp_path / f"{len(counts)}-{tasks}"),
             f"--config.data.num_tasks={tasks}", "--config.data.class_order=" + ",".join(map(str, range(12)))]
        )  # fmt: skip
        assert code == 0, capsys.readouterr().err
        counts[tasks] = len(compiled)
    assert counts[2] > 0
    assert counts[2] == counts[6]
