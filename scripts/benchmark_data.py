"""What `benchmark.py data` says of the input pipeline, beside PyTorch's, TFDS's and WebDataset.

All make the same samples of stage 2 from photos with a marked object (kind "photo"): decode,
object image with colours and affine changed, random square of the photo, one of four masks, batch.
The others' are made by albumentations, and come from files, from our records through TFDS, or from
tar files. Needs the extra `[benchmark]`.
"""

import importlib.metadata
import io
import math
import os
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from imprint_jax import config
from imprint_jax.data.pipeline import make_dataset, make_stream
from imprint_jax.data.preparation.prepare import prepare
from imprint_jax.data.records import RecordWriter
from imprint_jax.data.transforms import OVERSIZE, random_colors, recolor
from imprint_jax.geometry import FAINT, MIN_CONTEXT, OBJECT_MARGIN
from imprint_jax.runtime import host_memory
from imprint_jax.runtime.accelerators import ACCELERATORS, UTILISATION
from imprint_jax.runtime.processes import in_processes

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples"

PHOTOS, PHOTO_SIDE = 1000, 1280  # how many, and the longer side in pixels
BATCH = 16
BATCHES = 20  # on the clock
ALONE = 160  # samples for the time of one core
WARM_UP = 6  # batches before the clock starts: processes have started, queues are full

# What 8 A100 take of stage 2, in samples a second, at 6.06 TFLOP a sample, recomputation included
# (counted).
ASSUMED_RATE = 8 * ACCELERATORS["a100-80g"].flops * UTILISATION / 6.06e12


def write_photos(folder: Path) -> None:
    """Shipped objects in shipped photos, enlarged: FOLDER/NNNN.jpg and FOLDER/masks/NNNN.png."""
    (folder / "masks").mkdir(parents=True)
    rng = np.random.default_rng(0)
    views = sorted((SAMPLES / "objects").glob("*/*.webp"))
    photos = sorted((SAMPLES / "photos").glob("*.jpg"))
    for number in range(PHOTOS):
        photo = Image.open(photos[number % len(photos)]).convert("RGB")
        scale = PHOTO_SIDE / max(photo.size)
        photo = photo.resize((round(photo.width * scale), round(photo.height * scale)))
        side = int(rng.uniform(0.3, 0.8) * min(photo.size))
        view = Image.open(views[rng.integers(len(views))]).resize((side, side))
        place = tuple(int(rng.integers(room - side)) for room in photo.size)
        mask = Image.new("L", photo.size)
        photo.paste(view, place, view)
        mask.paste(view.getchannel("A").point(lambda x: 255 * (x >= 128)), place)
        photo.save(folder / f"{number:04d}.jpg", quality=90)
        mask.save(folder / "masks" / f"{number:04d}.png")


def settings(records: Path, workers: int) -> config.Config:
    """The paper's stage 2 on one set of photos."""
    c = config.default()
    c.stage, c.batch_size = 2, BATCH
    c.data.sources = (dict(kind="photo", records=str(records), weight=1.0),)
    c.data.num_workers = workers
    return config.Config.of(c)


