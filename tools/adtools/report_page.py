"""The report as one HTML page: no script, and nothing that is fetched, so that it can be mailed, kept and printed.

The plots are SVG by matplotlib, which needs no browser to draw and no script to look at. Ids stand in them, and names,
in whatever alphabet, in the page itself, where the reader's own fonts show them.
"""

import io
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, tzinfo
from html import escape
from itertools import accumulate
from typing import Any

from adcore.core.calendar import Calendar
from adcore.errors import ConfigError
from adcore.sources.results import RESULT_NUMBERS
from adtools.report import Report, fold, shares, show_share, wilson

# Of an ideal line: an hour of a flight of a week, and fine enough for the eye in a longer one.
POINTS = 168
# What a chart has of a flight without an end, or of a broken clock: 1970 to 2200. The ticks of an axis over thousands
# of years would be beyond those that dates have.
CHART_START = 0.0
CHART_END = 7_258_118_400.0
# More in one picture can't be told apart; the tables have all of them.
LINES_MAX = 12
BARS_MAX = 30
# Seen on white and on black.
COLOURS = ("#3f7fb5", "#d1793b", "#4b8b57", "#b8485f", "#8570b3", "#9a893f", "#3f8f94", "#888888")
# Stands for the colour of the page's text, which is the reader's, light or dark.
INK = "#010203"
STYLE = """
:root { color-scheme: light dark; --line: #999; --faint: #666; --band: #f6f6f6 }
@media (prefers-color-scheme: dark) { :root { --line: #777; --faint: #aaa; --band: #262626 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }
figure { margin: 0 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2.2em } svg { max-width: 100%; height: auto }
table { border-collapse: collapse } th, td { padding: .15em .8em .15em 0; text-align: left; vertical-align: top }
thead th { border-bottom: 1px solid var(--line) } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.note { color: var(--faint) } tbody tr:nth-child(even) { background: var(--band) }
"""

Cells = Iterable[Sequence[object]]


def render(report: Report, now: datetime) -> str:
    """The page. Raises ConfigError without matplotlib."""
    draw = Drawing()
    title = f"Campaign {report.campaign}" if report.campaign else "Delivery"
    with draw.ink():
        body = "\n".join([f"<h1>{escape(title)}</h1>", describe(report, now), *chapters(report, draw)])
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def chapters(report: Report, draw: "Drawing") -> list[str]:
    """Everything below the page's title."""
    names = {one["id"]: one for one in report.campaigns}
    parts = plan_of(names[report.campaign], report.zone) if report.campaign in names else []
    parts += [f"<h2>By {escape(', '.join(report.keys))}</h2>", main_table(report)]
    parts += ["<h2>Delivery against goal</h2>", draw.deliveries(report)]
    what = "creative" if report.campaign else "campaign"
    parts += [f"<h2>Clicks per impression, by {what}</h2>", draw.rates(report, what)]
    if not report.campaign:
        return [*parts, "<h2>Requests that got nothing</h2>", draw.unfilled(report), unfilled_table(report)]
    parts += ["<h2>Why it was not shown</h2>", refusals_table(report)]
    for key in ("placement", "day"):
        if report.keys != (key,):
            rows = fold(report.by_hour, (key,), RESULT_NUMBERS, Calendar(report.zone))
            parts += [f"<h2>By {key}</h2>", numbers_table((key,), RESULT_NUMBERS, rows)]
    return parts


# Words and tables


def describe(report: Report, now: datetime) -> str:
    hours = [row["hour"] for row in (*report.by_hour, *report.unfilled)]
    if not hours:
        return '<p class="note">Nothing was counted in this time; adctl collect does that.</p>'
    first, last = (show_time(hour, report.zone) for hour in (min(hours), max(hours)))
    return (
        f'<p class="note">Hours from {first} to {last}, as counted until '
        f"{escape(now.astimezone(report.zone).isoformat(' ', 'minutes'))}. Known bots are in ivt alone.</p>"
    )


def plan_of(campaign: Mapping[str, Any], zone: tzinfo) -> list[str]:
    """What was booked."""
    plan = [
        ("name", campaign["name"]),
        ("advertiser", campaign.get("advertiser") or "-"),
        ("status", campaign.get("status", "active")),
        ("priority", campaign["priority"]),
        ("from", campaign.get("starts_at") or "always"),
        ("to", campaign.get("ends_at") or "no end"),
        ("goal", show_limit(campaign.get("goal"))),
        ("daily cap", show_limit(campaign.get("daily_cap"))),
        ("pacing", campaign.get("pacing", "asap")),
    ]
    return [make_table((), plan)]


