"""A teacher without text (App. E): class prototypes over a pretrained classifier's outputs, as in Co-Tuning."""

import copy

import torch
from torch import Tensor, nn

PENALTIES = tuple(10.0**k for k in range(0, -9, -1))
"""Candidate weight decays of the logistic regression, strongest first: each fit starts from the previous one."""


def average_prototypes(probabilities: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Average the pretrained classifier's outputs over the images of each class: Co-Tuning's direct approach.

    `M_i = p(pretrained class | y = i)`, without a fit, from all available images.

    Args:
        probabilities: (N, C_pre), the classifier's probabilities of the source images.
        labels: (N,), int64, the source classes.
        classes: number of classes C.

    Returns:
        (C, C_pre); each row sums to 1. float32, or the probabilities' dtype if that is wider.

    Raises:
        ValueError: if a shape or dtype is not the one given above, or a class has no image.
    """
    _check_labelled("probabilities", probabilities, labels, classes)
    dtype = torch.promote_types(probabilities.dtype, torch.float32)
    sums = torch.zeros(classes, probabilities.shape[1], dtype=dtype, device=probabilities.device)
    sums.index_add_(0, labels, probabilities.to(dtype))
    return sums / sums.sum(dim=1, keepdim=True)


def relationship_prototypes(
    train_probabilities: Tensor,
    train_labels: Tensor,
    validation_probabilities: Tensor,
    validation_labels: Tensor,
    classes: int,
) -> Tensor:
    """Learn the category relationship: Co-Tuning's reverse approach, which App. E's split of the source implies.

    1. A logistic regression without bias predicts the label from the classifier's probabilities. It is trained on one
       half; its weight decay is chosen by accuracy on the other half, and its scale is calibrated there.
    2. Its output for a one-hot input is `p(y | pretrained class)`.
    3. Bayes' rule, with the mean of all probabilities as `p(pretrained class)`, turns it into `M_i`. It is computed in
       logarithms: a class whose probability underflows for every pretrained class, so that the quotient would be 0 / 0,
       still has a prototype, with its mass where its log-probability is largest.

    Unlike in `average_prototypes`, an image's secondary guesses do not leak into the prototype of its class.
    Source: You et al., Co-Tuning for Transfer Learning, 2020, Sec. 4.1 and Algorithm 1.

    Args:
        train_probabilities: (N, C_pre), the classifier's probabilities of half of the source images.
        train_labels: (N,), int64.
        validation_probabilities: (V, C_pre), those of the other half (App. E: 1:1).
        validation_labels: (V,), int64.
        classes: number of classes C.

    Returns:
        (C, C_pre); each row sums to 1. float32, or the training probabilities' dtype if that is wider.

    Raises:
        ValueError: if a shape or dtype is not the one given above, or a class has no image in a half.
    """
    _check_labelled("train_probabilities", train_probabilities, train_labels, classes)
    _check_labelled("validation_probabilities", validation_probabilities, validation_labels, classes)
    train, validation = (
        train_probabilities.cpu().double(),
        validation_probabilities.cpu().double(),
    )  # MPS has no float64
    train_labels, validation_labels = train_labels.cpu(), validation_labels.cpu()

    best_accuracy, best = -1.0, train.new_zeros(classes, train.shape[1])
    weight = best
    for penalty in PENALTIES:
        weight = _logistic_regression(train, train_labels, weight, penalty)
        accuracy = float(((validation @ weight.T).argmax(dim=1) == validation_labels).double().mean())
        if accuracy >= best_accuracy:  # ties go to the weaker decay
            best_accuracy, best = accuracy, weight
    scale = _calibrated_scale(validation @ best.T, validation_labels)

    label_given_pretrained = (scale * best).log_softmax(dim=0)
    pretrained = torch.cat([train, validation]).mean(dim=0).log()
    prototypes = (label_given_pretrained + pretrained).softmax(dim=1)
    dtype = torch.promote_types(train_probabilities.dtype, torch.float32)
    return prototypes.to(dtype).to(train_probabilities.device)


class PrototypeTeacher(nn.Module):
    """The teacher's view with an ImageNet backbone: `p_g(i) ~ exp(-KL(M_i || l(f(x))))` (App. Eq. 7).

    A frozen copy of the pretrained classifier `l` reads the student's features; gradients pass through it.
    """

    prototypes: Tensor
    negative_entropies: Tensor

    def __init__(self, classifier: nn.Module, prototypes: Tensor) -> None:
        """Copy and freeze the classifier, and store the prototypes.

        Args:
            classifier: maps features (B, D) to logits (B, C_pre); copied.
            prototypes: (C, C_pre), probabilities: each row sums to 1; detached.

        Raises:
            ValueError: if the prototypes are not rows of probabilities.
        """
        super().__init__()
        if prototypes.ndim != 2 or not prototypes.is_floating_point():
            raise ValueError(
                "prototypes must be a floating point (classes, pretrained classes) tensor, "
                f"got {prototypes.dtype} of shape {tuple(prototypes.shape)}"
            )
        prototypes = prototypes.detach().to(torch.promote_types(prototypes.dtype, torch.float32)).clone()
        wrong = ~torch.isclose(prototypes.sum(dim=1), prototypes.new_ones(()), atol=1e-3) | (prototypes < 0).any(dim=1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"prototypes row {row} is no distribution: sum {float(prototypes[row].sum())}, "
                f"smallest {float(prototypes[row].min())}"
            )
        self.classifier = copy.deepcopy(classifier).requires_grad_(False).eval()
        self.register_buffer("prototypes", prototypes)
        self.register_buffer("negative_entropies", torch.special.xlogy(prototypes, prototypes).sum(dim=1))

    def train(self, mode: bool = True) -> "PrototypeTeacher":
        """Stay in eval mode: dropout in the classifier would make the teacher's view random."""
        return super().train(False)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C), `-KL(M_i || softmax(classifier(features)))`, of features (B, D); float32 or better."""
        logits: Tensor = self.classifier(features)
        with torch.autocast(features.device.type, enabled=False):
            log_p = logits.log_softmax(dim=1, dtype=torch.promote_types(logits.dtype, self.prototypes.dtype))
            return log_p @ self.prototypes.to(log_p.dtype).T - self.negative_entropies


def _check_labelled(name: str, probabilities: Tensor, labels: Tensor, classes: int) -> None:
    if probabilities.ndim != 2 or not probabilities.is_floating_point():
        raise ValueError(
            f"{name} must be a floating point (images, pretrained classes) tensor, "
            f"got {probabilities.dtype} of shape {tuple(probabilities.shape)}"
        )
    if labels.shape != probabilities.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels of {name} must be int64 of shape ({len(probabilities)},), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    counts = torch.bincount(labels, minlength=classes)
    if len(counts) > classes:
        raise ValueError(f"labels of {name} must be below classes={classes}, got {len(counts) - 1}")
    if (counts == 0).any():
        raise ValueError(f"class {int((counts == 0).nonzero()[0])} of {classes} has no image in {name}")


@torch.enable_grad()
def _logistic_regression(inputs: Tensor, labels: Tensor, start: Tensor, penalty: float) -> Tensor:
    """Minimise the mean cross entropy of `inputs @ W.T` plus `penalty / 2 * ||W||^2`, from `start`."""
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(inputs @ weight.T, labels) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach()


def _calibrated_scale(logits: Tensor, labels: Tensor) -> Tensor:
    """Find the positive factor of the logits that minimises their cross entropy (temperature scaling)."""
    log_scales = torch.linspace(-7, 7, 281, dtype=logits.dtype, device=logits.device)
    losses = torch.stack([nn.functional.cross_entropy(s.exp() * logits, labels) for s in log_scales])
    return log_scales[losses.argmin()].exp()
