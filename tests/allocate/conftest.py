"""Tables that hang together, drawn by hypothesis, all their selections by brute force, and a judge whose truth is not the table's."""

import numpy as np
import pytest
from hypothesis import strategies as st

from modicum.core.plan import RESOURCES, Choice, Table


class Drawing:
    """Draws a table: flat sites, or a depth site with coupled cuts under it and units under those."""

    def __init__(self, draw, kept):
        self.draw, self.kept, self.table = draw, kept, Table(fixed={"bytes": draw(st.integers(0, 50)), "memory": draw(st.integers(0, 9))})

    def choice(self, option, given=(), keep=False, structure=False):
        """With ``kept``, keeping is without harm and spends most of everything; all else harms."""
        draw, largest = self.draw, self.kept and keep
        size = st.just(0) if structure and draw(st.booleans()) else st.integers(1, 60)
        amount = (lambda: 70) if largest and not structure else (lambda: draw(size))
        harm = (
            0.0
            if largest
            else round(draw(st.floats(0.01, 9)) if self.kept else draw(st.sampled_from([0.0, 0.5])) + draw(st.floats(0, 9)), 3)
        )
        return Choice(
            option, amount(), amount(), harm, amount(), amount() / 16, tuple(given), 1e-3 if keep else harm * draw(st.floats(0.5, 2))
        )

    def menu(self, prefix="int", given=()):
        """One to three choices, the last of which keeps."""
        count = self.draw(st.integers(1, 3))
        return [self.choice("keep" if i == count - 1 else f"{prefix}{i}", given, keep=i == count - 1) for i in range(count)]

    def site(self, name, found, parent=None):
        self.table.choices[name] = found
        self.table.facts[name] = {"eigenvalue": self.draw(st.floats(0, 9)), "trace": self.draw(st.floats(0, 9)), "weights": 64.0}
        if parent:
            self.table.parents[name] = parent

    def block(self, block, options):
        """A coupled cut with levels, gone where its block is dropped, and one or two units under it."""
        alive = [option for option in options if option != f"drop {block}"]
        cut, levels = f"{block}.heads", ["keep", "cut"][: self.draw(st.integers(1, 2))]
        found = [self.choice(level, alive, keep=level == "keep", structure=True) for level in levels]
        if len(alive) < len(options):
            found.append(Choice("gone", 0, 0, 0.0, given=(f"drop {block}",)))
        self.site(cut, found, "depth")
        for unit in range(self.draw(st.integers(1, 2))):
            if self.draw(st.booleans()):
                found = [choice for level in levels for choice in self.menu(given=[level])]
            else:  # groups that overlap: some choices stand under every level, others under one
                found = self.menu(given=levels) + self.menu("more", given=levels[:1])
            self.site(f"{cut}.{unit}", [*found, Choice("gone", 0, 0, 0.0, given=("gone",))], cut)

    def tree(self):
        blocks = [f"b{i}" for i in range(self.draw(st.integers(1, 2)))]
        options = ["keep", *(f"drop {block}" for block in blocks)]
        self.site("depth", [self.choice(option, keep=option == "keep", structure=True) for option in options])
        for block in blocks:
            self.block(block, options)


@pytest.fixture(scope="session")
def tables():
    """Strategy of (table, limits): ``most`` resources limited at once; ``kept`` as in ``Drawing.choice``; ``deep`` false for flat sites alone."""

    @st.composite
    def tables(draw, most=3, kept=False, deep=True):
        drawing = Drawing(draw, kept)
        if deep and draw(st.booleans()):
            drawing.tree()
        for place in range(draw(st.integers(0 if drawing.table.choices else 1, 3 if not drawing.table.choices else 1))):
            drawing.site(f"site{place}", drawing.menu())
        table, limits = drawing.table, {}
        for resource in draw(st.lists(st.sampled_from(RESOURCES), min_size=1, max_size=most, unique=True)):
            ends = [table.cost(table.best(lambda _, c, s=s, r=resource: (s * c.spends(r),)), resource) for s in (1, -1)]
            limits[resource] = ends[0] + draw(st.floats(-0.1, 1.1)) * (ends[1] - ends[0])
            if resource != "seconds":
                limits[resource] = round(limits[resource])
        return table, limits

    return tables


@pytest.fixture(scope="session")
def selections():
    """Every consistent selection of a table, by trying all."""

    def selections(table, picks=None):
        picks = picks or {}
        if len(picks) == len(table.choices):
            yield dict(picks)
            return
        site = list(table.choices)[len(picks)]
        for index, choice in enumerate(table.choices[site]):
            parent = table.parents.get(site)
            if parent is None or table.choices[parent][picks[parent]].option in choice.given:
                yield from selections(table, picks | {site: index})

    return selections


