"""Rules for dates, times and time zones (``docs/format.md`` section 6.2)."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from typing import TypeVar

from ..format.json_text import Json
from .checks import integer, integers, members, refuse, string
from .tree import Decoder, Encoder, Rule, Rules

_DATE = r"\d{4}-\d\d-\d\d"
_TIME = r"\d\d:\d\d:\d\d(\.\d{3}(\d{3})?)?"
_OFFSET = r"(Z|[+-]\d\d:\d\d(:\d\d(\.\d{6})?)?)?"
_DATE_TEXT = re.compile(_DATE, re.ASCII)
# What every supported Python reads the same way. fromisoformat() accepts more with each release.
_ISO = {
    datetime.datetime: re.compile(f"{_DATE}T{_TIME}{_OFFSET}", re.ASCII),
    datetime.time: re.compile(f"{_TIME}{_OFFSET}", re.ASCII),
}
# No dots, hence no way out of the directory of zones.
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]{1,64}(/[A-Za-z0-9_+-]{1,64}){0,3}", re.ASCII)
_Clock = TypeVar("_Clock", datetime.datetime, datetime.time)


def _write_clock(value: _Clock, encoder: Encoder, path: str, _: int) -> Json:
    """A datetime or a time: plain ISO 8601, or an object if it has a zone or a fold."""
    zone = value.tzinfo
    if zone is not None:
        _check_zone(zone, encoder, path)
    body: dict[str, Json] = {"iso": value.isoformat()}
    if isinstance(zone, zoneinfo.ZoneInfo):
        body = {"iso": value.replace(tzinfo=None).isoformat(), "zone": zone.key}
    elif not value.fold:
        return value.isoformat()
    if value.fold:
        body["fold"] = value.fold
    return body


def _check_zone(zone: datetime.tzinfo, encoder: Encoder, path: str) -> None:
    if type(zone) is zoneinfo.ZoneInfo:
        if zone.key and _ZONE_KEY.fullmatch(zone.key):
            return
        raise encoder.unsupported(zone, path, "Use a zone with a key: zoneinfo.ZoneInfo('…').")
    if type(zone) is datetime.timezone:
        offset = zone.utcoffset(None)
        if zone.tzname(None) == datetime.timezone(offset).tzname(None):
            return
        raise encoder.unsupported(
            zone, path, "A fixed offset cannot keep a name of its own: leave the name out."
        )
    raise encoder.unsupported(
        zone, path, "Use datetime.timezone or zoneinfo.ZoneInfo, or convert to UTC."
    )


def _read_clock(kind: type[_Clock], body: Json, path: str) -> _Clock:
    fold = 0
    zone = None
    if type(body) is dict:
        parts = members(body, path, "iso")
        iso = string(*parts.at("iso"))
        if "zone" in parts:
            zone = _read_zone(*parts.at("zone"))
        if "fold" in parts:
            fold = integer(*parts.at("fold"))
            if fold not in (0, 1):
                refuse(f"{path}/fold", "0 or 1", fold)
    elif type(body) is str:
        iso = body
    else:
        refuse(path, "a time in ISO 8601", body)
    if not _ISO[kind].fullmatch(iso):
        refuse(path, f"a {kind.__name__} in ISO 8601, with seconds", iso)
    try:
        value = kind.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError as error:
        refuse(path, f"a {kind.__name__} that exists", iso, error)
    if zone is not None:
        if value.tzinfo is not None:
            refuse(path, "a local time, without offset, beside the zone", iso)
        value = value.replace(tzinfo=zone)
    return value.replace(fold=fold)


def _clock_rule(tag: str, kind: type[_Clock]) -> Rule:
    return Rule(tag, (kind,), _write_clock, lambda body, _, path: _read_clock(kind, body, path))


def _read_zone(body: Json, path: str) -> zoneinfo.ZoneInfo:
    if type(body) is not str or not _ZONE_KEY.fullmatch(body):
        refuse(path, "the key of a time zone, such as 'Europe/Paris'", body)
    try:
        return zoneinfo.ZoneInfo(body)
    except (KeyError, ValueError, OSError) as error:
        refuse(path, "a time zone that this system knows (pip install tzdata)", body, error)


def _read_date(body: Json, path: str) -> datetime.date:
    if type(body) is not str or not _DATE_TEXT.fullmatch(body):
        refuse(path, "a date as YYYY-MM-DD", body)
    try:
        return datetime.date.fromisoformat(body)
    except ValueError as error:
        refuse(path, "a date that exists", body, error)


def _write_timedelta(value: datetime.timedelta) -> list[Json]:
    return [value.days, value.seconds, value.microseconds]


def _read_timedelta(body: Json, path: str) -> datetime.timedelta:
    days, seconds, microseconds = integers(body, path, 3)
    if not (abs(days) < 10**9 and 0 <= seconds < 86_400 and 0 <= microseconds < 10**6):
        refuse(path, "days, seconds below 86400 and microseconds below 1000000", body)
    return datetime.timedelta(days, seconds, microseconds)


def _write_timezone(value: datetime.timezone, encoder: Encoder, path: str, _: int) -> Json:
    _check_zone(value, encoder, path)
    return _write_timedelta(value.utcoffset(None))


def _read_timezone(body: Json, _: Decoder, path: str) -> datetime.timezone:
    try:
        return datetime.timezone(_read_timedelta(body, path))
    except ValueError as error:
        refuse(path, "an offset of less than 24 hours", body, error)


def _write_zone(value: zoneinfo.ZoneInfo, encoder: Encoder, path: str, _: int) -> Json:
    _check_zone(value, encoder, path)
    return value.key


#: Dates, times and time zones.
TIMES = Rules.of(
    [
        _clock_rule("$datetime", datetime.datetime),
        _clock_rule("$time", datetime.time),
        Rule.simple("$date", datetime.date, datetime.date.isoformat, _read_date),
        Rule.simple("$timedelta", datetime.timedelta, _write_timedelta, _read_timedelta),
        Rule("$timezone", (datetime.timezone,), _write_timezone, _read_timezone),
        Rule(
            "$zone", (zoneinfo.ZoneInfo,), _write_zone, lambda body, _, path: _read_zone(body, path)
        ),
    ]
)
