"""The text that the bundled models are trained on, made by a small grammar.

Four kinds: ordinary sentences; IOI prompts in every published template, loosened (other openings,
objects, words between the names and S2) so that no distance gives the order away; the same with
three different names (ABC), answered by either of the first two; and random words repeated, which
is what previous-token and induction heads live on. Name pairs and bundled prefix sentences that
:func:`held_out_pair` and :func:`held_out_prefixes` name never occur in an IOI prompt here.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from ioi_helpers import stimuli
from ioi_helpers.bundled.tokenizer import BOS, split
from training import lexicon
from training.vocabulary import vocabulary

S_ANSWER_RATE = 0.03  # log(0.97 / 0.03) = 3.48, near GPT-2 small's logit difference of 3.5
ANSWER_WEIGHT = 8.0  # the answer is one word among forty: without this it drowns in their noise
REPEAT_WEIGHT = 3.0

_NOUNS = lexicon.COUNT_NOUNS
_PLACES = tuple(dict.fromkeys((*stimuli.PLACES, *lexicon.PLACES_MORE)))
_OBJECTS = tuple(dict.fromkeys((*stimuli.OBJECTS, *lexicon.OBJECTS_MORE)))
_DEMO_PAIRS = {frozenset(pair) for pair in stimuli.DEMO_PAIRS}


def held_out_pair(a: str, b: str) -> bool:
    """Whether this pair of names, in either order, is kept out of the IOI training text."""
    pair = frozenset((a, b))
    return pair in _DEMO_PAIRS or zlib.crc32(" ".join(sorted(pair)).encode()) % 10 == 0


def held_out_prefixes() -> tuple[str, ...]:
    """The bundled prefix sentences that never occur in training (every fifth)."""
    return stimuli.PREFIXES[::5]


_TRAIN_PREFIXES = tuple(p for i, p in enumerate(stimuli.PREFIXES) if i % 5)


@dataclass(frozen=True)
class Document:
    """A training text: token ids, BOS first, and for each token the weight of predicting it."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Prompt:
    """An IOI prompt without its answer: ids and where the roles stand.

    ``second_is_subject`` is the order bit: True for ABBA (S1 is the second name).
    """

    ids: list[int]
    first: int
    second: int
    s2: int
    second_is_subject: bool

    @property
    def end(self) -> int:
        return len(self.ids) - 1


