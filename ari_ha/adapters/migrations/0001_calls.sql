-- One row per ended call, whatever node or nodes served it. Written by the clerk only.
-- ha_call_id is the key: a row that is written twice is one row, and two writers in a
-- circular pair cannot make two rows of one call (an auto-increment key would).
CREATE TABLE IF NOT EXISTS calls (
  ha_call_id VARCHAR(64) NOT NULL PRIMARY KEY,
  kind VARCHAR(16) NOT NULL DEFAULT '',
  pair VARCHAR(64) NOT NULL DEFAULT '',
  edge VARCHAR(64) NOT NULL DEFAULT '',
  caller VARCHAR(128) NOT NULL DEFAULT '',
  did VARCHAR(128) NOT NULL DEFAULT '',
  trunk VARCHAR(64) NOT NULL DEFAULT '',
  queue VARCHAR(64) NOT NULL DEFAULT '',
  agent VARCHAR(64) NOT NULL DEFAULT '',
  agents TEXT NOT NULL,
  started DATETIME(3) NOT NULL,
  answered DATETIME(3) NULL,
  entered DATETIME(3) NULL,
  connected DATETIME(3) NULL,
  ended DATETIME(3) NOT NULL,
  wait_ms BIGINT NOT NULL DEFAULT 0,
  talk_ms BIGINT NOT NULL DEFAULT 0,
  disposition VARCHAR(16) NOT NULL DEFAULT '',
  ended_by VARCHAR(16) NOT NULL DEFAULT '',
  cause VARCHAR(32) NOT NULL DEFAULT '',
  epoch VARCHAR(64) NOT NULL DEFAULT '',
  moves INT NOT NULL DEFAULT 0,
  served TEXT NOT NULL,
  KEY by_time (started),
  KEY by_queue (queue, started),
  KEY by_agent (agent, started)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;
