"""Images on their way to a server of the same machine through system shared memory instead of the connection."""

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir.errors import BadRequestError, UnreachableError

_SMALLEST = 1 << 20  # bytes of a region; they grow by doubling

Call = Callable[..., Any]


@dataclass(frozen=True)
class _Region:
    memory: SharedMemory
    name: str  # by which the server knows it
    size: int


class SharedInputs:
    """Regions that a server was told of, one for each request in flight. Safe to use from several threads.

    A region is used again only after an answer: a request that timed out may still be read from it.
    """

    def __init__(self, triton: grpcclient.InferenceServerClient, **options: Any) -> None:
        """
        Args:
            triton: of the server.
            **options: of each call to it.
        """
        self._triton = triton
        self._options = options
        self._free: list[_Region] = []
        self._lock = threading.Lock()
        self._is_refused = False  # the server is in another container, or does not allow it

    def close(self) -> None:
        """Let go of all regions that no request uses."""
        with self._lock:
            regions, self._free = self._free, []
        for region in regions:
            self._drop(region)

    @contextlib.contextmanager
    def lend(self, images: Sequence[bytes]) -> Iterator[grpcclient.InferInput | None]:
        """The images of a request as its input, in shared memory; None: that is not possible here.

        Raises:
            UnreachableError: the server does not know the region any more: it was started again.
        """
        size = sum(4 + len(image) for image in images)
        region = None if self._is_refused else self._taken(size)
        if region is None:
            yield None
            return
        view, start = memoryview(region.memory.buf or b""), 0
        for image in images:  # Triton's form of strings
            view[start : start + 4] = len(image).to_bytes(4, "little")
            view[start + 4 : start + 4 + len(image)] = image
            start += 4 + len(image)
        view.release()  # or the region could not be closed
        tensor = grpcclient.InferInput("image", [len(images), 1], "BYTES")
        tensor.set_shared_memory(region.name, size)
        try:
            yield tensor
        except BadRequestError as error:  # an answer, too
            if "shared memory region" in str(error).lower():
                self._drop(region)
                self.close()
                raise UnreachableError(f"the server has forgotten its shared memory: {error}") from error
            self._give_back(region)
            raise
        except BaseException:
            self._drop(region)
            raise
        self._give_back(region)

    def _taken(self, size: int) -> _Region | None:
        with self._lock:
            fitting = [region for region in self._free if region.size >= size]
            if fitting:
                self._free.remove(fitting[0])
                return fitting[0]
            outgrown, self._free = self._free, []
        for region in outgrown:
            self._drop(region)
        return self._made(max(_SMALLEST, 1 << (size - 1).bit_length()))

    def _made(self, size: int) -> _Region | None:
        name = f"clipchoir_client_{os.getpid()}_{secrets.token_hex(8)}"
        try:
            memory = SharedMemory(name, create=True, size=size)
        except OSError:
            return None
        region = _Region(memory, name, size)
        try:
            os.posix_fallocate(memory._fd, 0, size)  # type: ignore[attr-defined]  # or writing may end this process
            self._triton.register_system_shared_memory(name, f"/{name}", size, **self._options)
        except (OSError, InferenceServerException):
            self._is_refused = True
            self._remove(region)
            return None
        return region

    def _give_back(self, region: _Region) -> None:
        with self._lock:
            self._free.append(region)

    def _drop(self, region: _Region) -> None:
        with contextlib.suppress(InferenceServerException, ValueError):  # it may be gone, or in use for a moment yet
            self._triton.unregister_system_shared_memory(region.name, **self._options)
        self._remove(region)

    def _remove(self, region: _Region) -> None:
        region.memory.close()
        with contextlib.suppress(FileNotFoundError):
            region.memory.unlink()
