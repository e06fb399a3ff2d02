"""What the page of `clipchoir web` shows, as HTML."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from clipchoir._results import Classification, Vector

_MOST_CLASSES = 10  # shown of each image
_ENSEMBLE = "ensemble"
HINT = '<p class="choir-hint">Drop images on the left: each shows here what every encoder makes of it.</p>'
STYLE = """
.gradio-container { max-width: 1280px !important; margin: auto; }
#results { padding: 0; }
.choir-head h1 { margin: 0; font-size: 1.6rem; font-weight: 600; }
.choir-head p, .choir-hint, .choir-note { color: var(--body-text-color-subdued); margin: 0; }
.choir-hint { border: 1px dashed var(--border-color-primary); border-radius: 12px; padding: 4rem 2rem;
  text-align: center; }
.choir-card, .choir-problem { border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 1rem;
  margin-bottom: 1rem; background: var(--block-background-fill);
  --choir-bar: color-mix(in srgb, var(--color-accent) 40%, transparent); }
.choir-card header { display: flex; gap: 1rem; align-items: center; margin-bottom: .75rem; }
.choir-card img { width: 112px; height: 84px; object-fit: cover; border-radius: 8px; margin: 0; }
.choir-card h3 { margin: 0; font-size: .85rem; font-weight: 400; color: var(--body-text-color-subdued);
  overflow-wrap: anywhere; }
.choir-winner { margin: 0; font-size: 1.35rem; font-weight: 600; }
.choir-winner span { font-weight: 400; color: var(--body-text-color-subdued); }
.choir-scores { overflow-x: auto; }
.choir-card table { width: 100%; border-collapse: separate; border-spacing: .5rem .2rem; margin: 0; }
.choir-card th, .choir-card td { border: 0; padding: .1rem .4rem; text-align: left; font-weight: 400; }
.choir-card thead th { color: var(--body-text-color-subdued); font-size: .8rem; }
.choir-card td { min-width: 6rem; border-radius: 4px; font-variant-numeric: tabular-nums;
  background: no-repeat 0 0 / var(--share) 100% linear-gradient(var(--choir-bar) 0 0)
  var(--background-fill-secondary); }
.choir-card tbody th { width: 30%; overflow-wrap: anywhere; }
.choir-card .choir-best { font-weight: 700; }
.choir-problem, .choir-failed { border-color: var(--error-border-color); }
.choir-problem, .choir-failed [role=alert] { color: var(--error-text-color); margin: 0; overflow-wrap: anywhere; }
"""


def head(url: str, encoders: Sequence[str], version: str) -> str:
    """Title, and which server answers."""
    about = f"{', '.join(encoders)} at {url}, repository {version}"
    return f'<div class="choir-head"><h1>clipchoir</h1><p>{escape(about)}</p></div>'


def problem(message: str) -> str:
    """Why there are no results."""
    return f'<div class="choir-problem" role="alert">{escape(message)}</div>'


def cards(results: Sequence[Classification], paths: Sequence[str]) -> str:
    """A card for each image.

    Args:
        results: of the images.
        paths: of the images, as Gradio serves them.
    """
    return "".join(_card(result, path) for result, path in zip(results, paths, strict=True))


def _card(result: Classification, path: str) -> str:
    name = escape(Path(path).name)
    if result.error:
        return (
            f'<article class="choir-card choir-failed"><h3>{name}</h3><p role="alert">{escape(result.error)}</p>'
            "</article>"
        )
    return (
        f'<article class="choir-card"><header><img src="gradio_api/file={quote(path)}" alt="">'
        f'<div><h3>{name}</h3><p class="choir-winner">{escape(result.label)} <span>{result.score:.1%}</span></p>'
        f'<p class="choir-note">{escape(_verdict(result))}</p></div></header>'
        f'<div class="choir-scores">{_table(result)}</div></article>'
    )


def _verdict(result: Classification) -> str:
    """Which encoders would have said something else."""
    votes = {encoder: result.classes[int(scores.argmax())] for encoder, scores in result.encoder_scores.items()}
    others = [f"{encoder} would say {label}" for encoder, label in votes.items() if label != result.label]
    return "; ".join(others) or ("all encoders agree" if len(votes) > 1 else "")


def _table(result: Classification) -> str:
    """Classes from the best one down, and a column for the ensemble and each encoder."""
    columns = {_ENSEMBLE: result.scores, **result.encoder_scores}
    best = {name: int(scores.argmax()) for name, scores in columns.items()}
    order = (-result.scores).argsort(kind="stable").tolist()
    shown = [index for rank, index in enumerate(order) if rank < _MOST_CLASSES or index in best.values()]
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = "".join(
        f'<tr><th scope="row"{_bold(index == best[_ENSEMBLE])}>{escape(result.classes[index])}</th>'
        + "".join(_bar(scores, index, index == best[name]) for name, scores in columns.items())
        + "</tr>"
        for index in shown
    )
    table = f'<table><thead><tr><th scope="col">class</th>{names}</tr></thead><tbody>{rows}</tbody></table>'
    left = len(order) - len(shown)
    return f'{table}<p class="choir-note">and {left} more classes</p>' if left else table


def _bar(scores: Vector, index: int, best: bool) -> str:
    score = float(scores[index])
    share = 0.0 if math.isnan(score) else score
    return f'<td style="--share: {share:.2%}" title="{score:.6f}"{_bold(best)}>{score:.1%}</td>'


def _bold(best: bool) -> str:
    return ' class="choir-best"' if best else ""
