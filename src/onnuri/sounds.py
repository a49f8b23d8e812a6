"""Files of sound as a Sound, and sounds at another rate.

WAV is read here: a RIFF of chunks, of which `fmt ` says how the numbers of `data` are stored (Microsoft, Multimedia
Programming Interface 1.0, 1991, and WAVEFORMATEXTENSIBLE). Every other format is read by the library soundfile, an extra.
"""

import io
import math
import re
import struct
from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .data import Sound
from .errors import BadInput, needs_extra

ENDINGS = (".wav", ".flac", ".mp3", ".ogg")
MARKS = (b"fLaC", b"OggS", b"ID3")  # how files of sound begin, beside WAV and an MP3 without a title

RATES = (100, 768_000)  # samples per second that a file may state
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
FORMS = {(PCM, 8): "<u1", (PCM, 16): "<i2", (PCM, 24): "", (PCM, 32): "<i4", (FLOAT, 32): "<f4"}
UNKNOWN_SIZE = 0xFFFFFFFF  # what a program writes that does not know yet how long the sound will be

ZEROS = 32  # of the sinc on each side of its middle: how sharply a resampler cuts
ROLLOFF = 0.95  # of the lower of both Nyquist frequencies: where it cuts
BETA = 10.0  # of the Kaiser window: what lies behind the cut is about 100 dB down
AT_ONCE = 2**22  # products, and weights, in memory


def is_sound(start: bytes) -> bool:
    """Whether a file that begins so holds sound. A WebP picture is a RIFF as well, and a JPEG begins with 255 as MP3
    does: eleven bits of one, the version, then the layer."""
    mp3 = len(start) > 1 and start[0] == 0xFF and start[1] & 0b11100110 == 0b11100010
    return mp3 or start.startswith(MARKS) or (start[:4] == b"RIFF" and start[8:12] == b"WAVE")


def decode_sound(source: bytes | Path | None, where: str | Path) -> Sound:
    """The sound of a file or of its bytes, its channels averaged. BadInput names `where`."""
    if source is None:
        raise BadInput(f"{where} holds no sound", hint="drop that row")
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise BadInput(f"{where} cannot be read: {error}") from error
    try:
        samples, rate = read_wav(content) if content[:4] == b"RIFF" else read_other(content)
    except ValueError as error:
        raise BadInput(f"{where} holds a sound that cannot be read: {error}") from error
    return checked(samples, rate, where)


def checked(samples: np.ndarray, rate: int, where: str | Path) -> Sound:
    """One channel within -1..1 of samples (times, channels)."""
    low, high = RATES
    faults = [f"{where}: {rate} samples a second, which no sound has"] if not low <= rate <= high else []
    if not samples.size:
        faults.append(f"{where}: the sound is empty")
    elif not np.isfinite(samples).all():
        faults.append(f"{where}: the sound holds numbers that are not finite")
    if faults:
        raise BadInput(*faults, hint="drop it, or save it again")
    return Sound(samples.mean(1, dtype=np.float32).clip(-1, 1), rate)


def read_wav(content: bytes) -> tuple[np.ndarray, int]:
    """Samples (times, channels) float32 and the rate; ValueError says what is wrong."""
    chunks = chunks_of(content)
    if len(chunks.get(b"fmt ", b"")) < 16 or b"data" not in chunks:
        raise ValueError("it is cut short or no WAV: the chunks 'fmt ' and 'data' must be there")
    form, channels, rate, _, align, bits = struct.unpack("<HHIIHH", chunks[b"fmt "][:16])
    if form == EXTENSIBLE and len(chunks[b"fmt "]) >= 26:
        form = struct.unpack("<H", chunks[b"fmt "][24:26])[0]
    if (form, bits) not in FORMS:
        raise ValueError(f"{bits} bits of format {form} are not known; known: PCM of 8, 16, 24, 32 bits, float of 32")
    data = chunks[b"data"]
    if not channels or align != channels * bits // 8 or len(data) % align:
        raise ValueError(f"{len(data)} bytes are no whole number of {channels} channels of {bits} bits")
    return numbers(data, form, bits).reshape(-1, channels), rate


