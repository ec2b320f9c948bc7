"""``IOIDataset`` and the ways of making one: random prompts, the demo's, the paper's, your own.

What it inherits is in the two modules before it: ``prompts`` (what a dataset holds and how to read
it) and ``counterfactuals``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Literal, Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from ioi_helpers.dataset import files
from ioi_helpers.dataset.counterfactuals import PromptsWithCounterfactuals
from ioi_helpers.dataset.pieces import (
    Pieces,
    check_names,
    check_nouns,
    name_pieces,
    prompts_and_answers,
    require_bos,
    usable_names,
)
from ioi_helpers.dataset.prefixes import resolve_prefixes
from ioi_helpers.dataset.roles import ORDERS
from ioi_helpers.dataset.rows import Rows, lay_out
from ioi_helpers.dataset.sampling import choose, deal, draw_distinct
from ioi_helpers.dataset.templates import parse_template, resolve_templates, template_of_prompt
from ioi_helpers.stimuli import (
    DEMO_PAIRS,
    DEMO_PROMPTS,
    OBJECTS,
    PAPER_NAMES,
    PLACES,
    TEMPLATES,
)


class IOIDataset(PromptsWithCounterfactuals):
    """Indirect-object prompts, tokenised, with the position of every role in every prompt.

    Make one with ``IOIDataset.generate``, ``.demo``, ``.paper`` or ``.from_prompts``; keep it with
    ``.save`` and ``.load``. It is never changed in place: slicing, ``.to`` and the counterfactual
    methods return new datasets.

    What a dataset holds:
        prompts: The texts, without the answer and without BOS.
        tokens: Int[batch pos], padded on the *right*. BOS comes first if ``prepend_bos``.
        lengths: Int[batch], tokens in each prompt (BOS counted, padding not).
        attention_mask: Int[batch pos], 1 on tokens and 0 on padding. The padding token may be the
            BOS token itself, so never look for padding by its id. A causal model needs no mask
            here: nothing before the padding can see it.
        io_tokens, s_tokens: Int[batch], the tokens of the names at IO and at S1.
        orders: "ABBA" where IO is named first, "BABA" where S is.
        positions: Role -> Int[batch], for ``ROLES``.
        names: The names at IO, S1 and S2 of each row.
        mentions: Int[batch mention], positions of the names in sentences that ``insert`` and
            ``adversarial`` put in; none of them is a role.
        template_ids: Int[batch], index into ``templates``.
        pair_ids: Int[batch]; rows with the same number were generated together (the same sentence
            with the names exchanged). Keep them together when you split rows for a probe.

    **Counterfactuals** (``swap_subject``, ``swap_order``, ``abc``, ``random_names``, ``flip``) are
    datasets that line up with this one row by row, token by token: only names differ, each a single
    token, so ``lengths`` are equal and position i of one row is position i of the other.

    *Every dataset describes its own text.* In ``data.swap_subject()`` the other name is the
    subject, so its ``io_tokens``, ``s_tokens``, ``orders`` and ``positions`` say so: its own answer
    is ``io_tokens``. The dataset it came from stays reachable as ``.clean`` (a dataset that is no
    counterfactual is its own ``.clean``). For activation patching use the clean roles and the clean
    answers on both runs: ``logit_diff(logits_of_corrupted_run, corrupted.clean)`` is about minus
    the clean value for swapped subjects, whereas ``logit_diff(logits_of_corrupted_run, corrupted)``
    asks whether the model solves the corrupted prompts.
    """

    @classmethod
    def generate(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        n: int,
        order: Literal["ABBA", "BABA", "mixed"] | str = "mixed",
        templates: str | Iterable[str] | None = None,
        prefixes: str | Iterable[str] | None = None,
        paired: bool = True,
        prepend_bos: bool = True,
        seed: int = 0,
        names: Iterable[str] | None = None,
        places: Iterable[str] | None = None,
        objects: Iterable[str] | None = None,
        balanced: bool = True,
        multi_token_names: bool = False,
    ) -> IOIDataset:
        """``n`` random IOI prompts. The same arguments give the same prompts.

        Args:
            tokenizer: One whose words carry their leading space, as those of GPT-2, Llama, Gemma
                and Mistral do. The prompts of a sample are tokenised whole and compared with the
                assembled ids, so a tokenizer that works otherwise is refused instead of giving
                wrong positions.
            n: Number of prompts.
            order: "ABBA" names IO before S ("Mary and John ... John"), "BABA" names S first, and
                "mixed" has half of each.
            templates: None or "paper" for the IOI paper's 15, "demo" for those of TransformerLens'
                Exploratory Analysis demo, or your own, with [A] for IO and [B] for S; [PLACE] and
                [OBJECT] are optional.
            prefixes: A sentence put before each prompt, so that positions vary: None, "bundled"
                (sentences of this project, no name in any), "openwebtext" (downloaded; see
                ``openwebtext_sentences``), or sentences of your own, used as they are.
            paired: Generate each prompt twice in a row, the second time with the two names
                exchanged everywhere. Whatever a model thinks of a name by itself then cancels in
                the mean logit difference, as in the demo. ``n`` must be even.
            prepend_bos: Put BOS before each prompt. TransformerLens' demos do; the IOI paper's
                code does not. GPT-2 treats its first token in a special way, so results differ a
                little: always say which.
            seed: Seeds every choice.
            names: Single-token names to draw from; None for the bundled ones that are single tokens
                of this tokenizer. Of a set, as of every other argument that may be one, the order
                is that of the alphabet.
            places, objects: Words for [PLACE] and [OBJECT]; None for the eight of each that the
                IOI paper's code has (its text speaks of 20 common words), or those of them that are
                single tokens.
            balanced: Use orders and templates equally often (to within one pair), in random
                order. False draws them independently, as the IOI paper's code does.
            multi_token_names: Allow names of several tokens, each with a first token of its own.
                There the name's role stands, and by it the answer is scored. A counterfactual
                corresponds to its prompt token by token only where the names in it are equally
                long; what needs that refuses others.

        Raises:
            ValueError: One sentence on what is wrong: no tokenizer; ``n`` not positive, or odd with
                ``paired``; an unknown order; a template without its fields; a name that is not one
                token (with names that are); too few names; a text that holds a special token such
                as a BOS of its own; no BOS token though one is wanted.
            RuntimeError: "openwebtext" was asked for and cannot be had.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise ValueError(f"n must be a positive number of prompts, not {n!r}.")
        if order not in ORDERS:
            raise ValueError(f"order must be 'ABBA', 'BABA' or 'mixed', not {order!r}.")
        if paired and n % 2:
            raise ValueError(
                f"n must be even when paired=True (each prompt comes twice), not {n}; "
                "use an even n or paired=False."
            )
        parsed = resolve_templates(templates)
        pieces = Pieces(tokenizer, multi_token_names)
        pool = check_names(pieces, names)
        place_words = check_nouns(pieces, "places", places, PLACES)
        object_words = check_nouns(pieces, "objects", objects, OBJECTS)

        groups = int(n) // 2 if paired else int(n)
        sentences = resolve_prefixes(prefixes, tokenizer, groups, seed, pool)
        rng = np.random.default_rng(seed)
        if order == "mixed":
            io_first = (deal(rng, groups, 2) if balanced else choose(rng, groups, 2)) == 1
        else:
            io_first = np.full(groups, order == "ABBA")
        template_ids = choose(rng, groups, len(parsed))
        if balanced:
            for which in (True, False):
                these = np.flatnonzero(io_first == which)
                template_ids[these] = deal(rng, len(these), len(parsed))
        drawn = draw_distinct(rng, 2, len(pool), taken=np.empty((groups, 0), dtype=np.int64))
        place_ids = choose(rng, groups, len(place_words))
        object_ids = choose(rng, groups, len(object_words))
        prefix_ids = choose(rng, groups, max(len(sentences), 1))

        pair_ids = np.arange(groups)
        if paired:
            drawn = np.stack([drawn, drawn[:, ::-1]], axis=1).reshape(-1, 2)
            twice = [io_first, template_ids, place_ids, object_ids, prefix_ids, pair_ids]
            io_first, template_ids, place_ids, object_ids, prefix_ids, pair_ids = (
                np.repeat(column, 2) for column in twice
            )
        rows = lay_out(
            pieces,
            parsed,
            template_ids=template_ids,
            pair_ids=pair_ids,
            io_first=io_first,
            names=name_pieces(pieces, pool)[drawn],
            places=[place_words[i] for i in place_ids],
            objects=[object_words[i] for i in object_ids],
            prefixes=[sentences[i] for i in prefix_ids] if sentences else None,
        )
        return cls._build(pieces, rows, tuple(t.text for t in parsed), pool, prepend_bos)

    @classmethod
    def demo(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        prepend_bos: bool = True,
        multi_token_names: bool = False,
    ) -> IOIDataset:
        """The 8 prompts of TransformerLens' Exploratory Analysis demo, in its order, with BOS.

        Rows 2i and 2i+1 are the same sentence with the other name as subject, so each is the
        other's counterfactual: ``demo.swap_subject()`` is the demo's list of corrupted prompts. (In
        a dataset made by ``generate``, the two rows of a pair exchange the names in the first
        clause as well.) GPT-2 small's published mean logit difference on these prompts is 3.55.
        """
        answers = []
        for row, prompt in enumerate(DEMO_PROMPTS):
            one, other = DEMO_PAIRS[row // 2]
            answers.append((other, one) if prompt.count(one) == 2 else (one, other))
        pairs = [row // 2 for row in range(len(DEMO_PROMPTS))]
        return cls.from_prompts(
            tokenizer,
            DEMO_PROMPTS,
            answers,
            prepend_bos=prepend_bos,
            pair_ids=pairs,
            multi_token_names=multi_token_names,
        )

    @classmethod
    def paper(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        n: int,
        order: Literal["ABBA", "BABA", "mixed"] | str = "mixed",
        seed: int = 0,
    ) -> IOIDataset:
        """Prompts drawn as the IOI paper's *code* draws them, for comparing numbers with it.

        That is: the first 7 of the 15 templates, each in both orders, for "mixed" (14 in all; with
        a single order the code uses all 15 templates); 99 names; template, names, place and object
        drawn independently for each prompt; prompts not paired; no BOS. (The paper's text says 15
        templates and 100 names.) The random numbers are not those of the code, so the prompts
        follow the same distribution without being the same ones. Names that are several tokens of
        another tokenizer than GPT-2's are left out.

        Source: redwoodresearch/Easy-Transformer, ioi_dataset.py.
        """
        return cls.generate(
            tokenizer,
            n,
            order=order,
            templates=TEMPLATES[:7] if order == "mixed" else TEMPLATES,
            paired=False,
            prepend_bos=False,
            seed=seed,
            names=usable_names(Pieces(tokenizer), PAPER_NAMES),
            balanced=False,
        )

    @classmethod
    def from_prompts(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Iterable[str],
        answers: Iterable[tuple[str, str]],
        *,
        prepend_bos: bool = True,
        pair_ids: Sequence[int] | None = None,
        names: Iterable[str] | None = None,
        multi_token_names: bool = False,
    ) -> IOIDataset:
        """Prompts that you wrote yourself.

        Args:
            tokenizer: As in ``generate``.
            prompts: Texts without the answer, such as "When Ann and Bob met, Bob gave a book to".
            answers: (IO, S) for each prompt, such as ("Ann", "Bob").
            prepend_bos: Put BOS before each prompt.
            pair_ids: A number for each prompt, equal for prompts that belong together; by default
                every prompt stands alone.
            names: Names that ``abc`` and ``random_names`` may use; None for the bundled ones.
            multi_token_names: As for ``generate``.

        Raises:
            ValueError: In some prompt IO does not occur exactly once, or S exactly twice, or the
                second S does not come last, so that the roles would be a guess; a name is not
                a single token; or a prompt holds a special token such as a BOS of its own.
        """
        texts, pairs = prompts_and_answers(
            prompts,
            answers,
            "of names (IO, S), such as ('Mary', 'John')",
            pair_ids=pair_ids,
        )
        pieces = Pieces(tokenizer, multi_token_names)
        used = [name.strip() for pair in pairs for name in pair]
        if multi_token_names:  # the names of the prompts come first, the bundled ones yield to them
            name_pieces(pieces, used)
        pool = check_names(pieces, names)
        template_of: dict[str, int] = {}
        template_ids, io_first = [], []
        for text, (io, s) in zip(texts, pairs, strict=True):
            template, first = template_of_prompt(text, io.strip(), s.strip())
            template_ids.append(template_of.setdefault(template, len(template_of)))
            io_first.append(first)
        parsed = [parse_template(template) for template in template_of]
        rows = lay_out(
            pieces,
            parsed,
            template_ids=np.array(template_ids, dtype=np.int64),
            pair_ids=np.array(range(len(texts)) if pair_ids is None else pair_ids, dtype=np.int64),
            io_first=np.array(io_first),
            names=name_pieces(pieces, used).reshape(-1, 2),
        )
        return cls._build(pieces, rows, tuple(template_of), pool, prepend_bos)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the dataset, and the clean one it is a counterfactual of, into a safetensors file.

        The texts are JSON in its metadata. The tokenizer is not written.
        """
        files.write(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str], tokenizer: PreTrainedTokenizerBase) -> Self:
        """Read what ``save`` wrote: the same prompts, tokens, roles and ``clean``, on the CPU.

        Args:
            path: The file.
            tokenizer: The one that the dataset was made with.

        Raises:
            ValueError: The file holds something else, or was made with another tokenizer.
        """
        return files.read(cls, path, tokenizer)

    @classmethod
    def _build(
        cls,
        pieces: Pieces,
        rows: Rows,
        templates: tuple[str, ...],
        name_pool: tuple[str, ...],
        prepend_bos: bool,
    ) -> IOIDataset:
        if prepend_bos:
            require_bos(pieces.tokenizer)
        data = cls(pieces, rows, templates=templates, name_pool=name_pool, prepend_bos=prepend_bos)
        data._check_assembly()
        return data
