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
import torch
from jaxtyping import Int
from torch import Tensor

from ioi_helpers.dataset.pieces import check_names, check_words, name_pieces
from ioi_helpers.dataset.prompts import TokenisedPrompts
from ioi_helpers.dataset.roles import IO, S1, S2
from ioi_helpers.dataset.rows import Rows, insert
from ioi_helpers.dataset.sampling import choose, draw_distinct
from ioi_helpers.stimuli import ADVERSARIAL_SENTENCES


def _features(agree: Iterable[str]) -> set[str]:
    """What a draw agrees in.

    Raises:
        ValueError: An unknown feature.
    """
    features = {"template", *([agree] if isinstance(agree, str) else agree)}
    unknown = features - {"template", "order", "IO", "S"}
    if unknown:
        raise ValueError(
            f"{sorted(unknown)[0]!r} is not a feature to agree in; use 'template', 'order', "
            "'IO' and 'S'."
        )
    return features


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
        mentions = self._rows.mentions.shape[1]
        fresh = self._fresh_names(seed, names, count=3 + mentions)
        rows = self._rows.rename(fresh[:, :3], fresh[:, 3:])
        return self._derive(f"abc(seed={seed})", rows)

    def random_names(self, seed: int = 0, names: Iterable[str] | None = None) -> Self:
        """Every name replaced by a new one, the same wherever it occurs ("random name flip").

        "Mary and John ... John" becomes "Amy and Paul ... Paul": the order (the positional signal)
        is kept, the token signal says nothing about the original names (IOI paper, Appendix A).
        The new names differ from the row's own. In a prefix sentence nothing is replaced.

        Arguments and errors are those of ``abc``.
        """
        old, strangers = self._rows.names(), self._rows.strangers()
        fresh = self._fresh_names(seed, names, count=3 + bool((strangers >= 0).any()))
        fresh, stranger = fresh[:, :3], fresh[:, 3:]
        # In an IOI row S2 repeats S1; in an ABC row it is a third name of its own.
        for other in (IO, S1):
            repeats = old[:, S2] == old[:, other]
            fresh[repeats, S2] = fresh[repeats, other]
        rows = self._rows.rename(fresh)
        if stranger.size:
            again = rows.mentioned()
            again = np.where(self._rows.mentioned() == strangers[:, None], stranger, again)
            rows = rows.rename(fresh, again)
        return self._derive(f"random_names(seed={seed})", rows)

    def redraw(
        self,
        agree: Iterable[str] = ("template",),
        seed: int = 0,
        names: Iterable[str] | None = None,
    ) -> Self:
        """Another IOI prompt for each row: alike in some features, drawn anew in all others.

        This is the draw that causal scrubbing makes: what a hypothesis says a part of the model
        does not depend on is replaced by what it is on such a prompt. Rows of a template (and of an
        order, if ``"order"`` is to agree) exchange their places and objects; which name comes first
        is otherwise decided by a coin for each row, and free names come from the pool. Tokens
        correspond by index where the template is without prefixes.

        Args:
            agree: Of ``"template"`` (always meant), ``"order"``, ``"IO"`` and ``"S"``.
            seed: Seeds the draw.
            names: Names to draw from; None for those that the dataset was made with.

        Raises:
            ValueError: An unknown feature, too few names, or rows of an ABC dataset.
        """
        features = _features(agree)
        self._need_subject("redraw")
        rng = np.random.default_rng(seed)
        partner = np.arange(len(self))
        group = self._alike(features)
        for number in np.unique(group):
            rows = np.flatnonzero(group == number)
            partner[rows] = rows[np.argsort(rng.random(len(rows)), kind="stable")]
        base = replace(self._rows.take(partner), pair_ids=self._rows.pair_ids)
        if "order" not in features:
            # A coin, not the partner's order: a row of a small template, or of data in one order
            # only, may have no partner of the other order, and then the draw would tell its own.
            turned = rng.random(len(self)) < 0.5
            columns = np.where(turned[:, None], base.columns[:, [S1, IO, S2]], base.columns)
            base = base.place(base.names(), columns)

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
            strangers = base.strangers()
            if (strangers >= 0).any():
                taken = number_of[np.concatenate([drawn[:, kept], strangers[:, None]], axis=1)]
                taken[strangers < 0, -1] = -1
            else:
                taken = number_of[drawn[:, kept]].reshape(len(self), len(kept))
            drawn[:, free] = pool_pieces[draw_distinct(rng, len(free), len(pool), taken)]
        drawn[:, S2] = drawn[:, S1]
        return self._derive(
            f"redraw({', '.join(sorted(features))}, seed={seed})", base.rename(drawn)
        )

    def agreeing(
        self, agree: Iterable[str] = ("template",), names: Iterable[str] | None = None
    ) -> Int[Tensor, " batch"]:
        """How many prompts there are that `redraw` may draw for each row, itself among them.

        Where that is 1, a draw is the row's own prompt, and shows nothing.

        Args:
            agree, names: As for `redraw`.

        Raises:
            ValueError: As for `redraw`.
        """
        features = _features(agree)
        self._need_subject("agreeing")
        # What is left of a row without its names: which place, which object.
        bare = self._rows.layout.copy()
        for columns in (self._rows.columns, self._rows.mentions):
            np.put_along_axis(bare, columns, -1, axis=1)
        group = self._alike(features)
        texts = {int(number): np.unique(bare[group == number], axis=0) for number in set(group)}
        pool = self.name_pool if names is None else check_names(self._pieces, names)
        pool_pieces = name_pieces(self._pieces, pool)
        kept = [column for column, name in ((IO, "IO"), (S1, "S")) if name in features]
        taken = np.concatenate(
            [self._rows.names()[:, kept], self._rows.strangers()[:, None]], axis=1
        )
        left = len(pool) - np.isin(taken, pool_pieces).sum(axis=1)
        choices = np.ones_like(left)
        for drawn in range(2 - len(kept)):
            choices = choices * (left - drawn)
        orders = 1 if "order" in features else 2
        return torch.from_numpy(np.array([len(texts[int(n)]) for n in group]) * choices * orders)

    def _alike(self, features: set[str]) -> Int[np.ndarray, " batch"]:
        """Rows with the same number may exchange their places and objects."""
        group = self._rows.template_ids * 2
        if "order" not in features:
            return group
        return group + (self._rows.columns[:, IO] < self._rows.columns[:, S1])

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

    # --- corruptions that are no counterfactuals -------------------------------------------------

    def insert(
        self,
        text: str,
        where: Literal["start", "middle", "after S2"] | str = "middle",
        *,
        seed: int = 0,
    ) -> Self:
        """The prompts with more words in them, which may name people: variants to break a model by.

        ::

            data.insert("[A] had a good day.")         # IO named once more
            data.insert("[C] had a good day.")         # its control: as long, a third name
            data.insert("Everyone had a good day.")    # as long, no name
            data.insert(", a friend of [A],", "after S2")

        Roles are those of the original names; where the new names stand is in ``mentions``. Prompts
        get longer, so this is not a counterfactual: the result is its own ``.clean``. Several
        calls insert several texts.

        Args:
            text: The words, with [A] for IO's name, [B] for S's and [C] for a third one: one third
                name a prompt, the same for the prompts of a pair.
            where: ``"start"``: before the prompt (after a prefix sentence). ``"middle"``: after
                the clause break between the first clause and S2, the last full stop there, or else
                the last comma. ``"after S2"``: directly behind S2.
            seed: Seeds the draw of the third name.

        Raises:
            ValueError: A text that is empty or has another field than these three, or a letter
                next to one; at the start, a text that begins with a name, whose token has a space
                before it; no clause break; too few names; or a counterfactual dataset.
        """
        if where not in ("start", "middle", "after S2"):
            raise ValueError(f"where must be 'start', 'middle' or 'after S2', not {where!r}.")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"The text to insert must hold some words, not {text!r}.")
        if self._clean is not None:
            raise ValueError(
                "Text goes into clean prompts only; call insert() first and make counterfactuals "
                "of its result."
            )
        text = " ".join(text.split())
        parts = re.split(r"(?:(?<=\s)|^)\[([ABC])\](?!\w)", text)
        if any("[" in part or "]" in part for part in parts[::2]):
            raise ValueError(
                f"The text {text!r} may hold the fields [A] (IO), [B] (S) and [C] (a third name), "
                "each a word of its own, and no other brackets."
            )
        if where == "start" and not parts[0]:
            raise ValueError(
                f"The text {text!r} begins with a name, but at the start of a prompt a name is "
                "another token; put a word before it, such as 'Then'."
            )
        own = self._rows.names()
        people = {"A": own[:, IO], "B": own[:, S1]}
        if "C" in parts[1::2]:
            people["C"] = self._third_names(seed)
        columns: list[Int[np.ndarray, " batch"]] = []
        named: list[int] = []
        for place, part in enumerate(parts):
            if place % 2:
                named.append(len(columns))
                columns.append(people[part])
            elif part.strip():
                # Words carry the space before them; punctuation, and the first words of all, none.
                first = not columns and (where != "start" or bool(self._rows.layout[:, 0].any()))
                spaced = part[0].isalnum() and (first or part.startswith(" "))
                words = f"{' ' * spaced}{part.strip()}" if not columns else part.rstrip()
                columns.append(np.full(len(self), self._pieces.add_one(words)))
        rows = insert(self._pieces, self._rows, np.stack(columns, axis=1), named, where)
        return self._inserted(rows, f"insert({text!r}, where={where!r})")

    def adversarial(
        self,
        about: Literal["IO", "S"] | str = "IO",
        sentences: Iterable[str] | None = None,
        pairs: bool = False,
        seed: int = 0,
    ) -> Self:
        """The prompts with one of several sentences about IO or S (IOI paper, section 4.4).

        A sentence such as "Mary had a good day." goes in after the clause break between the first
        clause and S2 (the last full stop there, or else the last comma). About IO, it makes IO
        a repeated name as well, which the circuit takes for the sign of a subject: GPT-2 small
        then prefers S on 23.4 % of prompts (0.7 % without; 0.4 % with a sentence about S).

        ``insert`` puts the same text into every prompt, and has controls.

        Args:
            about: "IO" or "S".
            sentences: Texts with [A] where the name goes; None for the paper's five.
            pairs: Insert two sentences, as the paper's code does (25 combinations), not one.
            seed: Which sentence goes where. Rows of a pair get the same, so that they still differ
                in names only.

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
        name = self._rows.names()[:, IO if about == "IO" else S1]
        pair_ids, pair = np.unique(self._rows.pair_ids, return_inverse=True)
        columns: list[Int[np.ndarray, " batch"]] = []
        for _ in range(2 if pairs else 1):
            picks = choose(rng, len(pair_ids), len(chosen))[pair]
            parts = [chosen[pick].split("[A]") for pick in picks]
            before = [f" {words.rstrip()}" if words else "" for words, _ in parts]
            columns += [
                self._pieces.add(before),
                name,
                self._pieces.add([after for _, after in parts]),
            ]
        named = range(1, len(columns), 3)
        rows = insert(self._pieces, self._rows, np.stack(columns, axis=1), named, "middle")
        return self._inserted(rows, f"adversarial(about={about!r})")

    # --- what the methods share ------------------------------------------------------------------

    def _derive(self, label: str, rows: Rows) -> Self:
        """A counterfactual of the clean dataset, made of ``rows``."""
        return self._replace(rows=rows, clean=self.clean, history=(*self.history, label))

    def _inserted(self, rows: Rows, label: str) -> Self:
        """A longer dataset, its own clean one, checked."""
        data = self._replace(rows=rows, width=0, history=(*self.history, label))
        data._check_assembly()
        return data

    def _third_names(self, seed: int) -> Int[np.ndarray, " batch"]:
        """The piece of a name that is none of the row's own; the same for the rows of a pair.

        Where a third name stands in the prompts already, it is that one.
        """
        strangers = self._rows.strangers()
        if (strangers >= 0).all():
            return strangers
        own = np.concatenate([self._rows.names()[:, :2], self._rows.mentioned()], axis=1)
        pool = name_pieces(self._pieces, self.name_pool)
        number_of = np.full(len(self._pieces.texts), -1, dtype=np.int64)
        number_of[pool] = np.arange(len(pool))
        _, first, pair = np.unique(self._rows.pair_ids, return_index=True, return_inverse=True)
        most = int(np.bincount(pair).max())
        taken = np.full((len(first), most * own.shape[1]), -1, dtype=np.int64)
        filled = np.zeros(len(first), dtype=np.int64)
        for row, group in enumerate(pair.tolist()):
            at = filled[group] * own.shape[1]
            taken[group, at : at + own.shape[1]] = number_of[own[row]]
            filled[group] += 1
        taken = np.sort(taken, axis=1)
        taken[:, 1:][taken[:, 1:] == taken[:, :-1]] = -1
        if len(pool) <= int((taken >= 0).sum(axis=1).max()):
            raise ValueError(
                f"There are only {len(pool)} names, too few for a third one; make the dataset with "
                "a longer list as names=."
            )
        drawn = draw_distinct(np.random.default_rng(seed), 1, len(pool), taken)[:, 0]
        return pool[drawn][pair]

    def _need_subject(self, method: str) -> None:
        names = self._rows.names()
        if (names[:, S1] != names[:, S2]).any():
            raise ValueError(
                f"{method}() needs prompts whose subject is named twice, but S1 and S2 differ here "
                "(is this an ABC dataset?); use data.clean."
            )

    def _fresh_names(
        self, seed: int, names: Iterable[str] | None, count: int = 3
    ) -> Int[np.ndarray, "batch count"]:
        """Pieces of names that differ from one another and from the row's own."""
        old = np.concatenate([self._rows.names(), self._rows.mentioned()], axis=1)
        pool = self.name_pool if names is None else check_names(self._pieces, names)
        pool_pieces = name_pieces(self._pieces, pool)
        number_of = np.full(len(self._pieces.texts), -1, dtype=np.int64)
        number_of[pool_pieces] = np.arange(len(pool))
        # One entry for each name, or the same name would be stepped over twice.
        taken = np.sort(number_of[old], axis=1)
        taken[:, 1:][taken[:, 1:] == taken[:, :-1]] = -1
        if len(pool) - int((taken >= 0).sum(axis=1).max()) < count:
            raise ValueError(
                f"There are only {len(pool)} names, too few to give a row {count} new ones; "
                "pass a longer list as names=."
            )
        return pool_pieces[draw_distinct(np.random.default_rng(seed), count, len(pool), taken)]
