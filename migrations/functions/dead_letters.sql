-- Dead letters: as they are written into the outbox, and the pruning of the archive.

-- The id of an item's dead letter: unique for each life of the item, so that a letter is archived once.
CREATE OR REPLACE FUNCTION takt.dead_letter_id(item bigint, replay smallint) RETURNS text LANGUAGE sql IMMUTABLE AS
  $$ SELECT 'item-' || item || '-' || replay $$;

-- takt.v1.DeadLetter in canonical JSON, for an item that ends dead.
CREATE OR REPLACE FUNCTION takt.dead_letter(item bigint, replay smallint, job text, reason text, error text, key text, payload jsonb,
                                 attempts integer, priority smallint) RETURNS jsonb LANGUAGE sql STABLE AS $$
  SELECT jsonb_build_object('id', takt.dead_letter_id(item, replay), 'kind', 'KIND_ITEM', 'job', job, 'reason', reason,
    'error', error, 'itemId', item::text, 'key', coalesce(key, ''), 'payload', payload, 'attempts', attempts,
    'priority', priority, 'diedAt', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) $$;

-- Removes letters that died more than `keep` ago, at most `most`, oldest first, found by the index dead_letters_died. It locks
-- the rows that it removes, and skips those that somebody else has locked.
CREATE OR REPLACE FUNCTION takt.prune_dead_letters(keep interval, most integer) RETURNS integer LANGUAGE sql AS $$
  WITH gone AS (
    DELETE FROM takt.dead_letters WHERE id IN (
      SELECT id FROM takt.dead_letters WHERE died_at < now() - keep ORDER BY died_at LIMIT most FOR UPDATE SKIP LOCKED)
    RETURNING 1)
  SELECT count(*)::integer FROM gone $$;
