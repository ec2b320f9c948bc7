"""Counterfactuals: the same prompts with one thing changed, row by row and token by token.

Patching a counterfactual's activations into the clean run shows what those activations carry, so
what each change keeps and what it destroys is what matters here. At the end stands a corruption of
another kind: a distracting sentence in the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, Self

import numpy as np
from jaxtyping import Int

from ioi_helpers.dataset.pieces import check_names, check_words, name_pieces
from ioi_helpers.dataset.prompts import TokenisedPrompts
from ioi_helpers.dataset.roles import IO, S1, S2
from ioi_helpers.dataset.rows import Rows, insert_sentences
from ioi_helpers.dataset.sampling import choose, draw_distinct
from ioi_helpers.stimuli import ADVERSARIAL_SENTENCES


class PromptsWithCounterfactuals(TokenisedPrompts):
    """The methods of ``IOIDataset`` that make counterfactuals; see there for how to use them."""

    # --- one name changed, or two exchanged ------------------------------------------------------

    def swap_subject(self) -> Self:
        """The other name is the subject: S2 becomes IO's name (the demo's corrupted prompts).

        "When John and Mary went to the shops, John gave the bag to" (answer Mary) becomes "...,
        Mary gave the bag to" (answer John). One token differs. As the other name is now the
        repeated one, both of S-inhibition's signals are inverted: which name is repeated, and where
        it stood. ABBA becomes BABA, though no name in the first clause has moved.

        Raises:
            ValueError: Rows of an ABC dataset have no subject that is named twice.
        """
        self._need_subject("swap_subject")
        names, columns = self._rows.names(), self._rows.columns
        rows = self._rows.place(names[:, [S1, IO, IO]], columns[:, [S1, IO, S2]])
        return self._derive("swap_subject", rows)

    def swap_order(self) -> Self:
        """The two names of the first clause change places: ABBA becomes BABA and back.

        "When John and Mary went to the shops, John gave" becomes "When Mary and John went to the
        shops, John gave": the same subject and the same answer, but the repeated name stood at the
        other place. This is the IOI paper's "IO <-> S1 flip" (Appendix A) and, per the LRQP post,
        the variable that GPT-2 small mostly uses.
        """
        rows = self._rows.place(self._rows.names(), self._rows.columns[:, [S1, IO, S2]])
        return self._derive("swap_order", rows)

    # --- other names -----------------------------------------------------------------------------

    def abc(self, seed: int = 0, names: Iterable[str] | None = None) -> Self:
        """Three unrelated names at IO, S1 and S2: the IOI paper's p_ABC (section 2.1).

        Nothing is repeated, so there is no right answer; everything else (template, length, that
        names stand there) is kept. This is the reference for mean ablation and path patching. The
        three differ from one another and from the row's own two names. (The paper's code replaces
        names in several steps and may by chance draw the same one twice.)

        Its ``io_tokens`` and ``s_tokens`` are the new names at IO and S1; the third name, at S2, is
        in ``names``.

        Args:
            seed: Seeds the draw. Rows are drawn in order, so ``data[:k].abc()`` is
                ``data.abc()[:k]``.
            names: Names to draw from; None for those that the dataset was made with.

        Raises:
            ValueError: Too few names to draw three new ones, or a name that is not one token.
        """
        return self._derive(f"abc(seed={seed})", self._rows.rename(self._fresh_names(seed, names)))

    def random_names(self, seed: int = 0, names: Iterable[str] | None = None) -> Self:
        """Every name replaced by a new one, the same wherever it occurs ("random name flip").

        "Mary and John ... John" becomes "Amy and Paul ... Paul": the order (the positional signal)
        is kept, the token signal says nothing about the original names (IOI paper, Appendix A).
        The new names differ from the row's own. In a prefix sentence nothing is replaced.

        Arguments and errors are those of ``abc``.
        """
        old, fresh = self._rows.names(), self._fresh_names(seed, names)
        # In an IOI row S2 repeats S1; in an ABC row it is a third name of its own.
        for other in (IO, S1):
            repeats = old[:, S2] == old[:, other]
            fresh[repeats, S2] = fresh[repeats, other]
        return self._derive(f"random_names(seed={seed})", self._rows.rename(fresh))

    def redraw(
        self,
        agree: Iterable[str] = ("template",),
        seed: int = 0,
        names: Iterable[str] | None = None,
    ) -> Self:
        """Another IOI prompt for each row: alike in some features, drawn anew in all others.

        This is the draw that causal scrubbing makes: what a hypothesis says a part of the model
        does not depend on is replaced by what it is on such a prompt. Rows of a template exchange
        their places and objects (and, unless ``"order"`` is to agree, their orders); names are
        drawn from the pool. Tokens correspond by index where the template is without prefixes.

        Args:
            agree: Of ``"template"`` (always meant), ``"order"``, ``"IO"`` and ``"S"``.
            seed: Seeds the draw.
            names: Names to draw from; None for those that the dataset was made with.

        Raises:
            ValueError: An unknown feature, too few names, or rows of an ABC dataset.
        """
        features = {"template", *([agree] if isinstance(agree, str) else agree)}
        unknown = features - {"template", "order", "IO", "S"}
        if unknown:
            raise ValueError(
                f"{sorted(unknown)[0]!r} is not a feature to agree in; use 'template', 'order', "
                "'IO' and 'S'."
            )
        self._need_subject("redraw")
        rng = np.random.default_rng(seed)
        partner = np.arange(len(self))
        io_first = self._rows.columns[:, IO] < self._rows.columns[:, S1]
        group = self._rows.template_ids * 2
        if "order" in features:
            group = group + io_first
        for number in np.unique(group):
            rows = np.flatnonzero(group == number)
            partner[rows] = rows[np.argsort(rng.random(len(rows)), kind="stable")]
        base = replace(self._rows.take(partner), pair_ids=self._rows.pair_ids)

        pool = self.name_pool if names is None else check_names(self._pieces, names)
        pool_pieces = name_pieces(self._pieces, pool)
        number_of = np.full(len(self._pieces.texts), -1, dtype=np.int64)
        number_of[pool_pieces] = np.arange(len(pool))
        drawn = self._rows.names().copy()
        kept = [column for column, name in ((IO, "IO"), (S1, "S")) if name in features]
        free = [column for column in (IO, S1) if column not in kept]
        if len(pool) < 2:
            raise ValueError("A prompt needs two names; pass a longer list as names=.")
        if free:
            taken = number_of[drawn[:, kept]] if kept else np.empty((len(self), 0), dtype=np.int64)
            drawn[:, free] = pool_pieces[draw_distinct(rng, len(free), len(pool), taken)]
        drawn[:, S2] = drawn[:, S1]
        return self._derive(
            f"redraw({', '.join(sorted(features))}, seed={seed})", base.rename(drawn)
        )

    # --- the two signals of S-inhibition, one by one ---------------------------------------------

    def flip(
        self,
        position: bool = True,
        token: Literal["original", "random", "inverted"] | str = "original",
        seed: int = 0,
        names: Iterable[str] | None = None,
    ) -> Self:
        """The six cells of the IOI paper's signal table (Appendix A, Figure 9).

        S-inhibition heads tell name movers *which name* to avoid (token signal) and *which place*
        to avoid (position signal). Take a head's output at END from one of these datasets, patch it
        into the clean run, and each signal is kept, inverted or made meaningless. For the clean
        prompt "Mary and John ... John" (order ABBA):

        ============  ===================================  =========================================
        ``token``     ``position=False`` (kept)            ``position=True`` (inverted)
        ============  ===================================  =========================================
        "original"    Mary and John ... John (itself)      John and Mary ... John (``swap_order``)
        "random"      Amy and Paul ... Paul                Paul and Amy ... Paul
                      (``random_names``)                   (``random_names``, then ``swap_order``)
        "inverted"    John and Mary ... Mary               Mary and John ... Mary
                      (``swap_subject``, ``swap_order``)   (``swap_subject``)
        ============  ===================================  =========================================

        Read a row of the second line so: the repeated name stood at the second place, as in the
        clean prompt, but it is neither of the clean names. Patched into GPT-2 small's S-inhibition
        heads, the published logit differences (of the clean prompts' answers) are 3.55, 2.45, 1.77
        for the first column and -0.99, -1.96, -3.16 for the second.

        Args:
            position: Invert the position signal.
            token: What becomes of the token signal.
            seed, names: For ``token="random"``, as in ``random_names``.

        Raises:
            ValueError: Another ``token``; an ABC dataset; too few names.
        """
        if token not in ("original", "random", "inverted"):
            raise ValueError(f"token must be 'original', 'random' or 'inverted', not {token!r}.")
        self._need_subject("flip")
        flipped = self
        if token == "random":
            flipped = flipped.random_names(seed, names)
        if token == "inverted":
            flipped = flipped.swap_subject()
        # Inverting the token alone already inverts the position, so the order is set right again
        # exactly when both or neither are asked for.
        if position != (token == "inverted"):
            flipped = flipped.swap_order()
        return self._derive(f"flip(position={position}, token={token!r})", flipped._rows)

    # --- a corruption that is no counterfactual --------------------------------------------------

    def adversarial(
        self,
        about: Literal["IO", "S"] | str = "IO",
        sentences: Iterable[str] | None = None,
        pairs: bool = False,
        seed: int = 0,
    ) -> Self:
        """The prompts with a distracting sentence about IO or S (IOI paper, section 4.4).

        A sentence such as "Mary had a good day." goes in after the clause break between the first
        clause and S2 (the last full stop there, or else the last comma). About IO, it makes IO
        a repeated name as well, which the circuit takes for the sign of a subject: GPT-2 small
        then prefers S on 23.4 % of prompts (0.7 % without; 0.4 % with a sentence about S).

        Roles are those of the original names: the mention in the inserted sentence is none of
        them. Prompts get longer, so this is not a counterfactual: the result is its own ``.clean``.

        Args:
            about: "IO" or "S".
            sentences: Texts with [A] where the name goes; None for the paper's five.
            pairs: Insert two sentences, as the paper's code does (25 combinations), not one.
            seed: Which sentence goes where.

        Raises:
            ValueError: Another ``about``; a sentence without exactly one [A]; a prompt without
                a clause break before S2; a dataset that is a counterfactual or already has such
                sentences.
        """
        if about not in ("IO", "S"):
            raise ValueError(f"about must be 'IO' or 'S', not {about!r}.")
        if self._clean is not None or self._rows.mentions.shape[1]:
            raise ValueError(
                "Distracting sentences go into clean prompts only; "
                "call adversarial() first and make counterfactuals of its result."
            )
        chosen = check_words("sentences", sentences, ADVERSARIAL_SENTENCES)
        for sentence in chosen:
            if not re.fullmatch(r"(?:[^\[\]]* )?\[A\](?:[^\w\[\]][^\[\]]*)?", sentence):
                raise ValueError(f"The sentence {sentence!r} must hold [A], as a word, just once.")
        rng = np.random.default_rng(seed)
        picks = [choose(rng, len(self), len(chosen)) for _ in range(2 if pairs else 1)]
        rows = insert_sentences(
            self._pieces,
            self._rows,
            [[chosen[i] for i in pick] for pick in picks],
            self._rows.names()[:, IO if about == "IO" else S1],
        )
        data = self._replace(
            rows=rows, width=0, history=(*self.history, f"adversarial(about={about!r})")
        )
        data._check_assembly()
        return data

    # --- what the methods share ------------------------------------------------------------------

    def _derive(self, label: str, rows: Rows) -> Self:
        """A counterfactual of the clean dataset, made of ``rows``."""
        return self._replace(rows=rows, clean=self.clean, history=(*self.history, label))

    def _need_subject(self, method: str) -> None:
        names = self._rows.names()
        if (names[:, S1] != names[:, S2]).any():
            raise ValueError(
                f"{method}() needs prompts whose subject is named twice, but S1 and S2 differ here "
                "(is this an ABC dataset?); use data.clean."
            )

    def _fresh_names(self, seed: int, names: Iterable[str] | None) -> Int[np.ndarray, "batch 3"]:
        """Pieces of names that differ from one another and from the row's own."""
        old = self._rows.names()
        pool = self.name_pool if names is None else check_names(self._pieces, names)
        pool_pieces = name_pieces(self._pieces, pool)
        number_of = np.full(len(self._pieces.texts), -1, dtype=np.int64)
        number_of[pool_pieces] = np.arange(len(pool))
        taken = number_of[old]
        # One entry for each name, or the same name would be stepped over twice.
        repeated = (old[:, S2] == old[:, S1]) | (old[:, S2] == old[:, IO])
        taken[repeated, S2] = -1
        if len(pool) - int((taken >= 0).sum(axis=1).max()) < 3:
            raise ValueError(
                f"There are only {len(pool)} names, too few to give a row 3 new ones; "
                "pass a longer list as names=."
            )
        return pool_pieces[draw_distinct(np.random.default_rng(seed), 3, len(pool), taken)]
