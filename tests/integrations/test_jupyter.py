"""What a notebook shows of banks, reports and answers, through IPython's own formatters."""

from collections.abc import Iterator

import pytest

pytest.importorskip("IPython", reason="needs ipython: pip install 'nextvec[integrations]'")

from IPython.core.interactiveshell import InteractiveShell

import nextvec as nv
from nextvec.inference import Engine, Expected
from tests.conftest import walk_bank

pytestmark = pytest.mark.integration


@pytest.fixture
def shell(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell()
    shell.extension_manager.load_extension("nextvec.integrations.jupyter")
    yield shell
    shell.history_manager.end_session()


def html(shell: InteractiveShell, value: object) -> str | None:
    data, _ = shell.display_formatter.format(value)
    return data.get("text/html")


def test_a_bank_is_a_table_of_its_facts(shell: InteractiveShell, text_bank: nv.Bank) -> None:
    shown = html(shell, text_bank)
    assert shown is not None
    for fact in (f"{len(text_bank):,}", "all-MiniLM-L6-v2", text_bank.fingerprint[:16]):
        assert fact in shown


def test_a_report_is_a_table_with_its_terms(shell: InteractiveShell) -> None:
    report = nv.evaluate(walk_bank(), pool=20, max_rows=40)
    shown = html(shell, report)
    assert shown is not None
    for term in (f"{100 * report.ranks.hit(5).value:.1f} %", report.exam, report.best_baseline, "20 candidates", "chance"):
        assert term in shown


def test_an_answer_is_a_table_of_its_texts_and_other_lists_are_not(shell: InteractiveShell, engine: Engine, read: str) -> None:
    session = engine.session()
    session.push_text(read)
    found = session.predict(3)
    shown = html(shell, found)
    assert shown is not None
    assert all(each.text in shown for each in found)
    assert found[0].text in (html(shell, found[0]) or "")
    assert html(shell, [1, 2]) is None
    assert html(shell, []) is None


def test_a_text_cannot_write_html(shell: InteractiveShell) -> None:
    shown = html(shell, [Expected(0, 0.5, "<b>title", "<script>alert(1)</script>")])
    assert shown is not None
    assert "<script" not in shown
    assert "&lt;b&gt;title" in shown


def test_the_tables_can_be_removed(shell: InteractiveShell, text_bank: nv.Bank) -> None:
    shell.extension_manager.unload_extension("nextvec.integrations.jupyter")
    assert html(shell, text_bank) is None
