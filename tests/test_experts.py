"""Experts: who is heard, who is computed, how lanes are followed, and how they are trained."""

from collections import Counter
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.batches import passages
from nextvec.errors import DataError, RunError, SettingsError
from nextvec.evaluation.runs import evaluate
from nextvec.inference.states import num_bytes
from nextvec.lanes import Lanes, by_clusters
from nextvec.models import MemoryGRU
from nextvec.models.hooks import Routing
from nextvec.models.packed import pack
from nextvec.reproduction.expert_gru import ExpertGRU
from nextvec.reproduction.families import find_anchors
from nextvec.reproduction.gate import On, balance, chosen
from nextvec.reproduction.lane_scores import FAST, LaneScores, Per, RandomLanes
from nextvec.runs import Run, TrainSettings, load_model
from nextvec.runs.families import Basis
from nextvec.runs.loading import build
from nextvec.runs.run import CHECKPOINT
from nextvec.runs.settings import override
from nextvec.training import Evaluated, Finished, begin, train
from nextvec.training.begin import basis_of
from nextvec.training.gradient import Gradient
from nextvec.windows import rows_of, training_windows
from tests.conftest import walk_bank

DIM, COUNT = 12, 6
SMALL = TrainSettings.of(
    model="experts",
    experts=4,
    expert_width=8,
    context=20,
    batch=3,
    updates=12,
    evaluate_every=4,
    hidden=8,
    slots=16,
    working=8,
    pool=30,
    patience=50,
)


