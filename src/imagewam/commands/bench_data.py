"""`imagewam bench data`: how many training samples a second come from a dataset, with one reader beside the other.

A sample is the camera views at t and at t + horizon, of a row drawn at random. `plain` opens the video for every
sample and seeks both frames, with the decoder's own threads or with one; `decoders kept` is what training does without
a cache; `frame cache` reads resized frames. All are measured in turn, `repeats` times; the numbers are medians.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import av
import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Subset

from ..atomic import atomic_write_text
from ..data.action_chunks import ActionChunkDataset, FrameSource
from ..data.frame_cache import CachedFrames
from ..data.lerobot_dataset import LeRobotDataset
from ..data.video import close_decoders
from ..processing.camera_layout import CameraSpec
from .options import option, parse_options, parse_size

MIB = 2**20
COLUMNS = (
    *("reader", "workers", "first pass", "warm", "warm / plain", "warm / plain, one thread"),
    *("CPU, ms per sample", "memory, MiB"),
)


@dataclass
class BenchDataOptions:
    """What to measure."""

    dataset: str = field(metadata={"help": "Folder of a LeRobot dataset whose cameras are videos."})
    cameras: list[str] | None = option("Camera names; default: all.")
    camera_size: str = option("HEIGHTxWIDTH that every camera is resized to.", "224x224")
    horizon: int = option("Steps from a sample's frame to its target frame.", 16)
    samples: int = option("Samples of a pass.", 128)
    batch_size: int = option("Samples of a batch.", 8)
    workers: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Numbers of loader workers."})
    repeats: int = option("Measurements of each.", 3)
    seed: int = option("Of the order of samples.", 0)
    cache_dir: str | None = option("Folder for the frame cache; default: a temporary one.")
    output: str | None = option("FILE.json for all measurements.")


@dataclass
class Measurement:
    """One loader: samples per second of its first pass, worker start included, and of its second (`warm`); CPU seconds
    per sample of the second, and memory before the first and behind the second, of all processes together."""

    reader: str
    workers: int
    cold: float
    warm: float
    cpu: float
    memory_start: int
    memory_end: int


class PlainFrames:
    """The reader to compare with: a decoder per sample and camera, opened, used and closed."""

    def __init__(self, dataset: LeRobotDataset, threads: int | None):
        self.dataset = dataset
        self.threads = threads

    def frames(self, camera: str, episode_index: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """As `LeRobotDataset.frames`."""
        span = self.dataset.metadata.episodes[episode_index].videos[self.dataset.camera_key(camera)]
        with av.open(str(span.path)) as container:
            stream = container.streams.video[0]
            if self.threads is not None:
                stream.codec_context.thread_count = self.threads
            return [self._frame(container, stream, span.first_frame + index) for index in frame_indices]

    def _frame(self, container, stream, index: int) -> np.ndarray:
        timestamp = (stream.start_time or 0) + round(index / self.dataset.fps / stream.time_base)
        container.seek(timestamp, stream=stream)
        return next(f for f in container.decode(stream) if f.pts >= timestamp).to_ndarray(format="rgb24")


class Views:
    """`collate_fn`: the camera views of a batch, as the processor makes them."""

    def __init__(self, cameras: Sequence[CameraSpec]):
        self.cameras = cameras

    def __call__(self, samples: Sequence[dict]) -> dict[str, torch.Tensor]:
        """uint8 [B, 2, height, width, 3] by camera."""
        moments = ("images", "target_images")
        return {
            camera.name: torch.from_numpy(
                np.stack([[camera.view(sample[moment][camera.name]) for moment in moments] for sample in samples])
            )
            for camera in self.cameras
        }


def main(argv: Sequence[str]) -> None:
    """Print the table as Markdown."""
    (options,) = parse_options((BenchDataOptions,), argv, "bench data", __doc__)
    dataset = LeRobotDataset(options.dataset)
    rows, cameras = _rows(options, dataset), _cameras(options, dataset)
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        cached = CachedFrames(dataset, cameras, options.cache_dir or temporary)
        building = time.perf_counter() - start
        readers = {
            "plain": lambda: PlainFrames(dataset, threads=None),
            "plain, one thread": lambda: PlainFrames(dataset, threads=1),
            "decoders kept": lambda: dataset,
            "frame cache": lambda: cached,
        }
        measurements = measure(options, dataset, rows, cameras, readers)
        cache = {"bytes": cached.num_bytes, "seconds": building, "frames": len(dataset) * len(cameras)}
    print(table(measurements))
    print(
        f"\nFrame cache: {cache['frames']} frames, {cache['bytes'] / MIB:.0f} MiB, found or built in "
        f"{building:.0f} s. {options.samples} samples a pass, medians of {options.repeats}, seed {options.seed}. "
        f"{machine()}."
    )
    if options.output:
        content = {"options": asdict(options), "machine": machine(), "cache": cache}
        content["measurements"] = [asdict(measurement) for measurement in measurements]
        atomic_write_text(options.output, json.dumps(content, indent=2) + "\n")


def measure(
    options: BenchDataOptions,
    dataset: LeRobotDataset,
    rows: Sequence[int],
    cameras: Sequence[CameraSpec],
    readers: dict[str, Callable[[], FrameSource]],
) -> list[Measurement]:
    """All readers in turn, so that what else the machine does meets them alike."""
    names = [camera.name for camera in cameras]
    found = []
    for workers in options.workers:
        for _ in range(options.repeats):
            for name, reader in readers.items():
                chunks = ActionChunkDataset(dataset, options.horizon, names, frames=reader())
                found.append(Measurement(name, workers, *_measure(chunks, Views(cameras), rows, options, workers)))
    return found


def _measure(chunks, views, rows, options: BenchDataOptions, workers: int) -> tuple[float, float, float, int, int]:
    close_decoders()
    sampler = _Halves(options.samples)
    loader = DataLoader(
        Subset(chunks, rows),
        batch_size=options.batch_size,
        collate_fn=views,
        num_workers=workers,
        sampler=sampler,
        persistent_workers=workers > 0,
    )
    memory_start = memory_of_processes()
    rates = []
    for sampler.half in (0, 1):
        start, cpu_start = time.perf_counter(), cpu_seconds()
        count = sum(len(next(iter(batch.values()))) for batch in loader)
        rates.append(count / (time.perf_counter() - start))
    return *rates, (cpu_seconds() - cpu_start) / count, memory_start, memory_of_processes()


class _Halves(torch.utils.data.Sampler):
    """Places 0 to size - 1, or the `size` places behind them."""

    half = 0

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        return iter(range(self.half * self.size, (self.half + 1) * self.size))


def memory_of_processes() -> int:
    """Resident bytes of this process and those that it started; pages of mapped files among them."""
    process = psutil.Process()
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def cpu_seconds() -> float:
    """What this process and those that it started have computed; other programs do not disturb it much."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def machine() -> str:
    """What the numbers were measured on, and how busy it was."""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}, load {load:.1f}"


