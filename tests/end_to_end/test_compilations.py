"""A longer stream compiles nothing more: tasks differ in arrays only."""

import jax.monitoring
import pytest

from cdl_jax import main
from cdl_jax.run import loop
from tests.end_to_end.command import ROOT, TINY

SEEDS = ["configs/quickstart.py:distill=none", "--config.train.epochs=1", "--config.data.max_train_per_class=16",
         "--config.train.batch_size=16", "--config.seeds=(0,3)"]  # fmt: skip
PEERS = ["configs/okddip_glyph.py:epochs=1", "--config.data.max_train_per_class=16", "--config.train.batch_size=16"]


@pytest.mark.parametrize("config", [[f"{TINY}:learner=l2p"], PEERS, SEEDS], ids=["cdl", "okddip", "seeds"])
def test_nothing_is_compiled_after_the_second_task(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    compiled, after = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    save = loop.Checkpoints.save_task
    monkeypatch.setattr(loop.Checkpoints, "save_task", lambda *a: (save(*a), after.append(len(compiled))))
    code = main.main(
        ["--config", *config, "--workdir", str(tmp_path), "--config.log.report=False", "--config.data.num_tasks=4",
         "--config.data.class_order=" + ",".join(map(str, range(8)))]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    assert len(after) == 4 and after[0] > 0
    assert after[1] == after[3]
