"""The units of many rollouts, block by block: the rules of :class:`~nextvec.rollout.units.Units` on arrays.

The caller gives the phase of every rollout in a block of requests: 0 in the shadow, ``i`` in canary step ``i``. Phases never
fall. So the arm of a session is known from its bucket and the weight, and a session has changed arms if its arm differs from
that of its first request.
"""

# Axes: N requests, U sessions, A rollouts, a active rollouts, n requests of a block, K strata, P phases, L phase of the weight.

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from nextvec.rollout.evalues import PairKey, UnitKey
from nextvec.rollout.guardrails import ASSIGN, CANARY, FAIL, MISS, SLOW, STABLE, STREAMS, UNLABELLED
from nextvec.rollout.simulation.cohort import Cohort
from nextvec.rollout.threshold import is_slow, learn
from nextvec.rollout.units import MOST_MIRRORED, bands, unmoved_weight

PAIRED_HERE = (FAIL, MISS)  # streams with simulated mirrored pairs


class Selection:
    """Counts of unit outcomes of all rollouts of a cohort.

    Args:
        weights: of the canary in each phase, in percent; the first is the shadow's 0.
        block: requests per block.
        settle: seconds after which a session counts although it continues.
    """

    def __init__(self, cohort: Cohort, weights: Sequence[float], block: int, settle: float) -> None:
        self.cohort, self.weights, self.block_size, self.settle_after = cohort, np.array(weights), block, settle
        rollouts, sessions = cohort.bucket.shape
        num_strata, phases = len(bands()), len(weights)
        self.counts = {s: np.zeros((rollouts, num_strata, phases, phases, 2, 2), np.int64) for s in STREAMS}
        self.pairs: dict[PairKey, np.ndarray] = {}
        self.log_percentile = np.full((rollouts, num_strata), np.inf)
        self.learned = np.zeros((rollouts, num_strata), np.int64)
        self.phases = np.zeros((-(-len(cohort.stable) // block), rollouts), np.int64)  # by block
        self.failed = np.zeros((rollouts, sessions), bool)
        self.settled = np.zeros(sessions, bool)
        self.latest = np.full(sessions, -1, np.int64)  # row of each session's newest request before the block
        self.labels = np.zeros((rollouts, sessions), np.int32)  # routed labels of each session before the block
        self.entered = np.zeros((1, sessions), np.int32)  # requests before a rollout left the shadow, for each such block
        self.entry = np.full(rollouts, -1)  # row of ``entered`` for each rollout; -1 in the shadow
        self._entry_row = [0]
        self._unsettled = cohort.first[np.argsort(cohort.first)]  # first rows of sessions, in order of time
        both = (cohort.stable.hit >= 0) & (cohort.canary.hit >= 0)
        self._labelled = {arm: cohort.running_sum(t.hit >= 0) for arm, t in ((0, cohort.stable), (1, cohort.canary))}
        self._mirrored = {
            FAIL: self._shifts(np.ones(len(both), bool), cohort.canary.failed.astype(int) - cohort.stable.failed),
            MISS: self._shifts(both, cohort.stable.hit - cohort.canary.hit),
        }

    def _shifts(self, present: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Presence, running count and running sum of the mirrored requests of a session that count."""
        count = self.cohort.running_sum(present)
        return present, count, self.cohort.running_sum(np.where(present & (count <= MOST_MIRRORED), shift, 0))

    def block(self, begin: int, end: int, who: Int64[np.ndarray, " a"], phase: Int64[np.ndarray, " a"]) -> None:
        """Count the outcomes of requests ``begin:end`` in the active rollouts ``who``, each in its phase."""
        c, rows = self.cohort, np.arange(begin, end)
        if begin:
            self._settle(begin, who, phase)
        self.phases[begin // self.block_size, who] = phase
        self._enter(begin, who, phase)
        shadow, live = who[phase == 0], who[phase > 0]
        if len(live):
            self._live(rows, live, phase[phase > 0])
        for stream in PAIRED_HERE if len(shadow) else ():
            present, count, _ = self._mirrored[stream]
            complete = rows[present[rows] & (count[rows] == MOST_MIRRORED) & ~self.settled[c.stable.session[rows]]]
            self._add_pairs(stream, shadow, np.broadcast_to(complete, (len(shadow), len(complete))))
        closing = rows[c.is_last[rows]]
        closing = closing[~self.settled[c.stable.session[closing]]]
        self._finish(closing, who, phase)
        self.settled[c.stable.session[closing]] = True
        self.latest[c.stable.session[rows]] = rows

    def units(self) -> dict[UnitKey, np.ndarray]:
        """The counts of units in the form of the evidence, of the length A."""
        found: dict[UnitKey, np.ndarray] = {}
        for stream, counts in self.counts.items():
            for place in np.argwhere(counts.any(0)):
                k, low, segment, arm, bad = map(int, place)
                weight = float(self.weights[low])
                if stream == SLOW:
                    weight = unmoved_weight(weight, float(self.weights[segment]))
                key = (stream, bands()[k], segment, weight, (STABLE, CANARY)[arm], bool(bad))
                found[key] = found.get(key, 0) + counts[:, k, low, segment, arm, bad]
        return dict(sorted(found.items()))

    def _enter(self, begin: int, who: Int64[np.ndarray, " a"], phase: Int64[np.ndarray, " a"]) -> None:
        """Remember how many requests of each session came before a rollout left the shadow."""
        new = who[(phase > 0) & (self.entry[who] < 0)]
        if not len(new):
            return
        if begin:
            self.entered = np.vstack([self.entered, self._before(begin)])
            self._entry_row.append(begin)
        self.entry[new] = len(self.entered) - 1

    def _before(self, begin: int) -> np.ndarray:
        sessions = self.cohort.stable.session[:begin]
        return np.bincount(sessions, minlength=self.cohort.bucket.shape[1]).astype(np.int32)

    def _live(self, rows: Int64[np.ndarray, " n"], who: Int64[np.ndarray, " a"], phase: Int64[np.ndarray, " a"]) -> None:
        c = self.cohort
        session = c.stable.session[rows]
        arm = c.assigned(c.bucket[np.ix_(who, session)], self.weights[phase][:, None])
        self._fail(rows, who, phase, arm)
        self._miss(rows, who, phase, arm)
        late = c.first[session] < self._entry_row[-1]  # some rollout may have routed only the later requests of the session
        may_count = late | (c.position[rows] == 0) | (c.position[rows] == c.selected[session])
        rows, session, arm = rows[may_count], session[may_count], arm[:, may_count]
        index = c.position[rows] - self.entered[self.entry[who][:, None], session]
        self._add(ASSIGN, index == 0, rows, who, phase, arm, np.ones_like(arm))
        counts = index == c.selected[session]
        hit = np.where(arm, c.canary.hit[rows], c.stable.hit[rows])
        self._add(UNLABELLED, counts, rows, who, phase, arm, hit < 0)
        self._slow(counts, rows, who, phase, arm)

    def _fail(self, rows: np.ndarray, who: np.ndarray, phase: np.ndarray, arm: np.ndarray) -> None:
        """First failures; several failures of one session are taken in order of time."""
        c = self.cohort
        may_fail = (c.stable.failed[rows] | c.canary.failed[rows]) & ~self.settled[c.stable.session[rows]]
        rows, arm = rows[may_fail], arm[:, may_fail]
        while len(rows):
            sessions, now = np.unique(c.stable.session[rows], return_index=True)
            bad = np.where(arm[:, now], c.canary.failed[rows[now]], c.stable.failed[rows[now]])
            bad = bad & ~self.failed[np.ix_(who, sessions)]
            self.failed[np.ix_(who, sessions)] |= bad
            self._add(FAIL, bad, rows[now], who, phase, arm[:, now], bad)
            rows, arm = np.delete(rows, now), np.delete(arm, now, 1)

    def _miss(self, rows: np.ndarray, who: np.ndarray, phase: np.ndarray, arm: np.ndarray) -> None:
        """The selected label of each session; labels are numbered as they arrive."""
        c = self.cohort
        session = c.stable.session[rows]
        latest = self.latest[session]
        new = [np.where(latest < 0, n[rows], n[rows] - n[latest]) for n in self._labelled.values()]
        number = self.labels[np.ix_(who, session)] + np.where(arm, new[1], new[0])
        hit = np.where(arm, c.canary.hit[rows], c.stable.hit[rows])
        self._add(MISS, (hit >= 0) & (number - 1 == c.selected[session]), rows, who, phase, arm, hit == 0)
        final, at = np.unique(session[::-1], return_index=True)
        self.labels[np.ix_(who, final)] = number[:, len(rows) - 1 - at]

    def _slow(self, counts: np.ndarray, rows: np.ndarray, who: np.ndarray, phase: np.ndarray, arm: np.ndarray) -> None:
        c = self.cohort
        session = c.stable.session[rows]
        low = self.phases[np.ix_(c.first[session] // self.block_size, who)].T
        unmoved = counts & (arm == c.assigned(c.bucket[np.ix_(who, session)], self.weights[low]))
        log_stable, log_canary = np.log(c.stable.latency[rows]), np.log(c.canary.latency[rows])
        bad = np.zeros_like(unmoved)
        for n in np.flatnonzero(unmoved.any(0)):
            at = np.flatnonzero(unmoved[:, n])
            on_canary, k = arm[at, n], c.stratum[rows[n]]
            log_value = np.where(on_canary, log_canary[n], log_stable[n])
            bad[at, n] = is_slow(log_value, self.log_percentile[who[at], k], on_canary)
            teaches = who[at[~on_canary]]
            learned = learn(self.log_percentile[teaches, k], self.learned[teaches, k], log_stable[n])
            self.log_percentile[teaches, k] = learned
            self.learned[teaches, k] += 1
        self._add(SLOW, unmoved, rows, who, phase, arm, bad, low)

    def _settle(self, begin: int, who: np.ndarray, phase: np.ndarray) -> None:
        """Sessions that were first observed long enough before the last tick."""
        c = self.cohort
        count = np.searchsorted(c.stable.time[self._unsettled], c.stable.time[begin - 1] - self.settle_after, "right")
        sessions = c.stable.session[self._unsettled[:count]]
        self._unsettled = self._unsettled[count:]
        sessions = sessions[~self.settled[sessions]]
        self._finish(self.latest[sessions], who, phase)
        self.settled[sessions] = True

    def _finish(self, rows: Int64[np.ndarray, " n"], who: np.ndarray, phase: np.ndarray) -> None:
        """Settle sessions, given by their newest rows: good units of ``fail``, and mirrored pairs below 16 requests."""
        c = self.cohort
        session = c.stable.session[rows]
        if not len(rows):
            return
        low = self.phases[np.ix_(rows // self.block_size, who)].T
        arm = c.assigned(c.bucket[np.ix_(who, session)], self.weights[low])
        good = (low > 0) & ~self.failed[np.ix_(who, session)]
        self._add(FAIL, good, rows, who, phase, arm, np.zeros_like(arm), low)
        mirrored = np.where(self.entry[who][:, None] < 0, c.position[rows] + 1, self.entered[self.entry[who]][:, session])
        if mirrored.any():
            newest = c.by_session[c.begin[session] + np.maximum(mirrored - 1, 0)]
            for stream in PAIRED_HERE:
                _, count, _ = self._mirrored[stream]
                incomplete = (mirrored > 0) & (count[newest] > 0) & (count[newest] < MOST_MIRRORED)
                self._add_pairs(stream, who, newest, incomplete)

    def _add_pairs(self, stream: str, who: np.ndarray, rows: Int64[np.ndarray, "a n"], where: np.ndarray | None = None) -> None:
        _, count, total = self._mirrored[stream]
        at, column = np.nonzero(np.ones(rows.shape, bool) if where is None else where)
        found = rows[at, column]
        shifts = total[found] / np.minimum(count[found], MOST_MIRRORED)
        for shift in np.unique(shifts):
            counts = self.pairs.setdefault((stream, float(shift)), np.zeros(len(self.failed), np.int64))
            np.add.at(counts, who[at[shifts == shift]], 1)

    def _add(
        self,
        stream: str,
        where: Bool[np.ndarray, "a n"],
        rows: Int64[np.ndarray, " n"],
        who: Int64[np.ndarray, " a"],
        phase: Int64[np.ndarray, " a"],
        arm: Bool[np.ndarray, "a n"],
        bad: Bool[np.ndarray, "a n"],
        low: Int64[np.ndarray, "a n"] | None = None,
    ) -> None:
        """Count one outcome for each rollout and request of ``where``; ``low``: the phase of the weight, if not ``phase``."""
        at, n = np.nonzero(where)
        counts = self.counts[stream]
        weight = phase[at] if low is None else low[at, n]
        place = (who[at], self.cohort.stratum[rows[n]], weight, phase[at], arm[at, n].astype(int), bad[at, n].astype(int))
        np.add.at(counts.reshape(-1), np.ravel_multi_index(place, counts.shape), 1)
