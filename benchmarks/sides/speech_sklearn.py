"""The peer for short sounds: mel-frequency cepstral coefficients and a support vector machine of scikit-learn.

Davis & Mermelstein 1980, written in numpy; a sound is the mean, the spread and four quarters' means of its coefficients
and of their changes. With --apart it is trained without each speaker in turn and asked about that one alone.

    python benchmarks/sides/speech_sklearn.py --data DATA [--apart]
"""

import argparse
import io
import json
import time
import wave
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

WINDOW, HOP, SIZE, BANDS, KEPT = 0.025, 0.010, 256, 26, 13


def samples(content: bytes) -> tuple[np.ndarray, int]:
    """16-bit samples in -1..1, and their rate."""
    with wave.open(io.BytesIO(content)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768, file.getframerate()


def coefficients(sound: np.ndarray, rate: int) -> np.ndarray:
    """(frames, KEPT)."""
    window, hop = round(WINDOW * rate), round(HOP * rate)
    sound = np.append(sound[:1], sound[1:] - 0.97 * sound[:-1])
    sound = np.pad(sound, (0, max(0, window - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop] * np.hamming(window)
    power = np.abs(np.fft.rfft(frames, SIZE)) ** 2
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, BANDS + 2) / 2595) - 1) / rate * SIZE
    bins = np.arange(SIZE // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bands = np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
    loud = np.log(power @ bands.T + 1e-8)
    places = np.outer(np.arange(KEPT), np.arange(BANDS) + 0.5)
    return loud @ np.cos(np.pi / BANDS * places).T


def features(content: bytes) -> np.ndarray:
    found = coefficients(*samples(content))
    both = np.hstack([found, np.gradient(found, axis=0) if len(found) > 1 else np.zeros_like(found)])
    quarters = [part.mean(0) if len(part) else both.mean(0) for part in np.array_split(both, 4)]
    return np.concatenate([both.mean(0), both.std(0), *quarters])


def fitted(asked: np.ndarray, truth: np.ndarray) -> Pipeline:
    return make_pipeline(StandardScaler(), SVC(C=10.0)).fit(asked, truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--apart", action="store_true", help="each speaker is asked by a model that never heard him")
    chosen = parser.parse_args()
    began = time.perf_counter()
    tables = [pl.read_parquet(chosen.data / f"{split}.parquet") for split in ("train", "test")]
    asked = [np.stack([features(content) for content in table["audio"].to_list()]) for table in tables]
    truth = [table["label"].to_numpy() for table in tables]
    if not chosen.apart:
        model = fitted(asked[0], truth[0])
        accuracy = float(model.score(asked[1], truth[1]))
        print(json.dumps({"accuracy": accuracy, "seconds": time.perf_counter() - began}))
        return
    whole, labels = np.concatenate(asked), np.concatenate(truth)
    speakers = np.concatenate([table["speaker"].to_numpy() for table in tables])
    found = {
        str(name): float(fitted(whole[speakers != name], labels[speakers != name]).score(whole[mine], labels[mine]))
        for name in np.unique(speakers)
        if len(mine := np.flatnonzero(speakers == name))
    }
    mean = float(np.mean(list(found.values())))
    print(json.dumps({"accuracy": mean, "speakers": found, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
