"""Runs an experiment.

    python -m cdl_jax.main --config CONFIG[:key=value,...] [--workdir DIR] [--config.section.key=value ...]

--config CONFIG   a file, or a shipped config by its name: --config quickstart:distill=none
--workdir DIR     folder of the run; default: runs/<config>[-<arguments>]. The same command resumes the run.
                  If the folder has a run, --config may be omitted: the config is then read from its config.json.
--fetch           downloads the data set and the weights of the config if they are missing, then runs
--help            prints this text; with --config or --workdir also the options of the config, with their meanings
--list            lists configs, methods, learners, schemes, data sources and networks
--version         prints the version

--mode=train      (default) trains; resumes an interrupted run of the same command; prints the results of a finished run
--from DIR        trains a branch of the run in DIR: [--task T], the last task that it has from its parent (default: the
                  last), and other options, such as --config.optim.learning_rate=0.001; without --config it has those of
                  the parent. Default of --workdir: DIR-task<T>, or without --task
                  DIR-branch. The parent stays as it is
--mode=continue   --from DIR of a finished run: adds tasks behind its last one. --tasks FOLDER [FOLDER ...] are folders
                  of classes, a task each; or data options of a longer stream. Default of --workdir: DIR-continued
--mode=eval       evaluates the checkpoint after --task=T (default: the last) and compares it with the stored row;
                  of detectors it also prints COCO's numbers, and the average precision of each class
                  --on test|train|FOLDER|SOURCE[:key=value,...] evaluates classifiers on these images, whose classes are
                  found by their names, and writes RUN/eval/<name>.json: accuracy with and without the task given,
                  accuracy of classes, confusion matrix. [--corruptions all|fog,snow,...] [--severities 1,3,5] also on
                  copies with the corruptions of ImageNet-C (package imagecorruptions-imaug)
--mode=analyze    writes analysis.json from the checkpoints, and adds a section "Analysis" to the report: the drift of
                  the student from its teacher of earlier tasks, the accuracy without prompts, without the scheme's part
                  and with other weights of two heads, the selected prompts, the similarity of the networks' layers on
                  test images (linear CKA), and a t-SNE map of these images (if scikit-learn is installed; also in
                  features_<network>.svg)
--mode=predict    predicts the classes or boxes of --images PATH [PATH ...], files or folders, without the data set:
                  [--network NAME] [--task T] [--top_k 5] [--output FILE.json|FILE.csv]; of detectors also
                  [--threshold 0.3], the smallest score, and [--draw FOLDER], images with boxes
--mode=export     writes a network into --output FOLDER for serving: StableHLO, weights as .safetensors, class names,
                  a README with a loader, and a model card; [--network NAME] [--task T] [--onnx], also as ONNX
--mode=describe   prints tasks, parameters, operations and memory of a step; with --show_config the resolved config too;
                  trains nothing; published data sets may be missing
--distributed=off|auto|HOST:PORT,NUM_PROCESSES,PROCESS_ID   several processes; auto: settings of SLURM or the cloud

Exit code 0: done. 1: --mode=eval computed other numbers than the stored row. 2: a mistake in the command, the data or
the working directory, no memory or disk space left, or a loss that is NaN or infinite, reported in one line. 143, 130,
129, 138: ended by SIGTERM, SIGINT, SIGHUP or SIGUSR1, after the state was saved. 141: the reader of stdout closed the
pipe.
"""

import ast
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from cdl_jax import __version__
from cdl_jax.runtime import console

if TYPE_CHECKING:
    import ml_collections

_MODES = ("train", "continue", "eval", "analyze", "predict", "export", "describe")
# Flag -> the modes that have it; other flags belong to all modes.
_FLAGS_OF_MODES = {
    "task": ("eval", "predict", "export"),
    **dict.fromkeys(("on", "corruptions", "severities"), ("eval",)),
    "from": ("train", "continue", "describe"),
    "tasks": ("continue",),
    "onnx": ("export",),
    **dict.fromkeys(("network", "output"), ("predict", "export")),
    **dict.fromkeys(("top_k", "threshold", "draw", "images"), ("predict",)),
}
_FLAGS = ("config", "workdir", "mode", "distributed", "fetch", "show_config", *_FLAGS_OF_MODES)
_HELP = ("--help", "-h", "-help")
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)  # the words of a command that change the config
_USAGE = """usage: python -m cdl_jax.main --config CONFIG [--workdir DIR] [--config.section.key=value ...]

  python -m cdl_jax.main --config quickstart          a first run, in a minute on a CPU
  python -m cdl_jax.main --config cifar100_l2p --fetch
  python -m cdl_jax.main --workdir runs/cifar100_l2p --mode eval

  --list: configs, methods, learners, schemes, data sources, networks    --help: all flags    --version
  --config CONFIG --help: all options of a config, with their meanings"""