def main_table(report: Report) -> str:
    return numbers_table(report.keys, report.numbers, report.rows)


def numbers_table(keys: Sequence[str], numbers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    return make_table(
        [*keys, *map(Number, numbers), Number("CTR % (95 % interval)")],
        (
            (*(row[key] for key in keys), *(Number(f"{row[number]:,}") for number in numbers), Number(show_share(row)))
            for row in rows
        ),
    )


def refusals_table(report: Report) -> str:
    if not report.refusals:
        return (
            '<p class="note">No reasons were counted in this time; '
            "adctl collect counts them where it has the archive of tables.</p>"
        )
    rows = ((reason, Number(f"{share:.1%}"), Number(f"{n:,}")) for reason, n, share in shares(report.refusals))
    return make_table(("reason", Number("share"), Number("requests")), rows)


def unfilled_table(report: Report) -> str:
    rows = fold(report.unfilled, ("placement", "reason"), ("requests", "ivt"), Calendar(report.zone))
    rows.sort(key=lambda row: -row["requests"])
    return make_table(
        ("placement", "reason", Number("requests"), Number("ivt")),
        ((row["placement"], row["reason"], Number(f"{row['requests']:,}"), Number(f"{row['ivt']:,}")) for row in rows),
    )


class Number(str):
    """The text of a cell that stands to the right."""


def make_table(heads: Sequence[str], rows: Cells) -> str:
    lines = [f"<tr>{''.join(make_cell('td', cell) for cell in row)}</tr>" for row in rows]
    head = f"<thead><tr>{''.join(make_cell('th', name) for name in heads)}</tr></thead>" if heads else ""
    return f"<table>{head}<tbody>\n" + "\n".join(lines) + "\n</tbody></table>"


def make_cell(tag: str, value: object) -> str:
    return f"<{tag}{' class=n' if isinstance(value, Number) else ''}>{escape(str(value))}</{tag}>"


def show_time(hour: int, zone: tzinfo) -> str:
    return Calendar(zone).local(hour).isoformat(" ", "minutes")


def show_limit(limit: Mapping[str, int] | None) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in (limit or {}).items() if count) or "none"


# Plots


