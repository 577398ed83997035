-- What the results teach delivery, as `adctl learn` works it out. It is read with the inventory and raises the revision
-- like that; `adctl apply` leaves it alone.

-- The requests expected in each of the 168 hours of a week of the site's time zone, from Monday 0:00: a JSON list.
CREATE TABLE IF NOT EXISTS placement_traffic (
    placement VARCHAR(64) NOT NULL PRIMARY KEY,
    requests TEXT NOT NULL
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

-- How often the creatives of campaigns that are optimized were shown (seen, where views are reported), and their clicks.
CREATE TABLE IF NOT EXISTS creative_results (
    creative VARCHAR(64) NOT NULL PRIMARY KEY,
    shown BIGINT NOT NULL,
    clicks BIGINT NOT NULL
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

CREATE TRIGGER IF NOT EXISTS placement_traffic_insert AFTER INSERT ON placement_traffic FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS placement_traffic_update AFTER UPDATE ON placement_traffic FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS placement_traffic_delete AFTER DELETE ON placement_traffic FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS creative_results_insert AFTER INSERT ON creative_results FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS creative_results_update AFTER UPDATE ON creative_results FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS creative_results_delete AFTER DELETE ON creative_results FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

-- The last step, since only MariaDB (whose comment this is) can leave out a column that is there.
ALTER TABLE campaigns ADD COLUMN /*M! IF NOT EXISTS */ optimize_for VARCHAR(16) NULL;
