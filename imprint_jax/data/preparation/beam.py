"""`prepare`'s chunks as the elements of an Apache Beam pipeline: one machine, or many."""

import dataclasses
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

from imprint_jax.data.preparation.chunks import Job, chunk_folder, do_chunk
from imprint_jax.errors import InputError


def run(job: Job, chunks: list, todo: list[int], options: Sequence[str]) -> Iterator[int]:
    """Does some chunks; yields their numbers when all are there.

    Args:
        job: What to do; its folders must lie where all workers see them.
        chunks: Lists of groups.
        todo: The numbers of the chunks to do.
        options: As Beam's command line takes them, "--runner=DirectRunner".
    """
    job = dataclasses.replace(job, chunks=job.chunks.absolute())
    settings = PipelineOptions(list(options))
    settings.view_as(SetupOptions).save_main_session = False
    with beam.Pipeline(options=settings) as pipeline:
        _ = (
            pipeline
            | beam.Create([(number, chunks[number]) for number in todo])
            | beam.Reshuffle()  # else one worker may get all
            | beam.Map(_do, job=job)
        )
    yield from todo


def _do(element: tuple[int, list], job: Job) -> None:
    """One chunk; Beam may ask for it twice, even at once."""
    number, groups = element
    folder = chunk_folder(job, number)
    if folder.exists():
        return
    try:
        do_chunk(job, number, groups)
    except InputError:
        if not folder.exists():  # else another worker was first
            raise
