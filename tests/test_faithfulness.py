"""Deletion, insertion, SaCo, rank correlations, shuffled weights and the rule, each against a brute-force version."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from test_methods import HYBRID, POOLS, RESNET, SMALL
from test_model import images_for, stirred
from vitrail.inspection import removal as removals
from vitrail.inspection.faithfulness import SHARES, Asked, equal_groups, faithfulness, saco
from vitrail.inspection.method import settled
from vitrail.inspection.orders import Centre, Edges, Random, order_of
from vitrail.inspection.removal import Painting, Removal, TokenDropping, removal_for
from vitrail.inspection.sanity import disturbed, rank_correlation, shuffled_down
from vitrail.inspection.verdicts import HALF, SAME, Measured, judged, measured
from vitrail.model.vit import ViT

GRID = (4, 5)


@dataclass(frozen=True)
class Known(Removal):
    """A model that is a table: the logit of class 1 is the sum of what is kept, and of a pair that counts together."""

    weights: np.ndarray

    def logit(self, image, kept):
        pair = 2.0 if {3, 11} <= set(kept) else 0.0
        return self.weights[image, list(kept)].sum() + pair

    def logits(self, model, images, kept):
        found = np.zeros((*kept.shape[:2], 3))
        for image, variant in np.ndindex(*kept.shape[:2]):
            found[image, variant, 1] = self.logit(image, kept[image, variant].tolist())
        return torch.from_numpy(found)

    def chance(self, image, kept):
        return np.exp(self.logit(image, kept)) / (np.exp(self.logit(image, kept)) + 2)


@dataclass(frozen=True)
class Deaf(Known):
    """Says the same whatever it sees."""

    def logit(self, image, kept):
        return 0.5


@pytest.fixture
def asked():
    weights = np.random.default_rng(0).normal(size=(3, 20))
    images = torch.rand(3, 1, 8, 10, generator=torch.Generator().manual_seed(0))
    return Asked(None, images, torch.ones(3, dtype=torch.int64), Known(weights))


def test_deletion_and_insertion_follow_the_order_of_the_map(asked):
    maps = np.random.default_rng(1).normal(size=(3, *GRID))
    found = faithfulness(asked, maps)
    for image in range(3):
        order = np.argsort(-maps[image].ravel())
        falls = [asked.removal.chance(image, order[round(20 * share) :].tolist()) for share in SHARES]
        returns = [asked.removal.chance(image, order[: round(20 * share)].tolist()) for share in SHARES]
        np.testing.assert_allclose(found.falls[image], falls, rtol=1e-12)
        np.testing.assert_allclose(found.returns[image], returns, rtol=1e-12)
        assert found.deletion[image] == pytest.approx(np.mean(falls)) and np.ptp(falls) > 0.01
        assert found.insertion[image] == pytest.approx(np.mean(returns))
    best = faithfulness(asked, asked.removal.weights.reshape(3, *GRID))
    assert (best.deletion < found.deletion).all() and (best.insertion > found.insertion).all()


def test_several_labels_have_a_sigmoid_each(asked):
    maps = np.random.default_rng(1).normal(size=(3, *GRID))
    found = faithfulness(replace(asked, multi_label=True), maps)
    kept = np.argsort(-maps[0].ravel())[2:].tolist()
    assert found.falls[0, 0] == pytest.approx(1 / (1 + np.exp(-asked.removal.logit(0, kept))))


def test_saco_is_the_published_algorithm(asked):
    """Wu et al. 2024, algorithm 1, with K = 10: pair by pair."""
    maps = np.random.default_rng(2).random((3, *GRID))
    found = saco(asked, maps, order_of(maps, asked.images))
    for image in range(3):
        flat, everything = maps[image].ravel(), list(range(20))
        groups = np.argsort(-flat).reshape(10, 2)
        salience = [flat[group].sum() for group in groups]
        whole = asked.removal.chance(image, everything)
        drop = [whole - asked.removal.chance(image, [p for p in everything if p not in group]) for group in groups]
        total = weight = 0.0
        for i in range(9):
            for j in range(i + 1, 10):
                difference = salience[i] - salience[j]
                total += difference if drop[i] >= drop[j] else -difference
                weight += abs(difference)
        assert found[image] == pytest.approx(total / weight) and abs(total / weight) < 1
    own = asked.removal.weights.reshape(3, *GRID)
    assert saco(asked, np.zeros((3, *GRID)), order_of(own, asked.images)).tolist() == [0, 0, 0]  # ranks nothing
    assert (saco(asked, own, order_of(own, asked.images)) > found).all()


def test_a_model_that_does_not_react_supports_no_map(asked):
    deaf = replace(asked, removal=Deaf(asked.removal.weights))
    maps = np.random.default_rng(2).random((3, *GRID))
    assert saco(deaf, maps, order_of(maps, asked.images)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9, 15, 16, 17, 49, 64, 65, 196, 256, 1369])
def test_groups_have_one_size_and_leave_out_few_in_the_middle(count):
    groups = equal_groups(count)
    assert len({len(group) for group in groups}) == 1 and len(groups) == min(count, len(groups))
    places = np.concatenate(groups)
    left = count - len(places)
    assert (np.diff(places) >= 1).all() and places[0] == 0 and places[-1] == count - 1
    assert left <= count % 10 and (left == 0 or count > 10)
    if left:
        gap = np.setdiff1d(np.arange(count), places)
        assert abs(gap.mean() - (count - 1) / 2) <= len(groups[0])


def test_equal_numbers_come_in_no_order_of_their_own():
    """Row by row would be a guess that what matters is on top."""
    images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    orders = order_of(np.zeros((200, 4, 4)), images)
    assert (np.sort(orders) == np.arange(16)).all()
    first = np.bincount(orders[:, 0], minlength=16)
    assert first.max() < 40 and (orders == order_of(np.zeros((200, 4, 4)), images)).all()
    alone = order_of(np.zeros((1, 4, 4)), images[7:8])
    assert (alone[0] == orders[7]).all()  # whatever batch the image comes in
    assert (orders != order_of(np.zeros((200, 4, 4)), images, seed=1)).any()
    maps = np.arange(16.0).reshape(1, 4, 4)
    assert order_of(maps, images[:1])[0].tolist() == list(range(15, -1, -1))


def test_orders_that_know_nothing_of_the_model():
    model, images = stirred(SMALL), images_for(SMALL)
    centre = Centre().maps(model, images, torch.zeros(2, dtype=torch.int64)).values
    np.testing.assert_allclose(centre[1], [[-np.hypot(0.25, 1 / 3), -0.25, -np.hypot(0.25, 1 / 3)]] * 2)
    flat = torch.zeros(1, 1, 8, 12)
    flat[..., 5:] = 1  # an upright edge between columns 4 and 5, in the middle patches
    found = Edges().maps(model, flat, torch.zeros(1, dtype=torch.int64)).values[0]
    np.testing.assert_allclose(found, [[0, 32, 0]] * 2)  # two columns, four rows, Sobel's 1 + 2 + 1
    random = Random().maps(model, images, torch.zeros(2, dtype=torch.int64)).values
    assert not np.allclose(random[0], random[1]) and ((random >= 0) & (random < 1)).all()


@pytest.mark.parametrize("name", POOLS)
def test_dropped_tokens_are_gone_and_the_order_of_those_kept_does_not_matter(name, monkeypatch):
    model, images = stirred(POOLS[name], scale=0.25), images_for(POOLS[name])
    everything = torch.arange(6).expand(2, 1, 6)
    with torch.no_grad():
        logits = model(images)
    np.testing.assert_allclose(TokenDropping().logits(model, images, everything)[:, 0], logits, atol=1e-5)
    np.testing.assert_allclose(Painting().logits(model, images, everything)[:, 0], logits, atol=1e-5)
    kept = torch.tensor([[[4, 1], [0, 5]], [[2, 3], [5, 0]]])
    found = TokenDropping().logits(model, images, kept)
    other = images.clone()
    other[0, :, :4, :4] += 3  # patch 0 of the first image: seen in its second variant alone
    changed = TokenDropping().logits(model, other, kept.flip(-1))
    np.testing.assert_allclose(changed[0, 0], found[0, 0], atol=1e-6)
    assert not np.allclose(changed[0, 1], found[0, 1], atol=1e-3)
    monkeypatch.setattr(removals, "_VALUES", 1)  # one at a time
    np.testing.assert_allclose(TokenDropping().logits(model, images, kept), found, atol=1e-5)
    painted = images.clone()
    painted[0, :, :, [*range(4), *range(8, 12)]] = 0
    with torch.no_grad():
        np.testing.assert_allclose(Painting().logits(model, images, kept)[0, 0], model(painted)[0], atol=1e-5)


def test_how_parts_go_depends_on_what_the_model_can_do():
    assert isinstance(removal_for(stirred(HYBRID)), TokenDropping)
    assert isinstance(removal_for(stirred(RESNET)), Painting)


def test_rank_correlation_is_spearmans():
    random = np.random.default_rng(0)
    first = random.integers(0, 4, (6, 3, 5)).astype(float)  # many equal numbers
    second = first + random.integers(0, 3, (6, 3, 5))
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-12)
    even, shaped = np.ones((1, 3, 5)), np.arange(15.0).reshape(1, 3, 5)
    assert rank_correlation(even, even)[0] == 1 and rank_correlation(even, shaped)[0] == 0
    assert rank_correlation(shaped, -shaped)[0] == pytest.approx(-1)


def test_differences_that_are_rounding_rank_nothing():
    maps = np.ones((3, 2, 2))
    maps[0, 0, 0] += 1e-7
    maps[1, 0, 0] += 1e-3
    maps[2] = [[0, 1e-9], [0, 0]]
    found = settled(maps)
    assert np.ptp(found[0]) == 0 and (found[1:] == maps[1:]).all()


@pytest.mark.parametrize("config", [SMALL, HYBRID, RESNET, POOLS["probe"], POOLS["relative"]])
def test_in_the_end_every_weight_is_shuffled_and_the_model_is_as_it_was(config):
    model = stirred(config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moved, names, wrong = [], [], None
    for name, wrong in shuffled_down(model, seed=1):
        names.append(name)
        moved.append({key for key, value in wrong.named_parameters() if not torch.equal(value, before[key])})
    assert names[0] == "head" and names[-1] == "stem" and len(set(names)) == len(names) >= 3
    assert all(earlier < later for earlier, later in pairwise(moved))  # cascading
    assert all(key.startswith(("head", "pool")) for key in moved[0])
    assert {key for key, value in before.items() if value.numel() > 1} == moved[-1]
    steps = [later - earlier for earlier, later in pairwise(moved[:-1])]  # of the layers, each nearer to the stem
    layers = [{int(key.split(".")[1]) for key in step if key.startswith("blocks.")} for step in steps]
    if isinstance(model, ViT):
        assert [layer for step in layers for layer in sorted(step, reverse=True)] == list(range(len(model.blocks)))[
            ::-1
        ]
    for key, value in wrong.named_parameters():
        assert torch.equal(value.flatten().sort().values, before[key].flatten().sort().values)
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())
    again = [wrong for _, wrong in shuffled_down(model, seed=1)][-1]
    assert all(torch.equal(a, b) for a, b in zip(wrong.parameters(), again.parameters(), strict=True))


def test_small_changes_are_small():
    ends = torch.tensor([[-1.0, 3.0], [0.0, 1.0]])[None, :, :, None]
    images = torch.rand(1, 2, 40, 30) * (ends[:, :, 1:] - ends[:, :, :1]) + ends[:, :, :1]
    found = disturbed(images, ends)
    step = (found["noise"] - images)[0]
    inside = (images[0] > ends[0, :, :1] + 0.3) & (images[0] < ends[0, :, 1:] - 0.3)
    assert step[0][inside[0]].std() == pytest.approx(0.02 * 4, rel=0.15)
    assert step[1][inside[1]].std() == pytest.approx(0.02, rel=0.2)
    assert (found["noise"] >= ends[:, :, :1]).all() and (found["noise"] <= ends[:, :, 1:]).all()
    assert torch.equal(found["shift"][..., 1:, 1:], images[..., :-1, :-1])
    assert torch.equal(found["shift"][..., 0, 1:], images[..., 0, :-1])


def figures(**changes):
    """Of a method that passes everything."""
    good, none = Measured(0.2, 0.1, 0.3, 50), Measured(0.0, -0.1, 0.1, 50)
    names = ("ahead of random", "deletion ahead of random", "insertion ahead of random", "ahead of centre",
             "ahead of edges", "saco", "shuffled", "classes")  # fmt: skip
    found = dict.fromkeys(names, good) | {"stable": Measured(0.8, 0.7, 0.9, 50)}
    return found | {name.replace("_", " "): none if value is False else value for name, value in changes.items()}


RULES = {
    "passes everything": (figures(), "supported", 0),
    "random": (figures(ahead_of_random=False), "not supported", 1),
    "stays": (figures(shuffled=Measured(0.6, HALF, 0.7, 50)), "not supported", 1),
    "perhaps stays": (figures(shuffled=Measured(0.5, 0.4, HALF, 50)), "weak", 1),
    "deletion alone": (figures(insertion_ahead_of_random=False), "weak", 1),
    "insertion alone": (figures(deletion_ahead_of_random=False), "weak", 1),
    "centre": (figures(ahead_of_centre=False), "weak", 1),
    "edges": (figures(ahead_of_edges=False), "weak", 1),
    "saco": (figures(saco=False), "weak", 1),
    "unstable": (figures(stable=Measured(0.55, HALF, 0.6, 50)), "weak", 1),
    "one map": (figures(classes=Measured(0.93, 0.9, SAME, 50)), "weak", 1),
    "too few": (figures(stable=None, classes=None, shuffled=None, saco=None), "weak", 4),
    "nothing measured": (dict.fromkeys(figures()), "not supported", 7),
}


@pytest.mark.parametrize("case", RULES)
def test_the_rule(case):
    found, word, reasons = RULES[case]
    assert (judged(found, True, True)[0], len(judged(found, True, True)[1])) == (word, reasons)


def test_the_rule_asks_for_classes_only_of_who_claims_them_and_for_a_model_that_knows_something():
    same = figures(classes=Measured(1, 1, 1, 50))
    assert judged(same, False, True) == ("supported", ())
    word, reasons = judged(figures(), True, False)
    assert word == "weak" and "most common class" in reasons[0]


def test_an_interval_needs_ten_images():
    assert measured(np.arange(9.0)) is None
    found = measured(np.arange(10.0))
    assert (found.mean, found.n) == (4.5, 10)
    half = 2.262157 * np.arange(10.0).std(ddof=1) / np.sqrt(10)  # Student's t of 9 degrees
    assert (found.low, found.high) == pytest.approx((4.5 - half, 4.5 + half), rel=1e-5)
