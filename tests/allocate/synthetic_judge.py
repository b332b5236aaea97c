"""A judge whose truth is known, for tests of what searches by the real divergence: predicted harms, wrong in the ways that real ones are."""

import numpy as np

from modicum.core.plan import Choice, Table


class SyntheticJudge:
    """KL of a selection: harms times errors of their own, plus interactions of pairs, times noise of the sequence, plus noise of both.

    ``by_site``, ``by_option`` and ``by_choice`` are the standard deviations of the errors' logarithms. ``pairs`` is that of ``rho`` in
    ``sum over pairs of rho_st sqrt(h_s h_t)``, divided by the square root of the number of sites so that it is comparable for all sizes.
    ``sequences``, as an argument, is the spread among them, common to all selections; ``noise`` is relative and differs from selection to selection.
    ``asked`` lists what was judged, with the number of sequences; ``sequences`` counts them, none twice.
    """

    def __init__(
        self, table, *, samples=16, seed=0, by_site=0.0, by_option=0.0, by_choice=0.0, pairs=0.0, sequences=0.3, noise=0.0, scale=1.0
    ):  # fmt: skip
        chance = np.random.default_rng([seed, 77])
        self.table, self.samples, self.noise, self.seed = table, samples, noise, seed
        self.sites = list(table.choices)
        texts = sorted({choice.option for found in table.choices.values() for choice in found})
        option = dict(zip(texts, chance.normal(0, by_option, len(texts))))
        self.harms = {
            site: np.array([scale * c.harm * np.exp(of_site + option[c.option] + chance.normal(0, by_choice)) for c in found])
            for site, found in table.choices.items()
            for of_site in [chance.normal(0, by_site)]
        }
        rho = chance.normal(0, pairs / max(len(self.sites), 1) ** 0.5, (len(self.sites), len(self.sites)))
        self.rho = np.clip(np.triu(rho, 1), -1.0, 2.0)
        self.common = np.exp(chance.normal(0, sequences, samples))
        self.calls = self.candidates = self.sequences = 0
        self.asked, self.known = [], {}

    def truth(self, picks):
        """Mean KL without noise."""
        harms = np.array([self.harms[site][picks[site]] for site in self.sites])
        roots = np.sqrt(harms)
        return float(max(harms.sum() + roots @ self.rho @ roots, 0.0) * self.common.mean())

    def __call__(self, picks, samples):
        assert 1 <= samples <= self.samples
        self.candidates += 1
        key = tuple(sorted(picks.items()))
        self.sequences += max(0, samples - self.known.get(key, 0))
        self.known[key] = max(samples, self.known.get(key, 0))
        self.asked.append((dict(picks), samples))
        own = np.random.default_rng([self.seed, *(picks[site] for site in self.sites)]).normal(0, self.noise, self.samples)
        return (self.truth(picks) / self.common.mean() * self.common * np.maximum(1 + own, 0))[:samples]

    def many(self, candidates, samples):
        self.calls += 1
        return [self(picks, samples) for picks in candidates]


def drawn(seed, sites=5, options=4, tightness=None):
    """A random table as quantizers make them, each bit dividing the harm by about four, and a budget within reach."""
    chance = np.random.default_rng([seed, 5])
    bits = np.array([2, 3, 4, 5, 6, 8, 12, 16][:options])
    choices = {}
    for site in range(sites):
        weights, harm = int(chance.choice([400, 800, 1600])), np.exp(chance.normal(0, 1.0))
        falls = np.exp(-1.2 * (bits - 2) + chance.normal(0, 0.2, options))
        choices[f"blocks.{site // 3}.part{site % 3}"] = [
            Choice(f"int{b}", int(b) * weights // 8 + 10, weights, float(harm * fall * weights / 800)) for b, fall in zip(bits, falls)
        ]
    table = Table(choices, fixed={"bytes": 100})
    cheapest, whole = (table.cost({site: place for site in choices}) for place in (0, options - 1))
    share = chance.uniform(0.25, 0.6) if tightness is None else tightness
    return table, {"bytes": int(cheapest + share * (whole - cheapest))}


def grown(seed, blocks=2, units=2):
    """A random tree: one block may be dropped, channels of each other block may be cut, its units have bits; and a budget within reach."""
    chance = np.random.default_rng([seed, 6])
    names = [f"b{block}" for block in range(blocks)]
    options = ["keep", *(f"drop {name}" for name in names)]
    table = Table({"depth": [Choice(option, 0, 0, 0.0 if option == "keep" else 2 * chance.uniform(0.5, 2)) for option in options]})
    for name in names:
        alive, cut = tuple(option for option in options if option != f"drop {name}"), f"{name}.cut"
        table.parents[cut] = "depth"
        table.choices[cut] = [
            Choice("keep", 20, 0, 0.0, given=alive),
            Choice("half", 10, 0, float(chance.uniform(0.3, 1)), given=alive),
            Choice("gone", 0, 0, 0.0, given=(f"drop {name}",)),
        ]
        for unit in range(units):
            table.parents[f"{cut}.{unit}"] = cut
            sensitivity = np.exp(chance.normal())
            table.choices[f"{cut}.{unit}"] = [
                Choice(f"int{bits}", bits * size, size, float(share * sensitivity * np.exp(-1.2 * (bits - 2))), given=(level,))
                for level, size, share in (("keep", 100, 1.0), ("half", 50, 0.6))
                for bits in (2, 3, 4, 8)
            ] + [Choice("gone", 0, 0, 0.0, given=("gone",))]
    least, most = (table.cost(table.best(lambda site, choice, sign=sign: (sign * choice.bytes,))) for sign in (1, -1))
    return table, {"bytes": int(least + chance.uniform(0.2, 0.6) * (most - least))}


def selections(table, limits, picks=None):
    """All consistent selections that fit."""
    picks = picks or {}
    if len(picks) == len(table.choices):
        if table.fits(picks, limits):
            yield picks
        return
    site = list(table.choices)[len(picks)]
    for index in table.allowed(site, picks):
        yield from selections(table, limits, {**picks, site: index})


def best(table, limits, judge):
    """Least mean KL without noise of all selections that fit, by trying all."""
    return min(judge.truth(picks) for picks in selections(table, limits))
