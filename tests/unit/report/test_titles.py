"""Titles of runs."""

from cdl_jax.report import titles

TWO = {"stream": {"name": "toy", "num_tasks": 2}}


def test_a_title_has_learner_scheme_and_data():
    config = {"method": "cdl", "learner": {"name": "coda"}, "distill": {"name": "kd"}}
    assert titles.run_title(TWO, config) == "CODA-Prompt with logit distillation on toy, 2 tasks"
    assert titles.run_title(TWO, {**config, "distill": {"name": "none"}}) == "CODA-Prompt on toy, 2 tasks"
    one = {"stream": {"name": "toy", "num_tasks": 1}}
    assert titles.run_title(one, {"method": "okddip"}) == "OKDDip on toy, 1 task"
    both = {"method": "vkd", "distill": {"name": "vkd"}}
    assert titles.run_title(one, both) == "VkD for classification on toy, 1 task"
    streams = {"method": "dkt", "learner": {"name": "l2p"}}
    assert titles.run_title(TWO, streams) == "DKT of L2P learners on toy, 2 tasks"
    detector = {"method": "vidt", "distill": {"name": "projected_tokens"}}
    assert titles.run_title(TWO, detector) == "ViDT with VkD for detectors on toy, 2 tasks"


def test_plugins_of_a_user_have_their_own_names():
    assert titles.run_title(TWO, {"learner": {"name": "mine.learner"}}) == "mine.learner on toy, 2 tasks"


def test_networks_have_the_names_of_their_sizes():
    small = {"family": "vit", "dim": 384, "depth": 12, "heads": 6, "patch_size": 16, "image_size": 224}
    base = {**small, "dim": 768, "heads": 12}
    assert titles.network_title({"student": small, "teacher": base}) == "vit_b16 teaches vit_s16"
    assert titles.network_title({"network": {**small, "dim": 8}, "seed": 0}) == "vit"
    assert titles.network_title({"seed": 0}) == ""
