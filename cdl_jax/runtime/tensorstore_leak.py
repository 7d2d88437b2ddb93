"""Texts that TensorStore's Python bindings never free, and that Orbax would ask for with each checkpoint anew."""

import json

import tensorstore

_MOST = 100  # answers kept


def memoize_spec_json() -> None:
    """Has TensorStore tell what it told already; to be called before checkpoints are written or read.

    Each text in a JSON value that C++ hands to Python is never freed (so until 0.1.86 at least). Orbax asks for two
    kinds: `KvStore.Spec.to_json` for each array of a checkpoint, and counters of bytes twice for each of them. With 50
    arrays that came to 26 KiB a checkpoint, without end. A specification's JSON follows from its `repr`, whose text is
    freed; the counters, which only Orbax's own telemetry reads, are said to be none.
    """
    spec = tensorstore.KvStore.Spec
    if hasattr(spec.to_json, "answers"):
        return
    ask, answers = spec.to_json, {}

    def to_json(self, include_defaults=False):
        key = repr(self), include_defaults
        if (text := answers.get(key)) is None:
            if len(answers) >= _MOST:
                answers.clear()
            text = answers[key] = json.dumps(ask(self, include_defaults=include_defaults))
        return json.loads(text)

    to_json.answers = answers
    spec.to_json = to_json
    tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []
