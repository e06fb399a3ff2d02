"""Label sets at run time, against a real server: sent with a request, dropped as files, listed, and re-scored."""

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from clipchoir_server.triton import Address, Triton, serving
from tests.conftest import encoded, infer, metrics, noise, run
from tests.support import reference
from tests.support.traffic import set_id

IMAGES = [noise(seed) for seed in range(3)]
ROWS = [encoded(image) for image in IMAGES]
FAMILIES = "nv_inference_|clipchoir_"
OUTPUTS = ["label", "scores", "encoder_scores", "classes"]


def label_set(*classes: str, templates: tuple[str, ...] = ("{}", "a photo of a {}."), **extra: list[str]) -> str:
    return json.dumps({"classes": classes, "templates": templates, "extra": extra})


def as_file(spec: str, folder: Path) -> Path:
    """A label set as the reference reads it: JSON's strings and lists are TOML's, too."""
    content = json.loads(spec)
    extra = "".join(f"{json.dumps(name)} = {json.dumps(prompts)}\n" for name, prompts in content["extra"].items())
    path = folder / f"{set_id(spec)}.toml"
    path.write_text(
        f"classes = {json.dumps(content['classes'])}\ntemplates = {json.dumps(content['templates'])}\n[extra]\n{extra}"
    )
    return path


def executions(server: Triton, model: str) -> float:
    return metrics(server.address.metrics, FAMILIES)[f'nv_inference_exec_count{{model="{model}",version="1"}}']


def as_input(encoder: str, embedding: np.ndarray) -> grpcclient.InferInput:
    """Of `ensembling`."""
    tensor = grpcclient.InferInput(encoder, list(embedding.shape), "FP32")
    tensor.set_data_from_numpy(embedding)
    return tensor


def settled(server: Triton, models: list[str]) -> list[float]:
    """Executions of each, once no more are coming: Triton counts a batch after its answer."""
    before: list[float] = []
    while (now := [executions(server, model) for model in models]) != before:
        before = now
        time.sleep(0.5)
    return now


def ask_label_sets(triton: grpcclient.InferenceServerClient, name: str) -> dict[str, Any]:
    tensor = grpcclient.InferInput("name", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([name.encode()], np.object_))
    return dict(json.loads(triton.infer("label_sets", [tensor], client_timeout=60).as_numpy("answer")[0]))


def test_a_new_label_set_is_embedded_and_afterwards_known_by_its_id(
    triton: grpcclient.InferenceServerClient, server: Triton, tmp_path: Path
) -> None:
    spec = label_set("sunny day", "night", "fog {}", night=["stars above", "street lights", "{}"])
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, ROWS, ["label"], label_set=set_id(spec))
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    before = metrics(server.address.metrics, FAMILIES)
    first = infer(triton, ROWS, OUTPUTS, label_set_spec=spec)
    again = infer(triton, ROWS, OUTPUTS, label_set=set_id(spec))
    both = infer(triton, ROWS, OUTPUTS, label_set=set_id(spec), label_set_spec=spec)
    expected = reference.classify([reference.pixels(image) for image in IMAGES], as_file(spec, tmp_path))
    np.testing.assert_allclose(first["scores"], expected.scores, atol=1e-4)
    np.testing.assert_allclose(first["encoder_scores"], expected.encoder_scores, atol=1e-4)
    assert first["classes"][0].tolist() == [b"sunny day", b"night", b"fog {}"]
    for other in (again, both):
        for name in OUTPUTS:
            np.testing.assert_array_equal(other[name], first[name])
    embedded = (
        metrics(server.address.metrics, FAMILIES)["clipchoir_prompts_embedded_total"]
        - before["clipchoir_prompts_embedded_total"]
    )
    assert embedded == 9


