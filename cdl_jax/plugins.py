"""What a config names: modules, and entries of tables."""

import ast
import difflib
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from cdl_jax.errors import UserError


class UnknownPluginError(UserError):
    """No plug-in has the name that a config gives."""


# What a plug-in of each folder defines at its top level. A file that lacks one of these is a helper.
_CONTRACTS = {
    "methods": ("build", "defaults"),
    "distill": ("build", "OPTIONS"),
    "models": ("build", "variant", "SIZES"),
    "models.prompts": ("build", "OPTIONS"),
    "data.sources": ("load", "OPTIONS"),
    "published": ("build", "IDENTITY"),
}

# Option, flag or name -> what other projects call it, in lower case. Of several that are known the first is offered.
_WORDS = {
    "optim.learning_rate": "lr base_lr init_lr rate",
    "optim.weight_decay": "wd decay l2",
    "optim.name": "optimizer opt optim",
    "optim.schedule": "scheduler lr_scheduler sched lr_schedule",
    "optim.warmup_epochs": "warmup",
    "optim.clip_norm": "grad_clip clip_grad max_grad_norm gradient_clip_val clip",
    "optim.accumulate": "accumulation gradient_accumulation_steps accumulate_grad_batches iter_size",
    "train.batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size",
    "train.epochs": "num_epochs n_epochs nb_epochs max_epochs num_train_epochs epoch",
    "devices": "gpus gpu num_gpus n_gpu ngpus device num_devices",
    "workers": "num_workers n_workers nworkers",
    "seed": "random_seed random_state manual_seed",
    "data.name": "dataset data_set ds dataset_name",
    "data": "dataset data_set ds dataset_name",
    "data.path": "data_dir data_path data_root dataroot datadir root dataset_path",
    "data.num_tasks": "tasks n_tasks nb_tasks num_task n_experiences",
    "tasks": "num_tasks n_tasks nb_tasks",
    "network": "backbone arch architecture model net model_name",
    "student": "backbone arch architecture model net model_name",
    "network.family": "backbone arch architecture model net model_name",
    "student.family": "backbone arch architecture model net model_name",
    "network.image_size": "img_size input_size resolution imgsz",
    "student.image_size": "img_size input_size resolution imgsz",
    "network.weights": "pretrained checkpoint_path pretrained_path ckpt",
    "student.weights": "pretrained checkpoint_path pretrained_path ckpt",
    "network.dtype": "precision amp fp16 bf16",
    "student.dtype": "precision amp fp16 bf16",
    "distill.temperature": "t tau temp kd_t",
    "kd.temperature": "t tau temp kd_t",
    "learner.pool": "pool_size size",
    "learner.length": "prompt_length prompt_len e_p_length",
    "workdir": "output_dir output out outdir save_dir logdir log_dir exp_name resume",
    "mode": "eval evaluate test train",
    "coda": "codaprompt coda_prompt",
    "fitnets": "hint hints",
    "kd": "hinton vanilla_kd logits",
    "none": "no off ce baseline",
    "supervised": "finetune finetuning ce",
    "nearest_mean": "ncm nme",
}


def list_plugins(folder: str) -> list[str]:
    """Returns the names of the plug-ins in `cdl_jax.<folder>`, sorted; they are parsed, not imported.

    folder: a key of `_CONTRACTS`.
    """
    package = importlib.import_module(f"cdl_jax.{folder}")
    paths = {m.name: Path(m.module_finder.path) / f"{m.name}.py" for m in pkgutil.iter_modules(package.__path__)}
    wanted = set(_CONTRACTS[folder])
    return sorted(name for name, path in paths.items() if path.is_file() and wanted <= _top_level(path))


@functools.cache
def _top_level(path):
    """Names of the functions and values that a file defines at its top level."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


def did_you_mean(word: str, known) -> str:
    """Returns a hint for a mistyped word: the closest known one, then all of them where they are few.

    Case has no effect, a key's section may be absent, and other projects' words are translated by `_WORDS`.
    """
    known = sorted(str(k) for k in known if str(k))
    folded = {key.casefold(): key for key in known}
    word = word.casefold()
    tail = word.split(".")[-1].replace("-", "_")
    elsewhere = [name for name, words in _WORDS.items() if tail in words.split()]
    same = [k for name in elsewhere for k in known if k == name or k.endswith(f".{name}")]
    same += sorted((k for k in known if k.casefold().split(".")[-1] == tail), key=lambda k: ("train." not in k, len(k)))
    close = difflib.get_close_matches(word, folded, n=1, cutoff=0.5)
    found = folded.get(word) or next(iter(same), None) or (folded[close[0]] if close else None)
    hint = f"did you mean {found!r}? " if found else ""
    return hint + (f"known: {', '.join(known)}" if len(known) <= 30 else "")


def load_plugin(folder: str, name: str) -> ModuleType:
    """Imports `cdl_jax.<folder>.<name>`, or `name` itself where it is a dotted path such as `my_package.my_scheme`.

    A new scheme or learner is therefore one new file and nothing else.

    Raises:
      UnknownPluginError: there is no such module; the message names the nearest one.
      UserError: the module does not define `build`.
    """
    own = "." not in name
    path = f"cdl_jax.{folder}.{name}" if own else name
    try:
        if (name in list_plugins(folder)) if own else all(name.split(".")) and importlib.util.find_spec(path):
            module = importlib.import_module(path)
            if "build" in _CONTRACTS[folder] and not hasattr(module, "build"):
                raise UserError(f"{name} is no plug-in of {folder}: it does not define build")
            return module
    except ModuleNotFoundError as error:
        if error.name is None or not (path + ".").startswith(error.name + "."):
            raise  # the module exists; something that it imports does not
    raise UnknownPluginError(f"no module {name!r} in {folder}: {did_you_mean(name, list_plugins(folder))}")


def lookup(table: Mapping, name: str, what: str):
    """`table[name]`.

    Raises:
      UserError: there is no `what` of this name.
    """
    if name not in table:
        raise UserError(f"no {what} of the name {name!r}: {did_you_mean(name, table)}")
    return table[name]
