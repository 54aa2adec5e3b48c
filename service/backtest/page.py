"""The report as one HTML page that needs nothing else: for people, light and dark."""

import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from string import Template

import orjson

from service.backtest.drawing import Line, Tick, chart
from service.backtest.options import Protocol
from service.backtest.report import Report, Summary, SummaryPart, click_lines
from service.backtest.scores import COLD, METRICS

LABELS: Mapping[str, str] = {
    "recall_at_20": "Recall@20",
    "recall_at_10": "Recall@10",
    "mrr_at_20": "MRR@20",
    "mrr_at_10": "MRR@10",
    "ndcg_at_10": "NDCG@10",
    "hr_at_10": "HR@10",
}
MEANINGS: Mapping[str, str] = {
    "live": "the service: weights and memory learn from the stream",
    "live_streamed": "the same queries, ranked as the service does: while it learns the period",
    "transformer": "the live weights without the memory",
    "memory": "the item-to-item memory alone",
    "frozen": "the live model as it was when counting began",
    "popularity": "the items with the most events so far",
    "recent_popularity": "the same, an event counting half as much a half-life later: what the "
    "service falls back on",
    "retrain": "a new model, weights and memory, taught everything so far; still until the next",
    "retrain_transformer": "that model without the memory",
}


def draw_page(report: Report) -> str:
    continual = report.protocol == Protocol.CONTINUAL
    drawn = ("recall_at_20", "mrr_at_20") if continual else ("ndcg_at_10", "recall_at_20")
    body = [
        f"<h1>Backtest, {html.escape(report.protocol)} protocol</h1>",
        f"<p>{html.escape(summary_line(report))}</p>",
        *_section("Figures", _figures(report)),
        *(_notes(report)),
        *_section("Over the stream", *(_curve(report, name) for name in drawn)),
        *_section("Gate decisions", _gate(report)),
        *_section("Compute", *_compute(report)),
        *_section(
            "Cold and warm items",
            _cold(report),
            *(_curve(report, drawn[0], half) for half in ("cold", "warm")),
        ),
        *_section("Parts", *(_parts(report, name) for name in drawn)),
        *_section("Run", _run(report)),
    ]
    frame = resources.files("service.backtest").joinpath("page.html").read_text(encoding="utf-8")
    return Template(frame).substitute(
        title=f"Backtest, {html.escape(report.protocol)}", body="\n".join(body)
    )


def summary_line(report: Report) -> str:
    data = report.data
    seeds = [run.seed for run in report.seeds]
    return (
        f"{report.queries:,} queries; {data.events:,} events of {data.users:,} users and "
        f"{data.items:,} items ({', '.join(data.files)}); seed {', '.join(map(str, seeds))}; "
        f"{report.seconds:,.0f} s in all"
    )


