-- What was delivered, as `adctl collect` counts it from the delivery logs. None of this raises the revision.
-- `hour` is the start of an hour of the site's time zone, in seconds since the epoch; `day` a date of that zone
-- (2026-11-24). Each record counts in one column: those of identified bots, of whatever type, in `ivt`.

CREATE TABLE IF NOT EXISTS results (
    hour BIGINT NOT NULL,
    placement VARCHAR(64) NOT NULL,
    campaign VARCHAR(64) NOT NULL,
    creative VARCHAR(64) NOT NULL,
    device VARCHAR(16) NOT NULL,
    country VARCHAR(8) NOT NULL,
    impressions BIGINT NOT NULL DEFAULT 0,
    views BIGINT NOT NULL DEFAULT 0,
    clicks BIGINT NOT NULL DEFAULT 0,
    ivt BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (hour, placement, campaign, creative, device, country)
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

-- Requests for a slot that got nothing, by their main reason.
CREATE TABLE IF NOT EXISTS unfilled (
    hour BIGINT NOT NULL,
    placement VARCHAR(64) NOT NULL,
    reason VARCHAR(32) NOT NULL,
    requests BIGINT NOT NULL DEFAULT 0,
    ivt BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (hour, placement, reason)
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

-- The sums of `results` that goals and daily caps are held against: few rows, read by every host on a timer.
CREATE TABLE IF NOT EXISTS delivered (
    campaign VARCHAR(64) NOT NULL,
    day VARCHAR(10) NOT NULL,
    impressions BIGINT NOT NULL DEFAULT 0,
    clicks BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (campaign, day)
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

-- How far each log file was counted, in the transaction that counted it. A file is known by its first record, since
-- names move on and inodes are used again.
CREATE TABLE IF NOT EXISTS collected_files (
    identity VARCHAR(64) NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    seen_at BIGINT NOT NULL
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;
