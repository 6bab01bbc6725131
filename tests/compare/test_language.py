"""Both languages say the same things, and fill in the same values."""

import string

import pytest

from foveal.compare.conclusion import MetricText, conclude
from foveal.compare.language import LANGUAGES, Language, templates
from foveal.errors import FovealError
from foveal.statistics import Difference


def fields(template):
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def test_every_sentence_is_there_in_every_language_with_the_same_values():
    english = templates("en")
    for code in LANGUAGES:
        other = templates(code)
        assert other.keys() == english.keys()
        assert {key for key in english if fields(english[key]) != fields(other[key])} == set()


def test_a_verdict_in_chinese_has_the_numbers_of_the_english_one():
    found = {"se": Difference(0.031, 0.011, 0.051, 0.008, 0.016, 8, "better")}
    said = {
        lang: conclude(
            found, {}, attention=["se"], data="scenes", text=MetricText("accuracy", True, True), lang=lang
        )
        for lang in LANGUAGES
    }
    assert "se" in said["zh"]
    assert "优于不含注意力的同一网络" in said["zh"]
    for number in ("+3.1", "+1.1", "+5.1", "0.016"):
        assert all(number in text for text in said.values())


def test_an_unknown_language_is_refused():
    with pytest.raises(FovealError, match="lang must be one of en, zh, got fr"):
        Language("fr")
