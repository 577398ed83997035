-- The delivery log in ClickHouse (23.10 or later), and the results that `adctl collect` would make of it.
--
-- Insert the log as JSON (--log-format json, or `adctl log cat --json`), again if you are not sure: a record that comes
-- twice is one. The views take the site's time zone, the click window, and a span of time in epoch seconds; report.sql
-- has the questions that `adctl report` answers.

CREATE TABLE IF NOT EXISTS delivery_log
(
    type Enum8('impression' = 0, 'view' = 1, 'click' = 2, 'unfilled' = 3),
    time Float64,
    id String,
    placement LowCardinality(String),
    campaign LowCardinality(String),
    creative LowCardinality(String),
    generation LowCardinality(String),
    revision UInt64,
    chance Float64,
    host LowCardinality(String),
    device LowCardinality(String),
    os LowCardinality(String),
    country LowCardinality(String),
    languages Array(LowCardinality(String)),
    keywords Array(LowCardinality(String)),
    key_values Array(Tuple(String, String)),
    ivt Bool,
    ip String,
    user String,
    excluded Map(String, String),
    reason LowCardinality(String),
    reasons Map(String, UInt32)
)
-- Views and clicks of the same id, time and host are one. So are answers of the same id and hour, whatever their time: a
-- proxy asked again. The one inserted last stays. Until parts are merged, FINAL sees to that.
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(toDateTime(time))
ORDER BY (intDiv(toInt64(time), 3600), type, placement, id, if(type IN ('view', 'click'), time, 0), host);

-- Views and clicks that count: of an impression the first, and then each that comes `window_s` or more after the last
-- that counted. A robot's does not hide a visitor's own. A link works for a day (--token-lifetime), so whatever bears on
-- an event of the span is less than a day older.
CREATE VIEW IF NOT EXISTS counted_events AS
SELECT type, ivt, at.1 AS time, at.2 AS placement, at.3 AS campaign, at.4 AS creative, at.5 AS device, at.6 AS country
FROM
(
    SELECT
        type,
        ivt,
        id,
        arrayFold(
            (counted, event) -> if(
                empty(counted) OR event.1 - counted[-1].1 >= {window_s:Float64},
                arrayPushBack(counted, event),
                counted
            ),
            arraySort(
                event -> event.1,
                groupArray(
                    (
                        time,
                        toString(placement),
                        toString(campaign),
                        toString(creative),
                        toString(device),
                        toString(country)
                    )
                )
            ),
            arrayResize([(toFloat64(0), '', '', '', '', '')], 0)
        ) AS counted
    FROM delivery_log FINAL
    WHERE type IN ('view', 'click') AND time >= {since:Float64} - 86400 AND time < {until:Float64}
    GROUP BY type, ivt, id
)
ARRAY JOIN counted AS at
WHERE time >= {since:Float64};

-- As the table `results` of the store: `hour` is the start of a local hour, in epoch seconds.
CREATE VIEW IF NOT EXISTS results AS
SELECT
    toUInt32(time) - toMinute(toDateTime(time), {zone:String}) * 60 - toUInt32(time) % 60 AS hour,
    placement,
    campaign,
    creative,
    device,
    country,
    countIf(type = 'impression' AND NOT record.ivt) AS impressions,
    countIf(type = 'view' AND NOT record.ivt) AS views,
    countIf(type = 'click' AND NOT record.ivt) AS clicks,
    countIf(record.ivt) AS ivt
FROM
(
    SELECT
        type,
        ivt,
        time,
        toString(placement) AS placement,
        toString(campaign) AS campaign,
        toString(creative) AS creative,
        toString(device) AS device,
        toString(country) AS country
    FROM delivery_log FINAL
    WHERE type = 'impression' AND time >= {since:Float64} AND time < {until:Float64}
    UNION ALL
    SELECT type, ivt, time, placement, campaign, creative, device, country
    FROM counted_events(window_s = {window_s:Float64}, since = {since:Float64}, until = {until:Float64})
) AS record
GROUP BY hour, placement, campaign, creative, device, country;

-- As the table `unfilled` of the store. Anybody can make names up, so those of no placement share a row.
CREATE VIEW IF NOT EXISTS unfilled AS
SELECT
    toUInt32(time) - toMinute(toDateTime(time), {zone:String}) * 60 - toUInt32(time) % 60 AS hour,
    if(record.reason = 'unknown_placement', '', record.placement) AS placement,
    reason,
    countIf(NOT record.ivt) AS requests,
    countIf(record.ivt) AS ivt
FROM delivery_log AS record FINAL
WHERE type = 'unfilled' AND time >= {since:Float64} AND time < {until:Float64}
GROUP BY hour, placement, reason;