@console.command
def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments without the program's name. None: those of the process.

    Returns:
      The exit code.
    """
    from cdl_jax.errors import MissingFileError, UserError

    try:
        code = _main(sys.argv if argv is None else ["cdl_jax", *argv], owns_process=argv is None)
        if sys.stdout is not None:  # None: the command was started without a standard output
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        raise  # `console.command` ends quietly
    except MissingFileError as error:
        _print_error(f"{error}; rerun the command with --fetch to download it")
    except UserError as error:
        _print_error(str(error))
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except (Exception, SystemExit) as error:
        from cdl_jax import plugins
        from cdl_jax.runtime import environment

        console.discard_stdout()
        line = environment.explain_error(error) or plugins.explain_error(error)
        if line is None:
            raise
        _print_error(line)
    return 2


def _print_error(text):
    print("cdl_jax: " + " ".join(text.split()), file=sys.stderr)


def _main(argv, owns_process):
    words = argv[1:]
    if not words:
        print(_USAGE, file=sys.stderr)
        return 2
    if any(word in _HELP for word in words):
        _print_help(argv)
        return 0
    if "--version" in words:
        print(f"cdl_jax {__version__}")
        return 0
    if "--list" in words:
        from cdl_jax.run import listing

        print(listing.render_list())
        return 0
    from cdl_jax.runtime import signals

    # With several processes in training, none ends alone: the others would fail before they save.
    together = _flag_value(argv, "distributed") not in (None, "off") and _flag_value(argv, "mode") in (None, "train")
    try:
        with signals.handle_signals(alone=not together) as handler:
            return _run(parse(argv), handler)
    except signals.RunInterrupted as stop:
        _print_error(str(stop))
        if owns_process and not together:  # an orderly exit waits for programs that threads are compiling
            signals.end_process(128 + stop.number)
        return 128 + stop.number


def _print_help(argv):
    """Prints the flags, and the options of the config that a command names."""
    print(__doc__.strip())
    if _flag_value(argv, "config") or _flag_value(argv, "workdir"):
        from cdl_jax.run import listing

        values = parse([word for word in argv if word not in _HELP])
        print(f"\n{listing.render_options(values.config)}")


def parse(argv: list[str]) -> SimpleNamespace:
    """Returns the values of the flags, with the resolved config as `config`.

    Args:
      argv: a command line with the program's name.

    Raises:
      UserError: a flag or a config key is wrong.
    """
    from cdl_jax import config as configs
    from cdl_jax.errors import UserError

    original = argv
    argv, images = _split_paths(argv, "images")
    argv, tasks = _split_paths(argv, "tasks")
    parent = _flag_value(argv, "from")
    argv, config, workdir = _load_config(argv, parent)
    values = _parse_flags(argv, config)
    values.images, values.tasks = images, tasks
    if tasks:
        values.config.data.append = (*values.config.data.append, *tasks)
    configs.check(values.config)
    if values.rest:
        raise UserError(f"unexpected argument {values.rest[0]!r}: flags start with --")
    _check_mode(values, parent)
    values.names_workdir = values.workdir is not None
    if not values.names_workdir and values.mode != "describe":
        values.workdir = branch_workdir(parent, values) if parent else workdir
    sys.argv = original  # `workdir` records the command
    return values


def _load_config(argv, parent):
    """Returns the command line without --config, the config, and a folder.

    The config is that of --config, else that of the run in --from or --workdir. Overrides are not applied yet, except
    for the data source. The folder is the working directory of a command without --workdir; None if no config file
    determines it.

    Raises:
      UserError: there is no such config or run.
    """
    from cdl_jax import config as configs
    from cdl_jax import config_files

    workdir = None
    if text := _flag_value(argv, "config"):
        name, arguments = config_files.split_arguments(text)
        path = config_files.find(name)
        config, workdir = config_files.load_config(path, arguments), default_workdir(path, arguments)
        argv = _without_flag(argv, "config")
    else:
        config = _load_stored_config(*(("--from", parent) if parent else ("--workdir", _flag_value(argv, "workdir"))))
    if source := _flag_value(argv, "config.data.name"):
        config = configs.with_source(config, source)
    return argv, config, workdir


def _check_mode(values, parent):
    """Checks that the flags of a command fit its mode.

    Raises:
      UserError: the mode is unknown or lacks a flag, or a flag is empty or belongs to another mode.
    """
    from cdl_jax.errors import UserError
    from cdl_jax.plugins import did_you_mean

    if empty := [flag for flag in _FLAGS if vars(values).get(flag) in ("", [""])]:
        raise UserError(f"--{empty[0]} has an empty value: name one, or omit the flag")
    if values.mode not in _MODES:
        raise UserError(f"--mode={values.mode}: {did_you_mean(values.mode, _MODES)}")
    if values.mode == "continue" and parent is None:
        raise UserError(
            "--mode=continue needs the finished run that it continues: add --from DIR, and the continued run gets a "
            "--workdir of its own"
        )
    for flag, modes in _FLAGS_OF_MODES.items():
        if flag == "task" and parent is not None:
            modes = ("train", "describe")
        if (value := getattr(values, flag)) is not None and values.mode not in modes:
            modes_text = " or ".join(f"--mode={mode}" for mode in modes)
            value_text = "" if isinstance(value, list | bool) else f"={value}"
            raise UserError(f"--{flag}{value_text} needs {modes_text} instead of --mode={values.mode}: omit it")


def default_workdir(path: Path, arguments: str) -> str:
    """Returns the working directory of a command without --workdir.

    It is `runs/<config>[-<arguments>]`.

    Args:
      path: the config file.
      arguments: the text behind the colon; commas and slashes become dashes.

    >>> default_workdir(Path("configs/quickstart.py"), "distill=none,seed=3")
    'runs/quickstart-distill=none-seed=3'
    """
    suffix = "-" + arguments.replace(",", "-").replace("/", "-") if arguments else ""
    return f"runs/{path.stem}{suffix}"


def branch_workdir(parent: str, values: SimpleNamespace) -> str:
    """Returns the working directory of a branch without --workdir.

    Args:
      parent: folder of the run from which it branches.
      values: the flags `mode` and `task`.

    >>> branch_workdir("runs/a/", SimpleNamespace(mode="train", task=3))
    'runs/a-task3'
    """
    suffix = "branch" if values.task is None else f"task{values.task}"
    return f"{parent.rstrip('/')}-{'continued' if values.mode == 'continue' else suffix}"


def _load_stored_config(flag, workdir):
    """Returns the ConfigDict of the run in a folder.

    Args:
      flag: that names the folder.
      workdir: the folder, or None.

    Raises:
      UserError: `workdir` is None, or the folder has no run.
    """
    import ml_collections

    from cdl_jax import config
    from cdl_jax.errors import UserError
    from cdl_jax.runtime import paths

    remedy = "add --config: a file, or one of python -m cdl_jax.main --list"
    if workdir is None:
        raise UserError(f"--config is missing: {remedy}")
    content = config.read(paths.resolve(workdir, flag))
    if content is None:
        raise UserError(f"{flag} {workdir} has no run: {remedy if flag == '--workdir' else 'name the folder of one'}")
    # A run of an earlier version lacks later options, and used their defaults.
    stored = config.with_defaults(content["config"])
    return ml_collections.ConfigDict(config.copy_with_tuples(stored), type_safe=True)


def _parse_flags(argv, config):
    """Returns the values of the flags of a command line.

    absl's global flags are not changed.

    Args:
      argv: the command line without --config.
      config: a ConfigDict, which flags `--config.section.key=value` change.

    Raises:
      UserError: a flag or a config key is unknown, or a value is of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    from cdl_jax.config import flatten
    from cdl_jax.errors import UserError
    from cdl_jax.plugins import did_you_mean

    keys = flatten(config)
    _check_overrides(argv, keys)
    sys.argv = argv  # ml_collections reads the overrides from here when it defines the flag of a config
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("mode", "train", "", flag_values=values)
    for name in ("task", "top_k"):
        flags.DEFINE_integer(name, None, "", flag_values=values)
    flags.DEFINE_float("threshold", None, "", flag_values=values)
    for name in ("network", "output", "draw", "images", "from", "tasks", "on", "corruptions", "severities"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_string("distributed", "off", "", flag_values=values)
    flags.DEFINE_boolean("fetch", False, "", flag_values=values)
    flags.DEFINE_boolean("onnx", None, "", flag_values=values)
    flags.DEFINE_boolean("show_config", False, "", flag_values=values)
    try:
        config_flags.DEFINE_config_dict("config", config, "", lock_config=True, flag_values=values)
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, [*_FLAGS, *(f"config.{key}" for key in keys)])
        raise UserError(f"unknown flag --{error.flagname}: {hint}") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    return SimpleNamespace(rest=rest, **{name: values[name].value for name in _FLAGS})