def test_an_id_belongs_to_the_exact_bytes(triton: grpcclient.InferenceServerClient) -> None:
    spec = label_set("cat", "dög")
    infer(triton, ROWS[:1], ["label"], label_set_spec=spec)
    with pytest.raises(InferenceServerException, match="is not in this repository"):
        infer(triton, ROWS[:1], ["label"], label_set=set_id(spec + " "))
    with pytest.raises(InferenceServerException, match="give one of the two") as caught:
        infer(triton, ROWS[:1], ["label"], label_set="scenes", label_set_spec=spec)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_same_new_set_from_many_clients_is_embedded_once(
    triton: grpcclient.InferenceServerClient, server: Triton
) -> None:
    spec = label_set(*(f"thing {number}" for number in range(40)))
    before = metrics(server.address.metrics, FAMILIES)["clipchoir_prompts_embedded_total"]
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda _: infer(triton, ROWS[:1], ["scores"], label_set_spec=spec)["scores"], range(8))
        )
    assert metrics(server.address.metrics, FAMILIES)["clipchoir_prompts_embedded_total"] - before == 80
    for scores in answers:
        np.testing.assert_allclose(scores, answers[0], atol=1e-5)


def test_known_unknown_and_new_sets_from_many_clients_at_once(server: Triton) -> None:
    """They are counted in several threads; Triton crashes when two use a metric at once."""

    def ask(number: int) -> list[str]:
        found = []
        with grpcclient.InferenceServerClient(server.address.grpc) as client:
            for turn in range(8):
                new = label_set(f"herd {number} {turn}", "meadow", templates=("{}",))
                for parameters in ({"label_set_spec": new}, {"label_set": set_id(f"{number} {turn}")}, {}):
                    try:
                        found.append(str(infer(client, [encoded(noise(0))], ["error"], **parameters)["error"][0, 0]))
                    except InferenceServerException as error:
                        found.append(str(error.status()))
        return found

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(16)))
    assert answers == [["b''", "StatusCode.NOT_FOUND", "b''"] * 8] * 16


def test_a_new_large_set_holds_up_nobody_else(triton: grpcclient.InferenceServerClient) -> None:
    def answered_meanwhile(kind: str) -> int:
        spec = label_set(*(f"{kind} of thing {number}" for number in range(750)))
        with ThreadPoolExecutor(1) as thread:
            cold = thread.submit(infer, triton, ROWS[:1], ["scores"], label_set_spec=spec)
            warm = 0
            while not cold.done():
                infer(triton, ROWS[:1], ["scores"])
                warm += not cold.done()
            assert cold.result()["scores"].shape == (1, 750)
        return warm

    # One more may be under way when it comes, and the machine may keep the test from its work, but not every time.
    assert any(answered_meanwhile(kind) >= 5 for kind in ("one", "another", "a third"))


def test_a_bad_label_set_costs_no_encoder_pass(triton: grpcclient.InferenceServerClient, server: Triton) -> None:
    before = settled(server, ["metaclip", "evaclip"])
    for parameters, status, message in (
        ({"label_set": "pets"}, "NOT_FOUND", "which has: moods, scenes"),
        ({"label_set": "0" * 64}, "NOT_FOUND", "sent once as label_set_spec"),
        ({"label_set_spec": label_set("a", "a")}, "INVALID_ARGUMENT", "there twice"),
        ({"label_set_spec": label_set("a", templates=("no place",))}, "INVALID_ARGUMENT", 'has no "{}"'),
        ({"label_set_spec": "{}"}, "INVALID_ARGUMENT", "classes must be a list"),
        ({"label_set_spec": 7}, "INVALID_ARGUMENT", "must be a JSON object as a string"),
        ({"label_set_spec": label_set(*map(str, range(1001)))}, "INVALID_ARGUMENT", "clipchoir-export embed"),
        ({"aggregate": "max"}, "INVALID_ARGUMENT", "softmax_mean or mean_embedding"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            infer(triton, ROWS, ["label"], **parameters)
        assert caught.value.status() == f"StatusCode.{status}"
        assert message in caught.value.message()
    assert settled(server, ["metaclip", "evaclip"]) == before


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8)])
def test_mean_embedding_is_the_usual_clip_classifier(
    triton: grpcclient.InferenceServerClient, tmp_path: Path, weights: tuple[float, float]
) -> None:
    spec = label_set("sunny day", "night", "fog", night=["stars above", "street lights"])
    answer = infer(
        triton, ROWS, OUTPUTS, label_set_spec=spec, aggregate="mean_embedding", weights=",".join(map(str, weights))
    )
    path = as_file(spec, tmp_path)
    counts = [len(prompts) for prompts in reference.prompts_by_class(path).values()]
    mixed: np.ndarray | float = 0.0
    for index, (encoder, weight) in enumerate(zip(reference.models(), weights, strict=True)):
        images = reference.image_embeddings([reference.pixels(image) for image in IMAGES], encoder)
        prompts = np.split(reference.text_embeddings(path, encoder), np.cumsum(counts)[:-1])
        means = np.stack([each.mean(axis=0) for each in prompts])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        exponentials = np.exp(100 * images @ means.T)
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(answer["encoder_scores"][:, index], probabilities, atol=1e-4)
        mixed = mixed + weight * probabilities
    np.testing.assert_allclose(answer["scores"], mixed, atol=1e-4)