def passage(batch: int, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normalize(torch.randn(batch, length, DIM, dtype=dtype), dim=-1)


def experts(per: Per = "position", on: On = "lane", top: int = 1, common: int = 0, count: int = COUNT) -> ExpertGRU:
    """Alive in every part."""
    lanes = LaneScores(DIM, count, per)
    lanes.anchors.copy_(normalize(torch.randn(count, DIM), dim=-1))
    model = ExpertGRU(MemoryGRU(torch.zeros(DIM), 0.5, hidden=8, slots=16, working=5), lanes, 16, common, on, top)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


# Who is heard


@given(top=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_as_many_are_heard_as_asked_for_and_their_weights_are_those_of_the_formula(top: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = 3 * torch.randn(7, COUNT, dtype=torch.float64)
    routing = chosen(logits, top)
    for p, w in zip(logits.softmax(-1).tolist(), routing.weights.tolist(), strict=True):
        ordered = sorted(p, reverse=True)
        for of, weight in zip(p, w, strict=True):
            expected = max(0.0, of - ordered[top]) / sum(ordered[:top])
            assert weight == pytest.approx(expected, abs=1e-12)
    assert ((routing.weights > 0).sum(-1) == top).all()
    assert (routing.weights.sum(-1) < 1).all()


def test_of_all_experts_the_weights_are_the_probabilities() -> None:
    logits = torch.randn(3, 2)
    torch.testing.assert_close(chosen(logits, 2).weights, logits.softmax(-1))
    torch.testing.assert_close(chosen(torch.randn(5, 1), 1).weights, torch.ones(5, 1))


def test_a_decided_gate_hears_one_expert_whole_and_an_undecided_one_nobody() -> None:
    decided = chosen(torch.tensor([[50.0, 0.0, 0.0]]), 1)
    torch.testing.assert_close(decided.weights, torch.tensor([[1.0, 0.0, 0.0]]))
    assert not chosen(torch.zeros(1, 3), 1).weights.any()


@given(top=st.integers(1, 4), at=st.floats(-1e-4, 1e-4))
def test_where_two_experts_change_places_nothing_jumps(top: int, at: float) -> None:
    """The k-th and its runner-up cross at 0: both have hardly a weight there."""
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    logits[top] = logits[top - 1] + at
    here, there = chosen(logits, top).weights, chosen(logits - 2 * at * torch.eye(5)[top], top).weights
    assert float((here - there).abs().max()) < 1e-3


@given(seed=st.integers(0, 2**31))
def test_an_answer_depends_on_its_vectors_without_jumps(seed: int) -> None:
    """Along a line between two passages no small step changes the answer much, though experts change on the way."""
    torch.manual_seed(seed)
    model, x = experts().double(), passage(2, 9, torch.float64)
    shares = torch.linspace(0, 1, 2001, dtype=torch.float64)
    line = x[:1] + shares[:, None, None] * (x[1:] - x[:1])
    with torch.no_grad():
        _, y, routing = model.routed(model.start(len(line)), line)
    heard = routing.weights[:, -1].argmax(-1)
    steps = (y[1:, -1] - y[:-1, -1]).norm(dim=-1)
    assert len(heard.unique()) == 1 or float(steps.max()) < 0.05


# Who is computed


@pytest.mark.parametrize("weights", [None, "float32", "int8"])
@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("top", [1, 2])
def test_only_the_chosen_are_computed(weights: Any, length: int, top: int) -> None:
    """Whoever is not heard may be broken: nothing of it reaches an answer."""
    torch.manual_seed(5)
    model, x = experts(top=top), passage(1, length)
    with torch.no_grad():
        _, expected, routing = model.routed(model.start(1), x)
    silent = [e for e, heard in enumerate((routing.weights > 0).flatten(0, 1).any(0).tolist()) if not heard]
    assert silent
    answering = model if weights is None else pack(model, weights)
    calls = Counter[int]()
    for e, block in enumerate(answering.get_submodule("experts.blocks").children()):
        block.register_forward_hook(lambda *_, e=e: calls.update([e]))
    with torch.no_grad():
        torch.testing.assert_close(answering(x), expected, rtol=0, atol=1e-5 if weights != "int8" else 0.05)
    assert set(calls) == set(range(COUNT)) - set(silent)
    assert max(calls.values()) == 1


def test_a_silent_expert_gets_no_gradient() -> None:
    torch.manual_seed(5)
    model, x = experts(), passage(1, 6)
    _, y, routing = model.routed(model.start(1), x)
    y[..., 0].sum().backward()
    heard = (routing.weights > 0).flatten(0, 1).sum(0)
    for e, block in enumerate(model.experts.blocks):
        pulled = [p.grad is not None and bool(p.grad.any()) for p in block.parameters()]
        assert any(pulled) == bool(heard[e])


def test_an_untrained_model_is_the_memory_gru() -> None:
    torch.manual_seed(0)
    shared = MemoryGRU(torch.zeros(DIM), 0.5, hidden=8, slots=16, working=5).eval()
    lanes = LaneScores(DIM, COUNT, "position")
    lanes.anchors.copy_(normalize(torch.randn(COUNT, DIM), dim=-1))
    x = passage(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(ExpertGRU(shared, lanes, 16, 12).eval()(x), shared(x))


def test_one_expert_is_a_block_that_everything_passes() -> None:
    torch.manual_seed(0)
    model, x = experts(count=1), passage(2, 7)
    with torch.no_grad():
        read, h = model.shared.read(model.shared.start(2), x)
        expected = model.shared.answer(read, h + model.experts.blocks[0](h))[1]
        torch.testing.assert_close(model(x), expected)


# Lanes


@given(length=st.integers(1, 150), seed=st.integers(0, 2**31))
def test_a_documents_scores_are_those_of_its_mean_row_so_far(length: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, lanes = passage(1, length, torch.float64), LaneScores(DIM, COUNT, "document").double()
    lanes.anchors.copy_(torch.randn(COUNT, DIM))
    lanes.prices.copy_(torch.rand(COUNT))
    _, scores = lanes(lanes.start(1), x)
    for t in {0, length // 2, length - 1}:
        expected = lanes.anchors @ x[0, : t + 1].mean(0) - lanes.prices
        torch.testing.assert_close(scores[0, t], expected, rtol=0, atol=1e-9)


@given(length=st.integers(1, 150), seed=st.integers(0, 2**31))
def test_a_positions_scores_are_those_of_its_last_rows_each_less_than_the_next(length: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, lanes = passage(1, length, torch.float64), LaneScores(DIM, COUNT, "position").double()
    lanes.anchors.copy_(torch.randn(COUNT, DIM))
    _, scores = lanes(lanes.start(1), x)
    weights = FAST ** torch.arange(length - 1, -1, -1, dtype=torch.float64)
    expected = lanes.anchors @ (weights[:, None] * x[0]).sum(0) / weights.sum()
    torch.testing.assert_close(scores[0, -1], expected, rtol=0, atol=1e-9)


def test_the_lane_decides_who_is_heard() -> None:
    torch.manual_seed(0)
    model = experts("document")
    x = model.lanes.anchors[torch.tensor([4, 2])][:, None].expand(2, 9, DIM)
    _, _, routing = model.routed(model.start(2), x)
    assert routing.weights.argmax(-1).tolist() == [9 * [4], 9 * [2]]


def test_what_lanes_remember_does_not_grow() -> None:
    model = experts("document")
    after, _, _ = model.routed(model.start(1), passage(1, 300))
    assert num_bytes(tuple(part.clone() for part in after.lanes)) == (COUNT + 1) * 4


def test_random_lanes_are_even_and_say_nothing_of_the_vector() -> None:
    """Rows that hardly differ share a lane no more often than any two rows: one time in sixteen."""
    torch.manual_seed(0)
    lanes, x = RandomLanes(384, "position"), normalize(torch.randn(1, 4000, 384), dim=-1)
    near = normalize(x + 0.5 * normalize(torch.randn_like(x), dim=-1), dim=-1)
    of_x, of_near = (lanes(lanes.start(1), rows)[1][0].argmax(-1) for rows in (x, near))
    shares = torch.bincount(of_x, minlength=16) / 4000
    assert float((x * near).sum(-1).mean()) > 0.85
    assert float((shares - 1 / 16).abs().max()) < 5 * (1 / 16 * 15 / 16 / 4000) ** 0.5
    assert float((of_x == of_near).double().mean()) == pytest.approx(1 / 16, abs=5 * (1 / 16 * 15 / 16 / 4000) ** 0.5)


# Balance


def test_balance_is_one_at_even_use_and_the_number_of_experts_at_one() -> None:
    even = Routing(torch.eye(4).repeat(3, 1), torch.eye(4).repeat(3, 1))
    one = Routing(torch.eye(4)[:1].repeat(9, 1), torch.eye(4)[:1].repeat(9, 1))
    assert balance(even, torch.ones(12, dtype=torch.bool)) == 1
    assert balance(one, torch.ones(9, dtype=torch.bool)) == 4


def test_balance_is_its_definition_over_what_counts() -> None:
    torch.manual_seed(0)
    routing, counted = chosen(torch.randn(2, 9, 5), 1), torch.rand(2, 9) < 0.6
    p = routing.probabilities[counted].numpy()
    f = np.bincount(p.argmax(1), minlength=5) / len(p)
    assert balance(routing, counted).item() == pytest.approx(5 * (f * p.mean(0)).sum(), rel=1e-5)


def test_a_gate_that_is_only_balanced_becomes_even() -> None:
    torch.manual_seed(0)
    logits = torch.nn.Parameter(torch.randn(400, 4) + torch.tensor([3.0, 0.0, 0.0, 0.0]))
    everything = torch.ones(400, dtype=torch.bool)
    before = balance(chosen(logits, 1), everything).item()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        balance(chosen(logits, 1), everything).backward()
        optimizer.step()
    assert before > 2.5
    assert balance(chosen(logits, 1), everything).item() < 1.1


def test_the_weight_of_balance_pulls_at_the_gate_as_its_definition_does() -> None:
    """The gradient with the term less that without it, beside autograd's of the definition."""
    bank = walk_bank()
    settings = SMALL.replaced(gate_on="both", dropout=0.0, lanes="clusters", batch=64)
    everything = np.arange(bank.num_documents)
    windows = training_windows(bank, everything, 16, np.random.default_rng(0))
    chosen_windows = np.arange(len(windows))
    pulls: dict[float, list[Tensor]] = {}
    for weight in (0.0, 0.5):
        s = settings.replaced(balance=weight)
        model = build(s, basis_of(moments(bank, everything), None, 0.5, find_anchors(s.options, bank, everything, s.seed)))
        assert isinstance(model, ExpertGRU)
        rows = rows_of(bank, everything)
        gradient = Gradient(model, torch.nn.Parameter(torch.tensor(0.0)), bank, rows, s)
        done = gradient.compute(0, windows, chosen_windows, np.array([], np.int64), rows, measure=True)
        pulls[weight] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.gate.parameters()]
    read = passages(bank, windows, chosen_windows)
    _, _, routing = model.routed(model.start(len(read.x)), read.x)
    term = 0.5 * balance(routing, read.targets >= 0)
    assert done.terms["balance"] == pytest.approx(term.item(), rel=1e-5)
    for with_it, without, expected in zip(
        pulls[0.5], pulls[0.0], torch.autograd.grad(term, list(model.gate.parameters())), strict=True
    ):
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(with_it - without, expected, rtol=1e-3, atol=1e-6)


# Training


def test_experts_train_resume_and_are_examined(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL.replaced(balance=0.01, gate_on="both", top=2), bank)
    assert isinstance(list(train(run, bank))[-1], Finished)
    model = load_model(Run.open(tmp_path / "run"))
    assert isinstance(model, ExpertGRU)
    kept = run.anchors()
    assert kept is not None
    np.testing.assert_array_equal(model.lanes.anchors.numpy(), kept.vectors)
    assert 0 <= evaluate(run, bank, "test", pool=30).ranks.hit(5).value <= 1


def test_cluster_lanes_are_found_in_the_training_documents_alone() -> None:
    bank = walk_bank(documents=20)
    some = np.arange(10)
    found = find_anchors(SMALL.options, bank, some, SMALL.seed)
    changed = Bank.from_numpy(
        np.concatenate([bank.rows[: bank.offsets[10]], -np.asarray(bank.rows[bank.offsets[10] :])]), bank.lengths.tolist()
    )
    again = find_anchors(SMALL.options, changed, some, SMALL.seed)
    assert found is not None
    assert again is not None
    np.testing.assert_array_equal(found.vectors, again.vectors)


def test_two_stages_train_the_experts_and_then_the_gate_alone(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL.replaced(gate_on="both", router_fraction=0.25, updates=16), bank)
    start = build(run.settings, Basis(torch.zeros(16), run.origin.decay, run.anchors())).state_dict()
    for event in train(run, bank):
        if isinstance(event, Evaluated) and event.update == 12:
            break
    experts_trained, _ = run.load(CHECKPOINT)
    assert isinstance(list(train(run, bank))[-1], Finished)
    gate_trained, _ = run.load(CHECKPOINT)
    parameters = dict(build(run.settings, Basis(torch.zeros(16), 0.5)).named_parameters())
    for name in parameters:
        first, second = (torch.equal(a[name], b[name]) for a, b in ((start, experts_trained), (experts_trained, gate_trained)))
        assert (first, second) == ((True, False) if name.startswith("gate.") else (False, True)), name


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["top=5", "experts=4"], "top=5: there are 4 experts; the nearest right one is 4"),
        (["lanes=random", "experts=4"], "random lanes are 16"),
        (["router_fraction=0.2"], "choose gate_on=both or state"),
        (["router_fraction=0.2", "gate_on=both", "seconds=5"], "choose one"),
        (["balance=0.1", "segment=8"], "balance needs a whole passage"),
        (["experts=0"], "the nearest right one is 1"),
        (["route_per=chapter"], "must be one of position, document"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sets: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        override(TrainSettings.of(), ["model=experts", *sets])


def test_lanes_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    by_clusters(bank, 3).save(tmp_path / "three")
    by_clusters(walk_bank(documents=20, seed=1), 4).save(tmp_path / "others")
    for lanes, error, message in (
        ("three", SettingsError, "are 3; the nearest right one is 3"),
        ("others", DataError, "not of this one"),
        ("nowhere", DataError, "holds no lanes"),
    ):
        with pytest.raises(error, match=message):
            begin(tmp_path / "run", "test", SMALL.replaced(lanes=str(tmp_path / lanes)), bank)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_lanes_may_be_gone_when_training_goes_on(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    by_clusters(bank, 4).save(tmp_path / "lanes")
    run = begin(tmp_path / "run", "test", SMALL.replaced(lanes=str(tmp_path / "lanes")), bank)
    (tmp_path / "lanes").rename(tmp_path / "elsewhere")
    assert isinstance(list(train(run, bank))[-1], Finished)


def test_damaged_anchors_are_named(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    (run.path / "anchors.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"anchors.safetensors is damaged"):
        list(train(run, bank))


def test_entropy_of_an_even_gate_is_that_of_its_experts() -> None:
    p = chosen(torch.zeros(1, 16), 1).probabilities
    assert float(-(p * p.log2()).sum()) == pytest.approx(log2(16))


# Experts that are whole models


def laned(bank: Bank, path: Path) -> Path:
    by_clusters(bank, 2, seed=1).save(path)
    return path


def test_an_expert_of_a_lane_is_trained_on_its_documents_and_sits_everybodys_exam(tmp_path: Path) -> None:
    bank = walk_bank(documents=40)
    folder = laned(bank, tmp_path / "lanes")
    lanes = Lanes.open(folder, bank)
    plain = SMALL.replaced(model="memory_gru", pool=20)
    everything = begin(tmp_path / "all", "test", plain, bank)
    run = begin(tmp_path / "run", "test", plain.replaced(lane_folder=str(folder), lane_filter=lanes.names[0]), bank)
    inside = {name for name, lane in zip(bank.ids, lanes.of_documents(bank)[0].tolist(), strict=True) if lane == 0}
    for part in ("train", "valid"):
        expected = set(everything.origin.parts[part]) & inside
        assert set(run.origin.parts[part]) == expected
        assert 0 < len(expected) < len(everything.origin.parts[part])
    assert run.origin.parts["test"] == everything.origin.parts["test"]
    assert isinstance(list(train(run, bank))[-1], Finished)


@pytest.mark.parametrize("model", ["memory_gru", "experts"])
def test_a_run_may_start_where_another_ended(model: Any, tmp_path: Path) -> None:
    """Before its first update it predicts what the other predicts, experts included: they say nothing yet."""
    bank = walk_bank(documents=20)
    first = begin(tmp_path / "first", "test", SMALL.replaced(model="memory_gru"), bank)
    list(train(first, bank))
    second = begin(tmp_path / "second", "test", SMALL.replaced(model=model, start=str(first.path), lr=1e-8), bank)
    event = next(e for e in train(second, bank) if isinstance(e, Evaluated))
    assert event.record["valid"]["hit@5"] == pytest.approx(first.best_hit5)
    expected, found = (load_model(run)(torch.from_numpy(bank.rows[None, :9].astype(np.float32))) for run in (first, second))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_start_may_be_gone_when_training_goes_on(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    first = begin(tmp_path / "first", "test", SMALL.replaced(model="memory_gru"), bank)
    list(train(first, bank))
    second = begin(tmp_path / "second", "test", SMALL.replaced(model="memory_gru", start=str(first.path)), bank)
    first.path.rename(tmp_path / "elsewhere")
    assert isinstance(list(train(second, bank))[-1], Finished)


def test_starts_and_lanes_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    folder = laned(bank, tmp_path / "lanes")
    first = begin(tmp_path / "first", "test", SMALL.replaced(model="memory_gru"), bank)
    with pytest.raises(RunError, match="has it been trained"):
        begin(tmp_path / "run", "test", SMALL.replaced(model="memory_gru", start=str(first.path)), bank)
    list(train(first, bank))
    with pytest.raises(RunError, match="not of the same model and sizes"):
        begin(tmp_path / "run", "test", SMALL.replaced(model="memory_gru", hidden=16, start=str(first.path)), bank)
    with pytest.raises(RunError, match="is not a run"):
        begin(tmp_path / "run", "test", SMALL.replaced(start=str(tmp_path / "nowhere")), bank)
    with pytest.raises(SettingsError, match="has no lane 'cluster 7'; did you mean 'cluster "):
        begin(
            tmp_path / "run", "test", SMALL.replaced(model="memory_gru", lane_folder=str(folder), lane_filter="cluster 7"), bank
        )
    with pytest.raises(SettingsError, match="needs lane_folder=FOLDER"):
        SMALL.replaced(lane_filter="cluster 0")
    assert not (tmp_path / "run").exists()
