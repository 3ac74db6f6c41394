"""A static encoder gives the sums of its table, in any batch, and refuses files that do not fit together."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from nextvec.encoders import CountsTokens, KnowsLetters, MiniLM, StaticEncoder, load_encoder, max_tokens, static
from nextvec.errors import DataError
from nextvec.ingestion import Chunking, ingest

WORDS = ["[UNK]", "the", "sea", "ship", "wind", "."]
RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((len(WORDS), 16)).astype(np.float32)
WEIGHTS = RNG.uniform(0.5, 2, len(WORDS)).astype(np.float32)
ONES = np.ones(len(WORDS))
MAPPING = np.array([5, 4, 3, 2, 1, 1])
TEXTS = ["the sea .", "ship wind ship", "the", "the ship . the sea . the wind ."]


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(2)  # of a saved tokenizer; what is read is decided by the configuration
    made.enable_padding()
    return made


def folder_of(path: Path, tensors: dict[str, np.ndarray], config: object = None) -> Path:
    path.mkdir(parents=True)
    save_file(tensors, path / "model.safetensors")
    tokenizer().save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def expected(text: str, table: np.ndarray = TABLE, weights: np.ndarray = ONES) -> np.ndarray:
    """The definition, one token at a time, in float64."""
    total = sum(float(weights[WORDS.index(word)]) * table[WORDS.index(word)].astype(np.float64) for word in text.split())
    return total / np.linalg.norm(total)


@pytest.mark.parametrize(
    ("tensors", "table", "weights"),
    [
        ({"embeddings": TABLE}, TABLE, ONES),
        ({"embedding.weight": TABLE.astype(np.float16)}, TABLE.astype(np.float16), ONES),
        ({"embeddings": TABLE, "weights": WEIGHTS}, TABLE, WEIGHTS),
        ({"embeddings": TABLE, "weights": WEIGHTS, "mapping": MAPPING}, TABLE[MAPPING], WEIGHTS),
        ({"embeddings": (TABLE * 30).astype(np.int8)}, (TABLE * 30).astype(np.int8), ONES),
    ],
)
def test_a_vector_is_the_sum_of_its_tokens(
    tmp_path: Path, tensors: dict[str, np.ndarray], table: np.ndarray, weights: np.ndarray
) -> None:
    encoder = StaticEncoder(folder_of(tmp_path / "m", tensors))
    found = encoder.encode(TEXTS)
    assert (found.rows.dtype, encoder.dim) == (np.float32, 16)
    np.testing.assert_allclose(found.rows, [expected(text, table, weights) for text in TEXTS], atol=1e-6)
    assert found.tokens is not None and found.tokens.tolist() == [3, 3, 1, 9] == encoder.count_tokens(TEXTS).tolist()


def test_the_bits_depend_on_the_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = StaticEncoder(folder_of(tmp_path / "m", {"embeddings": TABLE}))
    alone = np.concatenate([encoder.encode([text]).rows for text in TEXTS])
    monkeypatch.setattr(static, "SLICE", 3)
    assert np.array_equal(encoder.encode(TEXTS).rows, alone)
    assert encoder.encode([]).rows.shape == (0, 16)


def test_unknown_tokens_are_left_out_unless_a_text_has_no_others(tmp_path: Path) -> None:
    encoder = StaticEncoder(folder_of(tmp_path / "m", {"embeddings": TABLE}))
    rows = encoder.encode(["the quux sea", "the sea", "quux"]).rows
    assert np.array_equal(rows[0], rows[1])
    np.testing.assert_allclose(rows[2], expected("[UNK]"), atol=1e-6)
    assert encoder.unknown_share(["the quux", "sea"]).tolist() == pytest.approx([4 / 7, 0])


@pytest.mark.parametrize(
    ("tensors", "config", "limit"),
    [
        ({"embeddings": TABLE}, None, 512),
        ({"embeddings": TABLE}, {"max_length": 3}, 3),
        ({"embeddings": TABLE}, {"max_length": None}, None),
        ({"embedding.weight": TABLE}, {"max_length": 3}, None),
    ],
)
def test_tokens_are_read_up_to_the_limit(
    tmp_path: Path, tensors: dict[str, np.ndarray], config: object, limit: int | None
) -> None:
    encoder = StaticEncoder(folder_of(tmp_path / "m", tensors, config))
    assert encoder.max_tokens == limit and max_tokens(encoder) == (limit or "any")
    found = encoder.encode(["the sea . wind " * 200])
    assert found.tokens is not None and found.tokens[0] == 800
    read = ("the sea . wind " * 200).split()[:limit]
    np.testing.assert_allclose(found.rows[0], expected(" ".join(read)), atol=1e-5)


def test_the_fingerprint_covers_table_tokenizer_and_limit(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", {"embeddings": TABLE})
    other_limit = folder_of(tmp_path / "b", {"embeddings": TABLE}, {"max_length": None})
    other_table = folder_of(tmp_path / "c", {"embeddings": TABLE + 1})
    same = folder_of(tmp_path / "d", {"embeddings": TABLE})
    other_tokens = folder_of(tmp_path / "e", {"embeddings": TABLE})
    (other_tokens / "tokenizer.json").write_text(tokenizer().to_str().replace('"sea"', '"seas"'))
    found = [StaticEncoder(path).fingerprint for path in (first, other_limit, other_table, other_tokens)]
    assert len({*found, MiniLM.fingerprint}) == 5
    assert StaticEncoder(same).fingerprint == found[0]


def test_it_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder_of(tmp_path / "m" / "0_StaticEmbedding", {"embedding.weight": TABLE}).parent
    monkeypatch.chdir(tmp_path)
    encoder = load_encoder("static:m")
    assert isinstance(encoder, StaticEncoder) and isinstance(encoder, CountsTokens) and isinstance(encoder, KnowsLetters)
    assert encoder.name == f"static:{made}"
    monkeypatch.chdir("/")
    assert load_encoder(encoder.name).fingerprint == encoder.fingerprint


def test_a_bank_is_made_and_its_encoder_opened_again(tmp_path: Path) -> None:
    made = folder_of(tmp_path / "m", {"embeddings": TABLE})
    bank = ingest(["the sea . the wind . the ship ."], tmp_path / "bank", f"static:{made}", Chunking(size=10))
    assert bank.manifest.encoder_fingerprint == StaticEncoder(made).fingerprint
    again = load_encoder(bank.manifest.encoder).encode([bank.text(row) or "" for row in range(len(bank))])
    assert np.array_equal(again.rows.astype(np.float16), bank.rows) and len(bank) > 2


def test_without_a_folder_it_reads_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same layout, so that the test needs no weights."""
    for part in ("weights", "tokenizers"):
        (tmp_path / "stand_in" / part).mkdir(parents=True)
    (tmp_path / "stand_in" / "__init__.py").touch()
    save_file({"embedding.weight": TABLE}, tmp_path / "stand_in" / "weights" / "l2_supercat_256.safetensors")
    tokenizer().save(str(tmp_path / "stand_in" / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(static, "PACKAGE", "stand_in")
    encoder = load_encoder("static")
    assert encoder.name == "static"
    np.testing.assert_allclose(encoder.encode(["the sea"]).rows[0], expected("the sea"), atol=1e-6)
    monkeypatch.setattr(static, "PACKAGE", "no_such_package")
    with pytest.raises(DataError, match=r"pip install --no-deps wordllama.*static:FOLDER"):
        load_encoder("static")


def damaged(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"damaged")


def without_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def not_a_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text("{}")


def holding(config: str = "{}", **tensors: np.ndarray) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(config)

    return change


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "damaged": (damaged, "cannot be loaded"),
    "no tokenizer": (without_tokenizer, "needs the files model.safetensors and tokenizer.json"),
    "not a tokenizer": (not_a_tokenizer, "cannot be loaded"),
    "no table": (holding(weights=WEIGHTS), "no table of token vectors; it holds weights"),
    "a table of one axis": (holding(embeddings=WEIGHTS), "no table of token vectors"),
    "too few rows": (holding(embeddings=TABLE[:4]), "vectors for 4 tokens, and the tokenizer has 6"),
    "too few weights": (holding(embeddings=TABLE, weights=WEIGHTS[:2]), "the tokenizer has 6"),
    "a place outside": (holding(embeddings=TABLE, mapping=MAPPING + 1), "maps a token to a vector"),
    "NaN": (holding(embeddings=TABLE * np.float32(np.nan)), "NaN or infinity"),
    "a configuration that is not JSON": (holding("{", embeddings=TABLE), "not JSON"),
    "a limit that is no number": (holding('{"max_length": "9"}', embeddings=TABLE), "max_length is '9'"),
    "a list as configuration": (holding("[]", embeddings=TABLE), "must be an object"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, fault: str) -> None:
    made = folder_of(tmp_path / "m", {"embeddings": TABLE})
    change, message = FAULTS[fault]
    change(made)
    with pytest.raises(DataError, match=message) as refused:
        StaticEncoder(made)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", " ", "quux"])
def test_a_text_without_a_vector_is_refused(tmp_path: Path, text: str) -> None:
    table = TABLE.copy()
    table[0] = 0
    encoder = StaticEncoder(folder_of(tmp_path / "m", {"embeddings": table}))
    with pytest.raises(DataError, match=r"text 1, '.*', has no token"):
        encoder.encode(["the sea", text])
