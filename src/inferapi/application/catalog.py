"""Which models there are to name: those in memory or on their way there, and those in the models folder."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from inferapi.application.lifecycle import ModelLifecycle
from inferapi.domain.errors import ModelNotAllowed, ModelNotFound
from inferapi.domain.model import ModelRef
from inferapi.domain.ports import Clock, ModelRepository
from inferapi.domain.states import ModelState


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be named.

    Attributes:
        since_s: when its files came to the models folder, else since when this server runs; seconds since the epoch.
    """

    name: str
    state: ModelState
    since_s: float


class Catalog:
    """Lists models. Looking wakes none, keeps none awake, and asks no hub."""

    def __init__(
        self, lifecycle: ModelLifecycle, models: ModelRepository, clock: Clock, allowed_models: tuple[str, ...]
    ) -> None:
        self._lifecycle = lifecycle
        self._models = models
        self._allowed_models = allowed_models
        self._since_s = clock.wall_s()

    async def all(self) -> list[KnownModel]:
        """Every model that is known and allowed, by name."""
        local = await self._models.local()
        states = {str(ref): ModelState.UNLOADED for ref in local if self._allows(ref)}
        for line in self._lifecycle.status():
            if states.get(line.name) is not ModelState.READY:  # while another load of it is under way
                states[line.name] = line.state
        since_s = {str(ref): modified_s for ref, modified_s in local.items()}
        return [KnownModel(name, states[name], since_s.get(name, self._since_s)) for name in sorted(states)]

    async def one(self, ref: ModelRef) -> KnownModel:
        """One of them.

        Raises:
            ModelNotAllowed: the operator's list does not hold the name.
            ModelNotFound: it is none of them. A request that names it may load it from the hub all the same.
        """
        if not self._allows(ref):
            raise ModelNotAllowed(model=str(ref))
        found = next((model for model in await self.all() if model.name == str(ref)), None)
        if found is None:
            raise ModelNotFound(model=str(ref))
        return found

    def _allows(self, ref: ModelRef) -> bool:
        return any(fnmatchcase(ref.name, pattern) for pattern in self._allowed_models)