def _section(title: str, *blocks: str) -> list[str]:
    return [f"<h2>{title}</h2>", *blocks]


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Rows of a first cell and others. Others may hold markup."""
    parts = ["<div class=wide><table><tr>", *(f"<th>{one}</th>" for one in head), "</tr>"]
    for name, cells in rows:
        mark = ' class="live"' if name == "live" else ""
        filled = "".join(f"<td>{cell}</td>" for cell in cells)
        parts.append(f"<tr{mark}><td>{html.escape(name)}</td>{filled}</tr>")
    return "".join([*parts, "</table></div>"])


def _figures(report: Report) -> str:
    several = len(report.seeds) > 1

    def cell(model: Summary, name: str) -> str:
        give = f"±{model.margin[name]:.4f}"
        if several:
            give += f", seeds ±{model.spread[name]:.4f}"
        return f"{getattr(model, name):.4f} <small>{give}</small>"

    rows = [
        (name, [*(cell(model, metric) for metric in METRICS), f"{model.train_seconds:,.1f}"])
        for name, model in report.models.items()
    ]
    key = [(name, [html.escape(MEANINGS.get(name, ""))]) for name in report.models]
    head = ["model", *(LABELS[metric] for metric in METRICS), "training, s"]
    return _table(head, rows) + _table(["model", "is"], key)


def _notes(report: Report) -> list[str]:
    told = [
        *click_lines(report),
        *report.notes,
        *(
            f"{one.name} is {one.used} instead of {one.given}: {one.why}."
            for one in report.overrides
        ),
    ]
    return ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in told), "</ul>"]


def _x(report: Report) -> list[float]:
    """Where each part stands: periods by number, blocks by their last event."""
    if report.protocol == Protocol.CONTINUAL:
        return [float(number) for number in range(1, len(report.parts) + 1)]
    return [float(part.events[1]) for part in report.parts]


def _x_label(report: Report) -> str:
    return "period" if report.protocol == Protocol.CONTINUAL else "events of the stream"


def _key(names: Iterable[str]) -> str:
    marks = (f'<span class="c{i}"><i></i>{html.escape(n)}</span>' for i, n in enumerate(names))
    return f'<div class="key">{"".join(marks)}</div>'


def _curve(report: Report, metric: str, half: str = "") -> str:
    """Of all queries, or of those for the `cold` or `warm` items: a part without any of these has
    no point."""
    lines = []
    for name in report.models:
        models = [part.models[name] for part in report.parts]
        scores = [getattr(model, half) for model in models] if half else models
        drawn = [
            (x, getattr(score, metric), score.margin[metric])
            for x, score in zip(_x(report), scores, strict=True)
            if score.queries or not half
        ]
        lines.append(Line(name, *([point[i] for point in drawn] for i in range(3))))
    of = f"{half} items in each part" if half else "each part"
    label = f"{LABELS[metric]} of {of}, with its 95 % interval"
    return chart(lines, _x_label(report), label) + _key(report.models)


def _gate(report: Report) -> str:
    run = report.seeds[0]
    decided = [one for one in run.decisions if one.rows]
    scored = [(one.events, one.challenger) for one in decided if one.challenger is not None]
    lines = [
        Line("challenger", [events for events, _ in scored], [ndcg for _, ndcg in scored]),
        Line("champion", [one.events for one in decided], [one.champion for one in decided]),
    ]
    ticks = [Tick(one.events, one.verdict, f"{one.verdict} at {one.events:,}") for one in decided]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.versions.items())
    told = f"<p>All seeds: {counts}. The curves and ticks are those of seed {run.seed}.</p>"
    if not decided:
        return told
    label = "NDCG@10 on the rolling holdout when the gate was asked"
    return (
        told
        + chart(lines, "events of the stream", label, ticks)
        + _key(line.name for line in lines)
    )


def _compute(report: Report) -> list[str]:
    def retrained_s(part: SummaryPart) -> list[float]:
        return [part.models["retrain"].train_seconds] if "retrain" in part.models else []

    x = _x(report)
    lines = []
    for name in ("live", "retrain"):
        if name in report.models:
            total, spent = 0.0, []
            for part in report.parts:
                total += part.models[name].train_seconds
                spent.append(total)
            lines.append(Line(name, x, spent))
    taken_s = [
        (part.name, [part.learn_seconds, part.test_seconds, *retrained_s(part)])
        for part in report.parts
    ]
    rows = [(name, [f"{seconds:,.1f}" for seconds in cells]) for name, cells in taken_s]
    drawn = chart(lines, _x_label(report), "seconds of training until then")
    head = ["wall clock, s", "stream ranked and learned", "queries ranked apart"]
    head += ["retrained"] if "retrain" in report.models else []
    return [drawn, _key(line.name for line in lines), _table(head, rows)]


def _cold(report: Report) -> str:
    rows = [
        (
            name,
            [
                f"{getattr(half, metric):.4f} <small>±{half.margin[metric]:.4f}</small>"
                for half in (model.cold, model.warm)
                for metric in ("recall_at_20", "ndcg_at_10")
            ],
        )
        for name, model in report.models.items()
    ]
    live = report.models["live"]
    told = (
        f"<p>{live.cold.queries:,} queries are for an item with fewer than {COLD} events so far, "
        f"{live.warm.queries:,} for others.</p>"
    )
    head = ["model", "cold Recall@20", "cold NDCG@10", "warm Recall@20", "warm NDCG@10"]
    return told + _table(head, rows)


def _parts(report: Report, metric: str) -> str:
    def cells(part: SummaryPart) -> list[str]:
        return [
            f"{part.queries:,}",
            *(f"{getattr(model, metric):.4f}" for model in part.models.values()),
        ]

    head = [LABELS[metric], "queries", *map(html.escape, report.models)]
    return _table(head, [(part.name, cells(part)) for part in report.parts])


def _run(report: Report) -> str:
    plain = {
        "options": report.options,
        "environment": report.environment,
        "settings": report.settings,
    }
    text = orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode()
    head = "<summary>options, environment, settings</summary>"
    return f"<details>{head}<pre>{html.escape(text)}</pre></details>"
