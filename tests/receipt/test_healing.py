"""The loss curve of healing: one line over all rounds, none where nothing was trained."""

from modicum.receipt.healing import curve


def test_rounds_stand_one_after_the_other():
    account = {"losses": [0.5, 0.4, 0.3]}
    drawn = curve(account | {"rounds": [{"losses": [0.9, 0.8, 0.7]}]})
    assert drawn.keys() == {"wide", "narrow"} and all("updates" in svg and svg.startswith("<svg") for svg in drawn.values())
    assert drawn != curve(account)


def test_nothing_is_drawn_of_nothing():
    assert curve({"losses": []}) == curve({"losses": [0.1]}) == {}
