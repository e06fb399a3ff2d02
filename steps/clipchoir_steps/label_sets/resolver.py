"""Resolves a request's label set: at once if it is in memory, otherwise in threads that hold no other request up."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.label_sets.spec import LabelSet, Limits
from clipchoir_steps.label_sets.store import AdHocLabelSets, NamedLabelSets
from clipchoir_steps.label_sets.text_encoder import PromptEmbedder

MEMORY, DISK, EMBEDDED, UNKNOWN = "memory", "disk", "embedded", "unknown"
_EMBEDDING_THREADS = 2  # a small set need not wait for a large one
_MOST_WAITING = 64  # label sets
_WATCH = 1.0  # seconds between two looks at the repository's label sets


class UnknownLabelSetError(Exception):
    """No label set has this name or id; the message says what there is."""


class NoTextEncodersError(Exception):
    """A request brings a label set, and the repository cannot embed it."""


class TooManyLabelSetsError(Exception):
    """Too many new label sets are waiting to be embedded already."""


Receive = Callable[[EmbeddedLabelSet | None, Exception | None], object]
"""Is given the set, or what went wrong; neither, where a set was only expected and will be there."""


@dataclass
class _Search:
    spec: bytes | None
    waiting: list[Receive] = field(default_factory=list)  # for the set
    expecting: list[Receive] = field(default_factory=list)  # to hear that it will be there
    certain: bool = False  # it is being embedded


class Resolver:
    """Finds named and ad-hoc label sets, and has new ones embedded. Safe to use from any thread."""

    def __init__(
        self,
        named: NamedLabelSets,
        ad_hoc: AdHocLabelSets,
        embedder: PromptEmbedder | None,
        limits: Limits,
        batch: int,
        count: Callable[[str, int], object],
    ) -> None:
        """
        Args:
            named: of the repository.
            ad_hoc: of earlier requests.
            embedder: for new ones; None where the repository has no text encoders.
            limits: of new ones.
            batch: prompts that a text encoder is given at a time.
            count: is called with where a set was found, and how many prompts had to be embedded for it.
        """
        self._named = named
        self._ad_hoc = ad_hoc
        self._embedder = embedder
        self._limits = limits
        self._batch = batch
        self._count = count
        self._lock = threading.Lock()
        self._searches: dict[str, _Search] = {}
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="label-sets")
        self._embedders = ThreadPoolExecutor(_EMBEDDING_THREADS, thread_name_prefix="embed")
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watch-label-sets", daemon=True).start()

    def close(self) -> None:
        """Give up what has not been begun."""
        self._closed.set()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._embedders.shutdown(wait=False, cancel_futures=True)

    def find(self, key: str) -> EmbeddedLabelSet | None:
        """The set of this name or id, if it is in memory."""
        return self._named.get(key) or self._ad_hoc.get(key)

    def inspect(self, key: str, spec: bytes) -> dict[str, object]:
        """What a set would be, without embedding it: its id, numbers, whether it is known, and prompts that get cut.

        Raises:
            NoTextEncodersError, LabelSetError: it could not be embedded.
        """
        embedder = self._able_to_embed()
        label_set = LabelSet.parse_json(key[:12], spec, self._limits)
        return {
            "id": key,
            "classes": len(label_set.classes),
            "prompts": sum(label_set.prompt_counts()),
            "known": (self.find(key) or self._ad_hoc.load(key)) is not None,
            "cut": embedder.cut(label_set),
        }

    def resolve(self, key: str, spec: bytes | None, receive: Receive) -> None:
        """Look for a set in files, or embed it. Whoever asks for the same set meanwhile gets the same answer.

        Args:
            key: its name or id.
            spec: the set itself, if it has to be embedded.
            receive: is given the set or what went wrong, in another thread.

        Raises:
            TooManyLabelSetsError: many others are waiting to be embedded.
        """
        with self._lock:
            self._search_for(key, spec).waiting.append(receive)

    def expect(self, key: str, spec: bytes | None, receive: Receive) -> None:
        """As `resolve`, but `receive` is called as soon as it is certain that the set will be there.

        Raises:
            TooManyLabelSetsError: many others are waiting to be embedded.
        """
        with self._lock:
            search = self._search_for(key, spec)
            if not search.certain:
                search.expecting.append(receive)
                return
        receive(None, None)

    def _search_for(self, key: str, spec: bytes | None) -> _Search:
        """The search for a set, begun if there is none; the lock is held."""
        search = self._searches.get(key)
        if search is None:
            if len(self._searches) >= _MOST_WAITING:
                raise TooManyLabelSetsError(
                    f"{len(self._searches)} label sets are waiting to be embedded; try again later"
                )
            search = self._searches[key] = _Search(spec)
            self._readers.submit(self._search, key, search)
        search.spec = search.spec or spec
        return search

    def _watch(self) -> None:
        said = ""
        while not self._closed.wait(_WATCH):
            try:
                self._named.refresh()
                said = ""
            except Exception as error:  # whatever a file system has in store: the next look may succeed
                problem = f"label sets could not be looked through: {type(error).__name__}: {error}"
                if problem != said:
                    self._named.log(problem)
                said = problem

    def _search(self, key: str, search: _Search) -> None:
        try:
            found = self._look_in_files(key)
            if found is not None:
                self._count(DISK, 0)
                self._finish(key, search, found)
                return
            label_set = self._parsed(key, search)
        except Exception as error:
            self._count(UNKNOWN, 0)
            self._finish(key, search, None, error)
            return
        with self._lock:
            search.certain = True
            expecting, search.expecting = search.expecting, []
        for receive in expecting:
            receive(None, None)
        self._embedders.submit(self._embed, key, search, label_set)

    def _look_in_files(self, key: str) -> EmbeddedLabelSet | None:
        found = self.find(key) or self._ad_hoc.load(key)
        if found is None:
            self._named.refresh()
            found = self._named.get(key)
        return found

    def _parsed(self, key: str, search: _Search) -> LabelSet:
        with self._lock:
            spec = search.spec
            if spec is None:
                del self._searches[key]  # whoever brings the set from now on begins another search
        if spec is None:
            raise UnknownLabelSetError(
                f'label set "{key}" is not in this repository, which has: {", ".join(self._named.names())}; a set of '
                "your own has to be sent once as label_set_spec before its id is known"
            )
        self._able_to_embed()
        return LabelSet.parse_json(key[:12], spec, self._limits)

    def _able_to_embed(self) -> PromptEmbedder:
        if self._embedder is None:
            raise NoTextEncodersError(
                "label_set_spec needs text encoders, which this repository does not have (clipchoir-export build "
                f"--text-encoders makes them); its label sets are: {', '.join(self._named.names())}"
            )
        return self._embedder

    def _embed(self, key: str, search: _Search, label_set: LabelSet) -> None:
        assert self._embedder is not None  # noqa: S101  `_parsed` has seen to it
        try:
            found = self._embedder.embed(label_set, self._batch)
            self._ad_hoc.add(key, found)
        except Exception as error:
            self._finish(key, search, None, error)
            return
        self._count(EMBEDDED, len(set(found.prompts)))
        self._finish(key, search, found)

    def _finish(
        self, key: str, search: _Search, found: EmbeddedLabelSet | None, error: Exception | None = None
    ) -> None:
        with self._lock:
            if self._searches.get(key) is search:
                del self._searches[key]
            receivers = search.waiting + search.expecting
        for receive in receivers:
            receive(found, error)
