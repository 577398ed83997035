-- What `adctl report` says, by any one key: campaign, placement, creative, device, country, day or hour.
--
--     clickhouse-client --queries-file report.sql --param_by=campaign --param_zone=Asia/Tokyo --param_window_s=3600 \
--         --param_since=$(date -d 2026-11-01 +%s) --param_until=$(date -d 2026-12-01 +%s)

SELECT
    multiIf(
        {by:String} = 'campaign', campaign,
        {by:String} = 'placement', placement,
        {by:String} = 'creative', creative,
        {by:String} = 'device', device,
        {by:String} = 'country', country,
        {by:String} = 'day', toString(toDate(toDateTime(hour), {zone:String})),
        {by:String} = 'hour', toString(hour),
        throwIf(true, 'by is campaign, placement, creative, device, country, day or hour') ? '' : ''
    ) AS key,
    sum(impressions) AS impressions,
    sum(views) AS views,
    sum(clicks) AS clicks,
    sum(record.ivt) AS ivt
FROM results(
    zone = {zone:String}, window_s = {window_s:Float64}, since = {since:Float64}, until = {until:Float64}
) AS record
GROUP BY key
ORDER BY key;

-- Requests that got nothing, and why.
SELECT placement, reason, sum(requests) AS requests, sum(record.ivt) AS ivt
FROM unfilled(zone = {zone:String}, since = {since:Float64}, until = {until:Float64}) AS record
GROUP BY placement, reason
ORDER BY placement, reason;