def test_stored_embeddings_are_scored_again_without_encoding(
    triton: grpcclient.InferenceServerClient, server: Triton
) -> None:
    encoders = ["metaclip", "evaclip"]
    stored = infer(triton, ROWS, [f"{name}_embedding" for name in encoders])
    before = settled(server, encoders)
    inputs = [as_input(name, stored[f"{name}_embedding"]) for name in encoders]
    options = {"weights": "0.3,0.7", "drop_below": "0.002", "label_set": "moods"}
    answer = triton.infer("ensembling", inputs, parameters=options, client_timeout=60)
    assert settled(server, encoders) == before
    expected = infer(triton, ROWS, OUTPUTS, **options)
    np.testing.assert_allclose(answer.as_numpy("scores"), expected["scores"], atol=1e-5)
    assert answer.as_numpy("label").tolist() == expected["label"].tolist()
    with pytest.raises(InferenceServerException, match="the input evaclip is missing") as caught:
        triton.infer("ensembling", inputs[:1], client_timeout=60)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_stored_embeddings_without_numbers_have_an_error_and_no_label(triton: grpcclient.InferenceServerClient) -> None:
    names = {"metaclip": np.nan, "evaclip": np.inf}
    good = infer(triton, ROWS, [f"{name}_embedding" for name in names] + ["scores"])
    inputs = []
    for row, (name, value) in enumerate(names.items()):
        embedding = good[f"{name}_embedding"].copy()
        embedding[row, 5] = value
        inputs.append(as_input(name, embedding))
    # Nor does a weight of 0 let an embedding that is none pass.
    answer = triton.infer("ensembling", inputs, parameters={"weights": "1,0"}, client_timeout=60)
    assert answer.as_numpy("error").tolist() == [
        [b"the embedding by metaclip is not finite"],
        [b"the embedding by evaclip is not finite"],
        [b""],
    ]
    assert answer.as_numpy("label")[:2].tolist() == [[b""], [b""]]
    for name in ("score", "scores", "encoder_scores", "metaclip_embedding"):
        values = answer.as_numpy(name)
        assert np.isnan(values[:2]).all()
        assert np.isfinite(values[2]).all()


