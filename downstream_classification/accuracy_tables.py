"""What the tables of accuracies hold: methods against attributes, single times, settings side by side.

Numbers are per cent of test images: mean +- standard deviation over encoders (over head seeds, of one encoder), and paired
differences to the best single time with their 95 % intervals.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from downstream_classification.accuracies import FAMILIES, Score, best, in_network_order
from downstream_classification.summaries import main_family
from downstream_classification.texts import Table

Summaries = Mapping[str, Mapping[str, Any]]  # of each attribute
FEWEST_TIMES = 26  # of more single times, a table shows the tenths


def accuracies(summaries: Summaries, title: str, note: str) -> Table:
    """Every source and head, each at the view that validation chose, by attribute."""
    methods = list(dict.fromkeys(row for summary in summaries.values() for row in methods_of(summary)))
    rows = [("chance", *(f"{100 * summary['chance']:.1f}" for summary in summaries.values()))]
    for family, method in methods:
        cells = (entry_of(summary, family, method) for summary in summaries.values())
        rows.append((f"{FAMILIES.get(family, family)}: {method}", *(accuracy(cell) for cell in cells)))
    return Table(title, ("test accuracy, %", *summaries), tuple(rows), note)


def differences(summaries: Summaries, title: str, note: str) -> Table:
    """Every head minus the best single time of its source, and minus that of its own read-out; trained minus untrained.

    A row of each source names what its heads are compared with.
    """
    rows: list[tuple[str, ...]] = []
    named = set()
    for family, method in dict.fromkeys(row for summary in summaries.values() for row in methods_of(summary)):
        if family not in named:
            named.add(family)
            singles = (summary["sources"].get(family, {}).get("single") for summary in summaries.values())
            rows.append((f"{FAMILIES.get(family, family)}: best single time", *map(view, singles)))
        cells = [
            summary["sources"].get(family, {}).get("minus_single", {}).get(method) for summary in summaries.values()
        ]
        if any(cells):
            rows.append((f"{FAMILIES.get(family, family)}: {method}", *map(difference, cells)))
        gains = [
            summary["sources"].get(family, {}).get("minus_alike", {}).get(method) for summary in summaries.values()
        ]
        if any(gains):
            alike = next(gain["head"] for gain in gains if gain)
            rows.append((f"{FAMILIES.get(family, family)}: {method}, minus {alike}", *map(difference, gains)))
    controls = [summary.get("encoder_minus_untrained") for summary in summaries.values()]
    if any(controls):
        rows.append(("trained - untrained, single", *map(difference, controls)))
    return Table(title, ("minus best single time, points", *summaries), tuple(rows), note)


def single_times(scores: Sequence[Score], attributes: Sequence[str], head: str, title: str) -> Table:
    """The head of one time at every time (of many, the tenths), by attribute; of several blocks, each at its best time."""
    family = main_family(scores)
    ours = [
        score
        for score in scores
        if score.family == family and score.method == head and not score.mixes and score.labels is None
    ]
    sources = sorted({score.source for score in ours}, key=in_network_order)
    times = sorted({score.times for score in ours})
    if len(times) > FEWEST_TIMES:
        times = [time for time in times if abs(10 * time - round(10 * time)) < 1e-6]
    held: dict[tuple, list[Score]] = {}
    for score in ours:
        held.setdefault((score.attribute, score.source, score.times), []).append(score)
        held.setdefault((score.attribute, score.source), []).append(score)
    if len(sources) > 1:
        rows = [(source, *(at_best(held.get((name, source), [])) for name in attributes)) for source in sources]
    else:
        rows = [
            (f"t = {time:.3g}", *(at(best(held.get((name, *sources, time), []))) for name in attributes))
            for time in times
        ]
    return Table(title, ("test accuracy, %", *attributes), tuple(rows))


def at(score: Score | None) -> str:
    """The accuracy of one score, or a dash."""
    return spread(score.test, score.deviation) if score else "-"


def at_best(scores: Sequence[Score]) -> str:
    """The accuracy at the time that validation chose, or a dash."""
    chosen = best(scores)
    return f"{at(chosen)} at t = {chosen.times:.3g}" if chosen else "-"


def settings(held: Mapping[str, Summaries], attribute: str, note: str) -> list[Table]:
    """One attribute in several settings: best single time and each head that mixes; what each adds to the single time."""
    there = {label: summaries[attribute] for label, summaries in held.items() if attribute in summaries}
    methods = list(dict.fromkeys(method for summary in there.values() for method in summary["mixed"]))
    single = ("best single time", *(accuracy(main_single(summary)) for summary in there.values()))
    mixed = [(method, *(accuracy(summary["mixed"].get(method)) for summary in there.values())) for method in methods]
    gains = [summary.get("mixed_minus_single", {}) for summary in there.values()]
    added = tuple((method, *(difference(gain.get(method)) for gain in gains)) for method in methods)
    first = Table(f"{attribute}: test accuracy", ("test accuracy, %", *there), (single, *mixed))
    if not added:
        return [first.upright()]
    second = Table(f"{attribute}: minus best single time", ("minus best single time, points", *there), added, note)
    return [first.upright(), second.upright()]


def main_single(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The single of the family whose heads mix."""
    return summary.get("encoder") or summary.get("blocks")