class Drawing:
    """Draws with matplotlib, without a display. Raises ConfigError where that is not installed."""

    def __init__(self) -> None:
        try:
            import matplotlib
            from matplotlib import dates
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ConfigError(f"--format html draws with matplotlib ({error}): pip install 'adcore[report]'") from None
        self._matplotlib: Any = matplotlib
        self._dates: Any = dates
        self._figure: Callable[..., Any] = Figure

    def ink(self) -> AbstractContextManager[None]:
        """How figures look that are made inside; ids in them are the same for the same figures."""
        inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        settings: dict[str, Any] = {"svg.fonttype": "none", "text.parse_math": False, "grid.color": "#888888"}
        context: AbstractContextManager[None] = self._matplotlib.rc_context({**settings, **dict.fromkeys(inked, INK)})
        return context

    def deliveries(self, report: Report) -> str:
        """Impressions (or clicks, where they are the goal) until each hour, the goal, and the line that leads to it."""
        flights = [
            (one, kind, goal)
            for one in report.campaigns
            for kind, goal in (one.get("goal") or {}).items()
            if goal is not None
        ]
        if report.campaign and not flights:
            flights = [({"id": report.campaign}, "impressions", 0)]
        if not flights:
            return '<p class="note">No campaign has a goal.</p>'
        delivered: defaultdict[tuple[str, str], defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        for row in report.by_hour:
            for kind in ("impressions", "clicks"):
                delivered[row["campaign"], kind][row["hour"]] += row[kind]
        flights.sort(key=lambda flight: -sum(delivered[flight[0]["id"], flight[1]].values()))
        shown = flights[:LINES_MAX]
        rows = (len(shown) + 1) // 2 if len(shown) > 1 else 1
        columns = min(2, len(shown))
        figure = self._figure(figsize=(10, 2.8 * rows), layout="constrained")
        for place, (campaign, kind, goal) in enumerate(shown):
            axes = figure.add_subplot(rows, columns, place + 1)
            self._delivery(axes, report, campaign, kind, goal, delivered[campaign["id"], kind])
        left = len(flights) - len(shown)
        return self._svg(figure, "delivery against goal") + (f'<p class="note">and {left} more</p>' if left else "")

    def _delivery(
        self, axes: Any, report: Report, campaign: Mapping[str, Any], kind: str, goal: int, hours: Mapping[int, int]
    ) -> None:
        zone = report.zone
        # Each hour's deliveries are there at its end.
        times = [hour for hour in sorted(hours) if CHART_START <= hour < CHART_END]
        if times:
            points = [times[0], *(hour + 3600 for hour in times)]
            sums = [0, *accumulate(hours[hour] for hour in times)]
            axes.plot(self._local(points, zone), sums, color=COLOURS[0], label="delivered")
        if goal:
            axes.axhline(goal, color=INK, linewidth=1.2, linestyle=":", label="goal")
        flight = campaign.get("starts_at"), campaign.get("ends_at")
        if goal and all(flight):
            start, end = (datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp() for text in flight)
            line = report.lines.get(campaign["id"])
            first, last = max(start, CHART_START), min(end, CHART_END)
            moments = [first + (last - first) * at / POINTS for at in range(POINTS + 1)] if first < last else []
            parts = [(time - start) / (end - start) if line is None else line.share(time) for time in moments]
            due = [goal * part for part in parts]
            axes.plot(self._local(moments, zone), due, color=COLOURS[1], linestyle="--", label="ideal")
        axes.set_title(f"{campaign['id']}: {kind}", fontsize=10)
        self._date_axis(axes, zone)
        axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)

    def rates(self, report: Report, key: str) -> str:
        """CTR with its interval."""
        rows = [
            row for row in fold(report.by_hour, (key,), RESULT_NUMBERS, Calendar(report.zone)) if row["impressions"]
        ]
        rows.sort(key=lambda row: -row["impressions"])
        if not rows:
            return '<p class="note">No impressions.</p>'
        shown = rows[:BARS_MAX]
        figure = self._figure(figsize=(10, 0.8 + 0.3 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        rates = [min(1.0, row["clicks"] / row["impressions"]) * 100 for row in shown]
        bounds = [wilson(row["clicks"], row["impressions"]) for row in shown]
        below = [max(0.0, rate - 100 * low) for rate, (low, _) in zip(rates, bounds, strict=True)]
        above = [max(0.0, 100 * high - rate) for rate, (_, high) in zip(rates, bounds, strict=True)]
        places = range(len(shown))
        axes.errorbar(rates, places, xerr=[below, above], fmt="o", color=COLOURS[0], ecolor=COLOURS[0], capsize=3)
        axes.set_yticks(places, [row[key] for row in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("clicks per 100 impressions, with 95 % confidence interval (Wilson)")
        axes.set_xlim(left=0)
        axes.grid(axis="x", linewidth=0.4)
        left = len(rows) - len(shown)
        return self._svg(figure, f"CTR by {key}") + (f'<p class="note">and {left} more</p>' if left else "")

    def unfilled(self, report: Report) -> str:
        """Per day, by reason."""
        rows = fold(report.unfilled, ("day", "reason"), ("requests",), Calendar(report.zone))
        counts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        for row in rows:
            counts[row["reason"]][row["day"]] += row["requests"]
        if not counts:
            return '<p class="note">None.</p>'
        days = sorted({row["day"] for row in rows})
        reasons = sorted(counts, key=lambda reason: -sum(counts[reason].values()))
        figure = self._figure(figsize=(10, 3), layout="constrained")
        axes = figure.add_subplot()
        bottom = [0] * len(days)
        for place, reason in enumerate(reasons):
            heights = [counts[reason][day] for day in days]
            axes.bar(range(len(days)), heights, bottom=bottom, color=COLOURS[place % len(COLOURS)], label=reason)
            bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
        step = -(-len(days) // 12)
        axes.set_xticks(range(0, len(days), step), days[::step], fontsize=8)
        axes.set_ylabel("requests")
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        return self._svg(figure, "unfilled requests by reason")

    def _local(self, times: Sequence[float], zone: tzinfo) -> list[datetime]:
        return list(map(Calendar(zone).local, times))

    def _date_axis(self, axes: Any, zone: tzinfo) -> None:
        locator = self._dates.AutoDateLocator(tz=zone)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(self._dates.ConciseDateFormatter(locator, tz=zone))
        axes.tick_params(labelsize=8)
        axes.grid(linewidth=0.4)

    def _svg(self, figure: Any, label: str) -> str:
        """Text as text; ids differ between the figures of a page."""
        file = io.StringIO()
        with self._matplotlib.rc_context({"svg.hashsalt": label}), warnings.catch_warnings():
            # Of letters that its own font has not it only guesses the width; the reader's browser draws them.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = file.getvalue().replace(INK, "currentColor")
        # What stands before it is for a file of its own.
        return f'<figure role="img" aria-label="{escape(label)}">{text[text.index("<svg") :]}</figure>'
