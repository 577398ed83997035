-- Why campaigns were not shown, from a sample of the answers: the first reason against each candidate of a placement, in
-- requests. `day` is a date of the site's time zone, as in `delivered`.

CREATE TABLE IF NOT EXISTS refusals (
    day VARCHAR(10) NOT NULL,
    campaign VARCHAR(64) NOT NULL,
    placement VARCHAR(64) NOT NULL,
    reason VARCHAR(32) NOT NULL,
    requests BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (day, campaign, placement, reason)
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;
