"""Values at the edges of what takt.enqueue's arguments can be, and what must come of them."""
import json
import random
import string

LIMIT = 524288  # bytes of a payload as text

TAKT_LARGE, TAKT_VALUE, TAKT_LENGTHS, TAKT_NULL, TAKT_JOB = "54000", "22023", "2202E", "22004", "P0002"
# PostgreSQL's own words for what is no jsonb, text or time at all, which Takt never sees.
NO_JSON, NO_UNICODE, NO_NUMBER, NO_TIME, TOO_DEEP = "22P02", "22P05", "22003", "22008", "54001"


class Value:
    """One payload: SQL of type jsonb, its parameter, and by which SQLSTATE it is refused (None: it is taken; EITHER: as it comes)."""

    def __init__(self, name, sql, parameter=None, refused=None):
        self.name, self.sql, self.parameter, self.refused = name, sql, parameter, refused


EITHER = "either"
NUMBERS = ["0", "-0", "0.0", "1.10", "0.1000", "1E400", "1e-400", "9223372036854775807", "-9223372036854775808", "18446744073709551616",
           "9007199254740993", "1234567890123456789", "0.1234567890123456789012345678901", "123456789012345678901234567890.123456789012345678901234567890",
           "-1e-30", "5e-324", "1.7976931348623157e308"]
TEXTS = ["", "ä€😀𝔘", "\u2028\u2029\ufeff", "\x01\x02\x1f\x7f\t\r\n\b\f", "a\\u0000b", "\\", '"', "'; DROP TABLE takt.items; --", "%s %(x)s {} {url} ${1}",
         "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "e\u0301", "\u202eabc", "</script>"]


def random_json(dice, depth=4):
    kind = dice.randrange(8 if depth > 0 else 6)
    if kind == 0:
        return dice.choice(["null", "true", "false"])
    if kind == 1:
        return dice.choice(NUMBERS)
    if kind == 2:
        return str(dice.randrange(-10 ** 24, 10 ** 24))
    if kind == 3:
        return f"{dice.randrange(-10 ** 12, 10 ** 12)}.{dice.randrange(10 ** dice.randrange(1, 25))}"
    if kind in (4, 5):
        return json.dumps(random_text(dice), ensure_ascii=dice.random() < 0.5)
    parts = [random_json(dice, depth - 1) for _ in range(dice.randrange(5))]
    if kind == 6:
        return "[" + ", ".join(parts) + "]"
    return "{" + ",".join(json.dumps(random_text(dice)) + ":" + part for part in parts) + "}"


def random_text(dice):
    if dice.random() < 0.5:
        return dice.choice(TEXTS)
    return "".join(dice.choice(string.printable + "äßЖ漢😀") for _ in range(dice.randrange(20)))


def plain(dice):
    return Value("random JSON", "%s::jsonb", random_json(dice))


def edge(dice):
    """A value that is unusual in one way."""
    return dice.choice(EDGES)(dice)


def text_of(size):
    """Text in a payload of `size` bytes; {marked} is how a caller writes it (callers.py)."""
    return Value(f"text, {size - LIMIT:+} bytes", "to_jsonb(repeat('x', %s))", size, TAKT_LARGE if size > LIMIT else EITHER if size > LIMIT - 64 else None)


def digits(count):
    """4 to 7 of them are more than the limit as text, and taken only where they are 128 bytes stored (docs/enqueueing.md)."""
    refused = TAKT_LARGE if count > 7 else EITHER if count > 3 else None
    return Value(f"1e131071, {count} times", "(SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, %s))", count, refused)


def control(count):
    return Value(f"{count} control characters", "to_jsonb(repeat(chr(1), %s))", count, TAKT_LARGE if 6 * count > LIMIT else None)


def nested(depth):
    return Value(f"nested {depth} deep", "%s::jsonb", "[" * depth + "]" * depth, EITHER if depth > 100 else None)


def as_text(name, text, refused=None):
    return lambda dice: Value(name, "%s::jsonb", text, refused)


EDGES = [
    *([plain] * 12),
    *(lambda dice, size=size: text_of(size) for size in (LIMIT - 100, LIMIT, LIMIT + 1, LIMIT * 2)),
    lambda dice: Value("40 MB that compress", "(SELECT large FROM chaos_large)", None, TAKT_LARGE),
    *(lambda dice, count=count: digits(count) for count in (1, 3, 5, 20)),
    lambda dice: Value("1e-16383", "to_jsonb(1e-16383::numeric)"),
    *(lambda dice, count=count: control(count) for count in (1000, 80_000, 90_000)),
    *(lambda dice, depth=depth: nested(depth) for depth in (100, 5000)),
    *([lambda dice: Value("number", "%s::jsonb", dice.choice(NUMBERS))] * 4),
    *([lambda dice: Value("text", "%s::jsonb", json.dumps(dice.choice(TEXTS)))] * 3),
    as_text("duplicate keys", '{"a": 1, "a": 2, "a": {"b": 1, "b": 2}}'),
    as_text("U+0000", '"a\\u0000b"', NO_UNICODE),
    as_text("half a surrogate", '"\\ud800"', NO_JSON),
    as_text("no JSON", "{", NO_JSON),
    as_text("a number too large for PostgreSQL", "1e131073", NO_NUMBER),
    as_text("JSON null", "null"),
]

# SQL of type timestamptz; by which SQLSTATE it is refused; whether it is due within the run.
TIMES = [
    ("NULL", None, True), ("'-infinity'", None, True), ("'0001-01-01 00:00:00+00'", None, True), ("'4713-01-01 00:00:00+00 BC'", None, True),
    ("'1969-12-31 23:59:59.999999+00'", None, True), ("'1970-01-01 00:00:00+00'", None, True), ("clock_timestamp()", None, True),
    ("now() - interval '1 us'", None, True), ("now() + interval '1 us'", None, True), ("now() + interval '1 s'", None, True),
    ("'9999-12-31 23:59:59+00'", None, False), ("'2400-01-01 00:00:00+00'", None, False),
    ("'10000-01-01 00:00:01+00'", TAKT_VALUE, False), ("'290000-01-01 00:00:00+00'", TAKT_VALUE, False), ("'infinity'", TAKT_VALUE, False),
    ("'300000-01-01 00:00:00+00'", NO_TIME, False),
]
PRIORITIES = [(0, None), (100, None), (-100, None), (None, None), (101, TAKT_VALUE), (-101, TAKT_VALUE), (2 ** 31 - 1, TAKT_VALUE), (-2 ** 31, TAKT_VALUE)]


def key(dice, name):
    """(key, refused, whether it may be held by another item)"""
    return dice.choice([(None, None, False), ("", None, False), *([(f"k{dice.randrange(6)}", None, True)] * 6), ("😀ключ" + str(dice.randrange(3)), None, True),
                        ((name + "k" * 512)[:512], None, False), (("漢" * 500 + name).ljust(512, "字")[:512], None, True), ("k" * 513, TAKT_VALUE, False),
                        (" ", None, True)])


def dice_of(seed, name):
    return random.Random(f"{seed} {name}")
