"""A whole study from one TOML file: nets x arms x budgets x formats x seeds."""

from rasp.study.plan import ArmPlan, StudyPlan, load
from rasp.study.run import Studied, study

__all__ = ["ArmPlan", "Studied", "StudyPlan", "load", "study"]
