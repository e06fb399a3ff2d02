"""Whether a request's parameters are right, before an encoder runs for it. `ensembling` knows, and is asked once."""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from clipchoir_steps.label_sets.query import CheckParameters, encode, read_answer
from clipchoir_steps.scoring.options import NAMES

_VALID_FOR = 5.0  # seconds: a label set may go
_REMEMBERED = 1024


class ParameterCheck:
    """Remembers for a while which parameters were found right."""

    def __init__(self, ask: Callable[[CheckParameters], bytes], now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            ask: gives `ensembling` a query, and returns its answer.
            now: in seconds.
        """
        self._ask = ask
        self._now = now
        self._right: OrderedDict[bytes, float] = OrderedDict()  # by digest of a query: valid until

    def __call__(self, parameters: str) -> None:
        """Check the parameters of a request, as JSON.

        Raises:
            RefusedError: with what `ensembling` says of them.
        """
        if not parameters:
            return
        content: Mapping[str, object] = json.loads(parameters)
        given = {name: value for name, value in content.items() if name in NAMES}
        if not given:
            return
        query = CheckParameters(given)
        key = hashlib.sha256(encode(query).encode()).digest()  # a label set may be a megabyte
        now = self._now()
        if self._right.get(key, 0) > now:
            return
        read_answer(self._ask(query))
        self._right[key] = now + _VALID_FOR
        self._right.move_to_end(key)
        while len(self._right) > _REMEMBERED:
            self._right.popitem(last=False)