class Corpus:
    """Draws training texts; the same seed gives the same texts."""

    def __init__(self, seed: int, context: int) -> None:
        self.rng = random.Random(seed)
        self.context = context
        self.ids = {token: i for i, token in enumerate(vocabulary())}
        self.name_ids = {self.ids[f" {name}"] for name in stimuli.NAMES}
        # Round-robin over the whole vocabulary, so that every word is trained.
        self._words = list(range(1, len(self.ids)))
        self._next_word = len(self._words)

    def encode(self, text: str) -> list[int]:
        return [self.ids[BOS], *(self.ids[piece] for piece in split(text))]

    # Ordinary sentences -----------------------------------------------------------------------

    def _noun_phrase(self) -> str:
        r = self.rng
        adjective = r.choice(lexicon.ADJECTIVES) + " " if r.random() < 0.4 else ""
        kind = r.random()
        if kind < 0.55:
            return f"the {adjective}{r.choice(_NOUNS)}"
        if kind < 0.7:
            noun = adjective + r.choice(_NOUNS)
            return ("an " if noun[0] in "aeiou" else "a ") + noun
        if kind < 0.85:
            many = r.choice(("the", "many", "some", "several", "most", "few", "two", "three"))
            return f"{many} {adjective}{lexicon.plural(r.choice(_NOUNS))}"
        if kind < 0.95:
            return f"the {adjective}{r.choice(lexicon.MASS_NOUNS)}"
        return f"{r.choice(('his', 'her', 'their', 'our', 'my'))} {adjective}{r.choice(_NOUNS)}"

    def _prepositional_phrase(self) -> str:
        place = ("in", "at", "near", "behind", "with", "on", "under", "by", "after", "before")
        return f"{self.rng.choice(place)} {self._noun_phrase()}"

    def _predicate(self) -> str:
        r = self.rng
        base, past, ing = r.choice(lexicon.VERBS)
        kind = r.random()
        if kind < 0.45:
            return f"{past} {self._noun_phrase()}"
        if kind < 0.6:
            return f"was {ing} {self._noun_phrase()}"
        if kind < 0.75:
            verb = r.choice(("wanted", "decided", "had", "began", "promised", "used"))
            return f"{verb} to {base} {self._noun_phrase()}"
        if kind < 0.9:
            return f"was {r.choice(lexicon.ADJECTIVES)}"
        return f"could not {base} {self._noun_phrase()}"

    def sentence(self, subject: str | None = None) -> str:
        """One ordinary sentence, capitalised, with its full stop."""
        r = self.rng
        first = subject or self._noun_phrase()
        text = f"{first} {self._predicate()}"
        kind = r.random()
        if kind < 0.2:
            text += " " + r.choice(lexicon.ADVERBS)
        elif kind < 0.45:
            text += " " + self._prepositional_phrase()
        elif kind < 0.65:
            joint = r.choice(("and", "because", "but", "while", "when", "although"))
            text += f" {joint} {self._noun_phrase()} {self._predicate()}"
        if subject is None:
            text = text[0].upper() + text[1:]
        if split(text)[0] not in self.ids:
            text = f"The {r.choice(_NOUNS)} {self._predicate()}"
        return text + "."

    def _prefix(self) -> str:
        r = self.rng
        return r.choice(_TRAIN_PREFIXES) if r.random() < 0.5 else self.sentence()

    def _prefixes(self, most: int = 3) -> str:
        r = self.rng
        count = r.choices(range(4), (40, 35, 15, 10))[0]
        if r.random() < 0.06:  # long ones, so that late positions know the task as well
            count = r.randint(4, 12)
        return "".join(self._prefix() + " " for _ in range(min(count, most if most > 3 else count)))

    def narrative(self) -> str:
        """A few sentences about one or two people, or about nobody."""
        r = self.rng
        people = r.sample(stimuli.NAMES, 2)
        sentences = []
        for _ in range(r.randint(1, 5)):
            kind = r.random()
            if kind < 0.35:
                sentences.append(self.sentence())
            elif kind < 0.7:
                sentences.append(self.sentence(r.choice(people)))
            elif kind < 0.85:
                sentences.append(self._prefix())
            else:
                line = r.choice(stimuli.ADVERSARIAL_SENTENCES)
                sentences.append(line.replace("[A]", r.choice(people)))
        return " ".join(sentences)

    # IOI ---------------------------------------------------------------------------------------

    def _object(self) -> str:
        r = self.rng
        noun = r.choice(_OBJECTS)
        if r.random() < 0.1:
            noun = r.choice(_NOUNS)
        if r.random() < 0.1:
            noun = f"{r.choice(('bottle', 'cup', 'glass', 'box', 'bag'))} of " + r.choice(
                lexicon.MASS_NOUNS
            )
        if r.random() < 0.25:
            noun = f"{r.choice(lexicon.ADJECTIVES)} {noun}"
        return noun

    def _loosen(self, template: str) -> str:
        """Put ordinary words between the names and S2, so that distance does not tell the order."""
        r = self.rng
        head, subject, tail = template.rpartition("[B]")
        if r.random() < 0.25:
            word = r.choice(("both", "often", "never", "finally", "quickly", "once", "also"))
            head = head.replace("[B] and [A]", f"[B] and [A] {word}", 1)
        for stop in (". ", ", "):
            if stop not in head.split("[A]")[-1]:
                continue
            before, _, after = head.rpartition(stop)
            for _ in range(r.choices((0, 1, 2), (35, 45, 20))[0]):
                before += " " + self._prepositional_phrase()
            if stop == ". ":
                if r.random() < 0.25:
                    before += ". " + self._prefix()[:-1]
                if not after and r.random() < 0.4:
                    after = r.choice(("Later,", "Then,", "Soon", "Afterwards", "Yesterday,")) + " "
            head = before + stop + after
            break
        if r.random() < 0.1:
            tail = f" {r.choice(('quickly', 'finally', 'quietly', 'happily', 'slowly'))}" + tail
        return head + subject + tail

    def _template(self) -> str:
        r = self.rng
        kind = r.random()
        template = r.choice(stimuli.TEMPLATES if kind < 0.85 else stimuli.DEMO_TEMPLATES)
        if r.random() < 0.7:
            template = self._loosen(template)
        if r.random() < 0.15:
            verb = r.choice(("handed", "offered", "sent", "showed", "passed", "brought"))
            template = template.replace("] gave ", f"] {verb} ")
        if r.random() < 0.15 and template.startswith(("Then, ", "Afterwards, ")):
            opener = r.choice(("Yesterday, ", "Today, ", "Sometimes ", "Later, ", "Once "))
            template = opener + template.split(", ", 1)[1]
        return template.removesuffix(" [A]")

    def _fill(self, template: str, first: str, second: str, subject: str) -> str:
        head, _, tail = template.rpartition("[B]")
        noun = self._object()
        text = head.replace("[B]", first).replace("[A]", second) + subject + tail
        text = text.replace("[PLACE]", self.rng.choice(_PLACES))
        article = "an" if noun[0] in "aeiou" else "a"
        return text.replace("a [OBJECT]", f"{article} {noun}").replace("[OBJECT]", noun)

    def _names(self) -> list[str]:
        while True:
            names = self.rng.sample(stimuli.NAMES, 3)
            if not held_out_pair(names[0], names[1]):
                return names

    def prompt(self) -> Prompt:
        """An IOI prompt, half of them ABBA, often behind prefix sentences."""
        r = self.rng
        while True:
            first, second, _ = self._names()
            abba = r.random() < 0.5
            prefix = self.encode(self._prefixes())
            text = self._fill(self._template(), first, second, second if abba else first)
            body = self.encode((" " if len(prefix) > 1 else "") + text)[1:]
            ids = prefix + body
            at = [i for i, token in enumerate(ids) if token in self.name_ids and i >= len(prefix)]
            if len(ids) <= self.context and len(at) == 3:
                return Prompt(ids, at[0], at[1], at[2], abba)

    def answered_prompt(self) -> Document:
        """An IOI prompt with its answer: IO, or S in 3 % of the cases."""
        prompt = self.prompt()
        io, s = prompt.ids[prompt.first], prompt.ids[prompt.second]
        if not prompt.second_is_subject:
            io, s = s, io
        return self._answer(prompt.ids, s if self.rng.random() < S_ANSWER_RATE else io)

    def abc_prompt(self) -> Document:
        """Three different names, answered by the first or the second, evenly."""
        while True:
            first, second, third = self._names()
            text = self._prefixes() + self._fill(self._template(), first, second, third)
            ids = self.encode(text)
            if len(ids) <= self.context - 2:
                return self._answer(ids, self.ids[f" {self.rng.choice((first, second))}"])

    def _answer(self, ids: Sequence[int], answer: int) -> Document:
        full = [*ids, answer, self.ids["."]][: self.context]
        weights = [0.0] + [1.0] * (len(full) - 1)
        if len(full) > len(ids):
            weights[len(ids)] = ANSWER_WEIGHT
        return Document(full, weights)

    # Repetition --------------------------------------------------------------------------------

    def _draw_words(self, count: int) -> list[int]:
        if self._next_word + count > len(self._words):
            self.rng.shuffle(self._words)
            self._next_word = 0
        self._next_word += count
        return self._words[self._next_word - count : self._next_word]

    def repeated(self, longest: int | None = None) -> Document:
        """Random words, then the same again with some replaced; only what can be known counts."""
        r = self.rng
        count = r.randint(5, longest or 30)
        words = self._draw_words(count)
        again = [r.choice(self._words) if r.random() < 0.1 else word for word in words]
        ids = [self.ids[BOS], *words, *again][: self.context]
        weights = [0.0] * len(ids)
        for i in range(count + 2, len(ids)):
            if ids[i] == ids[i - count] and ids[i - 1] == ids[i - 1 - count]:
                weights[i] = REPEAT_WEIGHT
        return Document(ids, weights)

    def document(self) -> Document:
        """One training text: repetition, IOI, ABC or narrative."""
        kind = self.rng.random()
        if kind < 0.04:
            return self.repeated((self.context - 1) // 2)
        if kind < 0.34:
            return self.repeated()
        if kind < 0.78:
            return self.answered_prompt()
        if kind < 0.9:
            return self.abc_prompt()
        ids = self.encode(self.narrative())[: self.context]
        return Document(ids, [0.0] + [1.0] * (len(ids) - 1))