def test_the_label_sets_model_lists_and_shows(triton: grpcclient.InferenceServerClient, spec: Path) -> None:
    moods = spec.parent.parent / "label_sets" / "moods.toml"
    listed = ask_label_sets(triton, "")
    assert listed["default"] == "scenes"
    assert listed["label_sets"]["moods"] == {"classes": 3, "prompts": 8}
    assert all(re.fullmatch("[0-9a-f]{16}", listed["embedding_ids"][name]) for name in ("metaclip", "evaclip"))
    shown = ask_label_sets(triton, "moods")
    assert shown["classes"] == ["a bright day", "night", "fog"]
    assert list(shown["prompts"].values()) == list(reference.prompts_by_class(moods).values())
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in shown["fingerprints"].values())
    with pytest.raises(InferenceServerException) as caught:
        ask_label_sets(triton, "pets")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_a_set_embedded_ahead_of_time_is_served_at_once_and_outlives_a_broken_file(
    triton: grpcclient.InferenceServerClient, server: Triton, repository: Path, tmp_path: Path
) -> None:
    spec = label_set(*(f"animal {number}" for number in range(1001)), templates=("{}",))
    (tmp_path / "animals.json").write_text(spec)
    done = run("clipchoir-export", "embed", repository, tmp_path / "animals.json")
    assert done.returncode == 0, done.stderr
    assert "1,001 classes, 1,001 prompts" in done.stderr
    file = repository / "ensembling" / "1" / "label_sets" / "animals.safetensors"
    try:
        before = metrics(server.address.metrics, FAMILIES)["clipchoir_prompts_embedded_total"]
        scores = infer(triton, ROWS, ["scores"], label_set="animals")["scores"]
        expected = reference.classify([reference.pixels(image) for image in IMAGES], as_file(spec, tmp_path))
        np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
        assert metrics(server.address.metrics, FAMILIES)["clipchoir_prompts_embedded_total"] == before
        assert "is up to date" in run("clipchoir-export", "embed", repository, tmp_path / "animals.json").stderr
        file.write_bytes(b"no label set")
        time.sleep(2.5)  # it is looked at once a second
        np.testing.assert_array_equal(infer(triton, ROWS, ["scores"], label_set="animals")["scores"], scores)
    finally:
        file.unlink(missing_ok=True)
    for _ in range(50):
        if "animals" not in ask_label_sets(triton, "")["label_sets"]:
            break
        time.sleep(0.1)
    with pytest.raises(InferenceServerException, match="not in this repository"):
        infer(triton, ROWS, ["scores"], label_set="animals")


def test_what_cannot_be_embedded_is_named_with_the_next_step(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "twice.json").write_text(label_set("a", "a"))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "good.toml").write_text('classes = ["a"]')
    for arguments, message in (
        ([repository, tmp_path / "twice.json"], 'class "a" is there twice'),
        ([repository, tmp_path / "broken.json"], "is not valid JSON"),
        ([repository, tmp_path / "absent.toml"], "No such file"),
        ([repository, "pets"], "nor a label set that clipchoir has: scenes"),
        ([repository, tmp_path / "good.toml", "--name", "../x"], "is no name for a label set"),
        ([tmp_path, tmp_path / "good.toml"], "is no clipchoir repository"),
    ):
        result = run("clipchoir-export", "embed", *arguments)
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_an_interrupted_embedding_goes_on_where_it_was(repository: Path, tmp_path: Path) -> None:
    """A process that was killed in its second text encoder leaves what the first one did, and a part of a row."""
    from rich.progress import Progress

    from clipchoir_export.build import label_sets as label_set_embedding
    from clipchoir_export.errors import RepositoryError
    from clipchoir_export.spec import read_label_set
    from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
    from clipchoir_steps.layout import read_manifest

    copy = tmp_path / "repository"
    shutil.copytree(repository, copy, ignore=shutil.ignore_patterns("model.onnx.data", "*.safetensors"))
    for model in ("metaclip_text", "evaclip_text"):
        shutil.copytree(repository / model, copy / model, dirs_exist_ok=True)
    (tmp_path / "things.json").write_text(label_set(*(f"thing {number}" for number in range(100)), "Thing 0"))
    things = read_label_set(str(tmp_path / "things.json"))
    encode = label_set_embedding._Run.encode
    batches: list[str] = []
    runs: dict[str, label_set_embedding._Run] = {}

    def failing(self: label_set_embedding._Run, tokens: np.ndarray) -> np.ndarray:
        runs[self.graph.parent.parent.name] = self
        if len(batches) == 6:
            with pytest.raises(RepositoryError, match=r"another run that embeds things into .* is running"):
                label_set_embedding.embed_label_set(copy, things, progress)
            raise KeyboardInterrupt
        batches.append(self.graph.parent.parent.name)
        return encode(self, tokens)

    label_set_embedding._Run.encode = failing  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt), Progress() as progress:
            label_set_embedding.embed_label_set(copy, things, progress)
    finally:
        label_set_embedding._Run.encode = encode  # type: ignore[method-assign]
    assert batches == ["metaclip_text"] * 4 + ["evaclip_text"] * 2
    assert runs["metaclip_text"]._session is None  # though "Thing 0" is no new row: the next one needs the memory
    folder = copy / "ensembling" / "1" / "label_sets"
    assert not (folder / "things.safetensors").exists()
    (part,) = folder.glob(".things.evaclip.*.part")
    size = part.stat().st_size
    with part.open("ab") as file:
        file.write(b"half a row")
    with Progress() as progress:
        file_written, is_new = label_set_embedding.embed_label_set(copy, things, progress)
    assert is_new
    assert size > 0
    assert list(folder.iterdir()) == [file_written]
    with Progress() as progress:
        label_set_embedding.embed_label_set(repository, things, progress)
    whole = repository / "ensembling" / "1" / "label_sets" / "things.safetensors"
    try:
        fingerprints = {
            name: each["fingerprint"]
            for name, each in read_manifest(repository / "ensembling" / "1")["encoders"].items()
        }
        one, other = (EmbeddedLabelSet.load(path, fingerprints) for path in (whole, file_written))
        # Not the files' bytes: safetensors writes its metadata in any order.
        assert (one.classes, one.prompts, one.fingerprints) == (other.classes, other.prompts, other.fingerprints)
        np.testing.assert_array_equal(one.prompt_counts, other.prompt_counts)
        assert one.embeddings.keys() == other.embeddings.keys() == fingerprints.keys()
        for encoder, embeddings in one.embeddings.items():
            assert embeddings.tobytes() == other.embeddings[encoder].tobytes()
    finally:
        whole.unlink()


