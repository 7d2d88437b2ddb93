"""A weighted sum of other schemes, such as logit distillation and relations."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from cdl_jax import options as declarations
from cdl_jax import plugins
from cdl_jax.distill.base import NetworkSpec, Scheme, Variables
from cdl_jax.errors import UserError
from cdl_jax.options import Option

OPTIONS = {
    "terms": Option(
        ("kd", "relational:alpha=0"),
        "the schemes, each as NAME or NAME:OPTION=VALUE,OPTION=VALUE; their own label_weight has no effect",
    ),
    "weights": Option((1.0, 1.0), "weight of each term", minimum=0),
    "label_weight": Option(0.5, "weight of the labels' cross-entropy"),
}
_NEXT_OPTION = re.compile(r",(?=\s*\w+\s*=)")  # the commas of a tuple stay


@dataclass(frozen=True)
class _Sum:
    """The functions of a sum of schemes.

    Attributes:
      schemes: the terms.
      keys: name of each term in variables and in the log.
      weights: of the terms.
      owner: index of the scheme that changes the student's inputs or prediction, or None.
    """

    schemes: tuple[Scheme, ...]
    keys: tuple[str, ...]
    weights: tuple[float, ...]
    owner: int | None

    def init(self, key):
        return self._join([scheme.init(jax.random.fold_in(key, i)) for i, scheme in enumerate(self.schemes)])

    def start_task(self, variables, context, key):
        return self._join(
            [
                scheme.start_task(_part(variables, name), context, jax.random.fold_in(key, i))
                for i, (scheme, name) in enumerate(zip(self.schemes, self.keys, strict=True))
            ]
        )

    def loss(self, variables, student_out, teacher_out, labels, context):
        total, terms = 0.0, {}
        for scheme, key, weight in zip(self.schemes, self.keys, self.weights, strict=True):
            value, parts = scheme.loss(_part(variables, key), student_out, teacher_out, labels, context)
            total += weight * value
            terms |= {f"{key}/{name}": part for name, part in parts.items()}
        return total, terms

    def student_functions(self) -> dict[str, Any]:
        """Returns the fields of a `Scheme` that the owner determines; {} without an owner."""
        if self.owner is None:
            return {}
        scheme = self.schemes[self.owner]
        fields = {"student_inputs": self._student_inputs, "second_weight": scheme.second_weight}
        return fields if scheme.second_head is None else {**fields, "second_head": self._second_head}

    def _student_inputs(self, variables, teacher_out, batch_size, context, train):
        owner_variables = _part(variables, self.keys[self.owner])
        return self.schemes[self.owner].student_inputs(owner_variables, teacher_out, batch_size, context, train)

    def _second_head(self, variables, student_out):
        return self.schemes[self.owner].second_head(_part(variables, self.keys[self.owner]), student_out)

    def _join(self, term_variables) -> Variables:
        """Returns collection -> key of a term -> variables.

        One Flax module with a part for each term has the same structure.
        """
        collections = dict.fromkeys(name for variables in term_variables for name in variables)
        return {
            name: {key: tree[name] for key, tree in zip(self.keys, term_variables, strict=True) if name in tree}
            for name in collections
        }


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme `sum_i weights_i loss_i`.

    Raises:
      UserError: a term has no such scheme or option, or the numbers of terms and weights differ. Two terms change the
        student's inputs or its prediction, or one does and another reads the student's past.
    """
    names, sections = zip(*(_parse(term) for term in _checked_terms(options)), strict=True)
    modules = [plugins.load_plugin("distill", name) for name in names]
    schemes = tuple(
        module.build(_section(module.OPTIONS, changes, name), teacher, student)
        for module, changes, name in zip(modules, sections, names, strict=True)
    )
    keys = tuple(f"{index}_{name.rpartition('.')[2]}" for index, name in enumerate(names))
    terms = _Sum(schemes, keys, tuple(options.weights), _owner(schemes, names))
    changes = terms.student_functions()
    past = next((name for name, scheme in zip(names, schemes, strict=True) if scheme.keeps_past), "")
    if past and changes:
        raise UserError(
            f"distill.terms: {names[terms.owner]} changes the student itself, and {past} compares with the student "
            "before the task without that change: choose one of them"
        )
    return Scheme(
        loss=terms.loss,
        label_weight=options.label_weight,
        needs=tuple(dict.fromkeys(need for scheme in schemes for need in scheme.needs)),
        init=terms.init,
        start_task=terms.start_task,
        keeps_past=any(scheme.keeps_past for scheme in schemes),
        needs_own_classes=next((scheme.needs_own_classes for scheme in schemes if scheme.needs_own_classes), ""),
        **changes,
    )