def chunks_of(content: bytes) -> dict[bytes, bytes]:
    """{name: content} of the chunks of a RIFF; the first one of a name counts."""
    if content[8:12] != b"WAVE":
        raise ValueError(f"a RIFF of {content[8:12]!r} is no WAV")
    found: dict[bytes, bytes] = {}
    place = 12
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        left = len(content) - place - 8
        if size > left and not (name == b"data" and size == UNKNOWN_SIZE):
            raise ValueError(f"it is cut short: {left} of {size} bytes of its chunk {name.decode('latin-1')!r}")
        found.setdefault(name, content[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    return found


def numbers(data: bytes, form: int, bits: int) -> np.ndarray:
    """Stored numbers as float32; whole ones are divided by the largest of their type."""
    if bits == 24:  # three bytes become the upper three of four
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    stored = np.frombuffer(data, FORMS[form, bits])
    if form == FLOAT:
        return stored.astype(np.float32)
    middle = 128 if bits == 8 else 0  # 8 bits are stored without a sign
    return ((stored.astype(np.float64) - middle) / 2.0 ** (bits - 1)).astype(np.float32)


def read_other(content: bytes) -> tuple[np.ndarray, int]:
    """What soundfile reads; ValueError where it cannot."""
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: its C library is missing
        raise needs_extra("audio", "soundfile") from None
    try:
        return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (RuntimeError, TypeError) as error:
        # soundfile names what it read from, which is our own buffer
        raise ValueError(re.sub(r"^Error opening <.*?>: ", "", str(error))) from error


# ------------------------------------------------------------------------------------------------------------- rates


def resampled(sound: Sound, rate: int) -> np.ndarray:
    """The samples at `rate`, ceil(times * rate / sound.rate) of them, by a sinc in a Kaiser window (Smith, Digital Audio
    Resampling, 2002). A sine up to 0.85 of the lower Nyquist frequency is kept within 1e-4, one above 1.05 of it is
    below 1e-4."""
    if sound.rate == rate or not len(sound.samples):
        return sound.samples
    unit = math.gcd(sound.rate, rate)
    phases, step = rate // unit, sound.rate // unit
    reach = math.ceil(ZEROS / cut_of(phases, step))
    width = 2 * reach + 1
    windows = sliding_window_view(np.pad(sound.samples, reach), width)
    count = -(-len(sound.samples) * phases // step)
    made, part = np.empty(count, np.float32), max(1, AT_ONCE // width)
    for start in range(0, count, part):
        places = np.arange(start, min(start + part, count)) * step
        # rates without a common divisor have as many places as samples: those are not kept
        few = phases * width <= AT_ONCE
        weights = sinc_table(phases, step)[places % phases] if few else sinc(places % phases, phases, step)
        made[start : start + part] = np.einsum("nk,nk->n", windows[places // phases], weights)
    return made


def cut_of(phases: int, step: int) -> float:
    """Where the resampler cuts, in units of the sound's own Nyquist frequency."""
    return ROLLOFF * min(1.0, phases / step)


@cache
def sinc_table(phases: int, step: int) -> np.ndarray:
    """The weights at every place between two samples."""
    return sinc(np.arange(phases), phases, step)


def sinc(places: np.ndarray, phases: int, step: int) -> np.ndarray:
    """(places, 2 * reach + 1) float32: the weights of the samples around each place between two of them, in parts of
    `phases`. A constant stays what it is."""
    cut = cut_of(phases, step)
    reach = math.ceil(ZEROS / cut)
    away = np.arange(-reach, reach + 1) - places[:, None] / phases
    window = np.i0(BETA * np.sqrt((1 - (away / (reach + 1)) ** 2).clip(0))) / np.i0(BETA)
    weights = np.sinc(cut * away) * window
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
