"""What is judged at the end of a search: draws of the policy, its most probable moves, or what NAO proposes."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...seeds import Stream, numpy_generator
from ...settings import Config
from .ascent import fit, improved
from .embedding import PAPER, RELEASED, Nao, NaoSettings
from .policies import draw, generator_for
from .spaces import GenotypeSpace, Space

A = TypeVar("A")

DRAWS = 20
"""So many draws are made for each architecture that is wanted, before fewer will do."""

STEPS = 4
"""NAO proposes so many architectures for each that is judged: those of which it expects most."""


class Candidates(Generic[A]):
    """Proposes architectures at the end of a search.

    Args:
        space: that was searched in.
        config: the run's settings.
        accuracy: of an architecture with shared weights, the number of it among how many.

    Attributes:
        notes: what is worth knowing of them.
    """

    def __init__(self, space: Space[A], config: Config, accuracy: Callable[[A, int, int], float]) -> None:
        self.space, self.config, self._accuracy = space, config, accuracy
        self.notes: list[str] = []

    def drawn(self, probabilities: Tensor) -> list[A]:
        """Different legal architectures, as many as are wanted; the released code takes what comes."""
        wanted, official = self.config.search.samples, self.config.search.official
        generator = generator_for(self.config.seed, "final")
        different: dict[str, A] = {}
        for number in range(wanted if official else DRAWS * wanted):
            if len(different) == wanted:
                break
            moves = draw(probabilities, generator).actions
            architecture = self.space.legal(self.space.moved(self.space.given, moves), probabilities)
            if architecture is not None:
                key = json.dumps(self.space.to_json(architecture))
                different.setdefault(f"{number}" if official else key, architecture)
        return list(different.values())

    def most_probable(self, probabilities: Tensor) -> list[A]:
        """The most probable moves, made legal; nothing where that cannot be."""
        moves = self.space.moved(self.space.given, probabilities.argmax(2))
        architecture = self.space.legal(moves, probabilities)
        return [] if architecture is None else [architecture]

    def proposed(self) -> list[A]:
        """What NAO makes of the given architecture, having learned from random ones."""
        wanted = self.config.search.architectures
        seen: dict[str, A] = {}
        for number in range(DRAWS * wanted):
            if len(seen) == wanted:
                break
            architecture = self.space.legal(self.space.sample(self._random(number)), None)
            if architecture is not None:
                seen.setdefault(json.dumps(self.space.to_json(architecture)), architecture)
        known = list(seen.values())
        if len(known) < 2:
            self.notes.append("NAO needs two different architectures to learn from, and there are not as many")
            return []
        accuracies = torch.tensor([self._accuracy(a, i, len(known)) for i, a in enumerate(known)])
        sequences = torch.tensor([self.space.sequence(a) for a in known])
        seed = int(self._random().integers(2**31))
        model, _ = fit(sequences, accuracies, self.space.tokens, seed, self._nao_settings())
        return self._improved(model)

    def _random(self, *keys: int) -> Any:
        return numpy_generator(self.config.seed, Stream.POLICY, "nao", *keys)

    def _nao_settings(self) -> NaoSettings:
        epochs = self.config.search.nao_epochs
        if not self.config.search.official:
            # What an operation is worth depends on its edge: without positions the predictor sees little of that.
            return replace(PAPER, epochs=epochs, positions=True)
        # An edge of a genotype has two tokens, its input and its operation; other edges have one.
        return replace(RELEASED, epochs=epochs, tokens=2 if isinstance(self.space, GenotypeSpace) else 1)

    def _improved(self, model: Nao) -> list[A]:
        """Steps in NAO's embedding from the given architecture, those of which it expects most."""
        space = self.space
        legal: dict[tuple[int, ...], A | None] = {}

        def fine(tokens: tuple[int, ...]) -> bool:
            legal[tokens] = space.legal(space.architecture(tokens), None)
            return legal[tokens] is not None

        given, wanted = torch.tensor(space.sequence(space.given)), self.config.search.samples
        sequences = improved(model, given, STEPS * wanted, accept=fine)
        if len(sequences) > wanted:  # the first are the nearest, and not the best
            with torch.no_grad():
                promised = model.predict(model.encode(torch.tensor(sequences))).tolist()
            order = sorted(range(len(sequences)), key=lambda i: -promised[i])
            sequences = [sequences[i] for i in order[:wanted]]
        return [a for a in map(legal.__getitem__, sequences) if a is not None]
