"""Parsers of flags that are several numbers."""

from __future__ import annotations

from typing import Any

from absl import flags

from dreamfusion_jax.runtime.settings import Range, WholeNumbers


class RangeParser(flags.ArgumentParser):
    """Parses "2.3,3.2" as the two ends of a range, and one number as both."""

    syntactic_help = "one number, or two with a comma between them"

    def parse(self, argument: Any) -> Range:
        if isinstance(argument, str):
            ends = [float(end) for end in argument.strip("()").split(",")]
        else:
            ends = [float(end) for end in argument]
        if len(ends) not in (1, 2):
            raise ValueError(f"expected {self.syntactic_help}")
        return ends[0], ends[-1]

    def flag_type(self) -> str:
        return "range"


class WholeNumbersParser(flags.ArgumentParser):
    """Parses "64,256" as two whole numbers, and "64" as one."""

    syntactic_help = "whole numbers with commas between them"

    def parse(self, argument: Any) -> WholeNumbers:
        numbers = argument.split(",") if isinstance(argument, str) else argument
        return tuple(int(number) for number in numbers)

    def flag_type(self) -> str:
        return "whole numbers"


class TupleSerializer(flags.ArgumentSerializer):
    def serialize(self, value: tuple[float, ...]) -> str:
        return ",".join(map(str, value))