def sampler_of(c):
    """`sample(photo, mask, number)`: samples as ours, by albumentations and OpenCV."""
    import albumentations as A
    import cv2
    import torch

    cv2.setNumThreads(0)  # processes share the cores already
    torch.set_num_threads(1)
    area, cubic = cv2.INTER_AREA, cv2.INTER_CUBIC
    size, affine, colors = c.object_size, c.data.affine, np.random.default_rng(0)
    fitted = round(size / (1 + 2 * OBJECT_MARGIN))
    perturb = A.Compose(
        [
            A.LongestMaxSize(round(OVERSIZE * size), interpolation=area, mask_interpolation=area),
            # Albumentations has no 3-D tables: Pillow applies ours, as it does in our loader.
            A.Lambda(image=lambda x, **_: recolor(x, random_colors(colors, c.data.color)), p=1),
            A.Affine(
                rotate=(-affine.rotate, affine.rotate),
                shear={"x": (-affine.shear, affine.shear), "y": (0, 0)},
                scale=(math.exp(-affine.scale), math.exp(affine.scale)),
                interpolation=cubic,
                mask_interpolation=cubic,
                fit_output=True,
                p=1,
            ),
        ]
    )
    frame = A.Compose(
        [A.LongestMaxSize(fitted, interpolation=area), A.PadIfNeeded(size, size, fill=0)]
    )
    whole = A.Compose(
        [A.Resize(c.image_size, c.image_size, interpolation=area, mask_interpolation=area)]
    )

    def level(hole: np.ndarray, number: int) -> np.ndarray:
        x, y, width, height = cv2.boundingRect(hole)
        box = np.s_[y : y + height, x : x + width]
        if number == 3:
            hole[box] = 1
        elif number:
            for sigma in c.data.mask_sigmas[:number]:
                # Three box filters are a Gaussian, as in Pillow, and fast at any width.
                side = 2 * round(sigma * math.sqrt(width * height)) + 1
                blurred = hole[box] * 255
                for _ in range(3):
                    blurred = cv2.blur(blurred, (side, side), borderType=cv2.BORDER_CONSTANT)
                hole[box] |= (blurred >= 51).astype(np.uint8)
        return hole

    def sample(photo, mask, k: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(torch.randint(2**62, ()).item())
        mask = np.asarray(Image.open(mask))
        x, y, width, height = cv2.boundingRect((mask >= FAINT).astype(np.uint8))
        share = math.exp(rng.uniform(*np.log(c.data.share)))
        side = max(math.sqrt(cv2.countNonZero(mask) / share), max(width, height) * MIN_CONTEXT)
        side = min(round(side), *mask.shape)
        image = Image.open(photo)
        scale = max(c.image_size / side, OVERSIZE * size / max(width, height))
        shrink = max(int(1 / scale), 1)
        image.draft(None, (image.width // shrink, image.height // shrink))
        image = np.asarray(image)
        if image.shape[:2] != mask.shape:
            shape = image.shape[1::-1]
            by = shape[0] / mask.shape[1]
            mask = cv2.resize(mask, shape, interpolation=area)
            x, y, width, height, side = (int(by * v) for v in (x, y, width, height, side))

        box = np.s_[y : y + height, x : x + width]
        changed = perturb(image=image[box], mask=mask[box])
        cut, edge = changed["image"], changed["mask"]
        u, v, w, h = cv2.boundingRect((edge >= FAINT).astype(np.uint8))
        window = np.s_[v : v + h, u : u + w]
        edge = cv2.merge([edge[window]] * 3)
        crop = frame(image=cv2.multiply(cut[window], edge, scale=1 / 255))["image"]

        starts = []
        for low, length, total in ((x, width, mask.shape[1]), (y, height, mask.shape[0])):
            first = max(low + length - side, 0)
            last = max(min(low, total - side), first)
            starts.append(min(int(rng.integers(first, last + 1)), total - side))
        left, top = starts
        square = np.s_[top : top + side, left : left + side]
        target = whole(image=image[square], mask=mask[square])
        hole = level((target["mask"] > 0).astype(np.uint8), int(rng.integers(4)))
        return {
            "object": crop,
            "target": target["image"],
            "mask": hole[..., None],
            "index": np.int32(k),
        }

    return sample


class Photos:
    """The photos as random access, for a PyTorch `DataLoader`: a folder's files, or TFDS's records.

    Args:
        count: How many photos there are.
        read: `read(k)` gives photo `k` and its mask, as `sample` takes them.
        sample: What `sampler_of` made.
    """

    def __init__(self, count: int, read, sample):
        self.count, self.read, self.sample = count, read, sample

    def __len__(self):
        return self.count

    def __getitem__(self, k):
        return self.sample(*self.read(k), k)


def from_folder(folder: Path):
    """How many photos there are, and what reads one as files."""
    paths = sorted(folder.glob("*.jpg"))
    return len(paths), lambda k: (paths[k], folder / "masks" / f"{paths[k].stem}.png")


def from_tfds(records: Path):
    """Likewise through TFDS, encoded, from the records that our loader reads."""
    import tensorflow_datasets as tfds

    skip = dict.fromkeys(("image", "mask"), tfds.decode.SkipDecoding())
    source = tfds.builder_from_directory(records).as_data_source("train", decoders=skip)

    def read(k: int):
        record = source[k]
        return io.BytesIO(record["image"]), io.BytesIO(record["mask"])

    return len(source), read


def torch_loader(photos: Photos, workers: int):
    """PyTorch's `DataLoader` of photos in random order."""
    import torch

    sampler = torch.utils.data.RandomSampler(photos, replacement=True, num_samples=10**9)
    return _loader(photos, workers, batch_size=BATCH, sampler=sampler)


def webdataset_loader(folder: Path, shards: Path, sample, workers: int):
    """WebDataset over tar files of the same photos, shuffled as its documentation does."""
    import webdataset as wds

    shards.mkdir(exist_ok=True)
    if not list(shards.iterdir()):
        with wds.ShardWriter(f"{shards}/%04d.tar", maxcount=PHOTOS // 10, verbose=0) as writer:
            for path in sorted(folder.glob("*.jpg")):
                mask = (folder / "masks" / f"{path.stem}.png").read_bytes()
                writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "png": mask})
    photos = (
        wds.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=10)
        .repeat()
        .shuffle(PHOTOS // 10)
        .map(lambda x: sample(io.BytesIO(x["jpg"]), io.BytesIO(x["png"]), int(x["__key__"])))
    )
    return _loader(photos, workers, batch_size=BATCH)


def _loader(photos, workers: int, **settings):
    import torch

    return torch.utils.data.DataLoader(
        photos,
        num_workers=workers,
        prefetch_factor=4,
        persistent_workers=True,
        worker_init_fn=lambda _: host_memory.keep_freed(),  # as in our loader's processes
        **settings,
    )


def rate(batches, count: int) -> tuple[float, dict]:
    """Samples a second of `count` batches after the first ones, and the last batch."""
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        batch = next(batches)
    return count * BATCH / (time.perf_counter() - start), batch


def cpu_time(sample, count: int) -> float:
    """Milliseconds of one core that `sample(k)` takes; other work on the machine hardly counts."""
    for number in range(8):
        sample(number)
    start = time.process_time()
    for number in range(count):
        sample(number)
    return (time.process_time() - start) / count * 1e3


def data(workers: int, repeats: int) -> None:
    """Samples a second of all loaders, and CPU time a sample, in turns.

    Args:
        workers: Processes of each.
        repeats: Turns.
    """
    names = ("grain", "numpy", "pillow", "torch", "albumentations", "opencv-python-headless")
    names += ("webdataset", "tensorflow-datasets")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    print(f"load of the machine before: {os.getloadavg()[0]:.2f}")
    host_memory.keep_freed()  # for the time of one core, which is taken in this process
    rates, times, shapes = defaultdict(list), defaultdict(list), {}
    with tempfile.TemporaryDirectory() as name:
        photos, records = Path(name) / "photos", Path(name) / "records"
        write_photos(photos)
        prepare("photos", photos, records)
        c = settings(records, workers)
        sample = sampler_of(c)
        files, tfds = (Photos(*x, sample) for x in (from_folder(photos), from_tfds(records)))
        tars = lambda: webdataset_loader(photos, Path(name) / "tars", sample, workers)
        # What makes a loader, and what makes one sample in this process.
        ours = make_stream(c)
        one_by_one = iter(tars().dataset)
        loaders = {
            "imprint_jax": (lambda: make_dataset(c), ours.__getitem__),
            "PyTorch, files": (
                lambda: torch_loader(files, workers),
                lambda k: files[k % len(files)],
            ),
            "PyTorch, TFDS": (
                lambda: torch_loader(tfds, workers),
                lambda k: tfds[k % len(tfds)],
            ),
            "WebDataset": (tars, lambda _: next(one_by_one)),
        }
        for _ in range(repeats):
            for loader, (make, read) in loaders.items():
                batches = iter(make())
                got, batch = rate(batches, BATCHES)
                rates[loader].append(got)
                batch.pop("__key__", None)  # WebDataset's own
                kinds = {k: str(v.dtype).removeprefix("torch.") for k, v in batch.items()}
                shapes[loader] = {k: (tuple(v.shape), kinds[k]) for k, v in batch.items()}
                if loader == "imprint_jax":
                    batches.close()
                del batches, batch  # its processes end
                times[loader].append(cpu_time(read, ALONE))
    print(f"load of the machine after: {os.getloadavg()[0]:.2f}")
    if len({str(sorted(shape.items())) for shape in shapes.values()}) > 1:
        raise AssertionError(f"the loaders' batches differ: {shapes}")
    print(f"batches of all: {shapes['imprint_jax']}\n")
    rates, times = ({k: np.median(v) for k, v in both.items()} for both in (rates, times))
    print("| | samples/s | CPU ms a sample | samples/s a core |\n|---|---:|---:|---:|")
    for loader in rates:
        print(
            f"| {loader} | {rates[loader]:.1f} | {times[loader]:.1f} | {1e3 / times[loader]:.1f} |"
        )
    best = min(value for loader, value in times.items() if loader != "imprint_jax")
    print(f"\ntimes as fast a core as the best other: {best / times['imprint_jax']:.2f}")
    cores = {k: ASSUMED_RATE * v / 1e3 for k, v in times.items()}
    print(f"cores for {ASSUMED_RATE:.0f} samples/s: ", end="")
    print(", ".join(f"{loader} {count:.1f}" for loader, count in cores.items()))


GROUP = 10  # records of one synthetic object
READ = 200  # samples read at each place of the stream


def write_records(folder: Path, count: int) -> float:
    """So many records of one small picture, in groups of `GROUP`; returns seconds."""
    picture, mask = io.BytesIO(), io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(picture, "JPEG")
    Image.fromarray(np.pad(np.full((24, 24), 255, np.uint8), 12)).save(mask, "PNG")
    record = dict(image=picture.getvalue(), mask=mask.getvalue(), background=b"", instance=0)
    begin = time.perf_counter()
    with RecordWriter(folder, "synthetic") as writer:
        for k in range(count):
            place = dict(group=f"object{k // GROUP:07d}", frame=k % GROUP, dataset="synthetic")
            writer.write("train", record | place)
    return time.perf_counter() - begin


def records(count: int) -> None:
    """Time and memory of listing, shuffling and resuming a set of so many records.

    They are written by another process: this one's memory is that of reading.
    """
    memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    c = config.load("mini_stage1").unlock()
    c.image_size, c.object_size, c.model.dinov2.image_size = 48, 28, 28
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "records"
        # Two jobs, so that they leave this process; the second is small.
        jobs = [(folder, count), (Path(name) / "few", 2 * GROUP)]
        seconds = next(in_processes(write_records, jobs, 2))
        size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
        print(f"{count} records, {size:.0f} MiB, written in {seconds:.0f} s\n")
        print("| | seconds | peak memory, MiB |\n|---|---:|---:|")
        rows = lambda what, since: print(
            f"| {what} | {time.perf_counter() - since:.2f} | {memory():.0f} |", flush=True
        )
        begin = time.perf_counter()
        rows("before", begin)

        def stream(path: Path):
            c.data.sources = (dict(kind="views", records=str(path), weight=1.0),)
            return make_stream(config.Config.of(c))

        begin = time.perf_counter()
        few = stream(Path(name) / "few")
        for k in range(READ):
            few[k]
        rows(f"{2 * GROUP} records: listed, {READ} samples", begin)
        begin = time.perf_counter()
        many = stream(folder)
        rows(f"{count} records: listed", begin)
        first = {}
        for where, start in (("the first", 0), ("resumed 7 epochs later,", 7 * count + 1234)):
            begin = time.perf_counter()
            first[start] = [many[start + k]["object"] for k in range(READ)]
            rows(f"{where} {READ} samples", begin)
        begin = time.perf_counter()
        again = stream(folder)
        same = all(
            np.array_equal(again[start + k]["object"], sample)
            for start, samples in first.items()
            for k, sample in enumerate(samples)
        )
        rows("listed and read anew", begin)
        print(f"\nthe same samples in the second reading: {same}")
