"""Mixup and CutMix against their formulas; which images an epoch holds."""

import numpy as np
import pytest
import torch
from scipy import stats

from vitrail.data.mixing import CutMix, EitherMixing, Mixup
from vitrail.data.order import SAMPLINGS, Balanced, Order, Repeated, Shuffled, permutation
from vitrail.errors import UsageError

RANDOM = np.random.default_rng(11)


def test_mixup_against_its_formula():
    """x' = s x + (1 - s) x[partner], labels alike; the partner is the image before, s at least a half."""
    images = torch.from_numpy(RANDOM.integers(0, 256, (6, 3, 4, 4)).astype(np.float32))
    targets = torch.eye(6)
    mixed, labels = Mixup(0.4)(images, targets, seed=9)
    shares = labels.numpy().astype(np.float64)
    share = shares.diagonal().min()  # the same for all
    partner = (shares - share * np.eye(6)).argmax(axis=1)
    assert partner.tolist() == [5, 0, 1, 2, 3, 4] and 0.5 <= share < 1  # jax.numpy.roll(x, 1)
    first, second = images.numpy().astype(np.float64), images.numpy()[partner].astype(np.float64)
    np.testing.assert_allclose(mixed.numpy(), share * first + (1 - share) * second, rtol=0, atol=1e-3)
    np.testing.assert_allclose(shares, share * np.eye(6) + (1 - share) * np.eye(6)[partner], rtol=0, atol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=0, atol=1e-6)
    again = Mixup(0.4)(images, targets, seed=9)
    assert torch.equal(again[0], mixed) and torch.equal(again[1], labels)


def test_mixup_draws_its_share_from_beta():
    """One share a step; over the steps as SciPy's Beta(a, a), folded at one half."""
    shares = []
    for seed in range(400):
        _, labels = Mixup(0.5)(torch.zeros(50, 1), torch.eye(50), seed)
        shares.append(labels.diagonal().min().item())
    folded = stats.beta(0.5, 0.5)
    assert stats.kstest(shares, lambda x: folded.cdf(x) - folded.cdf(1 - np.asarray(x))).pvalue > 0.01


def cut(seed, alpha=1.0, sides=(20, 30)):
    """(labels, where the partner is seen) of a batch whose images hold their own number."""
    images = torch.arange(4.0)[:, None, None, None].expand(4, 2, *sides)
    mixed, labels = CutMix(alpha)(images, torch.eye(4), seed)
    assert torch.equal(images[:, 0, 0, 0], torch.arange(4.0))  # the batch itself is not changed
    return labels.numpy(), np.stack([mixed[i, 0].numpy() != i for i in range(4)]), mixed.numpy()


def test_cutmix_against_its_formula():
    """Yun et al. 2019, algorithm A1: the same rectangle in all, labels by the area that is really seen."""
    clipped = 0
    for seed in range(60):
        random = np.random.Generator(np.random.PCG64(seed))
        side = np.sqrt(1 - random.beta(1.0, 1.0))
        rows, cols = random.random(2)
        expected = np.zeros((20, 30), bool)
        top, left = int(20 * rows) - int(20 * side) // 2, int(30 * cols) - int(30 * side) // 2
        bottom, right = int(20 * rows) + int(20 * side) // 2, int(30 * cols) + int(30 * side) // 2
        expected[max(0, top) : min(20, bottom), max(0, left) : min(30, right)] = True
        clipped += top < 0 or left < 0
        labels, seen, mixed = cut(seed)
        for index in range(4):
            assert np.array_equal(seen[index], expected)
            assert (mixed[index][:, expected] == (index - 1) % 4).all()
        share = 1 - expected.mean()
        np.testing.assert_allclose(labels, share * np.eye(4) + (1 - share) * np.roll(np.eye(4), 1, 0), atol=1e-6)
    assert 5 < clipped < 60


