"""Both kinds of leak of one run: negatives told from positives, and machine-written text told from real text.

Each stands beside controls, the same classifier between two sets of real texts of about the same numbers: what the
control scores is the aim. The first control that can be measured counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy.orm import Session
from threadpoolctl import threadpool_limits

from curation.audit.causes import Causes, find_causes, property_aucs
from curation.audit.draws import WRITTEN, Draw, Texts, draw_corpus, draw_run
from curation.audit.leaks import Comparison, Leak, compare_sets, held_out_scores, leak_of, ngram_counts
from curation.errors import CurationError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True, slots=True)
class Control:
    """The same classifier between two sets of real texts; what each property alone tells, of the first control only."""

    what: str
    leak: Leak
    properties: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"what": self.what, **_figures(self.leak), "properties": self.properties}


@dataclass(slots=True)
class MeasuredLeak:
    """One kind of leak; without a `leak`, `reason` says why it could not be measured."""

    first: str
    second: str
    leak: Leak | None = None
    reason: str | None = None
    by_rank: dict[str, Leak] = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    causes: Causes | None = None

    @property
    def stands_out(self) -> bool | None:
        """Whether the sets are told apart better than two sets of real texts are, beyond both intervals."""
        if self.leak is None or not self.controls:
            return None
        return self.leak.low > self.controls[0].leak.high

    def to_dict(self) -> dict[str, Any]:
        control = self.controls[0] if self.controls else None
        return {
            "auc": self.leak.auc if self.leak else None,
            "interval_95": [self.leak.low, self.leak.high] if self.leak else None,
            "num_texts": self.leak.num_texts if self.leak else 0,
            "control_auc": control.leak.auc if control else None,
            "control_interval_95": [control.leak.low, control.leak.high] if control else None,
            "stands_out": self.stands_out,
            "reason": self.reason,
            "sets": [self.first, self.second],
            "by_rank": {label: _figures(leak) for label, leak in self.by_rank.items()},
            "controls": [one.to_dict() for one in self.controls],
            "causes": self.causes.to_dict() if self.causes else None,
        }


def _figures(leak: Leak) -> dict[str, Any]:
    return {"auc": leak.auc, "interval_95": [leak.low, leak.high], "num_texts": leak.num_texts}


@dataclass(frozen=True, slots=True)
class RunLeaks:
    """The leaks of a run; `machine_positives` is the first kind where the positive is machine-written too."""

    negative_from_positive: MeasuredLeak
    synthetic_from_real: MeasuredLeak
    machine_positives: MeasuredLeak

    def to_dict(self) -> dict[str, Any]:
        return {
            "negative_from_positive": self.negative_from_positive.to_dict(),
            "synthetic_from_real": self.synthetic_from_real.to_dict(),
            "negative_from_machine_positive": self.machine_positives.to_dict(),
        }


class LeakMeter:
    """Measures runs one after another; the corpus of a collection is drawn and counted once."""

    def __init__(self, session: Session, *, max_texts: int, seed: int = 0, rank_label: Callable[[int], str]) -> None:
        self._session, self._max_texts, self._seed, self._label = session, max_texts, seed, rank_label
        self._corpora: dict[int, Texts] = {}
        self._columns = _Columns()
        self._controls: dict[frozenset[tuple[int, ...]], Control] = {}

    def measure(self, run: int) -> RunLeaks:
        """All leaks of a run."""
        # Many small fits: threads of a matrix library spend more time waiting for each other than they save.
        with threadpool_limits(limits=1, user_api="blas"):
            return self._measure(run)

    def _measure(self, run: int) -> RunLeaks:
        real = draw_run(self._session, run, positive_origin="corpus", max_texts=self._max_texts)
        machine = draw_run(self._session, run, positive_origin="synthetic", max_texts=self._max_texts)
        self._columns.clear()
        self._controls.clear()
        corpus = self._corpus(real)
        leaks = RunLeaks(
            self._negatives(real, corpus, "negatives", "their positives"),
            self._synthetic(real, corpus),
            self._negatives(machine, Texts(), "negatives", "their machine-written positives"),
        )
        self._columns.clear()
        return leaks

    def _corpus(self, draw: Draw) -> Texts:
        """Passages of the collection that most drawn examples are of, those that they know left out."""
        collections = [row.collection_id for row in draw.rows if row.collection_id is not None]
        if not collections:
            return Texts()
        most = int(np.bincount(collections).argmax())
        if most not in self._corpora:
            # Twice as many: the control of two halves takes them apart.
            self._corpora[most] = draw_corpus(self._session, most, most=2 * self._max_texts)
        return self._corpora[most].without(draw.linked)

    def _negatives(self, draw: Draw, corpus: Texts, first: str, second: str) -> MeasuredLeak:
        found = MeasuredLeak(first, second)
        if not draw.rows:
            found.reason = f"the run has no negatives of {second.removeprefix('their ')}"
            return found
        negatives, positives = draw.candidates(self._session), draw.positive_texts(self._session)
        mined = draw.mined(self._session, len(negatives))
        controls = [("random passages of the corpus against the positives", corpus.without((), len(negatives)))]
        if any(row.origin in WRITTEN for row in draw.rows):
            controls.insert(0, ("mined negatives against their positives", mined))
        self._fill(found, draw, negatives, positives, [(what, texts, positives) for what, texts in controls])
        return found

    def _synthetic(self, draw: Draw, corpus: Texts) -> MeasuredLeak:
        found = MeasuredLeak("machine-written texts", "passages of the corpus")
        written = Draw([row for row in draw.rows if row.origin in WRITTEN], draw.group_of_example, draw.linked)
        if not written.rows:
            found.reason = "the run has no machine-written texts on examples of a collection"
            return found
        texts, positives = written.candidates(self._session), draw.positive_texts(self._session)
        real = corpus.without((), len(texts))
        one, other = corpus.without((), 2 * len(texts)).halves()
        controls = [
            ("positives against random passages of the corpus", positives, real),
            ("two random halves of the corpus", one, other),
        ]
        self._fill(found, written, texts, real, controls)
        return found

    def _fill(
        self, found: MeasuredLeak, draw: Draw, first: Texts, second: Texts, controls: Sequence[tuple[str, Texts, Texts]]
    ) -> None:
        try:
            pair = self._pair(first, second)
        except CurationError as error:
            found.reason = str(error)
            return
        found.leak, found.causes = pair.leak(), pair.causes()
        for rank in sorted({row.rank for row in draw.rows if row.rank is not None}):
            try:
                found.by_rank[self._label(rank)] = self._pair(draw.candidates(self._session, rank), second).leak()
            except CurationError:  # too few at this rank, which its absence says
                continue
        for what, one, other in controls:
            try:
                found.controls.append(self._control(what, one, other, with_properties=not found.controls))
            except CurationError:
                continue
        if not found.controls:
            found.reason = "no control: the store has too few real texts to set beside it"

    def _control(self, what: str, one: Texts, other: Texts, *, with_properties: bool) -> Control:
        """Measured once for each two sets of a run, whichever of them comes first: the AUC is the same."""
        sets = frozenset((tuple(one.text), tuple(other.text)))
        known = self._controls.get(sets)
        if known is None or (with_properties and not known.properties):
            pair = self._pair(one, other)
            leak = known.leak if known else pair.leak()
            known = self._controls[sets] = Control(what, leak, pair.properties() if with_properties else {})
        return Control(what, known.leak, known.properties)

    def _pair(self, first: Texts, second: Texts) -> "_Pair":
        """Two sets ready to be told apart; a text that is in both stays in the first only."""
        kept = second.without(first.text)
        comparison = compare_sets(list(first.group.values()), list(kept.group.values()), seed=self._seed)
        texts = [*first.text.values(), *kept.text.values()]
        return _Pair(comparison, texts, self._columns.counts(first, kept), self._seed)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two sets, counted and ready to be told apart."""

    comparison: Comparison
    texts: list[str]
    counts: "csr_matrix"
    seed: int

    def leak(self) -> Leak:
        return leak_of(self.comparison, held_out_scores(self.comparison, self.counts), seed=self.seed)

    def causes(self) -> Causes:
        return find_causes(self.comparison, self.texts, self.counts, seed=self.seed)

    def properties(self) -> dict[str, float]:
        return {cause.name: cause.auc for cause in property_aucs(self.comparison, self.texts, seed=self.seed)}


class _Columns:
    """N-gram counts of passages, made once for all comparisons of a run; in blocks, so that none is copied to grow."""

    def __init__(self) -> None:
        self._place: dict[int, tuple[int, int]] = {}
        self._blocks: list[csr_matrix] = []

    def clear(self) -> None:
        self._place, self._blocks = {}, []

    def counts(self, *sets: Texts) -> "csr_matrix":
        """Rows of the passages of the sets, one set after the other, [T, F]."""
        from scipy.sparse import vstack

        missing = {key: text for texts in sets for key, text in texts.text.items() if key not in self._place}
        if missing:
            self._place |= {key: (len(self._blocks), row) for row, key in enumerate(missing)}
            self._blocks.append(ngram_counts(list(missing.values())).astype(np.float32))
        block_T, row_T = np.array([self._place[key] for texts in sets for key in texts.text]).T
        parts = [np.flatnonzero(block_T == number) for number in range(len(self._blocks))]
        stacked = vstack([block[row_T[part]] for block, part in zip(self._blocks, parts, strict=True)], format="csr")
        return stacked[np.argsort(np.concatenate(parts))].astype(np.float64)
