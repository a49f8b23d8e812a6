"""Files of sound and rates: bytes against Python's own writer, soundfile's, and sines; every fault says where it is."""

import struct

import numpy as np
import polars as pl
import pytest

from onnuri import sounds
from onnuri.data import Sound
from onnuri.errors import BadInput
from onnuri.sources import open_data

RATE = 8000
WAVE = (0.5 * np.sin(np.arange(801) / 5)).astype(np.float32)


def wav(data: bytes, form=1, channels=1, rate=RATE, bits=16, extra=b"", size=None) -> bytes:
    """A RIFF with one `fmt ` and one `data` chunk, and an odd one between them that no reader knows."""
    align = channels * bits // 8
    fmt = struct.pack("<HHIIHH", form, channels, rate, rate * align, align, bits) + extra
    chunks = [(b"fmt ", len(fmt), fmt), (b"LIST", 3, b"abc\0"), (b"data", len(data) if size is None else size, data)]
    body = b"WAVE" + b"".join(struct.pack("<4sI", name, length) + content for name, length, content in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def stored(bits: int) -> bytes:
    """WAVE as whole numbers of so many bits."""
    whole = np.round(WAVE.astype(np.float64) * 2.0 ** (bits - 1)).astype(np.int64)
    if bits == 8:
        return (whole + 128).astype(np.uint8).tobytes()
    return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in whole)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_whole_numbers(bits):
    found = sounds.decode_sound(wav(stored(bits), bits=bits), "x")
    assert found.rate == RATE and found.samples.dtype == np.float32
    assert np.abs(found.samples - WAVE).max() <= 0.5 / 2 ** (bits - 1) + 6e-8, "half a step, and fp32's own rounding"


def test_floats_channels_and_the_extended_header(tmp_path):
    both = np.stack([WAVE, -WAVE / 2], 1)
    found = sounds.decode_sound(wav(both.tobytes(), form=3, channels=2, bits=32), "x")
    assert np.allclose(found.samples, WAVE / 4, atol=1e-7)
    guid = struct.pack("<HHIH", 22, 32, 0, 3) + b"\0" * 14
    assert np.array_equal(sounds.decode_sound(wav(WAVE.tobytes(), 0xFFFE, bits=32, extra=guid), "x").samples, WAVE)
    (tmp_path / "a.wav").write_bytes(wav(WAVE.tobytes(), form=3, bits=32, size=0xFFFFFFFF))
    assert np.array_equal(sounds.decode_sound(tmp_path / "a.wav", "x").samples, WAVE), "a length that was not known"
    loud = sounds.decode_sound(wav((4 * WAVE).tobytes(), form=3, bits=32), "x").samples
    assert np.abs(loud).max() == 1


FAULTS = {
    "cut short": wav(stored(16))[:-100],
    "no header": wav(b"")[:20],
    "no WAV": b"RIFF\0\0\0\0AVI " + b"\0" * 40,
    "12 bits": wav(stored(16), bits=12),
    "no channels": wav(stored(16), channels=0),
    "odd bytes": wav(stored(16)[:-1]),
    "empty": wav(b""),
    "no rate": wav(stored(16), rate=0),
    "a rate beyond all sounds": wav(stored(16), rate=2**30),
    "not finite": wav(np.array([0, np.nan], "<f4").tobytes(), form=3, bits=32),
    "nothing": b"",
    "noise": bytes(range(256)),
    "compressed, cut short": b"fLaC" + b"\0" * 20,
    "missing": None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_named(fault):
    if FAULTS[fault] is not None and FAULTS[fault][:4] != b"RIFF":
        pytest.importorskip("soundfile")
    with pytest.raises(BadInput, match="songs, row 3,"):
        sounds.decode_sound(FAULTS[fault], "songs, row 3,")


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
def test_other_formats(form, tmp_path):
    """FLAC is exact; the others lose what is not heard."""
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / f"a.{form.lower()}", WAVE, RATE, format=form)
    content = (tmp_path / f"a.{form.lower()}").read_bytes()
    assert sounds.is_sound(content)
    found = sounds.decode_sound(content, "x")
    assert found.rate == RATE
    if form == "FLAC":
        assert np.abs(found.samples - WAVE).max() <= 2**-15
    assert found.samples.std() == pytest.approx(WAVE.std(), rel=0.1)


