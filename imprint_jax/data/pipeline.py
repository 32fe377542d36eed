"""`make_dataset(config)`: the endless stream of samples, and each host's batches of it.

    records of a source -> shuffle -> repeat -> sample  (per source, each epoch in a new order)
                        -> mix by weight -> number      (one global stream)
                        -> every n-th sample -> batch   (per host)

Sample i of the stream depends on the configuration and on i only, so the position in the data is
one integer, the number of samples consumed by all hosts together: `start` resumes there, on any
number of hosts and workers.
"""

import signal
from dataclasses import replace

import cv2
import grain
import numpy as np
from absl import flags

from imprint_jax.config.fields import Config, SourceConfig
from imprint_jax.data.records import RecordSource
from imprint_jax.data.transforms import InPlace, InScene, Pasted, ViewPair
from imprint_jax.errors import InputError
from imprint_jax.runtime import host_memory

# So many samples are endless: Grain's own endless streams are longer
# than Python lets a length be, which a batch of one sample runs into.
STREAM_SAMPLES = 2**48

# Threads that make a batch each, in every process; as many batches wait to be taken. Pillow's work,
# most of it, runs in parallel.
THREADS = 2


def make_stream(config: Config) -> grain.MapDataset:
    """The endless stream of single samples, random access: see batch.py for their keys.

    Args:
        config: Read are `seed`, `image_size`, `object_size`, `context` and `data`.

    Raises:
        InputError: No source, none with a weight, or a data set is not usable.
    """
    if not any(source.weight for source in config.data.sources):
        raise InputError(
            "config.data.sources is empty, or all weights in it are 0; name a prepared data set."
        )
    streams, weights = [], []
    for number, source in enumerate(config.data.sources):
        if not source.weight:
            continue
        transform = make_transform(config, source)
        seed = np.random.SeedSequence([config.seed, number]).generate_state(1)[0]
        streams.append(
            grain.MapDataset.range(len(transform))
            .seed(int(seed))
            .shuffle()
            .repeat(-(-STREAM_SAMPLES // len(transform)))
            .random_map(transform)
        )
        weights.append(source.weight)
    return grain.MapDataset.mix(streams, weights).map_with_index(_number)


def check_sources(config: Config) -> None:
    """Opens every data set, so that mistakes are found before a model is built.

    Raises:
        InputError: As `make_stream`.
    """
    make_stream(config)
    if config.validation.every or config.preview.every:
        make_stream(held_out(config))


def held_out(config: Config) -> Config:
    """The configuration with the split "validation" for its data."""
    return replace(config, data=replace(config.data, split="validation"))


def make_dataset(
    config: Config, *, start: int = 0, process_index: int = 0, process_count: int = 1
) -> grain.IterDataset:
    """This host's share of the batches, as an endless `grain.IterDataset`.

    Batch k of all hosts together is the samples from `start + k * config.batch_size` on. Iterators
    over it have a `close()`, which ends threads and workers.

    Args:
        config: As in `make_stream`; also `batch_size`, over all hosts, and `data.num_workers`, the
            number of processes that make batches (0: this one), which changes no sample.
        start: Samples already consumed, by all hosts.
        process_index: Which host this is.
        process_count: How many hosts there are.

    Returns:
        Dicts of arrays with first axis `batch_size / process_count`; see batch.py.

    Raises:
        InputError: As `make_stream`; or the batch does not divide by the hosts.
    """
    if config.batch_size % process_count:
        raise InputError(
            f"config.batch_size = {config.batch_size} does not divide by {process_count} processes."
        )
    cv2.setNumThreads(0)  # batches are made by several threads, which share the cores already
    batches = make_stream(config)[start + process_index :: process_count].batch(
        config.batch_size // process_count
    )
    dataset = batches.to_iter_dataset(
        grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS)
    )
    if config.data.num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its flags when it starts workers
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=config.data.num_workers)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_begin_worker)
    return dataset


def _begin_worker(worker: int, workers: int) -> None:
    # Schedulers signal all processes of a job; the training's own says when these end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches them too
    cv2.setNumThreads(0)
    host_memory.keep_freed()


def make_transform(config: Config, source: SourceConfig) -> ViewPair | Pasted | InPlace | InScene:
    """What makes the samples of a source.

    Raises:
        InputError: The data set is not usable.
    """
    records = RecordSource(source.records, config.data.split)
    match source.kind:
        case "views":
            return ViewPair(config, records)
        case "pasted":
            return Pasted(config, records, RecordSource(source.backgrounds, config.data.split))
        case "scenes":
            return InScene(config, records)
    return InPlace(config, records, source.kind)


def _number(index: int, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray | np.int32]:
    return sample | {"index": np.int32(index % 2**31)}
