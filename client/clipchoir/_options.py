"""Options of a request, and what a server has to be sent of a label set."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from clipchoir._label_set import LabelSet
from clipchoir_steps.scoring.options import PARAMETERS


class Options(TypedDict, total=False):
    """Keywords of `classify`, `stream` and `score`; what is absent or None is the server's.

    Attributes:
        label_set: name of a label set of the server, or one of your own.
        weights: one number per encoder, in the order of `Client.encoders`.
        logit_scale: factor before the softmax.
        drop_below: prompt probabilities at or under it count as 0.
        aggregate: "softmax_mean" or "mean_embedding".
        priority: 1 (first) to 3 in the server's queues; the server's default is 2.
    """

    label_set: str | LabelSet | None
    weights: Sequence[float] | None
    logit_scale: float | None
    drop_below: float | None
    aggregate: str | None
    priority: int | None


def split(options: Options) -> tuple[LabelSet | None, dict[str, str]]:
    """A label set that has to be brought, and the request parameters for everything else.

    Raises:
        TypeError: there is no such keyword.
    """
    values: dict[str, object] = dict(options)
    known = dict.fromkeys((*Options.__annotations__, *PARAMETERS))
    if unknown := values.keys() - known.keys():
        raise TypeError(f"unknown keyword {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    weights = options.get("weights")
    if weights is not None:
        values["weights"] = ",".join(map(str, weights))
    brought = options.get("label_set")
    if isinstance(brought, LabelSet):
        del values["label_set"]
    else:
        brought = None
    return brought, {name: str(value) for name, value in values.items() if value is not None}


class SentLabelSets:
    """Which label sets a server has been sent. It may have forgotten one: then it says so, and is sent it again."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def parameters(self, label_set: LabelSet | None, others: Mapping[str, str]) -> dict[str, str]:
        """Parameters of a request: with the whole set until it was sent, then with its id."""
        if label_set is None:
            return dict(others)
        if label_set.id in self._ids:
            return {**others, "label_set": label_set.id}
        return {**others, "label_set_spec": label_set.spec}

    def add(self, label_set: LabelSet | None) -> None:
        """Note that the server knows a set."""
        if label_set is not None:
            self._ids.add(label_set.id)

    def forgotten(self, label_set: LabelSet) -> None:
        """Note that the server does not know a set any more."""
        self._ids.discard(label_set.id)
