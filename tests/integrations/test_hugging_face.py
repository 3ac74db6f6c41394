"""A bank as a dataset, and the bank of that dataset."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets", reason="needs datasets: pip install 'nextvec[integrations]'")

from datasets import Dataset, disable_progress_bars, load_from_disk

import nextvec as nv
from nextvec.errors import DataError
from nextvec.integrations.hugging_face import from_dataset, to_dataset

pytestmark = pytest.mark.integration
disable_progress_bars()


def test_a_dataset_has_the_rows_and_texts_of_the_bank(text_bank: nv.Bank, tmp_path: Path) -> None:
    dataset = to_dataset(text_bank, tmp_path / "stories.arrow")
    assert len(dataset) == len(text_bank)
    np.testing.assert_array_equal(dataset.with_format("numpy")["vector"][:], text_bank.rows)
    assert list(dataset["text"]) == [text_bank.text(row) for row in range(len(text_bank))]
    assert dataset.cache_files == [{"filename": str(tmp_path / "stories.arrow")}]  # mapped, not copied


def test_the_bank_of_the_dataset_is_the_bank(text_bank: nv.Bank, tmp_path: Path) -> None:
    dataset = to_dataset(text_bank, tmp_path / "stories.arrow")
    dataset.save_to_disk(tmp_path / "saved")
    for number, each in enumerate((dataset, load_from_disk(tmp_path / "saved"))):
        again = from_dataset(each, tmp_path / f"{number}.bank")
        assert again.fingerprint == text_bank.fingerprint
        assert again.manifest.reads_text
        assert [again.text(row) for row in range(len(again))] == [text_bank.text(row) for row in range(len(text_bank))]


def test_a_part_of_a_dataset_is_a_bank_of_its_rows(text_bank: nv.Bank, tmp_path: Path) -> None:
    dataset = to_dataset(text_bank, tmp_path / "stories.arrow")
    owls = dataset.filter(lambda document: document == "owl", input_columns="document", keep_in_memory=True)
    bank = from_dataset(owls, tmp_path / "owls.bank")
    np.testing.assert_array_equal(bank.rows, text_bank.document(text_bank.ids.index("owl")))
    assert bank.manifest.encoder_fingerprint == text_bank.manifest.encoder_fingerprint


def test_ingest_takes_a_dataset_of_texts(tmp_path: Path) -> None:
    texts = Dataset.from_dict({"id": ["a", "b"], "text": ["The fox walked home.", "The hen slept."]})
    with pytest.raises(DataError, match="was not made by to_dataset"):
        from_dataset(texts, tmp_path / "texts.bank")
    assert nv.ingest(texts, tmp_path / "texts.bank").ids == ["a", "b"]


def test_a_file_that_exists_is_not_written_over(text_bank: nv.Bank, tmp_path: Path) -> None:
    (tmp_path / "stories.arrow").touch()
    with pytest.raises(DataError, match="exists; choose another name"):
        to_dataset(text_bank, tmp_path / "stories.arrow")
