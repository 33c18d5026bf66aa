from .run import CheckResult, check
from .verdict import Verdict, verdict_of

__all__ = ["CheckResult", "Verdict", "check", "verdict_of"]
