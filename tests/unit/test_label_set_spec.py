"""Label sets into prompts, prompts into tokens."""

import hashlib
from pathlib import Path

import numpy as np
import open_clip
import pytest

from clipchoir_export.spec import find_ensemble, load_label_set
from clipchoir_steps.label_sets.spec import LabelSet, LabelSetError
from clipchoir_steps.label_sets.tokenizer import PromptTokenizer

SEED_PROMPTS = "9f329adb2458747957203c5d0778df0549eaecaff78c38b31cd3a190e94fe750"
HARD = [
    "",
    "   spaces \t and\nlines  ",
    "it's, we'll, they've, I'm, he'd, you're, don't",
    "ALL CAPS and MiXeD 123 4567",
    "caf\u00e9 na\u00efve \u00fcber \u0130stanbul \u00df",
    "\u96ea\u5c71\u306e\u5199\u771f \uc0b0 \u0433\u043e\u0440\u0430",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 emoji!!! ...---",
    "&amp;lt;html&amp;gt; &eacute; &quot;quoted&quot;",
    "\u201ccurly\u201d \u2018quotes\u2019 \ufb01ligature \uff21\uff22\uff23",
    "schÃ¶n mojibake",
    "<|startoftext|> and <|endoftext|>",
    "<start_of_text> inside <END_OF_TEXT> out",
    "word " * 200,
    "supercalifragilisticexpialidocious" * 10,
    "under_score-hyphen/slash\\back|pipe{}[]()<>",
]


@pytest.fixture(scope="module")
def scenes() -> LabelSet:
    return load_label_set("scenes", find_ensemble("scenes"))


def test_the_scenes_prompts_are_the_winners(scenes: LabelSet) -> None:
    prompts = scenes.prompts()
    assert len(prompts) == 312
    assert hashlib.sha256("\n".join(prompts).encode()).hexdigest() == SEED_PROMPTS
    assert scenes.prompt_counts() == [52] * 6


def test_tokens_equal_open_clips(repository: Path, scenes: LabelSet) -> None:
    tokenizer = PromptTokenizer(repository / "ensembling" / "1" / "tokenizer.json")
    texts = scenes.prompts() + HARD
    np.testing.assert_array_equal(tokenizer(texts), open_clip.SimpleTokenizer()(texts).numpy())


def test_prompts_of_the_same_tokens_are_encoded_once(repository: Path) -> None:
    tokenizer = PromptTokenizer(repository / "ensembling" / "1" / "tokenizer.json")
    prompts = ["a Cat", "a dog", "a  cat", "A CAT", "a dog"]
    tokens, index = tokenizer.distinct(prompts)
    np.testing.assert_array_equal(tokens, tokenizer(["a cat", "a dog"]))
    np.testing.assert_array_equal(tokens[index], tokenizer(prompts))


def test_only_the_placeholder_is_replaced_and_everywhere() -> None:
    label_set = LabelSet.parse("x", {"classes": ["a{}b"], "templates": ["{} or {}, {0} {name}"]})
    assert label_set.prompts() == ["a{}b or a{}b, {0} {name}"]


def test_extra_prompts_follow_the_templates_of_their_class() -> None:
    content = {"classes": ["cat", "dog"], "templates": ["a {}"], "extra": {"cat": ["a kitten", "purring"]}}
    label_set = LabelSet.parse("pets", content)
    assert label_set.prompts() == ["a cat", "a kitten", "purring", "a dog"]
    assert label_set.prompt_counts() == [3, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"templates": ["{}"]}, "classes must be a list of strings"),
        ({"classes": []}, "has no classes"),
        ({"classes": "cat"}, "classes must be a list of strings"),
        ({"classes": ["cat", 3]}, "classes must be a list of strings"),
        ({"classes": ["cat", "cat"]}, 'class "cat" is there twice'),
        ({"classes": ["cat", "  "]}, "a class name is empty"),
        ({"classes": ["cat"], "templates": ["a photo"]}, 'template "a photo" has no "{}" for the class name'),
        ({"classes": ["cat"], "templates": []}, 'class "cat" has neither templates nor extra prompts'),
        ({"classes": ["cat"], "extra": {"dog": ["a puppy"]}}, '"extra" names the class "dog"'),
        ({"classes": ["cat"], "extra": ["a kitten"]}, '"extra" must map class names to lists'),
        ({"classes": ["cat"], "extra": {"cat": "a kitten"}}, 'extra."cat" must be a list of strings'),
        ({"classes": ["cat"], "template": ["{}"]}, 'unknown key "template"; the keys are classes, templates, extra'),
        (["cat"], "is not an object"),
    ],
)
def test_a_wrong_label_set_is_refused_by_name(content: object, message: str) -> None:
    with pytest.raises(LabelSetError) as caught:
        LabelSet.parse("pets", content)  # type: ignore[arg-type]
    assert 'label set "pets"' in str(caught.value)
    assert message in str(caught.value)
