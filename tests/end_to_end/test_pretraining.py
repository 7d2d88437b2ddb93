"""Pretraining writes weights that another run loads."""

import numpy as np

from tests.end_to_end.command import TINY, results, run_in_process

SIZES = {"dim": 32, "depth": 2, "heads": 2, "patch_size": 16}


def test_pretrained_weights_go_into_another_run(tmp_path):
    sizes = [f"--config.network.{key}={value}" for key, value in SIZES.items()]
    run_in_process(
        "--config", "configs/pretrain_glyph.py:data=glyph_mini,network=mini_student",
        "--workdir", tmp_path / "pretrain",
        "--config.data.part=pretraining", "--config.train.epochs=3", *sizes,
    )  # fmt: skip
    content = results(tmp_path / "pretrain")
    assert content["networks"]["network"]["metrics"]["last"] > 4 * 100 / 62  # four times chance
    saved = np.load(tmp_path / "pretrain" / "weights.npz")
    assert saved["patch_embed.proj.weight"].shape == (32, 3, 16, 16)
    assert saved["blocks.1.mlp.fc2.bias"].dtype == np.float16
    assert not [name for name in saved if name.startswith("head")]

    weights = f"--config.teacher.weights={tmp_path / 'pretrain' / 'weights.npz'}"
    run_in_process(
        "--config", TINY, "--workdir", tmp_path / "run", weights, "--config.data.num_tasks=2", "--config.train.epochs=1"
    )
    assert results(tmp_path / "run")["status"] == "finished"
