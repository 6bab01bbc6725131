"""The outcome in words: what may be said, and what may not."""

from foveal.compare.conclusion import MetricText, conclude
from foveal.statistics import Difference

TEXT = MetricText("accuracy", is_share=True, higher_is_better=True)


def difference(mean, finding, seeds=8, p=0.01):
    return Difference(mean, mean - 0.01, mean + 0.01, p, p, seeds, finding)


NAMES = ["se", "cbam"]


def test_conclusion_without_evidence():
    to_none = {"se": difference(0.01, "no evidence", p=0.4), "cbam": difference(0.002, "no evidence", p=0.8)}
    text = conclude(to_none, {}, attention=NAMES, data="scenes", text=TEXT)
    assert text.startswith(
        "No evidence that attention helps on scenes after this budget: none of the 2 blocks is better"
    )
    assert "largest difference: se +1.0 points, 95 % interval +0.0 to +2.0, corrected p = 0.40" in text


def test_conclusion_says_when_the_seeds_could_not_have_shown_it():
    to_none = {name: difference(0.1, "no evidence", seeds=6, p=0.0625) for name in NAMES}
    assert "6 seeds cannot show it for 2 variants at once" in conclude(
        to_none, {}, attention=NAMES, data="scenes", text=TEXT
    )


def test_conclusion_with_few_seeds_claims_nothing():
    to_none = {name: difference(0.1, "too few seeds", seeds=3) for name in NAMES}
    text = conclude(to_none, {}, attention=NAMES, data="scenes", text=TEXT)
    assert text.startswith(
        "Too few seeds to say whether attention helps on scenes: 3 where at least 6 are needed"
    )
    assert "p =" not in text


def test_conclusion_wants_the_control_beaten_too():
    to_none = {"se": difference(0.03, "better"), "cbam": difference(0.0, "no evidence")}
    no_better = {"se": difference(0.0, "no evidence"), "cbam": difference(-0.03, "no evidence")}
    text = conclude(to_none, no_better, attention=NAMES, data="scenes", text=TEXT)
    assert text.startswith(
        "On scenes after this budget, se is better than the same network without attention"
    )
    assert "no evidence of an advantage over a plain convolution block" in text
    better = {"se": difference(0.02, "better"), "cbam": difference(-0.03, "no evidence")}
    text = conclude(to_none, better, attention=NAMES, data="scenes", text=TEXT)
    assert text.startswith(
        "Attention helps on scenes after this budget: se is better than the same network without it"
    )


def test_conclusion_on_networks_names_the_one_they_are_compared_with_and_no_attention():
    def said(**found):
        to_none = {name: difference(mean, finding) for name, (mean, finding) in found.items()}
        return conclude(to_none, {}, attention=list(found), data="scenes", text=TEXT, network="detr_a")

    both = said(fcos_a=(0.2, "better"), sparse_rcnn_a=(-0.1, "worse"))
    assert both.startswith(
        "On scenes after this budget, fcos_a is better than detr_a (best: fcos_a +20.0 points"
    )
    assert "Worse than detr_a: sparse_rcnn_a (sparse_rcnn_a −10.0 points" in both
    nothing = said(fcos_a=(0.01, "no evidence"))
    assert "no evidence that any network is better than detr_a" in nothing
    assert not any(word in both + nothing for word in ("attention", "block"))


def test_conclusion_without_a_control_says_what_is_unknown():
    text = conclude({"se": difference(0.03, "better")}, {}, attention=["se"], data="scenes", text=TEXT)
    assert "without a control this may be the added capacity alone" in text


def test_conclusion_names_what_hurts_and_a_control_that_helps():
    to_none = {
        "control": difference(0.04, "better"),
        "se": difference(0.01, "no evidence"),
        "cbam": difference(-0.05, "worse"),
    }
    text = conclude(to_none, {}, attention=NAMES, data="scenes", text=TEXT)
    assert "(another may do better: tune): cbam (cbam −5.0 points" in text
    assert "The control is itself better than none (+4.0 points" in text


