"""Corner cases of the formula; that it is the formula is checked end to end."""

import numpy as np
import pytest

from clipchoir_steps.scoring.formula import Scores, Texts, score
from clipchoir_steps.scoring.options import MEAN_EMBEDDING, SOFTMAX_MEAN, Scoring


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scored(images: np.ndarray, texts: np.ndarray, counts: list[int], drop_below: float = 0.0) -> Scores:
    return score(
        [images],
        [Texts.of(texts, np.array(counts), SOFTMAX_MEAN)],
        Scoring((1.0,), logit_scale=100.0, drop_below=drop_below, aggregate=SOFTMAX_MEAN),
    )


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


@pytest.mark.parametrize("aggregate", [SOFTMAX_MEAN, MEAN_EMBEDDING])
@pytest.mark.parametrize("images", [1, 3, 17, 64])
def test_equal_prompts_tie_bit_for_bit_whatever_else_is_in_the_product(images: int, aggregate: str) -> None:
    """The kernels of some BLAS libraries give equal columns of one product other last bits, by their place in it."""
    same, others = unit(3, 640, seed=0), unit(200, 640, seed=1)
    texts = Texts.of(np.concatenate([same, others, same, others[:1], same]), np.array([3, 200, 3, 1, 3]), aggregate)
    how = Scoring((1.0,), logit_scale=100.0, drop_below=0.0, aggregate=aggregate)
    ensemble = score([unit(images, 640, seed=2)], [texts], how).ensemble
    assert (ensemble[:, 0] == ensemble[:, 2]).all()
    assert (ensemble[:, 0] == ensemble[:, 4]).all()


def test_a_product_takes_each_distinct_prompt_once() -> None:
    prompts = unit(4, 8, seed=0)
    repeated = Texts.of(prompts[[0, 1, 0, 2, 3, 1]], np.array([2, 4]), SOFTMAX_MEAN)
    np.testing.assert_array_equal(repeated.distinct, prompts)
    images = unit(5, 8, seed=1)
    np.testing.assert_allclose(repeated.products(images), images @ prompts[[0, 1, 0, 2, 3, 1]].T, atol=1e-6)
    plain = Texts.of(prompts, np.array([2, 2]), SOFTMAX_MEAN)
    assert plain.rows is None
    assert plain.distinct is prompts
