-- Small functions of their arguments alone: states, times and payloads. They lock nothing. Only job_id_of() reads a table:
-- takt.jobs, by its unique index on the name.

-- State 6 (suspect) is pending for everybody but the dispatcher.
CREATE OR REPLACE FUNCTION takt.state_name(state smallint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
  $$ SELECT (ARRAY['pending','running','done','dead','cancelled','blocked','pending'])[state + 1] $$;

-- A time as commands print it: RFC 3339, UTC, milliseconds. Times outside the years 1 to 9999 are shown as the nearest end;
-- NULL stays NULL.
CREATE OR REPLACE FUNCTION takt.shown(moment timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN moment IS NOT NULL  -- greatest() and least() pass over NULL
              THEN to_char(least(greatest(moment, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999+00') AT TIME ZONE 'UTC',
                           'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') END $$;

-- When an item becomes due. NULL and times before 1970 mean now. Nothing is later than the end of the year 9999.
CREATE OR REPLACE FUNCTION takt.item_time(run_at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN run_at >= '1970-01-01 00:00:00+00' THEN least(run_at, '9999-12-31 23:59:59.999999+00') ELSE now() END $$;

-- The size of a payload in bytes: as JSON text or as stored, whichever is more. The two differ widely: a number stored in 4
-- bytes may have 131,072 digits as text, and 40 MB of text may be compressed to a few kB. A payload that is too large to be
-- text at all counts as 1 GiB.
CREATE OR REPLACE FUNCTION takt.payload_bytes(payload jsonb) RETURNS bigint LANGUAGE plpgsql IMMUTABLE SET search_path = takt, pg_temp AS $$
DECLARE
  bytes bigint;
BEGIN
  bytes := octet_length(payload::text);
  -- The cast back makes a fresh value, so the size is not that of a compressed one.
  RETURN greatest(bytes, CASE WHEN bytes <= 524288 THEN pg_column_size(payload::text::jsonb) END);
EXCEPTION
  WHEN program_limit_exceeded OR out_of_memory OR internal_error THEN
    RETURN 1073741824;
END $$;

-- The beginning of a payload, for lists.
CREATE OR REPLACE FUNCTION takt.payload_start(payload jsonb) RETURNS text LANGUAGE plpgsql IMMUTABLE SET search_path = takt, pg_temp AS $$
BEGIN
  RETURN left(payload::text, 200);
EXCEPTION
  WHEN program_limit_exceeded OR out_of_memory OR internal_error THEN
    RETURN '(too large to be shown)';
END $$;

-- True where a payload is too large, or may be: then payload_bytes() decides. PostgreSQL inlines this function.
-- It makes the payload's text, which takes 0.4 us for 100 bytes, a fifth of what storing an item of a set takes. Therefore:
-- * Payloads stored in at most 128 bytes are not measured. They hold at most seven numbers of at most 131,072 digits each, and
--   a claim of 512 such items still fits into one answer.
-- * Payloads of more than 4096 bytes, and compressed ones, are left to payload_bytes().
-- * textin(jsonb_out()) is what a cast to text calls, without the cast's set-up. jsonb_send() would convert to the client's
--   encoding.
CREATE OR REPLACE FUNCTION takt.payload_is_large(payload jsonb) RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT pg_catalog.pg_column_compression(payload) IS NOT NULL
      OR (pg_catalog.pg_column_size(payload) OPERATOR(pg_catalog.>) 128
          AND (pg_catalog.pg_column_size(payload) OPERATOR(pg_catalog.>) 4096
               OR pg_catalog.octet_length(pg_catalog.textin(pg_catalog.jsonb_out(payload))) OPERATOR(pg_catalog.>) 524288)) $$;

-- The number of a job that is applied. Raises no_data_found for any other name.
CREATE OR REPLACE FUNCTION takt.job_id_of(job text) RETURNS integer LANGUAGE plpgsql STABLE SET search_path = takt, pg_temp AS $$
DECLARE found_id integer;
BEGIN
  SELECT j.id INTO found_id FROM takt.jobs j WHERE j.name = job AND j.removed_at IS NULL;
  IF found_id IS NULL THEN
    RAISE EXCEPTION 'takt: no job named "%"', left(job, 100)
      USING ERRCODE = 'no_data_found', HINT = 'Define it in takt.yaml and run "takt apply"; "takt jobs" lists those known.';
  END IF;
  RETURN found_id;
END $$;
