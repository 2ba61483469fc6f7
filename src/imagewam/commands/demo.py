"""`imagewam demo`: the policy that comes with the package plays in closed loop; films, pictures, a report."""

from collections.abc import Sequence

from ..demo.run import run_demo
from ..demo.settings import DemoSettings
from .options import parse_options


def main(argv: Sequence[str]) -> None:
    """Run the demo; it ends by printing where the results are."""
    (settings,) = parse_options((DemoSettings,), argv, "demo", __doc__)
    run_demo(settings)