def _check_overrides(argv, keys):
    """Checks the overrides of a command line.

    keys: the flat config.

    Raises:
      UserError: an override is of an unknown key, of a section, or of a tuple by a value of another kind, or negates a
        key that is not true or false.
    """
    from cdl_jax.errors import UserError
    from cdl_jax.plugins import did_you_mean

    for word, next_word in zip(argv[1:], [*argv[2:], ""], strict=False):
        if (match := _OVERRIDE.fullmatch(word)) is None:
            continue
        negated, key, value = match.groups()
        if options := [name for name in keys if key and name.startswith(f"{key}.")]:
            raise UserError(f"config.{key} is a section of options: set one of them, such as --config.{options[0]}=...")
        if key not in keys:
            raise UserError(f"unknown key config.{key}: {did_you_mean(key, keys)}")
        if negated and not isinstance(keys[key], bool):
            raise UserError(f"{word}: config.{key} is not true or false: write --config.{key}=VALUE")
        if isinstance(keys[key], list):
            text, literal = next_word if value is None else value, ()
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                literal = ast.literal_eval(text.strip())
            if isinstance(literal, dict | set | bytes | complex):
                raise UserError(
                    f"config.{key}={text} is of type {type(literal).__name__}: write a tuple, such as '(0,1)'"
                )


