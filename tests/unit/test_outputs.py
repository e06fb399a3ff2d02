"""Embeddings to public outputs, without Triton."""

import numpy as np
import pytest

from clipchoir_steps.label_sets.embedded import EmbeddedLabelSet
from clipchoir_steps.scoring.options import MEAN_EMBEDDING, SOFTMAX_MEAN, OptionError, Options, Scoring
from clipchoir_steps.scoring.outputs import make_outputs, public_outputs, score_batch

ENCODERS = {"one": 4, "two": 3}
OUTPUTS = public_outputs(ENCODERS)
SCORING = Scoring((0.5, 0.5), logit_scale=10.0, drop_below=0.0, aggregate=SOFTMAX_MEAN)


def eye(rows: list[int], dim: int) -> np.ndarray:
    return np.eye(dim, dtype=np.float32)[rows]


LABEL_SET = EmbeddedLabelSet(
    classes=("cat", "dog"),
    prompts=("cat", "kitten", "dog"),
    prompt_counts=np.array([2, 1]),
    embeddings={"one": eye([0, 1, 2], 4), "two": eye([0, 1, 2], 3)},
    fingerprints={},
)


def errors(*texts: str) -> np.ndarray:
    return np.array([[text.encode()] for text in texts], np.object_)


def test_every_output_is_made_in_its_declared_shape_and_only_on_demand() -> None:
    scored = score_batch({"one": eye([0, 2], 4), "two": eye([0, 0], 3)}, errors("", ""), LABEL_SET, SCORING)
    names = [output.name for output in OUTPUTS]
    made = make_outputs(scored, OUTPUTS, names)
    assert list(made) == names
    for output in OUTPUTS:
        declared = [int(size) for size in output.dims.split(",")]
        actual = made[output.name].shape
        assert actual[0] == 2
        assert [size for size, right in zip(actual[1:], declared, strict=True) if right not in (-1, size)] == []
        assert (made[output.name].dtype == np.float32) == (output.data_type == "TYPE_FP32")
    assert list(make_outputs(scored, OUTPUTS, ["error", "label"])) == ["label", "error"]
    assert made["label"].tolist() == [["cat"], ["dog"]]
    assert made["classes"].tolist() == [["cat", "dog"]] * 2
    assert scored.agreed.tolist() == [True, False]


def test_a_row_with_an_error_has_no_label_and_no_number_and_the_others_are_as_if_it_were_not_there() -> None:
    images = {"one": eye([0, 2, 2], 4), "two": eye([0, 2, 2], 3)}
    names = [output.name for output in OUTPUTS]
    made = make_outputs(score_batch(images, errors("", "damaged", ""), LABEL_SET, SCORING), OUTPUTS, names)
    alone = {name: rows[[0, 2]] for name, rows in images.items()}
    right = make_outputs(score_batch(alone, errors("", ""), LABEL_SET, SCORING), OUTPUTS, names)
    for name in names:
        assert (made[name][[0, 2]] == right[name]).all(), name
    assert made["error"].tolist() == [[b""], [b"damaged"], [b""]]
    assert made["label"][1].tolist() == [""]
    for name in ("score", "scores", "encoder_scores", "one_embedding", "two_embedding"):
        assert np.isnan(made[name][1]).all(), name


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_stored_embedding_that_is_not_finite_is_an_error_of_its_row_by_name(value: float) -> None:
    images = {"one": eye([0, 1], 4), "two": eye([0, 1], 3)}
    images["two"][1, 2] = value
    scored = score_batch(images, None, LABEL_SET, SCORING)
    assert scored.errors.tolist() == [[b""], [b"the embedding by two is not finite"]]
    assert scored.failed.tolist() == [False, True]


def test_the_config_is_read_by_the_rules_of_requests() -> None:
    config = {"weights": "3,1", "logit_scale": "100.0", "drop_below": "0.0", "aggregate": MEAN_EMBEDDING}
    assert Scoring.of(config, list(ENCODERS)) == Scoring((3.0, 1.0), 100.0, 0.0, MEAN_EMBEDDING)
    with pytest.raises(OptionError, match="logit_scale must be above 0 and at most 1000, got 0"):
        Scoring.of(config | {"logit_scale": "0"}, list(ENCODERS))


def test_a_request_changes_what_it_names_and_nothing_else() -> None:
    defaults = Options("scenes", SCORING)
    changed = defaults.changed_by({"drop_below": "0.1", "priority": 2}, list(ENCODERS))
    assert changed == Options("scenes", Scoring((0.5, 0.5), 10.0, 0.1, SOFTMAX_MEAN))
