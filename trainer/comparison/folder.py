"""Names every path that a comparison writes."""

import dataclasses
from pathlib import Path

from trainer.output.model_dir import ModelDir


@dataclasses.dataclass(frozen=True)
class ComparisonDir:
    """The files of one comparison. Each of its runs has an ordinary model_dir below it."""

    path: Path

    @property
    def markdown(self) -> Path:
        return self.path / "comparison.md"

    @property
    def csv(self) -> Path:
        return self.path / "comparison.csv"

    @property
    def picture(self) -> Path:
        return self.path / "comparison.png"

    @property
    def page(self) -> Path:
        return self.path / "comparison.html"

    @property
    def whole(self) -> ModelDir:
        """The folder itself, to make and to lock."""
        return ModelDir(self.path)

    def run(self, member: str, seed: int) -> ModelDir:
        return ModelDir(self.path / name_of(member, seed))

    def record(self, member: str, seed: int) -> Path:
        """The file with the comparison's own measurements of a run."""
        return self.run(member, seed).path / "comparison_record.json"

    def log(self, member: str, seed: int) -> Path:
        """The file that takes the run's output."""
        return self.run(member, seed).path / "log.txt"

    def others(self, members) -> list[str]:
        """Folders of runs that are none of these members', as of one that was taken out of the config."""
        found = sorted({path.parent.parent.name for path in self.path.glob("*/seed_*/comparison_record.json")})
        return [name for name in found if name not in members]


def name_of(member: str, seed: int) -> str:
    """The name of a run, which is its place in the comparison's folder."""
    return f"{member}/seed_{seed}"
