"""`imagewam study`: the paper's claims tested at the size of the tiny policy, on what `train-tiny` recorded.

Every arm learns the same episodes for as many steps, with several seeds, and plays the same start positions. A file
per arm and seed holds every episode; the same command does what is missing. `imagewam study figures` draws table and
plots from the files.
"""

from collections.abc import Sequence

from ..study.figures import write_figures
from ..study.run import run_study
from ..study.settings import StudySettings
from .options import parse_options


def main(argv: Sequence[str]) -> None:
    """Train and play what is missing, then draw; with the word `figures`, only draw."""
    only_draw = list(argv[:1]) == ["figures"]
    (settings,) = parse_options((StudySettings,), argv[1:] if only_draw else argv, "study", __doc__)
    if not only_draw:
        run_study(settings)
    for path in write_figures(settings.output):
        print(f"written: {path}")