def _flag_value(argv, flag):
    """Returns the value of a flag, None if it is absent.

    absl is not used, because its errors have many lines.
    """
    for word, next_word in zip(argv[1:], [*argv[2:], None], strict=False):
        if word in (f"--{flag}", f"-{flag}"):
            return next_word
        if word.startswith((f"--{flag}=", f"-{flag}=")):
            return word.split("=", 1)[1]
    return None


def _split_paths(argv, flag):
    """Returns the command line without a flag, and the paths behind the flag.

    The paths of all occurrences are joined; None: the flag is absent.
    """
    index = next((i for i, word in enumerate(argv) if word.split("=")[0] in (f"--{flag}", f"-{flag}")), None)
    if index is None:
        return argv, None
    end = next((i for i in range(index + 1, len(argv)) if argv[i].startswith("-")), len(argv))
    _, is_joined, joined_path = argv[index].partition("=")
    rest, more_paths = _split_paths([*argv[:index], *argv[end:]], flag)
    return rest, [joined_path] * bool(is_joined) + list(argv[index + 1 : end]) + (more_paths or [])


def _without_flag(argv, flag):
    """Returns the command line without a flag and its value."""
    for index, word in enumerate(argv[1:], start=1):
        if word in (f"--{flag}", f"-{flag}"):
            return [*argv[:index], *argv[index + 2 :]]
        if word.startswith((f"--{flag}=", f"-{flag}=")):
            return [*argv[:index], *argv[index + 1 :]]
    return list(argv)


