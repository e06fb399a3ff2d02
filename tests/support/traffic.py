"""Mixed requests to `zero_shot`, whose answers are known: each was computed alone before."""

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import tritonclient.grpc as grpcclient
from PIL import Image
from tritonclient.utils import InferenceServerException

from clipchoir.errors import OverloadedError, UnreachableError, from_triton
from tests.conftest import SAMPLES, encoded, noise

OUTPUTS = ("label", "score", "scores", "classes", "encoder_scores", "metaclip_embedding", "evaclip_embedding", "error")
TOLERANCE = 1e-5
CLOSE_CALL = 1e-4  # images whose two best classes are closer than ten tolerances have no certain label: not asked
DEADLINE = 120.0  # seconds; no request of a server that is well comes near it
PATIENCE = 60.0  # seconds that a rejected request is sent again for after the end
UNDECODABLE_SHARE = 0.05
LARGEST_BATCH = 64
PRIORITIES = (0, 0, 1, 2, 3)  # 0: the request names none
CHANNEL = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]  # a connection for each client

Answer = Mapping[str, np.ndarray]


def ad_hoc(**content: object) -> str:
    return json.dumps(content)


def set_id(spec: str) -> str:
    """By which it is known once it was sent."""
    return hashlib.sha256(spec.encode()).hexdigest()


PETS = ad_hoc(
    classes=["cat", "dog", "ferret"],
    templates=["{}", "a photo of a {}."],
    extra={"cat": ["a kitten", "a tabby on a sofa", "whiskers"], "ferret": ["a polecat"]},
)
PLACES = ad_hoc(
    classes=["sea", "high mountains", "a street with houses", "a forest"],
    templates=["a picture of {}, {} indeed", "{} at night"],
    extra={"sea": ["waves", "a beach with sand", "the ocean", "blue water"], "a forest": ["trees"]},
)
COLOURS = ad_hoc(classes=["red", "blau", "vert", "白", "чёрный"], extra={"vert": ["a meadow"], "白": ["snow", "ice"]})


@dataclass(frozen=True)
class Profile:
    """A label set and options."""

    options: Mapping[str, str] = field(default_factory=dict)
    spec: str | None = None

    def parameters(self, random_: random.Random) -> dict[str, str]:
        """The same set in one of its forms: by spec, by id, or now and then under an id that nobody has seen."""
        if self.spec is None:
            return dict(self.options)
        form = random_.random()
        if form < 0.02:  # to be embedded anew, to the same numbers
            return {"label_set_spec": self.spec + " " * random_.randrange(1, 2000), **self.options}
        if form < 0.2:
            return {"label_set_spec": self.spec, **self.options}
        return {"label_set": set_id(self.spec), **self.options}


PROFILES = (
    Profile(),
    Profile({"label_set": "scenes"}),
    Profile({"weights": "0.9,0.1"}),
    Profile({"weights": "0,1", "logit_scale": "30.5"}),
    Profile({"aggregate": "mean_embedding"}),
    Profile(spec=PETS),
    Profile({"weights": "3,1"}, PETS),
    Profile({"aggregate": "mean_embedding", "weights": "1,2"}, PLACES),
    Profile({"logit_scale": "55"}, PLACES),
    Profile(spec=COLOURS),
)


