"""Records and data sets with random damage: they are read, refused in a sentence, or left out."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imprint_jax.data.preparation.check import check
from imprint_jax.data.preparation.prepare import prepare
from imprint_jax.data.records import RecordSource
from imprint_jax.errors import InputError
from tests.data.preparation.test_sources import disc, pixels, save, white
from tests.data.test_records import record, write

pytestmark = pytest.mark.slow

often = settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Where in a file, what is done there, and how far; positions as shares of the file's length.
damages = st.tuples(
    st.floats(0, 1), st.sampled_from(["cut", "zeros", "flip", "insert"]), st.integers(1, 3000)
)


def damaged(data: bytes, damage: tuple[float, str, int]) -> bytes:
    place, how, length = damage
    start = int(place * len(data))
    end = min(start + length, len(data))
    match how:
        case "cut":
            return data[:start]
        case "zeros":
            return data[:start] + bytes(end - start) + data[end:]
        case "flip":
            return data[:start] + bytes(byte ^ 0xFF for byte in data[start:end]) + data[end:]
        case "insert":
            return data[:start] + bytes(length) + data[start:]
    raise AssertionError(how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records") / "d"
    write(folder, {"train": [record(k, group="ab"[k % 2], frame=k) for k in range(4)]})
    return folder


@often
@given(name=st.sampled_from(["*.array_record-*", "*.index.npz"]), damage=damages)
def test_damaged_records_are_read_or_refused(whole, tmp_path, name, damage):
    path = next(whole.glob(name))
    before = path.read_bytes()
    path.write_bytes(damaged(before, damage))
    try:
        source = RecordSource(whole, "train")
        for number in range(len(source)):
            source[number]
    except InputError as error:
        assert path.name in str(error)
    finally:
        path.write_bytes(before)


@often
@given(pick=st.integers(0, 20), damage=damages)
def test_check_reports_any_damage(whole, tmp_path, pick, damage):
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    files = sorted(copy.iterdir())
    path = files[pick % len(files)]
    before = path.read_bytes()
    path.write_bytes(damaged(before, damage))
    assert bool(check(copy).problems) == (path.read_bytes() != before)


words = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(words, lambda x: st.lists(x, max_size=4) | st.dictionaries(words, x))
numbers = st.integers(-(2**70), 2**70) | st.floats()
segmentations = (
    st.lists(st.lists(numbers, max_size=10), max_size=3)
    | st.fixed_dictionaries(
        {"size": st.lists(numbers, max_size=3), "counts": st.lists(numbers) | st.text()}
    )
    | values
)
items = st.fixed_dictionaries(
    {
        "id": numbers | words,
        "image_id": st.sampled_from([1, 2, "1"]),
        "segmentation": segmentations,
    },
    optional={"iscrowd": words},
)


@often
@given(annotations=st.lists(items, max_size=4))
def test_any_description_of_objects_is_read_or_refused(tmp_path, annotations):
    src, dst = tmp_path / "src", tmp_path / "records"
    if not src.exists():
        save(src / "1.jpg", pixels())
    images = [{"id": 1, "file_name": "1.jpg"}]
    content = {"images": images, "annotations": annotations, "categories": []}
    (src / "labels.json").write_text(json.dumps(content, default=str, skipkeys=True))
    shutil.rmtree(dst, ignore_errors=True)
    try:
        prepare("photos", src, dst)
    except InputError:
        assert not dst.exists()


@often
@given(picture=damages, mask=damages, suffix=st.sampled_from(["jpg", "png", "webp", "gif", "bmp"]))
def test_damaged_pictures_are_read_or_left_out(tmp_path, picture, mask, suffix):
    src, dst = tmp_path / "src", tmp_path / "records"
    for path, array, damage in (
        (src / f"1.{suffix}", pixels(), picture),
        (src / "masks" / "1.png", white(disc()), mask),
    ):
        save(path, array)
        path.write_bytes(damaged(path.read_bytes(), damage))
    shutil.rmtree(dst, ignore_errors=True)
    try:
        prepare("photos", src, dst)
    except InputError as error:
        assert "no usable picture" in str(error)
    shutil.rmtree(src)