def check_growth(config: ConfigDict, num_tasks: int, new_config: ConfigDict, new_num_tasks: int) -> None:
    """Checks that a longer stream leaves the variables of each term their places.

    See `distill.base`.

    Raises:
      UserError: the variables of a term cannot begin those of a longer stream.
    """
    for term, new_term in zip(config.distill.terms, new_config.distill.terms, strict=False):
        (name, changes), (new_name, new_changes) = _parse(term), _parse(new_term)
        check = plugins.optional_part("distill", name, "check_growth")
        if check and name == new_name:
            options = plugins.load_plugin("distill", name).OPTIONS
            check(
                ConfigDict({**config, "distill": _section(options, changes, name)}),
                num_tasks,
                ConfigDict({**new_config, "distill": _section(options, new_changes, name)}),
                new_num_tasks,
            )


def _checked_terms(options) -> Sequence[str]:
    """Returns the terms of a section.

    Raises:
      UserError: there are none, their number is not that of the weights, or all weights are 0.
    """
    terms, weights = options.terms, options.weights
    if not terms or len(terms) != len(weights):
        raise UserError(
            f"distill.terms has {len(terms)} schemes and distill.weights {len(weights)} numbers: list one weight a term"
        )
    if not any(weights):
        raise UserError("distill.weights are all 0: nothing is distilled; raise one of them, or set distill=none")
    return terms


def _parse(term: str) -> tuple[str, dict[str, object]]:
    """Returns the name of a term's scheme, and the options that it changes.

    >>> _parse("kd:alpha=0.5,classes=seen"), _parse("mine:layers=(1,2,3),alpha=1")
    (('kd', {'alpha': 0.5, 'classes': 'seen'}), ('mine', {'layers': (1, 2, 3), 'alpha': 1}))

    Raises:
      UserError: an option has no value.
    """
    name, _, text = term.partition(":")
    changes: dict[str, object] = {}
    for item in filter(None, _NEXT_OPTION.split(text)):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"distill.terms: {term!r}: {item!r} has no value: write {item}=VALUE")
        try:
            changes[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            changes[key.strip()] = value.strip()
    return name.strip(), changes


def _section(declared, changes, name) -> ConfigDict:
    """Returns the options of a term.

    Raises:
      UserError: an option is unknown, or its value is not permitted.
    """
    if name in ("none", "weighted_sum"):
        raise UserError(f"distill.terms: {name!r} is no term of a sum: leave it out")
    for key, value in changes.items():
        if key not in declared:
            raise UserError(f"distill.terms: {name} has no option {key!r}: {plugins.did_you_mean(key, declared)}")
        default = declarations.declare(declared[key]).default
        if isinstance(default, float) and type(value) is int:
            changes = {**changes, key: float(value)}
        elif type(value) is not type(default):
            raise UserError(f"distill.terms: {name}:{key}={value!r} must be of the type of its default, {default!r}")
    declarations.check(declared, changes, f"distill.terms {name}")
    return ConfigDict(declarations.defaults(declared, **changes))


def _owner(schemes, names) -> int | None:
    """Returns the index of the scheme that changes the student, or None.

    Such a scheme changes the student's inputs or prediction.

    Raises:
      UserError: there are two.
    """
    owners = [index for index, scheme in enumerate(schemes) if scheme.changes_prediction]
    if len(owners) > 1:
        first, second, *_ = (names[index] for index in owners)
        raise UserError(f"distill.terms: {first} and {second} both change the student itself: choose one of them")
    return owners[0] if owners else None


def _part(variables, key) -> Variables:
    return {name: tree[key] for name, tree in variables.items() if key in tree}
