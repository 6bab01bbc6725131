import numpy as np

from foveal.data.scenes.render import sources, uniform


def test_no_digit_and_no_photograph_column_is_in_two_splits() -> None:
    digits, columns = [], 0
    for split in ("train", "val", "test"):
        glyphs, labels, photographs = sources(split, 32)
        assert set(labels.tolist()) == set(range(10))
        digits.append({glyph.tobytes() for glyph in glyphs})
        columns += photographs.shape[2]
    assert columns == 640
    assert not digits[0] & digits[1]
    assert not digits[0] & digits[2]
    assert not digits[1] & digits[2]


def test_the_hash_is_uniform_and_unrelated_between_neighbours() -> None:
    u = uniform(5, 0, np.arange(20000), 4)
    assert 0 <= u.min() < 0.001
    assert 0.999 < u.max() < 1
    assert np.abs(u.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(u[:, 0], uniform(6, 0, np.arange(20000), 1)[:, 0])[0, 1]) < 0.03
