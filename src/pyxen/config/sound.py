"""Paravirtual sound cards: the `vsnd` setting.

    vsnd = [ ["card, short-name=Main", "pcm, name=dev1", "stream, unique-id=pcm0, type=P"] ]

Source: xl.cfg(5) "vsnd", public/io/sndif.h (names of the keys and of the sample formats).
"""

from pyxen.config.devices import SoundParams, SoundPcm, SoundStream, Vsnd
from pyxen.config.keyvalue import Entry, any_case, apply, loose_unsigned, text, words
from pyxen.config.record import Record, choose
from pyxen.errors import UserError

PCM_FORMATS = (
    *("s8", "u8", "s16_le", "s16_be", "u16_le", "u16_be", "s24_le", "s24_be", "u24_le", "u24_be"),
    *("s32_le", "s32_be", "u32_le", "u32_be", "f32_le", "f32_be", "f64_le", "f64_be"),
    *("iec958_subframe_le", "iec958_subframe_be", "mu_law", "a_law", "ima_adpcm", "mpeg", "gsm"),
)


def _rates(value: str) -> list[int]:
    return [loose_unsigned(rate) for rate in value.split(";") if rate]


def _formats(value: str) -> list[str]:
    formats = []
    for name in filter(None, value.split(";")):
        chosen = choose(name, PCM_FORMATS)
        if chosen is None:
            raise ValueError("sample formats such as s16_le;u8")
        formats.append(chosen)
    return formats


_PARAMS = {
    "sample-rates": Entry("sample_rates", _rates),
    "sample-formats": Entry("sample_formats", _formats),
    "channels-min": Entry("channels_min", loose_unsigned),
    "channels-max": Entry("channels_max", loose_unsigned),
    "buffer-size": Entry("buffer_size", loose_unsigned),
}
_CARD = {
    "backend": Entry("backend_domname", text),
    "short-name": Entry("short_name", text),
    "long-name": Entry("long_name", text),
}
_PCM = {"name": Entry("name", text)}
_STREAM = {"unique-id": Entry("unique_id", text), "type": Entry("type", any_case("p", "c"))}


def parse_vsnd(items: list[str], devid: int) -> Vsnd:
    """Read one sound card from the strings that describe it, its devices and their streams.

    Raises: UserError (exit code 1).
    """
    card = Vsnd(devid=devid)
    for item in items:
        _item(card, item)
    return card


def _item(card: Vsnd, item: str) -> None:
    what = f"vsnd '{item}'"
    kind, *rest = words(item) if item else [""]
    match kind.lower():
        case "card":
            _apply(card, card.params, _CARD, rest, what)
        case "pcm":
            card.pcms.append(SoundPcm())
            _apply(card.pcms[-1], card.pcms[-1].params, _PCM, rest, what)
        case "stream":
            if not card.pcms:
                card.pcms.append(SoundPcm())
            stream = SoundStream()
            card.pcms[-1].streams.append(stream)
            _apply(stream, stream.params, _STREAM, rest, what)
        case _:
            hint = "each string starts with card, pcm or stream"
            raise UserError(f"{what}: there is no part {kind!r}", hint, 1)


def _apply(
    record: Record, params: SoundParams, table: dict[str, Entry], rest: list[str], what: str
) -> None:
    for word in rest:
        key = word.partition("=")[0]
        if key in _PARAMS:
            apply(params, _PARAMS, word, what)
        else:
            apply(record, {**table, **_PARAMS} if key not in table else table, word, what)