def test_pictures_are_no_sounds():
    assert sounds.is_sound(wav(b"")) and sounds.is_sound(b"ID3\x04") and sounds.is_sound(b"OggS\0")
    assert not sounds.is_sound(b"RIFF\0\0\0\0WEBPVP8 ") and not sounds.is_sound(b"\xff\xd8\xff\xe0")
    assert not sounds.is_sound(b"\x89PNG")


# ------------------------------------------------------------------------------------------------------------- rates


def sine(frequency: float, rate: int) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(rate) / rate).astype(np.float32)


@pytest.mark.parametrize(
    "source, target", [(8000, 16000), (16000, 8000), (44100, 16000), (48000, 44100), (11025, 16000)]
)
def test_sines_keep_their_place_and_what_is_too_high_vanishes(source, target):
    """In the middle half: before its beginning and behind its end a sound is silent, which a sine is not."""
    half, middle = min(source, target) / 2, slice(target // 4, 3 * target // 4)
    for share in (0.01, 0.4, 0.85):
        found = sounds.resampled(Sound(sine(share * half, source), source), target)
        assert len(found) == target and found.dtype == np.float32
        assert np.abs(found - sine(share * half, target))[middle].max() < 1e-4
    if target < source:
        high = sounds.resampled(Sound(sine(1.05 * half, source), source), target)
        assert np.abs(high)[middle].max() < 1e-4


def test_the_same_rate_and_a_constant_stay():
    assert sounds.resampled(Sound(WAVE, RATE), RATE) is WAVE
    ones = sounds.resampled(Sound(np.ones(4000, np.float32), RATE), 11025)
    assert np.allclose(ones[1000:-1000], 1, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- sources


def test_columns_of_bytes(tmp_path):
    """As bytes, or as the struct that Hugging Face's datasets write."""
    rows = [wav(stored(16)), wav(stored(16)[:400])]
    pl.DataFrame({"clip": rows, "label": ["a", "b"]}).write_parquet(tmp_path / "a.parquet")
    structs = [{"bytes": row, "path": "x.wav"} for row in rows]
    pl.DataFrame({"clip": structs, "label": ["a", "b"]}).write_parquet(tmp_path / "b.parquet")
    for name in ("a", "b"):
        data = open_data(str(tmp_path / f"{name}.parquet"))
        assert data.records.fields == {"clip": "audio", "label": "category"}
        assert [len(record["clip"].samples) for record in data.records] == [801, 200]
        assert data.row_digests[0] != data.row_digests[1]
    with pytest.raises(BadInput, match="'clip' holds audio, not text"):
        open_data(str(tmp_path / "a.parquet"), fields={"clip": "text"})
    pl.DataFrame({"clip": [rows[0], rows[0][:99], None]}).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(BadInput, match=r"c\.parquet, row 1,"):
        list(open_data(str(tmp_path / "c.parquet")).records)


def test_a_folder_per_class(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for label in ("high", "low"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                (tmp_path / part / label / f"{i}.WAV").write_bytes(wav(stored(16)))
    data = open_data(str(tmp_path))
    assert data.records.fields == {"audio": "audio", "label": "category"} and data.records.answer == "label"
    assert [record["label"] for record in data.split("test")] == ["high", "low"]
    assert np.abs(data.records[0]["audio"].samples - WAVE).max() < 2**-15
    (tmp_path / "train" / "low" / "2.WAV").write_bytes(b"RIFF")
    with pytest.raises(BadInput, match=r"2\.WAV"):
        list(data.records)
    (tmp_path / "train" / "low" / "3.png").write_bytes(b"")
    with pytest.raises(BadInput, match="images and sounds at once"):
        open_data(str(tmp_path))


def test_rates_without_a_common_divisor_need_no_table(monkeypatch):
    """The weights are the same, whether they are kept or made where they are needed."""
    sound = Sound(WAVE, 8009)
    kept = sounds.resampled(sound, 11_003)
    monkeypatch.setattr(sounds, "AT_ONCE", 2**12)
    assert np.array_equal(sounds.resampled(sound, 11_003), kept)
    assert len(sounds.resampled(Sound(WAVE, 767_999), 16_000)) == -(-len(WAVE) * 16_000 // 767_999)