def test_conclusion_when_nothing_finished():
    assert conclude({}, {}, attention=NAMES, data="scenes", text=TEXT).startswith(
        "Nothing can be said about scenes"
    )


def test_numbers_have_a_true_minus_sign():
    assert TEXT.difference(-0.0049) == "−0.5"
    assert TEXT.difference(float("nan")) == TEXT.value(float("nan")) == "–"


def test_a_metric_that_is_no_share_is_written_as_it_is_and_lower_may_be_best():
    text = MetricText("error", is_share=False, higher_is_better=False)
    assert (text.value(0.01234), text.difference(-0.5), text.unit) == ("0.01234", "−0.5", "of error")
    to_none = {"se": difference(-0.02, "better"), "cbam": difference(-0.01, "better")}
    said = conclude(to_none, {}, attention=["se", "cbam"], data="scenes", text=text)
    assert "best: se −0.02 of error" in said


def test_worse_is_said_of_the_rate_unless_it_was_tuned():
    to_none = {"se": difference(-0.05, "worse")}
    one, other = (
        conclude(to_none, {}, attention=["se"], data="scenes", text=TEXT, tuned=tuned)
        for tuned in (False, True)
    )
    assert "Worse than no attention at this learning rate (another may do better: tune): se" in one
    assert "Worse than no attention: se" in other


def test_a_block_that_never_took_part_is_no_verdict():
    to_none = {"se": difference(0.0, "no evidence", p=1.0), "cbam": difference(0.02, "better")}
    said = conclude(to_none, {}, attention=NAMES, data="scenes", text=TEXT, idle=["se"])
    assert "Nothing can be said about se: its blocks never took part" in said
    assert "cbam is better" in said
    alone = conclude({"se": to_none["se"]}, {}, attention=["se"], data="scenes", text=TEXT, idle=["se"])
    assert alone.startswith("Nothing can be said about se")
    assert "No evidence" not in alone


def test_the_budget_and_the_resolution_are_named():
    to_none = {"se": difference(0.001, "no evidence", p=0.9)}
    said = conclude(to_none, {}, attention=["se"], data="scenes", text=TEXT, budget="2 epochs")
    assert "after 2 epochs" in said
    assert "It could have found a difference of 1.4 points." in said


def test_few_seeds_have_no_interval_and_the_largest_is_by_size():
    to_none = {
        "se": difference(0.01, "too few seeds", seeds=2),
        "cbam": difference(-0.09, "too few seeds", seeds=2),
    }
    said = conclude(to_none, {}, attention=NAMES, data="scenes", text=TEXT)
    assert "The largest difference so far is cbam −9.0 points." in said
    assert "interval" not in said


def test_one_variant_that_lost_its_runs_does_not_take_the_verdict_from_the_others():
    to_none = {"se": difference(0.02, "better"), "cbam": difference(-0.09, "too few seeds", seeds=3)}
    said = conclude(to_none, {}, attention=NAMES, data="scenes", text=TEXT)
    assert said.startswith("On scenes after this budget, se is better")
    assert "Too few finished runs to say anything about cbam: at least 6 are needed." in said


def test_runs_that_came_out_alike_are_no_resolution_of_zero():
    """As where every image is right with each network: the spread is zero, and so would be the difference to find."""
    same = Difference(0.0, 0.0, 0.0, 1.0, 1.0, 8, "no evidence")
    said = conclude({"se": same, "cbam": same}, {}, attention=NAMES, data="scenes", text=TEXT)
    assert "could have found" not in said
    assert "exactly as that of none with the same seed: these images tell none of them apart" in said
    better = Difference(0.02, 0.02, 0.02, 0.01, 0.01, 8, "better")
    said = conclude({"se": better}, {}, attention=["se"], data="scenes", text=TEXT)
    assert "could have found" not in said
    assert "exactly as" not in said
