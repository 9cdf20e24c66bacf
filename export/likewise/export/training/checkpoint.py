"""Checkpoints: written whole or not at all, resumed only by the run that they belong to, with the best state kept."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from likewise.export.training.progress import Check, TrainingError


@dataclass(slots=True)
class State:
    """How far a training is.

    Attributes:
        step: Steps done.
        best_score: Of the best look at the held-out split so far; larger is better.
        looks: All looks.
    """

    step: int = 0
    best_score: float = float("-inf")
    looks: list[Check] = field(default_factory=list)
    _best: dict[str, Any] = field(default_factory=dict)

    def look(self, score: float, modules: Mapping[str, nn.Module]) -> None:
        """Note a score on the held-out split, and keep the weights if they are the best so far."""
        self.looks.append(Check(self.step, score))
        if score > self.best_score:
            self.best_score = score
            self._best = {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}

    def patience_is_out(self, patience: int) -> bool:
        """Whether the last ``patience`` looks brought nothing better."""
        scores = [look.score for look in self.looks]
        return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])

    def restore_best(self, modules: Mapping[str, nn.Module]) -> None:
        """Give the modules the weights of the best look."""
        for name, state in self._best.items():
            modules[name].load_state_dict(state)


class Checkpoint:
    """One file that a training saves to and goes on from.

    Args:
        path: The file.
        identity: Plain values that say which run it is; a file of another run is refused.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._identity = dict(identity)

    def resume(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> State:
        """Load what was saved, if anything was.

        Raises:
            TrainingError: The file belongs to another run, or cannot be read.
        """
        if not self._path.exists():
            return State()
        try:
            saved = torch.load(self._path, weights_only=True)
        except Exception as error:
            # torch lets out whatever a damaged file leads its unpickler to.
            raise TrainingError(
                f"{self._path} cannot be read as a checkpoint ({error}); delete it to start over"
            ) from error
        if saved["identity"] != self._identity:
            changed = sorted(k for k in self._identity if saved["identity"].get(k) != self._identity[k])
            raise TrainingError(
                f"{self._path} belongs to a run with other settings or data ({', '.join(changed)} differ); "
                "delete it, or name another folder with --work"
            )
        for name, module in modules.items():
            module.load_state_dict(saved["modules"][name])
        optimizer.load_state_dict(saved["optimizer"])
        looks = [Check(int(step), float(score)) for step, score in saved["looks"]]
        return State(int(saved["step"]), float(saved["best_score"]), looks, saved["best"])

    def save(self, state: State, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Write the file; the old one stays whole until the new one is."""
        part = self._path.with_suffix(".part")
        torch.save(
            {
                "identity": self._identity,
                "step": state.step,
                "best_score": state.best_score,
                "looks": [(look.step, look.score) for look in state.looks],
                "best": state._best,
                "modules": {name: module.state_dict() for name, module in modules.items()},
                "optimizer": optimizer.state_dict(),
            },
            part,
        )
        part.replace(self._path)
