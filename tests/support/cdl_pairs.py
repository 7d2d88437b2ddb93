"""Every learner and every scheme with the smallest options, and their pairs.

The pairs are those that a stream can have.
"""

from cdl_jax import config as configs
from cdl_jax.methods import cdl
from cdl_jax.methods.base import StreamInfo

LEARNERS = {
    "aper": {"rank": 2},
    "aper ssf": {"adaptation": "ssf"},
    "aper vpt": {"adaptation": "vpt", "tokens": 2},
    "apt": {},
    "coda": {"pool": 4, "length": 2, "layers": 2, "ortho": 0.1},
    "dualprompt": {"length": 2, "general_length": 2, "general_layers": 1, "expert_layers": 1},
    "ease": {"rank": 2},
    "fine_tuning": {},
    "l2p": {"pool": 3, "length": 2, "top_k": 2},
    "l2p tokens": {"pool": 3, "length": 3, "top_k": 2, "prompt_form": "tokens", "batchwise": True},
    "lae": {"rank": 2, "layers": 2, "constant_epochs": 0},
    "lora": {"rank": 2},
    "lora sum": {"rank": 2, "per_task": "sum"},
    "none": {},
    "os_prompt": {"pool": 4, "length": 2, "layers": 2},
    "ranpac": {"projection": 6, "rank": 2},
    "slca": {"samples": 4},
}
SCHEMES = {
    "attention_transfer": {},
    "dist": {},
    "dkd": {},
    "fitnets": {},
    "kd": {},
    "kd_token": {"length": 2},
    "logit_standardization": {},
    "mse_logits": {},
    "none": {},
    "past": {},
    "pkt": {},
    "prompt_mapping": {"layers": 2},
    "prototypes": {},
    "relational": {},
    "reviewkd": {},
    "similarity_preserving": {},
    "vkd": {},
    "weighted_sum": {
        "terms": (
            "attention_transfer:alpha=0", "dist", "dkd", "fitnets", "kd", "logit_standardization", "mse_logits",
            "pkt:alpha=0", "prototypes:alpha=0", "relational:alpha=0", "reviewkd", "similarity_preserving:alpha=0",
            "vkd",
        ),
        "weights": (1.0,) * 13,
    },
}  # fmt: skip
SUMMED = {term.split(":")[0] for term in SCHEMES["weighted_sum"]["terms"]}  # traced with each learner in one sum
UNTRAINED = {"simple_cil"}  # learners without training by gradients, which have no scheme
FITTED = {"aper", "ease", "ranpac", "slca"}  # learners with a fitted head, which have no second head


def fits(learner, scheme):
    """Returns whether a learner can be used with a scheme."""
    if scheme == "prompt_mapping":
        return learner in ("coda", "dualprompt", "l2p")
    return scheme not in ("kd_token", "past") or learner.split()[0] not in FITTED


PAIRS = [(learner, scheme) for learner in LEARNERS for scheme in SCHEMES if fits(learner, scheme)]
STAR = [(learner, scheme) for learner, scheme in PAIRS if learner == "l2p" or scheme == "kd"]
OTHERS = [pair for pair in PAIRS if pair not in STAR]
TRACED = [(learner, scheme) for learner, scheme in OTHERS if scheme not in SUMMED]


def tiny_config(learner, scheme, **changes):
    """Returns the config of a pair for ViTs of two blocks."""
    config = configs.default("cdl", data="glyph_mini", learner=learner.split()[0], distill=scheme)
    config.learner.update(LEARNERS.get(learner, {}))
    config.distill.update(SCHEMES[scheme])
    for section, dim in (("teacher", 12), ("student", 8)):
        config[section].update(dim=dim, depth=2, heads=2, mlp_ratio=1.0, patch_size=8, image_size=16)
    config.update_from_flattened_dict(changes)
    configs.check(config)
    return config


def build(learner, scheme, **changes):
    """Builds a method for a stream of two tasks with two classes each."""
    return cdl.build(tiny_config(learner, scheme, **changes), StreamInfo(4, (2, 2)))