def test_one_of_two_by_a_coin():
    """About half of the steps each; the same step always the same."""
    images, both = torch.from_numpy(RANDOM.random((4, 1, 8, 8)).astype(np.float32)), EitherMixing(Mixup(0.5), CutMix())
    whole = [torch.isin(both(images, torch.eye(4), seed)[0], images).all().item() for seed in range(200)]
    assert stats.binomtest(sum(whole), 200, 0.5).pvalue > 0.001
    first, again = both(images, torch.eye(4), 3), both(images, torch.eye(4), 3)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_the_coin_says_nothing_of_the_share():
    """Either of the two draws by another seed than the coin's, from which its share would follow."""
    images, targets = torch.arange(8.0).reshape(2, 1, 2, 2), torch.eye(2)
    for seed in range(20):
        either = EitherMixing(Mixup(1.0), Mixup(1.0))(images, targets, seed)[1]
        assert not torch.equal(either, Mixup(1.0)(images, targets, seed)[1])


@pytest.mark.parametrize("kind", [Mixup, CutMix])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_impossible_mixing_is_refused(kind, alpha):
    with pytest.raises(UsageError, match=f"augmentation.{kind.__name__.lower()}.alpha"):
        kind(alpha)


def one_hot(counts):
    return np.repeat(np.eye(len(counts), dtype=np.float32), counts, axis=0)


TARGETS = one_hot([40, 7, 3])


@pytest.mark.parametrize("kind", SAMPLINGS.values())
class TestSampling:
    """What every order promises."""

    def test_the_steps_are_the_epochs_cut_in_pieces(self, kind):
        """Whoever asks first, and however large the batches are."""
        epochs = np.concatenate([kind().epoch(5, epoch, TARGETS) for epoch in range(6)])
        for batch in (1, 7, 64, 130):
            order, steps = Order(kind(), TARGETS, 5), range(300 // batch)
            found = {step: order.of_step(step, batch)[0] for step in RANDOM.permutation(steps)}
            joined = np.concatenate([found[step] for step in steps])
            assert np.array_equal(joined, epochs[: len(joined)])

    def test_occurrences_count_within_an_epoch(self, kind):
        samples, epochs, times = (part[:150] for part in Order(kind(), TARGETS, 1).of_step(0, 170))
        seen = {}
        for sample, epoch, time in zip(samples, epochs, times, strict=True):
            assert time == seen.get((epoch, sample), 0)
            seen[epoch, sample] = time + 1
        assert np.array_equal(epochs, np.repeat(np.arange(3), 50))

    def test_epochs_and_seeds_differ(self, kind):
        first = kind().epoch(0, 0, TARGETS)
        assert np.array_equal(first, kind().epoch(0, 0, TARGETS)) and len(first) == 50
        for other in (kind().epoch(0, 1, TARGETS), kind().epoch(1, 0, TARGETS)):
            assert (first == other).mean() < 0.5


def test_balanced_classes_come_equally_often():
    """17, 17 and 16 of each class, whose turn changes; of the frequent one others in each epoch, of the rare one all."""
    counts, frequent = [], []
    for epoch in range(30):
        chosen = Balanced().epoch(2, epoch, TARGETS)
        per_class = np.bincount(TARGETS[chosen].argmax(axis=1), minlength=3)
        counts.append(per_class)
        assert sorted(per_class) == [16, 17, 17]
        often = np.bincount(chosen, minlength=50)
        assert often[:40].max() == 1 and set(often[40:47]) == {2, 3} and often[47:].min() >= 5
        frequent += list(chosen[chosen < 40])
    assert np.sum(counts, axis=0).tolist() == [500, 500, 500]
    assert stats.chisquare(np.bincount(frequent)).pvalue > 0.01
    assert np.array_equal(np.sort(Balanced().epoch(0, 0, one_hot([5, 5]))), np.arange(10))


def test_balanced_refuses_several_labels_and_passes_over_empty_classes():
    with pytest.raises(UsageError, match="several classes"):
        Balanced().epoch(0, 0, np.ones((4, 2), np.float32))
    targets = np.eye(3, dtype=np.float32)[[0, 0, 0, 2]]
    assert np.bincount(targets[Balanced().epoch(0, 0, targets)].argmax(1)).tolist() == [2, 0, 2]


def test_repeated_samples_stand_side_by_side():
    chosen = Repeated(3).epoch(4, 9, TARGETS)
    assert np.array_equal(chosen, np.repeat(permutation(4, 9, 50), 3)[:50])
    assert np.array_equal(Repeated(1).epoch(4, 9, TARGETS), Shuffled().epoch(4, 9, TARGETS))
    with pytest.raises(UsageError, match=r"sampling\.times"):
        Repeated(0)
