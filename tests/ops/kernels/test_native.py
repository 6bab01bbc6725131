"""The arithmetic that the native kernels have of their own."""

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba, which compiles the kernels, is not installed")


@pytest.fixture(autouse=True)
def without_type_checks(request):
    if request.config.getoption("jaxtyping_packages", None):
        pytest.skip("numba compiles no function with run-time type checks; this test runs without them")


def test_the_sigmoid_is_that_of_double_precision():
    from foveal.ops.kernels.native.axes import jit, sigmoid

    @jit
    def of_all(values, found):
        for i in range(values.size):
            found[i] = sigmoid(values[i])

    values = np.concatenate([np.linspace(-700, 700, 20_001), np.linspace(-3, 3, 20_001), [0.0, -0.0]])
    found = np.empty_like(values)
    of_all(values, found)
    # as a share of the smaller side, so that a sigmoid near 0 is held to as many digits as one near 1
    exact = 1 / (1 + np.exp(-values))
    assert np.max(np.abs(found / exact - 1)) < 1e-13
    assert np.all(found[-2:] == 0.5)
    far = np.array([np.inf, -np.inf, 1e300, -1e300, np.nan])
    found = np.empty_like(far)
    of_all(far, found)
    np.testing.assert_allclose(found, [1, 0, 1, 0, np.nan], atol=1e-300)
