"""Summaries: each source at the block and time that validation chose, every head on it, and the paired differences.

For each family of sources (trained encoder, untrained encoder, pixels, PCA, blocks of a score network) the *single* is
what everything is compared by: of all heads of one time, or of one that is asked for, the one that validates best, at its
best block and time. Every other head stands at its own best block, time or granularity (above 1), all chosen by validation,
and so is the head that speaks for mixing. Test accuracies choose nothing. A head that mixes is also compared
with the head of one time that has its own read-out, so that capacity is not mistaken for mixing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from downstream_classification import bootstrap
from downstream_classification.accuracies import FAMILIES, Score, best, of_one_time, of_several_times

Summary = dict[str, Any]
ALIKE = {
    "linear": "linear",
    "mlp": "mlp",
    "transformer": "transformer-one",
}  # of equal capacity, by the last word of a name


def families(scores: Sequence[Score]) -> list[str]:
    """The families of sources that are there, the one to be shown first in front."""
    there = dict.fromkeys(score.family for score in scores)
    known = [name for name in (*FAMILIES, "blocks") if name in there]
    return known + [name for name in there if name not in known]


def main_family(scores: Sequence[Score]) -> str:
    """The family whose times are drawn and whose heads mix: the trained encoder, else blocks, else the first there is."""
    there = families(scores)
    return next((name for name in ("encoder", "blocks") if name in there), there[0])


def summarise(scores: Sequence[Score], attribute: str, head: str | None) -> Summary:
    """The summary of one attribute: every family's single, and of the main family the heads that mix and what they add."""
    ours = [score for score in scores if score.attribute == attribute and score.labels is None]
    ours = of_several_times(ours)
    sources = {name: summarise_family([score for score in ours if score.family == name], head) for name in families(ours)}  # fmt: skip
    main = main_family(ours)
    chosen = {name: chosen_single(ours, name, head) for name in sources}
    mixing = [score for score in ours if score.family == main and score.mixes]
    summary: Summary = {name: ours[0].protocol[name] for name in ("chance", "majority", "classes")}
    summary |= {name: entry["single"] for name, entry in sources.items() if "single" in entry}
    summary["mixed"] = {
        method: sources[main]["methods"][method] for method in dict.fromkeys(score.method for score in mixing)
    }
    if chosen.get("encoder") and chosen.get("untrained"):
        summary["encoder_minus_untrained"] = difference(chosen["encoder"], chosen["untrained"])
    if chosen[main]:
        summary["mixed_minus_single"] = {method: sources[main]["minus_single"][method] for method in summary["mixed"]}
        if mixing:
            summary["best_mixed"] = best(mixing).method
    return summary | {"sources": sources}


def chosen_single(scores: Sequence[Score], family: str, head: str | None) -> Score | None:
    """The head of one time (None: any) at the block and time of a family that validate best."""
    return best(of_one_time((score for score in scores if score.family == family), head))


def summarise_family(scores: Sequence[Score], head: str | None) -> Summary:
    """One family: its single, its other heads, each where it validates best, and these minus the single."""
    single = best(of_one_time(scores, head))
    head = single.method if single else head
    others = {
        method: best(score for score in scores if score.method == method)
        for method in dict.fromkeys(score.method for score in scores)
        if method != head
    }
    summary: Summary = {"methods": {method: accuracy(score) for method, score in others.items()}}
    if single:
        summary["single"] = accuracy(single)
        summary["minus_single"] = {method: difference(score, single) for method, score in others.items()}
    summary["minus_alike"] = {
        method: {"head": alike, **gain}
        for method, score in others.items()
        if score.mixes
        and (alike := ALIKE.get(method.partition(" ")[0].rpartition("-")[2], head)) != head
        and alike in others
        and (gain := difference(score, others[alike]))
    }
    return summary


def accuracy(score: Score) -> Summary:
    """Test accuracy of one score with its deviation and interval."""
    low, high = bootstrap.interval(score.hits, score.seeds)
    where: Summary = {"times": score.times} if score.mixes else {"best_time": score.times}
    if score.family != score.source:
        where["source"] = score.source
    return {
        **where,
        "head": score.method,
        "accuracy": score.test,
        "low": low,
        "high": high,
        "deviation": score.deviation,
        "validation": score.validation,
        "seeds": list(score.seeds),
        "encoders": len(score.runs),
        "dimension": score.protocol["dimension"],
    }


def difference(ours: Score, theirs: Score) -> Mapping[str, float] | None:
    """Paired difference in test accuracy with its interval, over the runs that both sides have; None where none is shared."""
    runs = [run for run in ours.runs if run in theirs.runs]
    if not runs:
        return None
    sides = [score.hits[[score.runs.index(run) for run in runs]] for score in (ours, theirs)]
    middle, low, high = bootstrap.difference(*sides, ours.seeds, theirs.seeds)
    return {"difference": middle, "low": low, "high": high}
