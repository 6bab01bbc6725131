from foveal.tasks.detect.alarms import remarks
from foveal.train import TrainConfig


def rows(*figures, steps=100):
    """Epochs of ``steps`` optimiser steps."""
    return [
        {
            "step": steps * epoch,
            "val_ap50": ap,
            "val_query_spread": spread,
            "val_found_probability": found,
            "train_loss": loss,
            "train_l1": loss,
        }
        for epoch, (ap, spread, found, loss) in enumerate(figures, start=1)
    ]


def test_a_run_that_gets_somewhere_is_not_spoken_to():
    config = TrainConfig(task="detect", epochs=5)
    assert remarks(rows((0, 0.2, 0.1, 9), (0.05, 0.2, 0.2, 7), (0.2, 0.2, 0.3, 5)), config) == []


def test_what_stands_still_is_told_once_and_told_apart():
    config = TrainConfig(task="detect", epochs=9)
    alike = rows((0, 0.001, 0.1, 9), (0, 0.001, 0.1, 9), (0, 0.001, 0.1, 9))
    rising = rows((0, 0.2, 0.05, 9), (0, 0.2, 0.1, 9), (0, 0.2, 0.2, 9))
    still = rows((0, 0.2, 0.05, 9), (0, 0.2, 0.05, 9), (0, 0.2, 0.05, 9))
    assert "all queries say nearly the same box" in remarks(alike, config)[0]
    assert "boxes are not yet; train on" in remarks(rising, config)[0]
    assert "nothing is being learned" in remarks(still, config)[0]
    assert remarks(still[:2], config) == []
    assert remarks([*still, *still], config) == []


def test_patience_is_counted_in_optimiser_steps_however_many_an_epoch_has():
    config = TrainConfig(task="detect", epochs=999)
    still = (0, 0.2, 0.05, 9)
    told = [bool(remarks(rows(*[still] * epochs, steps=1), config)) for epochs in range(1, 310)]
    assert told.index(True) == 299, "epochs of one step, as --overfit has"
    assert sum(told) == 1
    assert not remarks(rows(still, steps=5000), config), "nothing to compare with yet"
    assert remarks(rows(still, still, steps=5000), config)


def test_overfit_says_passed_or_what_stands_still():
    config = TrainConfig(task="detect", epochs=2, task_options={"overfit": 4})
    assert "overfit: passed" in remarks(rows((0, 0.2, 0.1, 9), (0.95, 0.2, 0.9, 1)), config)[0]
    told = remarks(rows((0, 0.2, 0.1, 9), (0.1, 0.2, 0.2, 8.5)), config)[0]
    assert "not passed, AP50 10.0%" in told
    assert "stand still: l1" in told
    assert remarks(rows((0, 0.2, 0.1, 9)), config) == []