def _run(options, handler):
    from cdl_jax import config as configs
    from cdl_jax.errors import UserError
    from cdl_jax.runtime import compilation_cache, distributed, files, malloc, paths

    config = options.config
    malloc.retain_freed_memory()
    compilation_cache.enable_cache(config.compilation_cache)
    if options.mode != "describe":
        folder = paths.resolve(options.workdir, "--workdir")
        if options.distributed == "off":
            _print_workdir(options, folder)
    if options.fetch:
        if options.distributed != "off":
            raise UserError(
                "--fetch downloads in one process: rerun the command without --distributed, or use cdl_jax.fetch"
            )
        fetch_missing(config)
    if options.mode == "describe":
        from cdl_jax.run.describe import build_experiment, describe, load_or_placeholder

        distributed.check_spec(options.distributed)
        distributed.initialize("off")
        data, note = load_or_placeholder(config.data, configs.seeds_of(config)[0])
        _check_weight_paths(config)
        experiment, note_of_weights = build_experiment(config, data)
        _check_weights_are_named(experiment)
        print(note + note_of_weights, end="")
        for line in describe(experiment, show_config=options.show_config):
            print(line, flush=True)
        return 0
    if options.mode == "analyze":
        return _analyze(config, folder, options)
    is_elsewhere = options.mode == "eval" and any((options.on, options.corruptions, options.severities))
    if options.mode in ("predict", "export") or is_elsewhere:
        print(_with_loaded_run(config, folder, options))
        return 0
    if options.mode == "eval":
        _start_jax(options, folder)
        return _evaluate(config, folder, options.task)

    import jax

    from cdl_jax.report import run_page
    from cdl_jax.run import branching, start

    _start_jax(options, folder)
    if parent := getattr(options, "from"):
        parent, must_grow = paths.resolve(parent, "--from"), options.mode == "continue"
        seeds = branching.train(config, folder, parent, options.task, handler, must_grow=must_grow)
    else:
        seeds = start.train(config, folder, handler)
    if jax.process_index() == 0:
        print(run_page.summary(seeds))
        for seed_folder in files.seed_folders(folder, config.seeds):
            if (page := seed_folder / "report.html").exists() and config.log.report:
                print(f"report: {page}")
    return 0


def _check_weight_paths(config):
    """Raises UserError if weights have a path that no machine of this run can read.

    A local file may be missing.
    """
    from cdl_jax.runtime import paths

    for key, value in _weight_files(config):
        paths.resolve(value, f"config.{key}")


def _weight_files(config):
    """Yields (key, value) of each option that names a file of weights.

    Files of the package are left out. Without a scheme there is no teacher, and its weights are not read.
    """
    from cdl_jax import config as configs

    without_teacher = config.get("distill", {}).get("name") == "none"
    for key, value in configs.flatten(config).items():
        is_file = key.endswith(".weights") and value not in ("", "random") and not value.startswith("package:")
        if is_file and not (without_teacher and key == "teacher.weights"):
            yield key, value


def _check_weights_are_named(experiment):
    """Raises UserError if the command line empties weights that training would load.

    Some shipped configs leave the weights of a network empty for the user's file. They are described without this file.
    """
    from cdl_jax.errors import UserError

    config, method = experiment.config, experiment.method
    for section in ("teacher", "student", "network"):
        from_runs = section == "teacher" and config.get(config.method, {}).get("teacher_runs")
        flag = f"config.{section}.weights"
        emptied = any(argument.lstrip("-").split("=")[0] == flag for argument in sys.argv)
        if emptied and section in method.networks and not from_runs and config.get(section, {}).get("weights") == "":
            raise UserError(
                f"config.{section}.weights is empty: name a file of trained weights, which describe does not need to "
                "find, or set it to 'random'"
            )


def _start_jax(options, folder):
    """Starts jax.

    The first of several processes then prints the default working directory. A single process prints it before jax is
    loaded. Several processes get their numbers from jax.
    """
    from cdl_jax.runtime import distributed

    distributed.initialize(options.distributed)
    if options.distributed != "off":
        import jax

        if jax.process_index() == 0:
            _print_workdir(options, folder)


def _print_workdir(options, folder):
    if not options.names_workdir:
        print(f"workdir: {folder}", flush=True)


def fetch_missing(config: "ml_collections.ConfigDict") -> None:
    """Downloads the missing data set and weights of a config.

    The files are those that `cdl_jax.fetch` provides. The run reports other mistakes, such as a damaged archive, or a
    teacher's run instead of a file of weights.

    Raises:
      UserError: a download failed.
    """
    from cdl_jax import config as configs
    from cdl_jax import fetch
    from cdl_jax.data import stream
    from cdl_jax.errors import MissingFileError, UserError
    from cdl_jax.models import weights

    steps = [partial(stream.load, config.data, configs.seeds_of(config)[0])]
    steps += [partial(weights.find, value, key) for key, value in _weight_files(config)]
    for step in steps:
        try:
            step()
        except MissingFileError as missing:
            fetch.get(missing.fetch_name)
        except UserError:
            pass


