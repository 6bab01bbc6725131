"""The grammar of the command line."""

import pytest

from foveal.insertion import parse_insertion


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("se", {"block": "se", "at": "residual", "stages": None}),
        ("cbam@block", {"block": "cbam", "at": "block", "stages": None}),
        ("cbam@residual:3,4", {"block": "cbam", "at": "residual", "stages": (3, 4)}),
        ("cbam@stage:2-4", {"block": "cbam", "at": "stage", "stages": (2, 3, 4)}),
        ("se(reduction=8)@residual:3", {"block": "se", "at": "residual", "stages": (3,), "reduction": 8}),
        (
            "nonlocal(pairwise=dot_product, scaled=true, inner=none)@features.1[0-9]",
            {"block": "nonlocal", "at": "features.1[0-9]", "stages": None}
            | {"pairwise": "dot_product", "scaled": True, "inner": None},
        ),
        (
            "cbam(arrangement=channel-spatial, sizes=(3, 7), start='paper')",
            {"block": "cbam", "at": "residual", "stages": None}
            | {"arrangement": "channel-spatial", "sizes": (3, 7), "start": "paper"},
        ),
        ("se()", {"block": "se", "at": "residual", "stages": None}),
    ],
)
def test_reads(text, expected):
    assert parse_insertion(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "se(",
        "se@",
        "se@residual:",
        "se@residual:a",
        "se@residual:3,,4",
        "se(8)",
        "se(at=block)",
        "se(a=)",
        "se)",
    ],
)
def test_refuses_with_the_text(text):
    with pytest.raises(ValueError, match=r"must be (written|numbers)") as caught:
        parse_insertion(text)
    assert repr(text) in str(caught.value)
