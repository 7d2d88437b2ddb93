"""Workaround for JSON text that the Python bindings of TensorStore never free."""

import json

import tensorstore

_MAX_ENTRIES = 100  # memoized specifications


def memoize_spec_json() -> None:
    """Memoizes `KvStore.Spec.to_json` of TensorStore.

    The function must be called before checkpoints are written or read. Until 0.1.86 at least, TensorStore never frees
    the text in a JSON value that C++ returns to Python. Orbax requests two kinds of such values: `KvStore.Spec.to_json`
    once for each array of a checkpoint, and byte counters twice for each array. With 50 arrays 26 KiB per checkpoint
    are lost. The JSON of a specification follows from its `repr`, whose text is freed, so it can be memoized. The
    counters are read by the telemetry of Orbax alone, and are replaced by an empty list.
    """
    spec = tensorstore.KvStore.Spec
    if hasattr(spec.to_json, "cache"):
        return
    original, cache = spec.to_json, {}

    def to_json(self, include_defaults=False):
        key = repr(self), include_defaults
        if (text := cache.get(key)) is None:
            if len(cache) >= _MAX_ENTRIES:
                cache.clear()
            text = cache[key] = json.dumps(original(self, include_defaults=include_defaults))
        return json.loads(text)

    to_json.cache = cache
    spec.to_json = to_json
    tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []
