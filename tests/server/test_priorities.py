"""An urgent request goes before those that wait."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import tritonclient.grpc as grpcclient

from clipchoir_server.triton import Triton
from tests.conftest import encoded, noise

URGENT, BULK = 1, 3
BATCH = 64  # a full one: it shares a pass with no other
REQUESTS = 24  # in flight all the time


def test_an_urgent_request_overtakes_those_that_wait(server: Triton) -> None:
    row = encoded(noise(0), "JPEG")
    image = grpcclient.InferInput("image", [BATCH, 1], "BYTES")
    image.set_data_from_numpy(np.full((BATCH, 1), row, np.object_))
    answered: list[int] = []
    all_wait, stop = Event(), Event()

    def bulk() -> None:
        with grpcclient.InferenceServerClient(server.address.grpc) as client:
            while not stop.is_set():
                client.infer("zero_shot", [image], priority=BULK, client_timeout=120)
                answered.append(1)
                if len(answered) >= 4:  # the others, which were sent with the first ones, are in the queues
                    all_wait.set()

    with ThreadPoolExecutor(REQUESTS) as pool, grpcclient.InferenceServerClient(server.address.grpc) as client:
        assert client.is_server_live()  # connected
        try:
            working = [pool.submit(bulk) for _ in range(REQUESTS)]
            assert all_wait.wait(120)
            before = len(answered)
            client.infer("zero_shot", [image], priority=URGENT, client_timeout=120)
            behind = len(answered) - before
        finally:
            stop.set()
        for each in working:
            each.result()
    assert behind <= REQUESTS / 2  # two batches are in hand at each step; the others it has overtaken
