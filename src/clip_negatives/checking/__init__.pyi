from .run import Check, check
from .verdict import Verdict, verdict_of

__all__ = ["Check", "Verdict", "check", "verdict_of"]