def _stored_run(config, folder):
    """Returns the experiment of the run in a folder.

    Raises:
      UserError: the folder has no run, or a run of another config.
    """
    from cdl_jax.errors import UserError
    from cdl_jax.run import start, workdir

    if not (folder / "config.json").exists():
        raise UserError(f"--workdir {folder} has no run: train one with the same command and --mode=train")
    workdir.check_config(folder, config.to_dict())
    return start.build_experiment(config, folder)


def _analyze(config, folder, options):
    from cdl_jax.errors import UserError
    from cdl_jax.report import analysis_section
    from cdl_jax.run import analysis
    from cdl_jax.runtime import distributed

    if options.distributed != "off":
        raise UserError(f"--distributed={options.distributed}: --mode=analyze runs in one process: omit the flag")
    distributed.initialize("off")
    content = analysis.analyze(_stored_run(config, folder), folder)
    analysis.write(folder, content)
    print(analysis_section.summary(content))
    print(f"report: {folder / 'report.html'}")
    return 0


def _with_loaded_run(config, folder, options):
    """Returns the text that a mode with a loaded run prints.

    These modes are predict, export, and eval with --on or --corruptions.
    """
    from cdl_jax.errors import UserError
    from cdl_jax.run import api, export, predict, workdir
    from cdl_jax.runtime import distributed, paths

    if options.distributed != "off":
        raise UserError(
            f"--distributed={options.distributed}: --mode={options.mode} runs in one process: omit the flag"
        )
    distributed.initialize("off")
    workdir.check_config(folder, config.to_dict())
    run = api.load(folder)
    if options.mode == "eval":
        return _evaluate_elsewhere(run, options)
    if options.mode == "export":
        if options.output is None:
            raise UserError("--mode=export needs a folder: add --output FOLDER")
        return export.export(
            run, paths.resolve(options.output, "--output"), options.network, options.task, bool(options.onnx)
        )
    flags = {name: getattr(options, name) for name in ("network", "task", "top_k", "threshold", "output", "draw")}
    return predict.predict(run, predict.Request(options.images, **flags))


def _evaluate_elsewhere(run, options):
    """Evaluates on other images or corrupted copies; returns the text to print.

    Writes the file of the evaluation.
    """
    import json

    from cdl_jax.data import corruptions
    from cdl_jax.errors import UserError
    from cdl_jax.run import elsewhere
    from cdl_jax.runtime import files

    names = corruptions.parse_names(options.corruptions) if options.corruptions else ()
    try:
        severities = tuple(map(int, options.severities.split(","))) if options.severities else ()
    except ValueError:
        raise UserError(f"--severities={options.severities}: list numbers from 1 to 5, such as 1,3,5") from None
    on = options.on or "test"
    content = elsewhere.evaluate(run, on, options.task, names, severities)
    path = run.seed_folder / elsewhere.file_name(on, content["task"], bool(names))
    path.parent.mkdir(exist_ok=True)
    files.write_atomically(path, json.dumps(elsewhere.merge(path, content), indent=1) + "\n")
    return f"{elsewhere.summary(content)}\n{path}"


def _evaluate(config, folder, task):
    from cdl_jax.report import detection_section
    from cdl_jax.run import loop

    result = loop.evaluate(_stored_run(config, folder), folder, task)
    equal = True
    for network, rows in result["networks"].items():
        accuracies = " ".join(f"{value:.2f}" for value in rows["now"])
        equal &= rows["now"] == rows["stored"]
        print(f"{network} after task {result['task']}: {accuracies}")
        if "class_ap" in rows:
            print(detection_section.summary(network, rows["numbers"], rows["class_ap"]))
        for name, value in rows.get("extra_metrics", {}).items():
            print(f"  {name}: {value:.4g}")
    print(f"{'equal' if equal else 'NOT equal'} to the run's {result['metric']} matrix")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