def pictures(count: int) -> list[bytes]:
    """Images of several formats, sizes and contents."""
    forms = (("JPEG", (320, 200)), ("PNG", (90, 120)), ("WEBP", (224, 224)), ("BMP", (60, 60)), ("TIFF", (75, 50)))
    drawn = [
        encoded(noise(seed, size), form) for seed in range(count // 2) for form, size in [forms[seed % len(forms)]]
    ]
    return [*drawn, *(path.read_bytes() for path in SAMPLES[: count - len(drawn)])]


def undecodable() -> list[bytes]:
    """Rows that are no images, or no whole ones."""
    jpeg, png = encoded(noise(1), "JPEG"), encoded(noise(2))
    return [
        b"",
        b"this is not an image",
        random.Random(0).randbytes(500),  # noqa: S311
        jpeg[: len(jpeg) // 2],
        jpeg[:20],
        png[: len(png) // 3],
        encoded(Image.new("RGB", (9, 9)), "PPM"),
    ]


def ask(
    client: grpcclient.InferenceServerClient,
    rows: Sequence[bytes],
    outputs: Sequence[str],
    parameters: Mapping[str, str],
    priority: int = 0,
    deadline: float = DEADLINE,
) -> Answer:
    """One request."""
    image = grpcclient.InferInput("image", [len(rows), 1], "BYTES")
    image.set_data_from_numpy(np.array([[row] for row in rows], np.object_))
    answer = client.infer(
        "zero_shot",
        [image],
        outputs=[grpcclient.InferRequestedOutput(name) for name in outputs],
        parameters=dict(parameters) or None,
        priority=priority,
        client_timeout=deadline,
    )
    return {name: answer.as_numpy(name) for name in outputs}


class Known:
    """Every image's answer to every profile, from requests of one row to a server with nothing else to do."""

    def __init__(self, address: str, count: int, profiles: Sequence[Profile] = PROFILES) -> None:
        """Ask for them; `count` is the number of images that can be decoded."""
        self.profiles = profiles
        self.rows = [*pictures(count), *undecodable()]
        self.answers: list[Answer] = []  # by profile: of all rows
        self.good: list[list[int]] = []  # by profile: rows with an image whose label is certain
        self.bad = list(range(count, len(self.rows)))
        with grpcclient.InferenceServerClient(address, channel_args=CHANNEL) as client:
            for profile in profiles:
                spec = {} if profile.spec is None else {"label_set_spec": profile.spec}
                alone = [ask(client, [row], OUTPUTS, {**profile.options, **spec}) for row in self.rows]
                answer = {name: np.concatenate([each[name] for each in alone]) for name in OUTPUTS}
                second, first = np.sort(answer["scores"][:count], axis=1)[:, -2:].T
                self.answers.append(answer)
                self.good.append([int(row) for row in np.flatnonzero(first - second > CLOSE_CALL)])

    def wrong_rows(self, profile: int, rows: Sequence[int], answer: Answer) -> set[int]:
        """Which of the answer's rows differ from what is known."""
        wrong: set[int] = set()
        for name, actual in answer.items():
            expected = self.answers[profile][name][rows]
            if actual.shape != expected.shape or actual.dtype != expected.dtype:
                return set(range(len(rows)))
            if actual.dtype == np.object_:
                same = actual == expected
            else:
                same = (np.abs(actual - expected) <= TOLERANCE) | (np.isnan(actual) & np.isnan(expected))
            wrong.update(np.flatnonzero(~same.reshape(len(rows), -1).all(axis=1)).tolist())
        return wrong


@dataclass
class Tally:
    """What has happened to requests.

    Attributes:
        requests: begun, each counted once however often it was sent.
        rows: of them.
        answers: requests that got an answer.
        mismatches: rows that were answered wrongly.
        errors: refusals by kind; a rejected request is sent again and may still get its answer.
        unanswered: requests that got none in the end.
        slowest: seconds from the last sending of a request to its answer.
        examples: of what went wrong.
    """

    requests: int = 0
    rows: int = 0
    answers: int = 0
    mismatches: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    slowest: float = 0.0
    examples: list[str] = field(default_factory=list)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.requests + other.requests,
            self.rows + other.rows,
            self.answers + other.answers,
            self.mismatches + other.mismatches,
            self.errors + other.errors,
            self.unanswered + other.unanswered,
            max(self.slowest, other.slowest),
            (self.examples + other.examples)[:10],
        )


class Sender:
    """One client: sends requests, one after the other, and compares the answers."""

    def __init__(self, address: str, known: Known, seed: str) -> None:
        self.tally = Tally()
        self._address = address
        self._known = known
        self._random = random.Random(seed)  # noqa: S311

    def work(self, stop: Event) -> None:
        """Send until told to stop; what was begun is brought to its end."""
        with grpcclient.InferenceServerClient(self._address, channel_args=CHANNEL) as client:
            while not stop.is_set():
                self._one(client, stop)

    def _one(self, client: grpcclient.InferenceServerClient, stop: Event) -> None:
        random_, known, tally = self._random, self._known, self.tally
        profile = random_.randrange(len(known.profiles))
        rows = [
            random_.choice(known.bad if random_.random() < UNDECODABLE_SHARE else known.good[profile])
            for _ in range(min(LARGEST_BATCH, int(random_.paretovariate(1.0))))  # half of them of one row
        ]
        outputs = OUTPUTS if random_.random() < 0.7 else random_.sample(OUTPUTS, random_.randint(1, 4))
        parameters = known.profiles[profile].parameters(random_)
        priority = random_.choice(PRIORITIES)
        tally.requests += 1
        tally.rows += len(rows)
        give_up: float | None = None
        while True:
            sent = time.monotonic()
            try:
                answer = ask(client, [known.rows[row] for row in rows], outputs, parameters, priority)
            except InferenceServerException as error:
                tally.errors[str(error.status()).removeprefix("StatusCode.")] += 1
                if stop.is_set() and give_up is None:
                    give_up = sent + PATIENCE
                again = isinstance(from_triton(error, self._address, DEADLINE), OverloadedError | UnreachableError)
                if not again or (give_up is not None and sent > give_up):
                    tally.unanswered += 1
                    tally.examples.append(f"no answer: {error} {parameters} {len(rows)} rows")
                    return
                time.sleep(random_.uniform(0.05, 0.3))
            else:
                break
        tally.answers += 1
        tally.slowest = max(tally.slowest, time.monotonic() - sent)
        if wrong := known.wrong_rows(profile, rows, answer):
            tally.mismatches += len(wrong)
            tally.examples.append(f"wrong: rows {sorted(wrong)} of {rows}, priority {priority}, {parameters}")