def table(measurements: Sequence[Measurement]) -> str:
    """Medians in samples per second, with the ratios to both plain readers of the same number of workers."""
    groups: dict[tuple[str, int], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.reader, measurement.workers), []).append(measurement)
    median = {
        key: {name: statistics.median(getattr(each, name) for each in group) for name in ("cold", "warm", "cpu")}
        for key, group in groups.items()
    }
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for (reader, workers), group in groups.items():
        warm = median[reader, workers]["warm"]
        ratios = [f"{warm / median[plain, workers]['warm']:.1f}" for plain in ("plain", "plain, one thread")]
        memory = f"{group[-1].memory_start / MIB:.0f} to {group[-1].memory_end / MIB:.0f}"
        cold, cpu = f"{median[reader, workers]['cold']:.1f}", f"{1000 * median[reader, workers]['cpu']:.1f}"
        lines.append([reader, str(workers), cold, f"{warm:.1f}", *ratios, cpu, memory])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(options: BenchDataOptions, dataset: LeRobotDataset) -> list[int]:
    """Different rows for both passes, in random order."""
    if len(dataset) < 2 * options.samples:
        raise ValueError(
            f"two passes of {options.samples} samples need as many rows, {dataset.root} has {len(dataset)}"
        )
    return np.random.default_rng(options.seed).permutation(len(dataset))[: 2 * options.samples].tolist()


def _cameras(options: BenchDataOptions, dataset: LeRobotDataset) -> list[CameraSpec]:
    height, width = parse_size(options.camera_size)
    names = options.cameras or dataset.camera_names
    for name in names:
        if dataset.features[dataset.camera_key(name)]["dtype"] != "video":
            raise ValueError(f"camera {name!r} of {dataset.root} is no video: there is no decoder to compare")
    return [CameraSpec(name, height, width) for name in names]
