"""CDL's published results: complete tables, and an experiment for each cell."""

from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import pytest

from cdl_jax import config as configs
from cdl_jax import published
from cdl_jax.data import stream
from cdl_jax.data.sources import cifar100, imagenet_r
from cdl_jax.errors import UserError
from cdl_jax.published import cdl
from cdl_jax.training.experiment import Experiment
from configs.cdl import get_config
from tests.support.contexts import context

TABLE = published.table("cdl")
CELLS = {tuple(cell.choices.values()): cell for cell in TABLE.cells}
LEARNERS = ("l2p", "dualprompt", "coda", "apt")
SCHEMES = ("none", "kd", "dkd", "fitnets", "reviewkd", "deit", "kd_token")
PAIRS = (("vit_b16", "vit_s16"), ("vit_l16", "vit_b16"))


def values(version, data, learner, distill, teacher, student):
    cell = CELLS[version, data, learner, distill, teacher, student]
    return cell.values["accuracy"], cell.values["forgetting"]


def flat_config(**choices):
    return configs.flatten(cdl.build(**choices))


def differing_settings(a, b):
    return {key: (a.get(key), b.get(key)) for key in {*a, *b} if a.get(key) != b.get(key)}


@cache
def tasks(data):
    source = {"cifar100": cifar100, "imagenet_r": imagenet_r}[data]
    return stream.split_into_tasks(source.placeholder({}), num_tasks=10)


def test_every_row_of_every_version_is_stored_once():
    assert "cdl" in published.systems()
    assert len(CELLS) == len(TABLE.cells) == 310
    # v4: 4 learners, 7 rows, 2 pairs, 2 data sets. v1: 3 learners, 4 sizes without and 3 with a teacher, 2 data sets.
    assert Counter(choices[0] for choices in CELLS) == {"v1": 42, "v2": 72, "v3": 84, "v4": 112}
    assert Counter(choices[3] for choices in CELLS if choices[0] == "v4") == dict.fromkeys(SCHEMES, 16)
    assert Counter(choices[3] for choices in CELLS if choices[0] == "v1") == {"none": 24, "prompt_mapping": 18}
    assert list(TABLE.metrics) == ["accuracy", "forgetting"]
    assert all(40 < cell.values["accuracy"] < 90 and 1 < cell.values["forgetting"] < 15 for cell in TABLE.cells)


@pytest.mark.parametrize(
    ("choices", "numbers"),
    [
        ("v4 cifar100 l2p none - vit_s16", (77.71, 7.12)),
        ("v4 cifar100 l2p kd vit_b16 vit_s16", (79.64, 6.35)),
        ("v4 cifar100 dualprompt fitnets vit_l16 vit_b16", (83.12, 8.33)),
        ("v4 imagenet_r coda kd_token vit_b16 vit_s16", (71.92, 5.61)),
        ("v4 imagenet_r apt kd_token vit_l16 vit_b16", (79.83, 3.87)),
        ("v3 imagenet_r l2p deit vit_b16 vit_s16", (64.99, 3.83)),
        ("v2 cifar100 coda kd_token vit_l16 vit_b16", (88.10, 5.39)),
        ("v2 imagenet_r dualprompt reviewkd vit_l16 vit_b16", (72.19, 5.72)),
        ("v1 cifar100 l2p prompt_mapping vit_b16 vit_ti16", (67.61, 10.99)),
        ("v1 imagenet_r coda none - vit_l16", (78.79, 4.46)),
    ],
)
def test_stored_numbers_equal_the_papers(choices, numbers):
    assert values(*(part.strip("-") for part in choices.split())) == numbers


def test_version_3_is_version_4_without_apt():
    third, fourth = ({k[1:]: c.values for k, c in CELLS.items() if k[0] == v} for v in ("v3", "v4"))
    assert third == {choices: numbers for choices, numbers in fourth.items() if choices[1] != "apt"}


def test_d_cdl_has_the_best_accuracy_in_16_columns_and_the_least_forgetting_in_9():
    best, least = 0, 0
    for data in ("cifar100", "imagenet_r"):
        for learner in LEARNERS:
            for teacher, student in PAIRS:
                rows = {s: values("v4", data, learner, s, "" if s == "none" else teacher, student) for s in SCHEMES}
                best += max(rows, key=lambda s: rows[s][0]) == "kd_token"
                least += min(rows, key=lambda s: rows[s][1]) == "kd_token"
    assert (best, least) == (16, 9)


def test_notes_state_the_age_of_a_number():
    notes = Counter(cell.note for cell in TABLE.cells if cell.choices["version"] in ("v2", "v4"))
    assert notes["unchanged since v2"] == 41 and notes["unchanged since v1"] == 17
    assert CELLS["v4", "cifar100", "l2p", "kd", "vit_l16", "vit_b16"].note == "80.96 / 10.17 in v2"
    assert "stale" in CELLS["v4", "imagenet_r", "l2p", "none", "", "vit_s16"].note
    assert CELLS["v4", "imagenet_r", "coda", "kd_token", "vit_b16", "vit_s16"].note == ""


