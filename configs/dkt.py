"""Distributed Knowledge Transfer on Split CIFAR-100: the authors' experiments.

The three experiments have 10 tasks of 10 classes.

    python -m cdl_jax.fetch cifar100
    python -m cdl_jax.main --config configs/dkt.py:baseline=joint --workdir runs/dkt/joint
    python -m cdl_jax.main --config configs/dkt.py:experiment=joint_teacher,teacher=runs/dkt/joint --workdir runs/dkt/1
    python -m cdl_jax.main --config configs/dkt.py:baseline=lwf --workdir runs/dkt/lwf
    python -m cdl_jax.main --config configs/dkt.py:experiment=continual_teacher,teacher=runs/dkt/lwf \
        --workdir runs/dkt/2
    python -m cdl_jax.main --config configs/dkt.py --workdir runs/dkt/3

experiment   two_learners: two learners teach each other, on streams of different order; joint_teacher: the teacher was
             trained on all classes; continual_teacher: the teacher is a continual learner after the same task
baseline     instead of an experiment: naive (fine-tuning), replay (fine-tuning with a memory, which the authors call
             naive), lwf and eeil (teachers of the second experiment), joint (all classes in one task: teacher of
             the first)
teacher      the working directory of a finished run with the same class order (`data.class_order_seed`)
keep_order   for continual_teacher: the student has the teacher's class order, or its own
network      slim_resnet18, resnet32_padded, resnet18_32px, resnet34_32px; "": the first, for eeil the second, for
             joint the last
reference    as the authors' code, including its defects: the table in docs/methods/dkt.md
"""

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.errors import UserError

# Epochs per task, weight of the ST loss and learning rate. In joint_teacher, the authors' first experiment, the
# argument 0.01 never reaches the optimizer.
EXPERIMENTS = {
    "two_learners": {"epochs": 800, "kd_rel": 0.01, "rate": 0.01},
    "joint_teacher": {"epochs": 300, "kd_rel": 5.0, "rate": 0.001},
    "continual_teacher": {"epochs": 800, "kd_rel": 0.5, "rate": 0.01},
}
BASELINES = {"naive": "supervised", "replay": "supervised", "lwf": "lwf", "eeil": "eeil", "joint": "supervised"}
NETWORKS = {"joint": "resnet34_32px", "eeil": "resnet32_padded"}
MEMORY = 2000


def get_config(text=""):
    choices = base.arguments(
        text, experiment="two_learners", baseline="", teacher="", keep_order=False, network="", data="cifar100",
        tasks=10, epochs=0, seed=0, reference=False,
    )  # fmt: skip
    for key, known in {"experiment": EXPERIMENTS, "baseline": {"": "", **BASELINES}}.items():
        if choices[key] not in known:
            raise UserError(f"config argument {key}={choices[key]!r}: {plugins.did_you_mean(choices[key], known)}")
    baseline = choices["baseline"]
    network = choices["network"] or NETWORKS.get(baseline, "slim_resnet18")
    config = base.default(BASELINES.get(baseline, "dkt"), data=choices["data"], network=network)
    config.seed = choices["seed"]
    config.data.update(num_tasks=choices["tasks"], class_order="shuffle")
    config.augment.update(train="pad_crop", flip=True, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    config.train.batch_size = 256
    config.eval.update(batch_size=512, forward_transfer=False)
    config.optim.schedule = "constant"
    if baseline:
        _baseline(config, baseline, network, choices["reference"])
    else:
        _experiment(config, choices)
    config.train.epochs = choices["epochs"] or config.train.epochs
    if config.optim.schedule == "steps":  # only the milestones within the epochs of a task
        config.optim.milestones = tuple(m for m in config.optim.milestones if m < config.train.epochs)
    return config


def _baseline(config, baseline, network, reference):
    """Sets the options of a baseline or a teacher."""
    section = config[config.method]
    if baseline == "eeil":
        _eeil(config, section, reference)
        return
    section.classes = "all"
    if baseline == "joint":  # the authors' settings are unknown; these are common ones
        config.data.num_tasks = 1
        config.train.update(epochs=200, batch_size=128)
        config.optim.update(name="sgd", nesterov=True, learning_rate=0.1, weight_decay=5e-4)
        config.optim.update(schedule="steps", milestones=(100, 150))
        return
    section.replay = 0 if baseline == "naive" else MEMORY
    config.train.epochs = 150
    if baseline == "lwf":  # the best values of the authors' grid for the network
        config.train.update(epochs=50, batch_size=128)
        config.optim.update(learning_rate=0.01, schedule="steps", milestones=(30, 60, 90))
        section.update(alpha=1.5 if network == "resnet32_padded" else 1.0, temperature=2.0)
        if reference:
            section.update(lwf_active="last", previous_bn="batch")


def _eeil(config, section, reference):
    """Sets the best options of the authors' grid for EEIL."""
    config.train.update(epochs=70, batch_size=128)
    config.optim.update(name="sgd", learning_rate=0.1, weight_decay=1e-4, schedule="steps", milestones=(30, 60))
    section.update(replay=3000, temperature=3.0)
    if reference:
        section.update(softmax_over="batch", active="last", finetune_start_task=3, finetune_share="all")


def _experiment(config, choices):
    """Sets the options of an experiment.

    The learners have two heads, clipped gradients and a memory.
    """
    name, teacher, reference = choices["experiment"], choices["teacher"], choices["reference"]
    numbers, dkt = EXPERIMENTS[name], config.dkt
    config.train.epochs = numbers["epochs"]
    config.optim.update(learning_rate=numbers["rate"], clip_norm=5.0)
    dkt.update(kd_rel=numbers["kd_rel"], replay=MEMORY)
    if name == "two_learners":
        if teacher:
            raise UserError("config argument teacher: two_learners teach each other: use experiment=continual_teacher")
        dkt.update(num_learners=2, exchange_interval=10, exchange_unit="epochs")
    else:
        if not teacher:
            first = "baseline=joint" if name == "joint_teacher" else "baseline=lwf or baseline=eeil"
            raise UserError(f"experiment={name} needs teacher=WORKDIR of a finished run: train {first} first")
        dkt.update(num_learners=1, teacher_runs=(teacher,))
        dkt.teacher_checkpoint = "last" if name == "joint_teacher" else "same_task"
        dkt.stream_order = "same" if name == "joint_teacher" or choices["keep_order"] else "shuffled"
    if name == "joint_teacher":
        dkt.cutmix = 0.5
    if reference:
        dkt.update(teacher_bn="batch", cutmix_ramp="as_coded", cutmix_labels="original")
        # The peer is always current: it is not trained while the other learner is.
        dkt.update(update_order="sequential", exchange_interval=1, exchange_unit="tasks")
