-- Asterisk's queue_log as its realtime engine keeps it, for the reporting tools that read it. One writer, the clerk, in the
-- order of etcd's transactions: `id` is that order. `time` is UTC. ha_line names the line: written twice it is one row.
CREATE TABLE IF NOT EXISTS queue_log (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  `time` DATETIME(6) NOT NULL,
  callid VARCHAR(80) NOT NULL DEFAULT '',
  queuename VARCHAR(128) NOT NULL DEFAULT '',
  agent VARCHAR(80) NOT NULL DEFAULT '',
  event VARCHAR(32) NOT NULL DEFAULT '',
  data1 VARCHAR(128) NOT NULL DEFAULT '',
  data2 VARCHAR(128) NOT NULL DEFAULT '',
  data3 VARCHAR(128) NOT NULL DEFAULT '',
  data4 VARCHAR(128) NOT NULL DEFAULT '',
  data5 VARCHAR(128) NOT NULL DEFAULT '',
  ha_line VARCHAR(160) NOT NULL,
  UNIQUE KEY once (ha_line),
  KEY by_time (`time`),
  KEY by_call (callid),
  KEY by_queue (queuename, `time`)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;
