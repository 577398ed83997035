"""The page of what was delivered: against the goal, by day, placement and creative, as `adctl collect` counts it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import Sum
from django.http import Http404, HttpRequest
from django.template.response import TemplateResponse

from adtools.admin.charts import Chart, bar_chart, line_chart
from adtools.admin.models import Campaign, Delivered, Result

SPANS_DAYS = (7, 30, 90)
COUNTS = ("impressions", "views", "clicks", "ivt")
# Of a flight's chart: one a day, and longer ones would be no wider.
PLAN_DAYS_MAX = 366


class Line(NamedTuple):
    """One row of a table of counts."""

    name: str
    impressions: int
    views: int
    clicks: int
    ivt: int
    share: float
    """Of the impressions of all the lines, in percent."""

    @property
    def view_rate(self) -> str:
        return rate(self.views, self.impressions)

    @property
    def click_rate(self) -> str:
        return rate(self.clicks, self.impressions)


class Progress(NamedTuple):
    """One goal, and how far it is."""

    unit: str
    goal: int
    delivered: int
    expected: int | None
    """What a straight line over the flight asks for by now; None without both dates."""
    chart: Chart | None

    @property
    def percent(self) -> float:
        return min(100.0, round(100 * self.delivered / self.goal, 1))


def rate(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "–"


def delivery_view(request: HttpRequest, context: dict[str, Any]) -> TemplateResponse:
    """`?campaign=ID&days=N`: of one campaign, or of all."""
    campaign_id = request.GET.get("campaign", "")
    campaign = None
    if campaign_id:
        campaign = Campaign.objects.filter(pk=campaign_id).first()
        if campaign is None:
            raise Http404(f"there is no campaign {campaign_id}")
    days = next((span for span in SPANS_DAYS if str(span) == request.GET.get("days")), SPANS_DAYS[1])
    zone = settings.ADCORE.time_zone
    today = datetime.now(zone).date()
    first = today - timedelta(days=days - 1)
    since = datetime.combine(first, datetime.min.time(), zone).timestamp()
    results = Result.objects.filter(hour__gte=int(since))
    if campaign is not None:
        results = results.filter(campaign=campaign.id)
    by_day = {(first + timedelta(days=day)).isoformat(): dict.fromkeys(COUNTS, 0) for day in range(days)}
    for row in results.values("hour").annotate(**{name: Sum(name) for name in COUNTS}):
        counts = by_day.get(datetime.fromtimestamp(row["hour"], zone).date().isoformat())
        if counts is not None:  # not in the future, if somebody's clock was
            for name in COUNTS:
                counts[name] += row[name]
    daily = lines((day, counts) for day, counts in by_day.items())
    names = ("placement", "creative") if campaign is not None else ("campaign", "placement")
    return TemplateResponse(
        request,
        "adtools/delivery.html",
        {
            **context,
            "title": f"Delivery of {campaign.name}" if campaign is not None else "Delivery",
            "campaign": campaign,
            "days": days,
            "spans": SPANS_DAYS,
            "zone": zone.key,
            "progress": progress(campaign, today) if campaign is not None else [],
            "daily": daily,
            "total": total(daily),
            "impressions_chart": bar_chart([(line.name, line.impressions) for line in daily]),
            "clicks_chart": bar_chart([(line.name, line.clicks) for line in daily]),
            "tables": [
                (
                    name,
                    lines(
                        (row[name], row)
                        for row in results.values(name)
                        .annotate(**{count: Sum(count) for count in COUNTS})
                        .order_by("-impressions", name)
                    ),
                )
                for name in names
            ],
        },
    )


def lines(counted: Iterable[tuple[str, dict[str, int]]]) -> list[Line]:
    rows = list(counted)
    whole = sum(counts["impressions"] for _, counts in rows) or 1
    return [
        Line(name, **{count: counts[count] for count in COUNTS}, share=round(100 * counts["impressions"] / whole, 1))
        for name, counts in rows
    ]


def total(rows: list[Line]) -> Line:
    return Line("Total", **{count: sum(getattr(row, count) for row in rows) for count in COUNTS}, share=100.0)


def progress(campaign: Campaign, today: date) -> list[Progress]:
    """Each goal of the campaign."""
    zone = settings.ADCORE.time_zone
    by_day = dict(Delivered.objects.filter(campaign=campaign.id).values_list("day", "impressions"))
    clicks = dict(Delivered.objects.filter(campaign=campaign.id).values_list("day", "clicks"))
    starts, ends = (moment(text) for text in (campaign.starts_at, campaign.ends_at))
    found = []
    for unit, goal, counts in (
        ("impressions", campaign.goal_impressions, by_day),
        ("clicks", campaign.goal_clicks, clicks),
    ):
        if not goal:
            continue
        expected, chart = None, None
        if starts is not None and ends is not None and starts < ends:
            elapsed = (datetime.now(zone) - starts) / (ends - starts)
            expected = round(goal * min(1.0, max(0.0, elapsed)))
            chart = _goal_chart(starts.date(), ends.date(), today, goal, counts)
        found.append(Progress(unit, goal, sum(counts.values()), expected, chart))
    return found


def moment(text: object) -> datetime | None:
    """A stored date and time by the site's clocks; None for what is none, or beyond the year 9999."""
    try:
        found = datetime.fromisoformat(text if isinstance(text, str) else "")
        return found.astimezone(settings.ADCORE.time_zone) if found.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _goal_chart(first: date, last: date, today: date, goal: int, counts: dict[str, int]) -> Chart:
    """What was delivered up to the end of each day, beside the straight line to the goal."""
    length = min((last - first).days + 1, PLAN_DAYS_MAX)
    days = [first + timedelta(days=number) for number in range(length)]
    delivered: list[float | None] = []
    so_far = sum(count for day, count in counts.items() if day < first.isoformat())
    for day in days:
        so_far += counts.get(day.isoformat(), 0)
        delivered.append(so_far if day <= today else None)
    plan = [goal * (number + 1) / length for number in range(length)]
    return line_chart([day.isoformat() for day in days], [plan, delivered])
