"""What can be measured, in the order in which it is."""

from bench.sections import (
    bystander,
    churn,
    classify,
    cliff,
    cold,
    endurance,
    footprint,
    many_adapters,
    popularity,
    shapes,
    standard,
    step,
)
from bench.sections.section import Section

SECTIONS: tuple[Section, ...] = (
    standard.SECTION,
    step.SECTION,
    classify.SECTION,
    cold.SECTION,
    bystander.SECTION,
    many_adapters.SECTION,
    popularity.SECTION,
    many_adapters.SWEEP,
    cliff.SECTION,
    churn.SECTION,
    shapes.SECTION,
    footprint.SECTION,
    endurance.SECTION,
)
