-- The inventory. The same file serves SQLite and MySQL: what only MySQL understands stands in its /*! */ comments.
-- Every statement does nothing where its work is done, since MySQL can't take back half a migration.
-- Lists (targeting, formats, native data) are JSON text; dates are ISO 8601 text with their offset, as in the JSON form.

CREATE TABLE IF NOT EXISTS revision (
    id INTEGER NOT NULL PRIMARY KEY,
    -- Raised by every change, whoever makes it.
    revision BIGINT NOT NULL,
    -- The revision up to which a person applied changes knowingly (adctl apply).
    confirmed BIGINT NOT NULL
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

INSERT INTO revision (id, revision, confirmed)
SELECT 1, 0, 0 /*! FROM DUAL */ WHERE NOT EXISTS (SELECT 1 FROM revision);

CREATE TABLE IF NOT EXISTS placements (
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    position INTEGER NOT NULL DEFAULT 0,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    formats TEXT NULL
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

CREATE TABLE IF NOT EXISTS advertisers (
    name VARCHAR(200) NOT NULL PRIMARY KEY
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

CREATE TABLE IF NOT EXISTS campaigns (
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    position INTEGER NOT NULL DEFAULT 0,
    name VARCHAR(200) NOT NULL,
    advertiser VARCHAR(200) NOT NULL DEFAULT '',
    priority VARCHAR(16) NOT NULL,
    weight INTEGER NOT NULL DEFAULT 1,
    status VARCHAR(16) NOT NULL DEFAULT 'active',
    starts_at VARCHAR(40) NULL,
    ends_at VARCHAR(40) NULL,
    goal_impressions BIGINT NULL,
    goal_clicks BIGINT NULL,
    daily_cap_impressions BIGINT NULL,
    daily_cap_clicks BIGINT NULL,
    pacing VARCHAR(16) NOT NULL DEFAULT 'asap',
    frequency_cap_impressions INTEGER NULL,
    frequency_cap_seconds INTEGER NULL,
    targeting TEXT NULL,
    FOREIGN KEY (advertiser) REFERENCES advertisers (name)
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

CREATE TABLE IF NOT EXISTS creatives (
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    campaign VARCHAR(64) NOT NULL,
    position INTEGER NOT NULL DEFAULT 0,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    format VARCHAR(16) NOT NULL,
    weight INTEGER NOT NULL DEFAULT 1,
    image_url TEXT NULL,
    alt TEXT NULL,
    html MEDIUMTEXT NULL,
    data MEDIUMTEXT NULL,
    landing_url TEXT NULL,
    FOREIGN KEY (campaign) REFERENCES campaigns (id)
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;

CREATE TRIGGER IF NOT EXISTS placements_insert AFTER INSERT ON placements FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS placements_update AFTER UPDATE ON placements FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS placements_delete AFTER DELETE ON placements FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS campaigns_insert AFTER INSERT ON campaigns FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS campaigns_update AFTER UPDATE ON campaigns FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS campaigns_delete AFTER DELETE ON campaigns FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS creatives_insert AFTER INSERT ON creatives FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS creatives_update AFTER UPDATE ON creatives FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;

CREATE TRIGGER IF NOT EXISTS creatives_delete AFTER DELETE ON creatives FOR EACH ROW
BEGIN
    UPDATE revision SET revision = revision + 1 WHERE id = 1;
END;
