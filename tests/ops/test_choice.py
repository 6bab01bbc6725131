"""A choice of backend can be read."""

from foveal.ops.choice import Choice


def test_a_choice_is_printed_with_its_reason_and_those_against_the_others():
    choice = Choice("streamed", "any widths", {"sdpa": "equal widths only", "triton": "no CUDA"})
    assert str(choice) == "streamed: any widths\nnot sdpa: equal widths only\nnot triton: no CUDA"
