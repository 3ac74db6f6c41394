"""Every row gets the lane it lies nearest to, with a confidence that means something; folders keep that and nothing else."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.cli.main import main
from nextvec.encoders import Encoded, Kind, load_encoder
from nextvec.errors import DataError, SettingsError
from nextvec.lanes import (
    DEFAULT,
    Anchors,
    Labels,
    Lanes,
    Table,
    Term,
    agreement,
    by_chance,
    by_clusters,
    by_descriptions,
    by_labels,
    lane_census,
)
from nextvec.lanes.assign import fitted_temperature
from nextvec.lanes.census import calibration_error
from tests.conftest import walk_bank
from tests.test_cli import printed, write_bank

TABLE = Table(tuple(Term(name, f"About {name}.") for name in "abcd"))


class Axes:
    """An encoder whose sentences are the axes of the space, in the order in which they come."""

    name, fingerprint, dim, max_tokens = "axes", "axes", 16, 100

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        return Encoded(np.eye(16, dtype=np.float32)[: len(texts)], np.ones(len(texts), np.int32))


def bank_of(rows: np.ndarray, lengths: Sequence[int]) -> Bank:
    return Bank.from_numpy(rows.astype(np.float32), list(lengths), encoder="axes")


def noisy(documents: int = 20, length: int = 30, noise: float = 0.3, seed: int = 0) -> tuple[Bank, Labels]:
    """Document m is about axis m % 4, more or less."""
    rng = np.random.default_rng(seed)
    lane = np.arange(documents) % 4
    rows = np.eye(16)[np.repeat(lane, length)] + noise * rng.standard_normal((documents * length, 16))
    return bank_of(rows, [length] * documents), Labels(TABLE.names, lane.astype(np.int64))


# Assignment.


def test_rows_that_are_anchors_get_them() -> None:
    bank = bank_of(np.eye(16)[[3, 1, 0, 2, 2]], [2, 3])
    lanes = by_descriptions(bank, TABLE, Axes())
    assert lanes.lane.tolist() == [3, 1, 0, 2, 2]
    assert (lanes.confidence > 0.4).all() and lanes.names == ("a", "b", "c", "d")
    assert (lanes.manifest.kind, lanes.manifest.table, lanes.manifest.calibrated) == ("descriptions", TABLE.digest, False)


def test_a_description_that_the_encoder_would_truncate_is_refused() -> None:
    class Short(Axes):
        max_tokens = 3

        def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
            return Encoded(super().encode(texts).rows, np.array([len(text.split()) for text in texts], np.int32))

    table = Table((Term("a", "About a."), Term("b", "About b, and more.")))
    with pytest.raises(DataError, match="sentence 1 has 4 tokens and axes reads 3"):
        by_descriptions(walk_axes(), table, Short())


def test_an_anchor_is_the_mean_of_its_sentences() -> None:
    table = Table((Term("a", "About a.", ("More of a.",)), Term("b", "About b.")))
    vectors = by_descriptions(walk_axes(), table, Axes()).anchors.vectors
    assert np.allclose(vectors[:, :4], [[0.5**0.5, 0.5**0.5, 0, 0], [0, 0, 1, 0]])


def walk_axes() -> Bank:
    return bank_of(walk_bank().rows, walk_bank().lengths.tolist())


def test_random_rows_share_the_lanes_evenly() -> None:
    rng = np.random.default_rng(0)
    bank = bank_of(rng.standard_normal((20_000, 16)), [2_000] * 10)
    shares = np.bincount(by_descriptions(bank, TABLE, Axes()).lane) / len(bank)
    assert abs(shares - 0.25).max() < 0.015  # five standard deviations


@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 99))
def test_assignment_is_the_nearest_anchor_and_confidence_the_softmax(count: int, lanes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, vectors = rng.standard_normal((count, 5)).astype(np.float32), rng.standard_normal((lanes, 5)).astype(np.float32)
    prices = rng.uniform(0, 1, lanes).astype(np.float32)
    anchors = Anchors(tuple(map(str, range(lanes))), vectors, prices, 0.7)
    lane, confidence = anchors.assign(rows)
    logits = (rows.astype(np.float64) @ vectors.T.astype(np.float64) - prices) / 0.7
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(confidence, chances[np.arange(count), lane], atol=2e-3)
    assert np.allclose(chances.max(1), chances[np.arange(count), lane], atol=1e-5)
    assert (anchors.confidence(rows, lane) == confidence).all()


def test_a_lane_far_below_the_best_has_no_confidence_and_no_warning() -> None:
    anchors = Anchors(("a", "b"), np.eye(2, dtype=np.float32), np.zeros(2, np.float32), 1e-4)
    assert anchors.confidence(np.array([[1, 0]], np.float32), np.array([1], np.uint8)).tolist() == [0]


def test_a_bank_of_unknown_or_other_encoder_is_refused() -> None:
    with pytest.raises(DataError, match="does not say which encoder"):
        by_descriptions(walk_bank(), TABLE)
    foreign = replace(walk_axes(), manifest=replace(walk_axes().manifest, encoder_fingerprint="other"))
    with pytest.raises(DataError, match="made with other; installed is axes"):
        by_descriptions(foreign, TABLE, Axes())


def test_labelled_documents_keep_their_label_and_others_follow() -> None:
    bank, whole = noisy()
    partly = Labels(whole.names, np.where(np.arange(20) < 12, whole.lane, -1))
    lanes = by_labels(bank, partly)
    given = partly.of_rows(bank)
    assert (lanes.lane[given >= 0] == given[given >= 0]).all() and (lanes.confidence[given >= 0] == 1).all()
    assert (lanes.lane == whole.of_rows(bank)).mean() > 0.95
    assert (lanes.confidence[given < 0] < 1).any()
    assert lanes.manifest.made == {"labelled_documents": 12}


def test_a_lane_that_no_document_has_gets_no_row() -> None:
    bank, whole = noisy()
    labels = Labels(("a", "b", "c", "d", "e"), np.where(np.arange(20) < 12, whole.lane, -1))
    lanes = by_labels(bank, labels)
    assert not (lanes.lane == 4).any()
    # A row that points away from every known lane must not fall into the unknown one either.
    away = -lanes.anchors.vectors[:4].sum(0, keepdims=True)
    assert lanes.anchors.assign((away / np.linalg.norm(away)).astype(np.float32))[0][0] != 4


@given(st.integers(2, 12), st.integers(0, 99))
def test_chance_deals_whole_documents_evenly_and_the_same_way_again(count: int, seed: int) -> None:
    bank = walk_bank()
    lanes, again = by_chance(bank, count, seed), by_chance(bank, count, seed)
    assert (lanes.lane == again.lane).all()
    of_document = lanes.lane[bank.offsets[:-1]]
    assert (lanes.lane == np.repeat(of_document, bank.lengths)).all()
    rows = np.bincount(lanes.lane, minlength=count)
    assert rows.max() - rows.min() <= bank.lengths.max()


def test_chance_needs_a_document_for_each_lane() -> None:
    with pytest.raises(DataError, match="12 documents, too few"):
        by_chance(walk_bank(), 13)
    with pytest.raises(SettingsError, match="choose from 2"):
        by_chance(walk_bank(), 1)


def test_anchors_of_clusters_give_the_rows_their_lanes() -> None:
    bank = walk_bank(documents=40)
    for balanced in (False, True):
        lanes = by_clusters(bank, 6, 0, balanced)
        # Equal sizes move a few rows from where their score less price is highest.
        assert (lanes.anchors.assign(bank.rows)[0] == lanes.lane).mean() > 0.95
        assert lanes.anchors.prices.any() == balanced


# Confidence.


def test_a_fitted_temperature_is_the_one_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, (40_000, 6)).astype(np.float32)
    chances = np.exp(scores / 0.25)
    lane = (np.cumsum(chances, 1) / chances.sum(1, keepdims=True) < rng.random((len(scores), 1))).sum(1)
    assert fitted_temperature(scores, lane) == pytest.approx(0.25, rel=0.03)


def test_temperatures_have_ends() -> None:
    scores = np.array([[1.0, 0.0]], np.float32)
    assert fitted_temperature(scores, np.array([0])) < 0.05, "from there on more is no surer in float64"
    assert fitted_temperature(scores, np.array([1])) == pytest.approx(1e4)


def test_calibrated_confidence_is_the_accuracy_of_other_documents() -> None:
    bank, labels = noisy(documents=200, noise=0.45)
    half = Labels(labels.names, np.where(np.arange(200) < 100, labels.lane, -1))
    lanes = by_descriptions(bank, TABLE, Axes(), half)
    assert lanes.manifest.calibrated
    other = np.repeat(np.arange(200) >= 100, 30)
    right = (lanes.lane == labels.of_rows(bank))[other]
    confidence = lanes.confidence[other].astype(np.float64)
    assert 0.5 < right.mean() < 0.9
    assert calibration_error(confidence, right) < 0.05
    plain = by_descriptions(bank, TABLE, Axes())
    assert (plain.lane == lanes.lane).all(), "a temperature changes no lane"


def test_the_calibration_error_by_hand() -> None:
    assert calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False])) == pytest.approx(0.25)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0


def test_labels_of_other_lanes_are_refused() -> None:
    bank, labels = noisy()
    with pytest.raises(DataError, match="labels are of other lanes: x"):
        by_descriptions(bank, TABLE, Axes(), Labels(("x",), labels.lane * 0))


# The census.


def test_the_census_by_hand() -> None:
    bank = bank_of(np.eye(16)[[0, 0, 0, 0, 1, 1, 2, 2]], [4, 3, 1])
    counted = lane_census(by_descriptions(bank, TABLE, Axes()), bank, needed=2)
    assert [(lane.rows, lane.documents) for lane in counted.lanes] == [(4, 1), (2, 1), (2, 1), (0, 0)]
    assert [lane.share for lane in counted.lanes] == [0.5, 0.25, 0.25, 0]
    assert (counted.entropy, counted.evenness) == (1.5, 0.75)
    assert counted.starved == ("d",)
    assert lane_census(by_descriptions(bank, TABLE, Axes()), bank, needed=3).starved == ("b", "c", "d")
    assert counted.lanes[0].examples == counted.lanes[0].examples[:1] and counted.lanes[0].examples[0] < 4
    assert {bank.document_of(np.array([row]))[0] for row in counted.lanes[2].examples} == {1, 2}


def test_fewer_than_one_percent_are_starved() -> None:
    bank = bank_of(np.eye(16)[np.repeat([0, 1, 2, 3], [500, 480, 11, 9])], [1000])
    assert lane_census(by_descriptions(bank, TABLE, Axes()), bank, needed=0).starved == ("d",)


def test_documents_go_where_most_of_their_confidence_lies() -> None:
    bank = bank_of(np.ones((5, 16)), [3, 2])
    made = by_chance(bank, 2)
    confidence = np.array([0.3, 0.3, 0.9, 0.0, 0.0], np.float16)
    lanes = replace(made, lane=np.array([0, 0, 1, 1, 1], np.uint8), confidence=confidence)
    lane, share = lanes.of_documents(bank)
    assert lane.tolist() == [1, 0], "nothing speaks for any lane in the second document"
    assert share.tolist() == pytest.approx([0.6, 0], abs=1e-3)


def test_agreement_by_hand() -> None:
    bank = bank_of(np.eye(16)[[0, 0, 0, 1, 1, 0, 2, 2]], [3, 3, 2])
    labels = Labels(TABLE.names, np.array([0, 1, -1]))
    found = agreement(by_descriptions(bank, TABLE, Axes()), bank, labels)
    assert (found.chunks.value, found.chunks.n) == (5 / 6, 6)
    assert found.chunks.low < 5 / 6 < found.chunks.high
    assert found.balanced.value == pytest.approx((1 + 2 / 3) / 2)
    assert (found.documents.value, found.documents.n) == (1, 2)
    assert found.largest == 0.5
    assert found.confusion == ((3, 0, 0, 0), (1, 2, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0))
    assert found.named is None and found.calibration_error is not None
    json.dumps(found.to_json())


def test_clusters_are_named_by_other_documents_and_chance_knows_nothing() -> None:
    bank, labels = noisy(documents=80)
    found = agreement(by_clusters(bank, 4), bank, labels)
    assert found.documents.value == 1 and found.chunks.value > 0.95
    assert found.calibration_error is None
    assert found.named is not None and {name for pair in found.named for name in pair} == set(TABLE.names)
    control = agreement(by_chance(bank, 4), bank, labels)
    assert control.balanced.low < 0.25 < control.balanced.high, "chance, and not the purity of small groups"
    # With a lane for every document, each would be named by itself if it were asked.
    alone = agreement(by_chance(bank, 80), bank, labels)
    assert alone.documents.value < 0.5


def test_nothing_to_compare_with_is_refused() -> None:
    bank, labels = noisy()
    with pytest.raises(DataError, match="no document of the bank has a label"):
        agreement(by_chance(bank, 4), bank, Labels(labels.names, labels.lane * 0 - 1))
    with pytest.raises(DataError, match="the labels name x"):
        agreement(by_labels(bank, labels), bank, Labels(("x",), labels.lane * 0))


# Folders.

Damage = Callable[[Path], object]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_bank(tmp_path / "bank", walk_bank())
    by_clusters(Bank.open(tmp_path / "bank"), 5, balanced=True).save(tmp_path / "lanes")
    return tmp_path


def test_lanes_come_back(place: Path) -> None:
    bank = Bank.open(place / "bank")
    made, opened = by_clusters(bank, 5, balanced=True), Lanes.open(place / "lanes", bank)
    assert isinstance(opened.lane, np.memmap) and isinstance(opened.confidence, np.memmap)
    assert (opened.lane == made.lane).all() and (opened.confidence == made.confidence).all()
    assert (opened.anchors.vectors == made.anchors.vectors).all() and (opened.anchors.prices == made.anchors.prices).all()
    assert opened.names == made.names and opened.anchors.temperature == made.anchors.temperature
    assert replace(opened.manifest, sizes={}, sha256={}) == made.manifest
    assert sorted(path.name for path in place.iterdir()) == ["bank", "lanes"], "nothing half-written stays"
    with pytest.raises(DataError, match="already exists"):
        opened.save(place / "lanes")


def test_another_bank_is_refused(place: Path) -> None:
    with pytest.raises(DataError, match="not of this one"):
        Lanes.open(place / "lanes", walk_bank(seed=1))
    write_bank(place / "other", walk_bank(), "another encoder")
    with pytest.raises(DataError, match="another encoder"):
        Lanes.open(place / "lanes", Bank.open(place / "other"))


@pytest.mark.parametrize("name", ["lane.bin", "confidence.bin", "anchors.safetensors", "lanes.json"])
def test_damaged_files_are_refused(place: Path, name: str) -> None:
    bank, path = Bank.open(place / "bank"), place / "lanes" / name
    content = path.read_bytes()
    if name != "lanes.json":
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=f"{name} is damaged: not what was written"):
            Lanes.open(place / "lanes", bank)
    for size in (len(content) - 2, 0):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=f"{name} is damaged"):
            Lanes.open(place / "lanes", bank)
    path.unlink()
    with pytest.raises(DataError, match=name):
        Lanes.open(place / "lanes", bank)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format 2"),
        ({"kind": "magic"}, "damaged"),
        ({"names": 3}, "damaged"),
        ({"names": []}, "damaged"),
        ({"names": ["a"]}, "not 1 vectors"),
        ({"rows": 3}, "damaged"),
        ({"temperature": 0}, "damaged"),
        ({"temperature": None}, "damaged"),
        ({"sizes": {}}, "files are missing"),
        ({"colour": 1}, "damaged"),
    ],
)
def test_a_foreign_manifest_is_refused(place: Path, change: dict[str, Any], says: str) -> None:
    path = place / "lanes" / "lanes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=says):
        Lanes.open(place / "lanes", Bank.open(place / "bank"))


# The verb.


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with text in it, of the real encoder: three documents that nobody would confuse."""
    folder = tmp_path_factory.mktemp("lanes")
    encoder = load_encoder()
    documents = {
        "court": ["The court holds that the statute violates the constitution.", "Counsel, what is your best case?"],
        "code": ["The function returns a list and raises an exception.", "Compile the program before you run the tests."],
        "sick": ["The patient was given a drug against the fever.", "The surgeon examined the wound."],
    }
    with BankWriter(
        folder / "bank", encoder=encoder.name, encoder_fingerprint=encoder.fingerprint, dim=encoder.dim, text=True
    ) as writer:
        for name, chunks in documents.items():
            ends = np.cumsum([len(chunk) for chunk in chunks]).tolist()
            spans = list(zip([0, *ends], ends, strict=False))
            writer.append(VectorDocument(name, f"The {name}", encoder.encode(chunks).rows, "".join(chunks), spans))
        writer.finish()
    (folder / "labels.csv").write_text("document,lane\ncourt,Law\ncode,Software\nsick,Medicine\n")
    return folder


