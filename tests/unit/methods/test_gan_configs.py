"""The published cells of the GAN: schedule, terms and teacher of each config."""

import itertools

import pytest

from cdl_jax import config as configs
from configs import gan

# Data set and percent -> images, epochs, iterations of the generator. Source: scripts of KD-DLGAN and DiffAugment.
SCHEDULES = {
    ("cifar10", 100): (50_000, 1000, 250_000),
    ("cifar100", 100): (50_000, 2000, 500_000),
    ("cifar10", 20): (10_000, 5000, 250_000),
    ("cifar100", 20): (10_000, 5000, 250_000),
    ("cifar10", 10): (5_000, 5000, 125_000),
    ("cifar100", 10): (5_000, 5000, 125_000),
}


@pytest.mark.parametrize(("cell", "row"), list(itertools.product(SCHEDULES, gan.ROWS)))
def test_a_published_cell_has_its_schedule_and_terms(cell, row):
    (data, part), (images, epochs, iterations) = cell, SCHEDULES[cell]
    config = gan.get_config(f"data={data},part={part},row={row}")
    configs.check_keys(config)
    assert config.data.name == data and config.data.num_tasks == 1
    assert config.data.max_train == (0 if part == 100 else images)
    assert config.train.epochs == epochs and epochs * images // config.train.batch_size == iterations
    assert config.eval.every_epochs * images // config.train.batch_size == 4000
    assert config.gan.policy == ("" if row == "biggan" else "translation,cutout")
    assert config.gan.lecam_weight == (0.3 if row == "lecam" else 0)
    assert config.gan.vkd == ("literal" if row == "vkd" else "none")
    assert config.gan.kd_terms == (("aggregated",) if row == "kd_dlgan" else ())
    assert config.teacher.weights == ("ViT-B-32.pt" if row in ("kd_dlgan", "vkd") else "")