def test_another_server_with_the_same_cache_embeds_nothing_again(
    triton: grpcclient.InferenceServerClient, repository: Path
) -> None:
    spec = label_set("cat", "dog", "bird")
    expected = infer(triton, ROWS, ["scores"], label_set_spec=spec)["scores"]
    with (
        serving(repository, Address.choose()) as other,
        grpcclient.InferenceServerClient(other.address.grpc) as client,
    ):
        scores = infer(client, ROWS, ["scores"], label_set=set_id(spec))["scores"]
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        found = metrics(other.address.metrics, FAMILIES)
        assert found["clipchoir_prompts_embedded_total"] == 0
        assert found['clipchoir_label_set_requests_total{found="disk"}'] == 1
        assert found['clipchoir_label_set_bytes{where="memory"}'] > 0


def test_predictions_are_counted_by_class_and_ad_hoc_sets_under_one_label(
    triton: grpcclient.InferenceServerClient, server: Triton
) -> None:
    ad_hoc = 'clipchoir_predictions_total{label="",label_set="ad-hoc"}'

    def by_class(found: dict[str, float]) -> float:
        return sum(value for name, value in found.items() if name.startswith("clipchoir_predictions_total{label=\"")
                   and 'label_set="moods"' in name)  # fmt: skip

    def agreed(found: dict[str, float]) -> float:
        return sum(found.get(f'clipchoir_agreement_images_total{{agreed="{each}"}}', 0) for each in ("yes", "no"))

    infer(triton, ROWS, ["label"], label_set_spec=label_set("cat", "dog"))
    before = metrics(server.address.metrics, FAMILIES)
    infer(triton, [*ROWS, b"no image"], ["label"], label_set="moods")
    infer(triton, ROWS[:2], ["label"], label_set_spec=label_set("cat", "dog"))
    after = metrics(server.address.metrics, FAMILIES)
    assert by_class(after) - by_class(before) == 3
    assert after[ad_hoc] - before[ad_hoc] == 2
    assert agreed(after) - agreed(before) == 5
