"""Rules for dates, times and time zones (``docs/format.md`` section 6.2)."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from typing import TypeVar

from ..format.json_text import Json
from .checks import integer, integers, member, members, refuse
from .tree import Decoder, Encoder, Rules

_DATE = r"\d{4}-\d\d-\d\d"
_TIME = r"\d\d:\d\d:\d\d(\.\d{3}(\d{3})?)?"
_OFFSET = r"(Z|[+-]\d\d:\d\d(:\d\d(\.\d{6})?)?)?"
_DATE_TEXT = re.compile(_DATE, re.ASCII)
# What every supported Python reads the same way; fromisoformat() takes more with each release.
_ISO = {
    datetime.datetime: re.compile(f"{_DATE}T{_TIME}{_OFFSET}", re.ASCII),
    datetime.time: re.compile(f"{_TIME}{_OFFSET}", re.ASCII),
}
# No dots, hence no way out of the directory of zones.
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]{1,64}(/[A-Za-z0-9_+-]{1,64}){0,3}", re.ASCII)
_Clock = TypeVar("_Clock", datetime.datetime, datetime.time)


def _write_clock(value: _Clock, encoder: Encoder, place: str) -> Json:
    """The body for a datetime or a time: plain ISO 8601 where that says everything."""
    zone = value.tzinfo
    if isinstance(zone, zoneinfo.ZoneInfo):
        _check_zone(zone, encoder, place)
        body: dict[str, Json] = {"iso": value.replace(tzinfo=None).isoformat(), "zone": zone.key}
    else:
        if zone is not None:
            _check_zone(zone, encoder, place)
        if not value.fold:
            return value.isoformat()
        body = {"iso": value.isoformat()}
    if value.fold:
        body["fold"] = value.fold
    return body


def _check_zone(zone: datetime.tzinfo, encoder: Encoder, place: str) -> None:
    if type(zone) is zoneinfo.ZoneInfo:
        if zone.key and _ZONE_KEY.fullmatch(zone.key):
            return
        raise encoder.unsupported(zone, place, "Use a zone with a key: zoneinfo.ZoneInfo('…').")
    if type(zone) is datetime.timezone:
        offset = zone.utcoffset(None)
        if zone.tzname(None) == datetime.timezone(offset).tzname(None):
            return
        raise encoder.unsupported(
            zone, place, "A fixed offset cannot keep a name of its own: leave the name out."
        )
    raise encoder.unsupported(
        zone, place, "Use datetime.timezone or zoneinfo.ZoneInfo, or convert to UTC."
    )


def _read_clock(kind: type[_Clock], body: Json, place: str) -> _Clock:
    fold = 0
    zone = None
    if type(body) is dict:
        iso = member(members(body, place, "iso"), "iso", place, str)
        if "zone" in body:
            zone = _zone(body["zone"], f"{place}/zone")
        if "fold" in body:
            fold = integer(body["fold"], f"{place}/fold")
            if fold not in (0, 1):
                refuse(f"{place}/fold", "0 or 1", body["fold"])
    elif type(body) is str:
        iso = body
    else:
        refuse(place, "a time in ISO 8601", body)
    if not _ISO[kind].fullmatch(iso):
        refuse(place, f"a {kind.__name__} in ISO 8601, with seconds", iso)
    try:
        value = kind.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError as error:
        refuse(place, f"a {kind.__name__} that exists", iso, error)
    if zone is not None:
        if value.tzinfo is not None:
            refuse(place, "a local time, without offset, beside the zone", iso)
        value = value.replace(tzinfo=zone)
    return value.replace(fold=fold)


def _zone(body: Json, place: str) -> zoneinfo.ZoneInfo:
    if type(body) is not str or not _ZONE_KEY.fullmatch(body):
        refuse(place, "the key of a time zone, such as 'Europe/Paris'", body)
    try:
        return zoneinfo.ZoneInfo(body)
    except (KeyError, ValueError, OSError) as error:
        refuse(place, "a time zone that this system knows (pip install tzdata)", body, error)


def _write_datetime(value: datetime.datetime, encoder: Encoder, place: str, _: int) -> Json:
    return {"$datetime": _write_clock(value, encoder, place)}


def _read_datetime(body: Json, _: Decoder, place: str) -> datetime.datetime:
    return _read_clock(datetime.datetime, body, place)


def _write_time(value: datetime.time, encoder: Encoder, place: str, _: int) -> Json:
    return {"$time": _write_clock(value, encoder, place)}


def _read_time(body: Json, _: Decoder, place: str) -> datetime.time:
    return _read_clock(datetime.time, body, place)


def _write_date(value: datetime.date, *_: object) -> Json:
    return {"$date": value.isoformat()}


def _read_date(body: Json, _: Decoder, place: str) -> datetime.date:
    if type(body) is not str or not _DATE_TEXT.fullmatch(body):
        refuse(place, "a date as YYYY-MM-DD", body)
    try:
        return datetime.date.fromisoformat(body)
    except ValueError as error:
        refuse(place, "a date that exists", body, error)


def _parts(value: datetime.timedelta) -> list[Json]:
    return [value.days, value.seconds, value.microseconds]


def _write_timedelta(value: datetime.timedelta, *_: object) -> Json:
    return {"$timedelta": _parts(value)}


def _read_timedelta(body: Json, _: Decoder, place: str) -> datetime.timedelta:
    days, seconds, microseconds = integers(body, place, 3)
    if not (abs(days) < 10**9 and 0 <= seconds < 86_400 and 0 <= microseconds < 10**6):
        refuse(place, "days, seconds below 86400 and microseconds below 1000000", body)
    return datetime.timedelta(days, seconds, microseconds)


def _write_timezone(value: datetime.timezone, encoder: Encoder, place: str, _: int) -> Json:
    _check_zone(value, encoder, place)
    return {"$timezone": _parts(value.utcoffset(None))}


def _read_timezone(body: Json, decoder: Decoder, place: str) -> datetime.timezone:
    try:
        return datetime.timezone(_read_timedelta(body, decoder, place))
    except ValueError as error:
        refuse(place, "an offset of less than 24 hours", body, error)


def _write_zone(value: zoneinfo.ZoneInfo, encoder: Encoder, place: str, _: int) -> Json:
    _check_zone(value, encoder, place)
    return {"$zone": value.key}


def _read_zone(body: Json, _: Decoder, place: str) -> zoneinfo.ZoneInfo:
    return _zone(body, place)


#: The rules of this room.
TIMES = Rules(
    writers={
        datetime.datetime: _write_datetime,
        datetime.date: _write_date,
        datetime.time: _write_time,
        datetime.timedelta: _write_timedelta,
        datetime.timezone: _write_timezone,
        zoneinfo.ZoneInfo: _write_zone,
    },
    readers={
        "$datetime": _read_datetime,
        "$date": _read_date,
        "$time": _read_time,
        "$timedelta": _read_timedelta,
        "$timezone": _read_timezone,
        "$zone": _read_zone,
    },
)
