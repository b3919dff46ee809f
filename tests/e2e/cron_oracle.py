"""An independent reading of the cron dialect: brute force, minute by minute, over Python's own time-zone database.

Shares nothing with the implementation under test: not its language, its time-zone library, nor its way (that one
computes the next slot; this one asks every minute whether it matches)."""
import calendar
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

NAMES = {name: n for n, name in enumerate("sun mon tue wed thu fri sat".split())}
MONTHS = {name: n for n, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}


def number(text, names):
    return names[text.lower()] if text.lower() in names else int(text)


def values(field, low, high, names=()):
    """The plain part of a field: lists, ranges, steps, names."""
    found = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        if span in ("*", "?"):
            first, last = low, high
        elif "-" in span:
            first, last = (number(end, names) for end in span.split("-"))
        else:
            first = number(span, names)
            last = high if step else first
        found |= set(range(first, last + 1, int(step or 1)))
    return found


def day_of_month(field, day):
    last = calendar.monthrange(day.year, day.month)[1]

    def nearest_weekday(wanted):
        weekday = datetime(day.year, day.month, wanted).weekday()
        if weekday == 5:
            return wanted - 1 if wanted > 1 else wanted + 2
        if weekday == 6:
            return wanted + 1 if wanted < last else wanted - 2
        return wanted

    for part in field.split(","):
        if part == "LW" and day.day == nearest_weekday(last):
            return True
        if part.startswith("L"):
            if part != "LW" and day.day == last - int(part[2:] or 0):
                return True
        elif part.endswith("W"):
            if int(part[:-1]) <= last and day.day == nearest_weekday(int(part[:-1])):
                return True
        elif day.day in values(part, 1, 31):
            return True
    return False


def day_of_week(field, day):
    weekday = day.isoweekday() % 7
    for part in field.split(","):
        if part.endswith("L"):
            if weekday == number(part[:-1], NAMES) % 7 and (day + timedelta(days=7)).month != day.month:
                return True
        elif "#" in part:
            name, nth = part.split("#")
            if weekday == number(name, NAMES) % 7 and (day.day - 1) // 7 + 1 == int(nth):
                return True
        elif weekday in {value % 7 for value in values(part, 0, 7 if "*" not in part and "/" not in part else 6, NAMES)}:
            return True
    return False


class Oracle:
    def __init__(self, expression):
        minute, hour, self.dom, month, self.dow = expression.split()
        self.minutes, self.hours, self.months = values(minute, 0, 59), values(hour, 0, 23), values(month, 1, 12, MONTHS)
        self.interval = minute.startswith("*") or hour.startswith("*")
        self.either = not (self.dom[0] in "*?" or self.dow[0] in "*?")

    def matches(self, local):
        if local.minute not in self.minutes or local.hour not in self.hours or local.month not in self.months:
            return False
        in_month, in_week = day_of_month(self.dom, local), day_of_week(self.dow, local)
        return (in_month or in_week) if self.either else (in_month and in_week)

    def fires(self, zone, begin, end):
        """Every slot in (begin, end], UTC. The wall clock is walked in real time; at a jump forward the minutes it leapt
        over are looked at too, and give one slot to a fixed expression; minutes that come again give it none."""
        tz, found, latest = ZoneInfo(zone), [], None
        at = begin - timedelta(days=1)  # so that what was seen before `begin` is known
        while at <= end:
            local = at.astimezone(tz).replace(tzinfo=None)
            due = self.matches(local)
            if not self.interval and latest is not None:
                leapt = latest + timedelta(minutes=1)
                if local <= latest:
                    due = False  # this wall-clock minute was there before
                while leapt < local:
                    due = due or self.matches(leapt)
                    leapt += timedelta(minutes=1)
            latest = local if latest is None else max(latest, local)
            if due and at > begin:
                found.append(at)
            at += timedelta(minutes=1)
        return found


def utc(*parts):
    return datetime(*parts, tzinfo=timezone.utc)