def methods_of(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(family, method) of every row: the single of each family before its other heads."""
    for family, entry in summary["sources"].items():
        if "single" in entry:
            yield family, entry["single"]["head"]
        for method in entry["methods"]:
            yield family, method


def entry_of(summary: Mapping[str, Any], family: str, method: str) -> Mapping[str, Any] | None:
    """What a summary says of one head on one family."""
    entry = summary["sources"].get(family, {})
    single = entry.get("single", {})
    return single if single.get("head") == method else entry.get("methods", {}).get(method)


def accuracy(entry: Mapping[str, Any] | None) -> str:
    """`72.1 +- 0.4 at t = 0.3`, or a dash."""
    return f"{spread(entry['accuracy'], entry['deviation'])} at {place(entry)}" if entry else "-"


def view(entry: Mapping[str, Any] | None) -> str:
    """`mlp at t = 0.3`, or a dash."""
    return f"{entry['head']} at {place(entry)}" if entry else "-"


def place(entry: Mapping[str, Any]) -> str:
    """`t = 0.3` or `k = 10`, after the block where a family has several."""
    times = entry.get("best_time")
    where = [entry["source"].removeprefix("block-")] if "source" in entry else []
    where += [f"t = {times:.3g}"] if times is not None else [f"k = {str(entry['times']).removeprefix('all')}"]
    return ", ".join(where)


def verdict(attribute: str, summary: Mapping[str, Any]) -> str | None:
    """One sentence: what mixing adds to the best single time; None where one of the two is missing."""
    if "best_mixed" not in summary:
        return None
    mixed, single = summary["mixed"][summary["best_mixed"]], main_single(summary)
    gain = summary["mixed_minus_single"][summary["best_mixed"]]
    word = "mixing helps" if gain["low"] > 0 else "mixing hurts" if gain["high"] < 0 else "no difference can be told"
    return (
        f"{attribute}: {mixed['head']} {accuracy(mixed)}, best single time {accuracy(single)} ({single['head']}): "
        f"{difference(gain)} points, {word}"
    )


def spread(mean: float, deviation: float | None) -> str:
    """`72.1 +- 0.4`, in per cent."""
    return f"{100 * mean:.1f}" + (f" +- {100 * deviation:.1f}" if deviation is not None else "")


def difference(entry: Mapping[str, float] | None) -> str:
    """`+1.2 [+0.3, +2.1]` in points, or a dash."""
    if not entry:
        return "-"
    middle, low, high = (f"{100 * entry[name]:+.1f}" for name in ("difference", "low", "high"))
    return f"{middle} [{low}, {high}]"


def records(label: str, summaries: Summaries) -> list[dict[str, Any]]:
    """Every number of a setting's summaries, one source and head a record."""
    found = []
    for attribute, summary in summaries.items():
        for family, method in methods_of(summary):
            entry = dict(entry_of(summary, family, method) or {})
            gain = summary["sources"][family].get("minus_single", {}).get(method) or {}
            entry["seeds"] = " ".join(map(str, entry.get("seeds", ())))
            entry["view"] = entry.pop("best_time", entry.pop("times", ""))
            named = {"setting": label, "attribute": attribute, "family": family, "chance": summary["chance"]}
            gained = {f"minus_single_{name}": gain.get(name) for name in ("difference", "low", "high")}
            alike = summary["sources"][family].get("minus_alike", {}).get(method) or {}
            found.append(named | entry | gained | {f"minus_alike_{name}": value for name, value in alike.items()})
    return found