class Twisted:
    """A judge whose KL is not the table's harm: every site's is off by a factor of its own, and neighbours make each other worse."""

    samples = 4

    def __init__(self, table):
        self.table, self.factor = (
            table,
            dict(zip(table.choices, np.random.default_rng(len(table.choices)).uniform(0.5, 2, len(table.choices)))),
        )

    def __call__(self, picks, samples):
        harms = np.array([self.factor[site] * self.table.choices[site][picks[site]].harm for site in self.table.choices])
        return (harms.sum() + 0.2 * np.sqrt(harms[1:] * harms[:-1]).sum()) * np.array([1.0, 0.8, 1.1, 1.3])[:samples]

    def many(self, candidates, samples):
        return [self(picks, samples) for picks in candidates]


@pytest.fixture(scope="session")
def judge_of():
    """The class of judges; call it with a table for one."""
    return Twisted


@pytest.fixture(scope="session")
def grown():
    """A tree by seed as fits measure them, two blocks and a flat site: harm falls by four with each bit, cut levels shrink what is below."""

    def grown(seed, scale=1):
        chance = np.random.default_rng(seed)
        every = ["keep", "drop b0", "drop b1"]
        table = Table(
            {"depth": [Choice(option, 0, 0, 0.0 if option == "keep" else chance.uniform(0.5, 3)) for option in every]}, {"bytes": 100}
        )

        def unit(levels):
            weights, feels = int(scale * chance.integers(80, 400)), chance.exponential(1.0)
            for level, share in levels:
                for bits in (2, 4, 16):
                    left, noise = int(weights * share), chance.uniform(0.5, 1.5)
                    harm = 0.0 if bits == 16 else feels * share * noise * 4.0 ** (1 - bits)
                    yield Choice(
                        f"int{bits}", left * bits // 8, left, harm, left * bits // 4, left * (bits + 4) * 1e-6, level, left * 4.0**-bits
                    )

        for block in ("b0", "b1"):
            cut, alive = f"{block}.cut", tuple(option for option in every if option != f"drop {block}")
            found = [
                Choice(level, 0, 0, harm * chance.uniform(0.5, 2), given=alive)
                for level, harm in (("whole", 0), ("cut 1", 0.1), ("cut 2", 0.5))
            ]
            table.choices[cut] = [*found, Choice("gone", 0, 0, 0.0, given=(f"drop {block}",))]
            table.parents[cut] = "depth"
            for name in (f"{block}.up", f"{block}.down"):
                levels = [(("whole",), 1.0), (("cut 1",), 0.75), (("cut 2",), 0.5)]
                table.choices[name] = [*unit(levels), Choice("gone", 0, 0, 0.0, given=("gone",))]
                table.parents[name] = cut
        table.choices["head"] = list(unit([((), 1.0)]))
        table.facts = {
            site: {"eigenvalue": chance.exponential(), "trace": chance.exponential(), "weights": 100.0} for site in table.choices
        }
        return table

    return grown


@pytest.fixture(scope="session")
def within():
    """Limits of a table that leave ``share`` of the way from the least to the most that can be spent of each resource."""

    def within(table, share, *resources):
        ends = {r: [table.cost(table.best(lambda _, c, s=s, r=r: (s * c.spends(r),)), r) for s in (1, -1)] for r in resources or ("bytes",)}
        return {resource: least + share * (most - least) for resource, (least, most) in ends.items()}

    return within


class Quadratic:
    """A loss of known curvature: sites of 64 weights with Hessians of given spectra, rounded to the nearest of 2, 3, 4 or 8 bits.

    The table's harms are the squared changes of the weights: they do not know of the curvature.
    """

    def __init__(self, spectra, seed=0):
        chance = np.random.default_rng(seed)
        self.hessians, self.changes, self.table = {}, {}, Table()
        for site, spectrum in spectra.items():
            basis, _ = np.linalg.qr(chance.normal(size=(64, 64)))
            self.hessians[site] = (basis * spectrum) @ basis.T
            weight = chance.uniform(-1, 1, 64)
            self.changes[site] = [np.round(weight / (2 / 2**bits)) * (2 / 2**bits) - weight for bits in (2, 3, 4, 8)]
            found = zip((2, 3, 4, 8), (float(change @ change) for change in self.changes[site]))
            self.table.choices[site] = [Choice(f"int{bits}", 8 * bits, 64, lost, distance=lost) for bits, lost in found]
            self.table.facts[site] = {"eigenvalue": float(max(spectrum)), "trace": float(np.mean(spectrum)), "weights": 64.0}

    def rise(self, picks):
        """What the loss rises by."""
        changes = {site: self.changes[site][index] for site, index in picks.items()}
        return sum(0.5 * change @ self.hessians[site] @ change for site, change in changes.items())


@pytest.fixture(scope="session")
def quadratic():
    """The class of losses; call it with spectra for one."""
    return Quadratic
