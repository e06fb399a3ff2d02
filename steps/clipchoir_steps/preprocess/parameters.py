"""Whether a request's parameters are right, before an encoder runs for it. `ensembling` knows, and is asked once."""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

_NAMES = ("label_set", "label_set_spec", "weights", "logit_scale", "drop_below", "aggregate")  # read by `ensembling`
_VALID_FOR = 5.0  # seconds: a label set may go
_REMEMBERED = 1024


class RefusedError(Exception):
    """The request is refused; with the name of Triton's code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ParameterCheck:
    """Remembers for a while which parameters were found right."""

    def __init__(self, ask: Callable[[str], Mapping[str, str]], now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            ask: gives `ensembling` a query, and returns its answer.
            now: in seconds.
        """
        self._ask = ask
        self._now = now
        self._right: OrderedDict[bytes, float] = (
            OrderedDict()
        )  # digests of queries, and until when they need not be asked again

    def __call__(self, parameters: str) -> None:
        """Check the parameters of a request, as JSON.

        Raises:
            RefusedError: with what `ensembling` says of them.
        """
        if not parameters:
            return
        given = {name: value for name, value in json.loads(parameters).items() if name in _NAMES}
        if not given:
            return
        query = json.dumps({"check": given})
        key = hashlib.sha256(query.encode()).digest()  # a label set may be a megabyte
        now = self._now()
        if self._right.get(key, 0) > now:
            return
        answer = self._ask(query)
        if "error" in answer:
            raise RefusedError(answer["error"], answer["code"])
        self._right[key] = now + _VALID_FOR
        self._right.move_to_end(key)
        while len(self._right) > _REMEMBERED:
            self._right.popitem(last=False)
