-- Which store this is: one row, drawn at random by whoever migrates, so that a store that is set up anew, and counts its
-- revisions from 0 again, is not taken for the one before.

CREATE TABLE IF NOT EXISTS store (
    generation VARCHAR(32) NOT NULL PRIMARY KEY
) /*! ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin */;
