"""Names the known bug that a wrong output looks like, and says where the error is."""

from .search import Diagnosis, best_case_for_diagnosis, diagnose

__all__ = ["Diagnosis", "best_case_for_diagnosis", "diagnose"]
