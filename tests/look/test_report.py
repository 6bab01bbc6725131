"""Scores as text and files."""

import csv
import json
from pathlib import Path

import pytest

from foveal.look.measures import VS_CHANCE, score_sites
from foveal.look.report import table, write_scores

from .test_measures import Planted, classifier, planted_batches


def test_scores_are_written_as_table_csv_and_json(tmp_path: Path) -> None:
    scores = score_sites(classifier(Planted()), planted_batches(on_object=True, images=11), curve_images=1)
    text = table(scores)
    assert "share_gain" in text
    assert "-> attention on the object: above chance" in text
    write_scores(scores, tmp_path)
    with (tmp_path / "scores.csv").open() as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    assert float(rows["share"]["mean"]) == pytest.approx(1)
    document = json.loads((tmp_path / "scores.json").read_text())
    assert document["sites"][0]["values"]["deletion"]["low"] is None
    assert set(VS_CHANCE) <= set(document["measures"])
