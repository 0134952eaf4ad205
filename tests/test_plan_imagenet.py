"""The plan of a full training: its arithmetic against counting one by one, and its record."""

import pytest

from dqt_book.records import imagenet_plan as plan_imagenet
from dqt_book.records.imagenet_plan import Assumed, Measured, plan
from dqt_core import results

KNOWN = Measured(decoded_per_worker=100.0, step_ratio=5.0, parameters=1000)
ASSUMED = Assumed(
    gpu_images_per_second=50.0,
    scaling=0.8,
    price=3.0,
    workers=2,
    images=1003,
    epochs=3,
    batch=10,
    bytes_per_image=7.0,
)


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_hours_bytes_and_cost_are_those_of_counting_every_step(gpus):
    seconds = read = sent = 0.0
    for _ in range(ASSUMED.epochs):
        left = ASSUMED.images
        while left >= 10 * gpus:  # each GPU takes 10 images; the rest of an epoch is left out
            left -= 10 * gpus
            rate = 50.0 / 5.0 * (0.8 if gpus > 1 else 1)  # of each GPU
            seconds += 10 / rate
            read += 7 * 10 * gpus
            # a ring: in each of two rounds every GPU passes on all parts of the gradient but one
            sent += sum(1000 * 4 / gpus for _ in range(2 * (gpus - 1)))
    found = plan(gpus, KNOWN, ASSUMED)
    assert found.limited_by == "GPUs"
    assert found.hours == pytest.approx(seconds / 3600)
    assert found.cost == pytest.approx(seconds / 3600 * gpus * 3)
    assert found.bytes_read == pytest.approx(read)
    assert found.bytes_sent == pytest.approx(sent)


def test_the_slower_of_computing_and_decoding_sets_the_rate():
    slow = Measured(decoded_per_worker=2.0, step_ratio=5.0, parameters=1000)
    found = plan(4, slow, ASSUMED)
    assert found.limited_by == "decoding"
    assert found.images_per_second == 4 * 2 * 2.0
    assert plan(4, KNOWN, ASSUMED).images_per_second == 4 * 0.8 * 50 / 5


def test_the_record_gives_medians_of_what_was_measured():
    record = results.read(plan_imagenet.RECORD)
    assert len(record["provenance"]["commit"]) == 40, "recorded from files that no commit holds"
    known = plan_imagenet.measured(record, "2 3 4 6 8")
    row = next(r for r in record["rows"] if r["images"] == "photographs" and "cpu_seconds_per_image" in r)
    assert row["workers"] == 0
    assert 0.2 < known.decoded_per_worker * min(row["cpu_seconds_per_image"]) < 5
    assert known.step_ratio > plan_imagenet.measured(record, "4 8").step_ratio > 1, "more widths cost more"
    ways = {(r["images"], r["stored"], r["workers"]) for r in record["rows"]}
    assert {("given", kind, workers) for kind in ("folders", "shards") for workers in (1, 2)} <= ways


def test_the_command_prints_what_is_assumed(capsys):
    plan_imagenet.main(["--price", "7", "--gpu-images-per-second", "500", "--widths", "4 8"])
    out = capsys.readouterr().out
    assert "assumed, not measured: Assumed(gpu_images_per_second=500.0" in out
    assert "price=7.0" in out
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["1", "8", "64"]
