"""Corner cases of the formula; that it is the formula is checked end to end."""

import numpy as np

from clipchoir_steps.scoring.formula import Scores, score


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scored(images: np.ndarray, texts: np.ndarray, counts: list[int], drop_below: float = 0.0) -> Scores:
    return score([images], [texts], np.array(counts), [1.0], logit_scale=100.0, drop_below=drop_below)


def test_on_a_tie_the_first_class_wins() -> None:
    texts = np.repeat(unit(1, 8, seed=0), 6, axis=0)
    result = scored(unit(3, 8, seed=1), texts, [2, 2, 2])
    assert result.best.tolist() == [0, 0, 0]
    np.testing.assert_allclose(result.ensemble, 1 / 3, atol=1e-6)


def test_a_class_is_not_favoured_for_having_more_prompts() -> None:
    texts = np.repeat(unit(1, 8, seed=0), 10, axis=0)
    np.testing.assert_allclose(scored(unit(1, 8, seed=1), texts, [1, 9]).ensemble, 0.5, atol=1e-6)


def test_a_row_that_dropping_would_empty_keeps_all() -> None:
    images, texts = unit(2, 8, seed=0), unit(6, 8, seed=1)
    images[1] = texts[4]  # its probability stays above the threshold, the other image's prompts tie below it
    texts[:4], texts[5] = texts[0], texts[0]
    images[0] = -texts[4]
    images[0] -= texts[0] * (images[0] @ texts[0])
    plain, dropped = (scored(images, texts, [3, 3], drop_below) for drop_below in (0.0, 0.4))
    np.testing.assert_array_equal(dropped.ensemble[0], plain.ensemble[0])
    assert dropped.ensemble[1].tolist() == [0, 1]


def test_a_thousand_classes_with_eighty_templates() -> None:
    images, texts = unit(4, 16, seed=0), unit(80_000, 16, seed=1)
    result = scored(images, texts, [80] * 1000)
    logits = 100 * images.astype(np.float64) @ texts.astype(np.float64).T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = (p / p.sum(axis=1, keepdims=True)).reshape(4, 1000, 80).mean(axis=2)
    np.testing.assert_allclose(result.ensemble, p / p.sum(axis=1, keepdims=True), atol=1e-5)
