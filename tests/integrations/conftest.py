"""A small bank of text, and its engine with the weights of the package."""

from pathlib import Path

import pytest

import nextvec as nv
from nextvec.inference import Engine
from tests.made_once import made_once

ANIMALS = ("fox", "hen", "owl", "cat", "dog", "bee")


def story(animal: str, days: int) -> str:
    return " ".join(f"On day {day} the {animal} walked {day + len(animal)} miles along the river." for day in range(days))


@pytest.fixture(scope="session")
def text_bank(tmp_path_factory: pytest.TempPathFactory) -> nv.Bank:
    def make(folder: Path) -> None:
        documents = [nv.Document(animal, f"The {animal}", story(animal, 24)) for animal in ANIMALS]
        nv.ingest(documents, folder / "stories.bank", chunking=nv.Chunking(size=150))

    return nv.Bank.open(made_once(tmp_path_factory, "stories", make) / "stories.bank")


@pytest.fixture(scope="session")
def engine(text_bank: nv.Bank) -> Engine:
    return Engine.open(text_bank)


@pytest.fixture
def read() -> str:
    """What a reader has read: the begin of a story that the bank holds."""
    return story("owl", 9)
