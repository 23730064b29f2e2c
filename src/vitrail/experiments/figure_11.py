"""Figure 11: how far each head looks, in a ViT and in a hybrid.

Command    vitrail reproduce figure-11 --model VIT --model HYBRID --data FOLDER --out DIR
Cost       one forward pass a picture and model, with the attention of its layers.
Paper      ViT-L/16 and R50x1+ViT-L/16, 128 images of 224 px: the ViT has heads that look near in its lowest layers; in the
           hybrid they are fewer, as its convolutions have looked near already.
Expect     The same direction between models trained alike on the same data.
Settings   images=128 seed=0 form=paper (or renormalised).
Caveats    Tokens of the two must be equally far apart, or the distances are not to be compared: both pitches are told. The
           paper's form leaves the class token out without scaling; the JSON has both.
"""

from __future__ import annotations

from typing import Any

from vitrail.canvas import blank, png
from vitrail.experiments.experiment import Asked, Experiment, Outcome
from vitrail.experiments.figure_07 import Settings, distance_facts, distance_lines, titled
from vitrail.inspection.distance import attention_distance
from vitrail.inspection.panels import distance_panel, upper_end


def run(asked: Asked) -> Outcome:
    found, facts, lines = [], [], []
    for subject in asked.subjects:
        model = subject.classifier.module
        distance = attention_distance(model, asked.images(subject))
        pitch = model.config.stride
        found.append(getattr(distance, asked.settings.form))
        facts.append({"model": subject.name, "pitch": list(pitch), **distance_facts(distance)})
        lines += [f"{subject.name}: a token every {pitch[0]} x {pitch[1]} pixels", *distance_lines(distance), ""]
    figure = _drawn(found, [titled(subject.name, asked.settings.form) for subject in asked.subjects])
    return Outcome({**asked.facts(), "distances": facts}, lines[:-1], {"figure-11.png": png(figure)})


def _drawn(found: list[Any], titles: list[str]) -> Any:
    figure = blank(4.4 * len(found) + 0.4, 3.6)
    for axis, distance, title in zip(figure.subplots(1, len(found), squeeze=False)[0], found, titles, strict=True):
        distance_panel(axis, distance, title, upper_end(found))
    return figure


EXPERIMENT = Experiment(run, models=6, settings=Settings())
