"""A method or a plan that was given instead of a budget: checked before any work, and what it puts on every weight."""

from __future__ import annotations

from modicum.core.errors import SettingError, listed, near
from modicum.core.method import Need
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.core.unit import Site
from modicum.drop._family import Dropper, SiteCutter
from modicum.fit.scene import Scene
from modicum.table.findings import DEPTH
from modicum.table.menu import Menu, misfit, oversized, unheld
from modicum.table.ruling import chosen_by
from modicum.table.taking import apart


def check(scene: Scene) -> None:
    """Raise ``SettingError`` for a method or a plan that the model or the target cannot have."""
    _check_wide(scene)
    if scene.request.plan is not None:
        _check_plan(scene, scene.request.plan)
    elif scene.method is not None:
        _check_method(scene, scene.method)


def _check_plan(scene: Scene, plan: Plan) -> None:
    known = {site.name: site for site in scene.sites} | {unit.name: unit for unit in scene.model.units.values()}
    for site, text in plan.options.items():
        option = Option.parse(text)
        if site == DEPTH:
            whole(option)
        elif is_cut(option):
            if site not in scene.subject.cuts:
                raise SettingError(f"plan: site {site!r} is no coupled cut of this model. {near(site, scene.subject.cuts)}")
        elif site not in known:
            raise SettingError(f"plan: site {site!r} is not in this model for target {scene.target.name}. {near(site, known)}")
        elif whole(option, rest=True) is not None:
            raise SettingError(f"plan: {text!r} works on the whole model, not on {site}. Give it to the site {DEPTH!r}.")
    _check_cuts(scene, plan)
    unit_options(scene, plan)


def _check_method(scene: Scene, method: Option) -> None:
    if whole(method, rest=True) is not None:
        return
    held = [site for site in scene.sites if chosen_by(scene.target, site, method, scene.menu)]
    if held and all(oversized(site, chosen_by(scene.target, site, method, scene.menu)) for site in held):
        raise SettingError(
            f"method {str(method)!r}: codebooks must be smaller than the weights, they are not smaller than any of this model's "
            f"{len(held)}. Take fewer bits, a smaller dimension or fewer stages."
        )
    if held:
        return
    group = misfit(scene.target, scene.sites, method)
    why = group or unheld(scene.target, scene.sites, method) or apart(method)
    raise SettingError(
        f"method {str(method)!r}: target {scene.target.name} can hold it on no layer of this model"
        f"{f', {why}' if why else ''}. {'Or pass' if group else 'Pass'} --target modicum."
    )


def _check_wide(scene: Scene) -> None:
    """Raise ``SettingError`` for a cut by a covariance that is not measured whole."""
    plan, method, cuts = scene.request.plan, scene.method, scene.subject.cuts if scene.script.together else {}
    texts = plan.options if plan is not None else dict.fromkeys(cuts, str(method))
    for name, text in texts.items():
        steps = [step for step in Option.parse(text).steps if isinstance(step, SiteCutter) and Need.COVARIANCE in step.needs]
        consumer = cuts[name].axes[-1].unit if steps and name in cuts else ""
        if consumer in scene.script.together:
            raise SettingError(
                f"{steps[0]}: cuts {name} by the whole covariance of {consumer}'s inputs, which does not fit in memory. Keep that cut out of "
                "the plan, or allow more memory."
            )


def _check_cuts(scene: Scene, plan: Plan) -> None:
    for site, kept in plan.cuts.items():
        groups = len(scene.subject.cuts[site].axes[-1].groups) if site in scene.subject.cuts else 0
        nothing = not kept and not site.endswith(":experts")  # an expert may be left out whole
        if site not in plan.options or nothing or not set(kept) <= set(range(groups)):
            raise SettingError(f"plan: cuts of {site!r} must list groups from 0 to {groups - 1} of a cut that has an option.")


def whole(option: Option, *, rest: bool = False) -> Option | None:
    """The step over the whole model an option begins with. Raises ``SettingError`` where such a step stands elsewhere."""
    if not option.steps or not isinstance(option.steps[0], Dropper):
        if any(isinstance(step, Dropper) for step in option.steps) or not rest:
            raise SettingError(f"option {str(option)!r}: a step over the whole model must come first and alone.")
        return None
    if any(isinstance(step, Dropper) for step in option.steps[1:]) or (len(option.steps) > 1 and not rest):
        raise SettingError(f"option {str(option)!r}: only one step may drop parts of the model, and it comes first.")
    return Option(option.steps[:1])


def is_cut(option: Option) -> bool:
    """Whether an option is one cut of coupled rows and columns."""
    return len(option.steps) == 1 and isinstance(option.steps[0], SiteCutter)


def everywhere(scene: Scene, method: Option) -> tuple[Plan, list[str]]:
    """The plan of one option everywhere, and what is told of layers that stay as they are."""
    plan, events = Plan(scene.target.name), []
    if (first := whole(method, rest=True)) is not None:
        plan.options[DEPTH] = str(first)
        method = Option(method.steps[1:])
    menu, small = scene.subject.ruled(Menu([method])), list[Site]()
    for site in scene.sites:
        fitted = chosen_by(scene.target, site, method, menu)
        if scene.subject.kept(site):
            continue
        if oversized(site, fitted):
            small.append(site)
        elif fitted is not None and fitted.steps:
            plan.options[site.name] = str(fitted)
    if small:
        names = listed(unit.name for site in small for unit in site.units)
        events.append(f"method {str(method)!r}: codebooks are not smaller than some weights, which stay as they are: {names}.")
    if why := misfit(scene.target, scene.sites, method):
        events.append(f"method {str(method)!r}: some layers stay as they are, {why}.")
    return plan, events


def unit_options(scene: Scene, plan: Plan) -> dict[str, Option]:
    """The option of every unit that a plan changes, as the target holds it. Raises ``SettingError`` where it cannot."""
    options: dict[str, Option] = {}
    sites = {site.name: site for site in scene.sites}
    for name, text in plan.options.items():
        option = Option.parse(text)
        if name == DEPTH or is_cut(option):
            continue
        units = sites[name].units if name in sites else (scene.model.units[name],)
        site = sites.get(name) or Site(name, "unit", units, data_free=scene.script.data_free(units[0]))
        refused = next((reason for unit in units if (reason := scene.target.refusal(unit))), "")
        fitted = None if refused and option.steps else scene.target.adapt(site, option)
        if fitted is None and not option.steps:
            continue
        if fitted is None:
            raise SettingError(f"plan: target {scene.target.name} cannot hold {text!r} on {name}. Choose another option or target.")
        if why := oversized(site, fitted):
            raise SettingError(f"plan: {text!r} cannot be: {why}")
        options |= {unit.name: fitted for unit in units if fitted.steps}
    return options
