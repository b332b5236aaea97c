"""What tests of fitting share."""

import pytest

from modicum.table.sizing import level_of


@pytest.fixture
def picks_of():
    """The selection a plan says: structure first, then what stands under it; cuts that are made alike are one choice of the table."""

    def read(plan, table):
        alike = {f"all blocks:{name.rpartition(':')[2]}": text for name, text in plan.options.items() if ":" in name}
        picks = {}
        for site, found in table.choices.items():
            named = {**alike, **plan.options}.get(site)
            wanted = (named,) if named else ("gone", "keep")
            picks[site] = next(index for text in wanted for index in table.allowed(site, picks) if level_of(found[index].option) == text)
        return picks

    return read
