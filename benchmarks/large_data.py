"""How an image folder of 100,000 files starts, what it holds, and how fast it feeds a training.

    python benchmarks/large_data.py --data DIR [--images 100000] [--loaders 2] [--seconds 10] [--out FILE]

DIR gets the folder, of hard links to a few JPEG files of 500 x 375 pixels, unless it is there. Start and memory are those of a
process of their own; "share" is the rate of the loading processes against that, in turns, of as many processes that do nothing
but decode, and "cpu_share" the same by processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES, FILES = 10, 64  # of different content; a file system allows some 65,000 links to each
SIZE, SIDE, BATCH = (500, 375), 224, 64
TURNS = 3


def make(folder: Path, images: int) -> None:
    """The image folder: nine tenths for training, a tenth for the test."""
    if (folder / "test").exists():
        return
    sources = folder / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (SIZE[1], SIZE[0], 3))
        pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(sources / f"{number}.jpg", quality=85)
    for part, count in (("train", images * 9 // 10), ("test", images - images * 9 // 10)):
        for label in range(CLASSES):
            (folder / part / f"class{label}").mkdir(parents=True)
        for number in range(count):
            os.link(sources / f"{number % FILES}.jpg", folder / part / f"class{number % CLASSES}" / f"{number:06d}.jpg")


def memory() -> int:
    """Bytes that this process and its children hold; what they share counts once."""
    found = 0
    for pid in alive():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return found


def feed(dataset: Any, loaders: int) -> Any:
    """Batches as a training gets them."""
    import torch

    from freeprune.engine.training.feeding import Drawn, Numbered, Order, batches_of, loader

    order = Order(len(dataset), BATCH, 10**6, torch.Generator().manual_seed(0))
    numbered = Numbered(order, 0, lambda count: slice(0, count))
    return batches_of(dataset, iter(loader(Drawn(dataset, 0), numbered, None, loaders, pinned=False)), loaders, reused=True)


def rate_of(batches: Any, seconds: float) -> tuple[float, float]:
    """Images a second, once the loading processes have begun, and milliseconds of all processors together for each image."""
    for _ in islice(batches, 10):
        pass
    start, count, cpu = time.perf_counter(), 0, used()
    while time.perf_counter() - start < seconds:
        next(batches)
        count += BATCH
    return count / (time.perf_counter() - start), 1000 * (used() - cpu) / count


def used() -> float:
    """Seconds of processor time of this process and its children that are alive."""
    found = 0
    for pid in alive():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found += int(fields[11]) + int(fields[12])
    return found / os.sysconf("SC_CLK_TCK")


def alive() -> list[str]:
    return [str(os.getpid()), *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _decode(paths: list[str], seconds: float, count: Any) -> None:
    from freeprune.engine.inputs.image_files import Form, decode

    start, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        decode(paths[done % len(paths)], Form(size=SIDE))
        done += 1
    count[0], count[1] = done / (time.perf_counter() - start), 1000 * (time.process_time() - cpu) / done


def decoding(folder: Path, processes: int, seconds: float) -> tuple[float, float]:
    """As `rate_of`, of processes that decode and do nothing else."""
    paths = [str(path) for path in sorted((folder / "sources").iterdir())]
    context = multiprocessing.get_context("fork")
    counts = [context.Array("d", 2) for _ in range(processes)]
    workers = [context.Process(target=_decode, args=(paths, seconds, count)) for count in counts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(count[0] for count in counts), statistics.mean(count[1] for count in counts)


def started(folder: Path, loaders: int, seconds: float) -> dict[str, Any]:
    """The figures of a process that reads the folder and trains on it; to be called once in a process."""
    import torch

    from freeprune.engine.inputs.batches import split
    from freeprune.engine.inputs.calibration import draw
    from freeprune.engine.inputs.data import Asked, load_data

    torch.set_num_threads(1)
    begun, cpu = time.perf_counter(), time.process_time()
    data = load_data(Asked(f"imagefolder:{folder}", image_size=SIDE))
    training, _ = split(data, 0)
    draw(training, data, 256, 0)
    start, start_cpu = time.perf_counter() - begun, time.process_time() - cpu
    rates, decoded = [], []
    peak = memory()
    for _ in range(TURNS):
        batches = feed(training, loaders)
        rates.append(rate_of(batches, seconds))
        peak = max(peak, memory())
        batches.close()
        decoded.append(decoding(folder, loaders, seconds))
    return {
        "images": len(data.train) + len(data.test),  # type: ignore[arg-type]
        "start_seconds": round(start, 2),
        "start_cpu_seconds": round(start_cpu, 2),
        "memory_mb": round(peak / 1e6, 1),
        "loaders": loaders,
        "images_per_second": [round(rate, 1) for rate, _ in rates],
        "decoded_per_second": [round(rate, 1) for rate, _ in decoded],
        "cpu_ms_per_image": [round(cpu, 3) for _, cpu in rates],
        "cpu_ms_per_decoded": [round(cpu, 3) for _, cpu in decoded],
        "share": round(statistics.median(a[0] / b[0] for a, b in zip(rates, decoded, strict=True)), 3),
        "cpu_share": round(statistics.median(b[1] / a[1] for a, b in zip(rates, decoded, strict=True)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large_data.json")
    parser.add_argument("--inside", action="store_true", help="measure in this process, and print")
    options = parser.parse_args()
    make(options.data, options.images)
    if options.inside:
        print(json.dumps(started(options.data, options.loaders, options.seconds)))  # noqa: T201
        return
    words = [sys.executable, __file__, "--inside", "--data", str(options.data), "--loaders", str(options.loaders)]
    done = subprocess.run([*words, "--seconds", str(options.seconds)], check=True, capture_output=True, text=True)
    found = {**json.loads(done.stdout.splitlines()[-1]), "cores": os.cpu_count(), "machine": platform.machine()}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
