"""Scores beside the rounds: models do not pile up, and the last one is always scored."""

from __future__ import annotations

import threading

from coordinator.scorer import WAITING, Scored, Scorer, Snapshot


def snapshot(round: int) -> Snapshot:
    return Snapshot(round, float(round), {}, {})


def test_evaluation_that_lags_leaves_out_old_models_and_scores_the_last_one() -> None:
    begun, go_on, said = threading.Event(), threading.Event(), list[Scored]()

    def evaluate(one: Snapshot) -> dict[str, float]:
        begun.set()
        assert go_on.wait(60)
        return {"f1": one.round / 100}

    scorer = Scorer(evaluate, said.append)
    scorer.submit(snapshot(1))
    assert begun.wait(60)
    for round in range(2, 100):
        scorer.submit(snapshot(round))
    go_on.set()
    while len(said) < 1 + WAITING:
        threading.Event().wait(0.01)
    assert [one.round for one in said] == [1, *range(100 - WAITING, 100)]
    scorer.close(60)


def test_closing_scores_what_still_waits() -> None:
    said = list[Scored]()
    scorer = Scorer(lambda one: {"f1": one.round / 100}, said.append)
    for round in (1, 2, 3):
        scorer.submit(snapshot(round))
    scorer.close(60)
    assert [one.round for one in said] == [1, 2, 3]


def test_a_score_that_fails_ends_nothing() -> None:
    said = list[Scored]()

    def evaluate(one: Snapshot) -> dict[str, float]:
        if one.round == 1:
            raise ValueError("no windows")
        return {"f1": 0.5}

    scorer = Scorer(evaluate, said.append)
    scorer.submit(snapshot(1))
    scorer.submit(snapshot(2))
    scorer.close(60)
    assert [one.round for one in said] == [2]