def test_the_verb_with_descriptions(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank, out = texts / "bank", tmp_path / "lanes"
    found = printed(capsys, "lanes", str(bank), "--against", str(texts / "labels.csv"), "--needed", "1", "--out", str(out))
    held = {lane["name"]: lane["documents"] for lane in found["lanes"] if lane["documents"]}
    assert held == {"Law": 1, "Software": 1, "Medicine": 1}
    assert found["agreement"]["documents"]["value"] == 1 and found["calibrated"]
    assert found["table"] == DEFAULT.digest and len(found["starved"]) == 16 - sum(lane["rows"] > 0 for lane in found["lanes"])
    law = next(lane for lane in found["lanes"] if lane["name"] == "Law")
    assert law["examples"][0]["title"] == "The court" and "court" in law["examples"][0]["text"]
    opened = Lanes.open(out, Bank.open(bank))
    assert np.bincount(opened.lane, minlength=16).tolist() == [lane["rows"] for lane in found["lanes"]]
    assert main(["lanes", str(bank), "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_verb_on_a_terminal(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lanes", str(texts / "bank"), "--against", str(texts / "labels.csv")]) == 0
    out = capsys.readouterr().out
    for said in (
        "Literature",
        "starved",
        "entropy",
        "unsure",
        "calibrated to the labels",
        "chunks by lane and label",
        "The sick",
    ):
        assert said in out
    assert max(map(len, out.splitlines())) <= 150


def test_the_verb_with_a_table_of_ones_own(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lanes = {"Justice": "Courts and judges.", "Everything else": "Programs, doctors, patients."}
    table = "".join(f'[[lane]]\nname = "{name}"\ndescription = "{says}"\n' for name, says in lanes.items())
    (tmp_path / "t.toml").write_text(table)
    found = printed(capsys, "lanes", str(texts / "bank"), "--table", str(tmp_path / "t.toml"))
    assert [(lane["name"], lane["documents"]) for lane in found["lanes"]] == [("Justice", 1), ("Everything else", 2)]
    assert not found["calibrated"] and found["agreement"] is None


def test_the_verb_with_clusters_chance_and_labels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank, labels = str(place / "bank"), place / "l.csv"
    found = printed(capsys, "lanes", bank, "--clusters", "4", "--balanced", "--seed", "3")
    sizes = [lane["rows"] for lane in found["lanes"]]
    assert max(sizes) - min(sizes) <= 1 and found["evenness"] > 0.999
    assert found["made"]["seed"] == 3 and found["made"]["balanced"]
    assert [lane["examples"][0]["text"] for lane in found["lanes"]] == [None] * 4
    assert printed(capsys, "lanes", bank, "--random", "4")["kind"] == "chance"
    labels.write_text("document,lane\n" + "".join(f"{m:06d},{'xy'[m % 2]}\n" for m in range(6)))
    found = printed(capsys, "lanes", bank, "--labels", str(labels), "--against", str(labels))
    assert found["agreement"]["chunks"]["value"] == 1
    assert printed(capsys, "lanes", bank, "--clusters", "3", "--against", str(labels))["agreement"]["named"]
    for flags in (["--clusters", "4"], ["--random", "4"], ["--labels", str(labels)]):
        assert main(["lanes", bank, *flags, "--against", str(labels)]) == 0
        assert "entropy" in capsys.readouterr().out


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no bank": (lambda p: [str(p / "none")], "is not a bank"),
    "descriptions for vectors of no known encoder": (lambda p: [str(p / "bank")], "encoder 't'"),
    "two ways": (lambda p: [str(p / "bank"), "--clusters", "2", "--random", "2"], "not allowed with"),
    "balance of nothing": (lambda p: [str(p / "bank"), "--balanced", "--random", "2"], "it needs --clusters"),
    "a seed of nothing": (lambda p: [str(p / "bank"), "--seed", "1"], "--seed is of --clusters"),
    "one cluster": (lambda p: [str(p / "bank"), "--clusters", "1"], "choose from 2 to 256"),
    "more lanes than documents": (lambda p: [str(p / "bank"), "--random", "99"], "documents, too few for"),
    "no table": (lambda p: [str(p / "bank"), "--table", str(p / "none.toml")], "No such file"),
    "no labels": (lambda p: [str(p / "bank"), "--labels", str(p / "none.csv")], "No such file"),
    "into the bank": (lambda p: [str(p / "bank"), "--clusters", "2", "--out", str(p / "bank" / "x")], "lies in the bank"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_one_line_and_leave_nothing(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, says = BAD[name]
    before = sorted(path for path in place.rglob("*") if path.name != "verified.json")
    assert main(["lanes", *make(place)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err
    assert sorted(path for path in place.rglob("*") if path.name != "verified.json") == before