def test_settings_shared_by_all_cells():
    for cell in TABLE.cells:
        config = flat_config(**cell.choices)
        assert config["data.name"] == cell.choices["data"] and config["data.num_tasks"] == 10
        assert config["data.class_order"] == "natural" and config["cdl.teacher_query"] == "student"
        assert (config["augment.train"], config["augment.flip"]) == ("random_resized_crop", True)
        assert (config["augment.scale"], config["augment.mean"], config["augment.std"]) == ([0.08, 1.0], [], [])
        assert [config[f"optim.{key}"] for key in ("name", "learning_rate", "schedule", "betas", "eps")] == [
            "adam", 1e-3, "cdl_cosine", [0.9, 0.999], 1e-8,
        ]  # fmt: skip
        assert config["optim.weight_decay"] == config["optim.clip_norm"] == 0
        assert config["train.epochs"] == {"cifar100": 20, "imagenet_r": 35}[cell.choices["data"]]
        large = cell.choices["teacher"] == "vit_l16" or cell.choices["student"] == "vit_l16"
        assert config["train.batch_size"] == (32 if large else 64)
        assert config["cdl.aux_loss_scale"] == 1
        if cell.choices["distill"] != "none":
            assert config["distill.alpha"] == 0.5
            assert config["distill.temperature"] == (4 if cell.choices["distill"] == "dkd" else 2)


@pytest.mark.parametrize(
    ("choices", "section", "expected"),
    [
        ({"learner": "l2p"}, "learner", {"pool": 30, "length": 20, "top_k": 5, "deep": False, "key_loss": "mean"}),
        ({"learner": "l2p", "version": "v2"}, "learner", {"key_loss": "legacy_sum"}),
        ({"learner": "dualprompt", "version": "v1"}, "learner", {"key_loss": "legacy_sum"}),
        ({"learner": "dualprompt"}, "learner", {"length": 20, "general_length": 6, "general_layers": 2}),
        ({"learner": "coda"}, "learner", {"pool": 100, "length": 8, "ortho": 0.0, "layers": 5}),
        ({"learner": "apt"}, "learner", {"ema": 0.7, "teacher_prompts": "live"}),
        ({"data": "cifar100"}, "augment", {"test": "resize"}),
        ({"data": "imagenet_r"}, "augment", {"test": "resize_center_crop", "resize": 256}),
        ({"distill": "dkd"}, "distill", {"target_weight": 1.0, "other_weight": 4.0}),
        ({"distill": "fitnets"}, "distill", {"feature_weight": 0.1}),
        ({"distill": "reviewkd"}, "distill", {"feature_weight": 0.2, "levels": 0}),
        ({"distill": "kd_token"}, "distill", {"variant": "dcdl", "n_layers": 12, "length": 6, "token_init": ""}),
        ({"distill": "deit"}, "distill", {"name": "kd_token", "variant": "dcdl", "n_layers": 1, "token_init": ""}),
        ({"distill": "kd_token", "version": "v2"}, "distill", {"variant": "deit", "token_init": ""}),
        ({"distill": "prompt_mapping", "version": "v1"}, "distill", {"counter": "fixed", "mapping": "pool"}),
        ({"distill": "prompt_mapping", "version": "v1"}, "cdl", {"schedule": "interleaved"}),
        ({"distill": "prompt_mapping", "version": "v1"}, "cdl", {"student_schedule": "constant"}),
        ({"distill": "none", "version": "v1"}, "cdl", {"schedule": "teacher_first", "student_schedule": ""}),
        ({"student": "vit_ti16"}, "teacher", {"dim": 768, "depth": 12}),
        ({"student": "vit_b16"}, "teacher", {"dim": 1024, "depth": 24}),
        ({"student": "vit_s16", "teacher": "vit_l16"}, "train", {"batch_size": 32}),
    ],
)
def test_settings_of_one_choice(choices, section, expected):
    config = cdl.build(**choices).to_dict()[section]
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        # Means over the halves of a batch, summed.
        ({"learner": "l2p"}, {"cdl.aux_loss_scale": (1.0, 2.0)}),
        ({"learner": "dualprompt", "distill": "kd_token"}, {"cdl.aux_loss_scale": (1.0, 2.0)}),
        # The sum over both halves is that of the batch; pairs within the halves are half of all pairs.
        ({"learner": "dualprompt", "version": "v2"}, {}),
        ({"learner": "l2p", "version": "v2"}, {"cdl.aux_loss_scale": (1.0, 0.5)}),
        ({"learner": "coda"}, {}),
        ({"learner": "coda", "distill": "fitnets"}, {"distill.feature_weight": (0.1, 0.2)}),
        ({"learner": "coda", "distill": "reviewkd"}, {"distill.feature_weight": (0.2, 0.4)}),
        ({"learner": "apt"}, {"learner.teacher_prompts": ("live", "merged")}),
    ],
)
def test_reference_adds_only_the_deviations_of_the_authors_code(choices, expected):
    assert differing_settings(flat_config(**choices), flat_config(**choices, reference=True)) == expected


