"""Replacing methods and attributes of one object for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def instance_attributes(target: object, **values: Any) -> Iterator[None]:
    """Sets attributes on one instance, past Keras' attribute tracking, and takes them off again.

    Enter it from cross-replica context: replica threads interleave at merge points.
    """
    namespace = target.__dict__
    missing = object()
    before = {name: namespace.get(name, missing) for name in values}

    def put_back() -> None:
        for name, value in before.items():
            if value is missing:
                namespace.pop(name, None)
            else:
                namespace[name] = value

    try:
        try:
            namespace.update(values)
            yield
        finally:
            put_back()
    except KeyboardInterrupt:  # Perhaps in the middle of putting back: once more, all of it.
        put_back()
        raise
