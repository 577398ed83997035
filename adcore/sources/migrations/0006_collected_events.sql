-- Views and clicks that were counted, so that none counts twice within the click window, whichever host tells of it.
-- `event` is 64 bits of a hash of type and impression id; `seen_at` its record's time. A row is dropped after
-- `kept_until`, the window after it was collected.

CREATE TABLE IF NOT EXISTS collected_events (
    event BIGINT NOT NULL PRIMARY KEY,
    seen_at DOUBLE NOT NULL,
    kept_until BIGINT NOT NULL,
    -- An index, to find the oldest, in the one way of writing it that both understand.
    UNIQUE (kept_until, event)
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;