def test_key_loss_summed_over_two_half_batches_is_half_of_the_full_sum():
    from cdl_jax import plugins

    def pull(learner, images):
        options = cdl.build(version="v2", learner=learner).learner
        pool = plugins.load_plugin("models.learners", learner).build(options, dim=8, key_dim=8, depth=12, num_tasks=10)
        variables = pool.init(jax.random.key(1), images[:1], context(), True)
        return float(pool.apply(variables, images, context(), True).loss)

    images = jax.random.normal(jax.random.key(0), (64, 8))
    for learner, scale in (("dualprompt", 1.0), ("l2p", 0.5)):
        halves = pull(learner, images[:32]) + pull(learner, images[32:])
        assert halves == pytest.approx(scale * pull(learner, images), rel=0.02)


def test_the_config_file_accepts_the_keys_of_cells():
    for cell in TABLE.cells[::7]:
        text = ",".join(f"{key}={value}" for key, value in cell.choices.items())
        assert configs.flatten(get_config(text)) == flat_config(**cell.choices)
    assert get_config("reference=true").cdl.aux_loss_scale == 2
    assert differing_settings(configs.flatten(get_config()), flat_config(**TABLE.cells[-1].choices))["data.name"] == (
        "cifar100", "imagenet_r",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version=v5", "version='v5': did you mean 'v4'"),
        ("data=cifar10", "data='cifar10': did you mean 'cifar100'"),
        ("distil=kd", "did you mean 'distill'"),
        ("distill=deitt", "distill='deitt': no row of version v4 and no scheme; did you mean 'deit'"),
        ("distill=deit,version=v2", "distill='deit': no row of version v2"),
        ("student=vit_l16", "student=vit_l16: the papers give it no teacher"),
        ("student=vit_x16", "vit_x16"),
        ("reference=2", "is not of type bool"),
    ],
)
def test_a_wrong_argument_is_a_one_line_error(text, message):
    with pytest.raises(UserError) as error:
        get_config(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_cell_builds_an_experiment():
    for cell in TABLE.cells:
        for reference in (False, True):
            program = Experiment.build(cdl.build(**cell.choices, reference=reference), tasks(cell.choices["data"]))
            alone = cell.choices["distill"] == "none"
            assert program.method.networks == (("student",) if alone else ("teacher", "student"))


def trace_loss_terms(choices, every_phase=False):
    """Returns the loss terms of each update in a cell's last phase, or in every phase.

    The updates are traced with the shapes of a batch of two images.
    """
    method = Experiment.build(cdl.build(**choices, reference=True), tasks(choices["data"])).method
    variables = jax.eval_shape(method.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    terms = []
    for phase in method.phases if every_phase else method.phases[-1:]:
        batch = {"images": images, "labels": jax.ShapeDtypeStruct((2,), jnp.int32)}
        for update in phase.updates:
            total, outcome = jax.eval_shape(update.loss, variables, batch, jax.eval_shape(context))
            assert total.shape == ()
            batch |= outcome.batch
            terms.append(set(outcome.metrics))
    return terms


COMMON = {"loss", "cross_entropy", "pool"}
TERMS = {"none": set(), "dkd": {"dkd", "tckd", "nckd"}, "fitnets": {"kd", "feature"}, "reviewkd": {"kd", "feature"}}


@pytest.mark.parametrize("pair", [0, 1])
@pytest.mark.parametrize("distill", SCHEMES)
def test_every_scheme_traces_in_both_pairs(distill, pair):
    # With two learners each, so that all learners are covered; `--mode describe` goes through every cell in minutes.
    learner = LEARNERS[(SCHEMES.index(distill) + 2 * pair) % 4]
    teacher, student = PAIRS[pair]
    choices = CELLS["v4", "imagenet_r", learner, distill, "" if distill == "none" else teacher, student].choices
    assert trace_loss_terms(choices) == [COMMON | TERMS.get(distill, {"kd"})]


@pytest.mark.parametrize(("learner", "student"), [("l2p", "vit_b16"), ("dualprompt", "vit_ti16"), ("coda", "vit_ti16")])
def test_version_1_trains_both_networks_at_once(learner, student):
    choices = {"version": "v1", "data": "cifar100", "learner": learner, "distill": "prompt_mapping", "student": student}
    both, student_terms = trace_loss_terms(choices, every_phase=True)
    assert both == {f"teacher_{term}" for term in COMMON} and student_terms == COMMON | {"kd"}


def test_version_2_trains_a_large_teacher_and_then_a_student_with_a_token():
    choices = {"version": "v2", "data": "cifar100", "learner": "coda", "distill": "kd_token", "student": "vit_b16"}
    assert trace_loss_terms(choices, every_phase=True) == [COMMON, COMMON | {"kd"}]
