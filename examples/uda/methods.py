"""Methods by name: an objective, whether the encoder trains, whether RST keeps its change sparse.

"clip" is the teacher itself, untrained; "baseline" trains on the source only; "linear_probe" is CMKD with a frozen
encoder (Table VII); "cmkd" trains everything; "cmkd_target" is CMKD without source images; every name of
`cmkd.baselines.BASELINES` is a method as well. "+fixmatch" adds FixMatch to CMKD (App. B), "+rst" trains the encoder
sparsely (Algorithm 1).
"""

from dataclasses import dataclass

from torch import nn

from cmkd import CMKD, CMKDLoss, FixMatch, Objective, PartialSet, SourceFreeCMKD, SourceOnly
from cmkd.baselines import BASELINES
from examples.experiment.settings import SettingsError
from examples.uda.benchmarks import get_benchmark
from examples.uda.settings import Settings

OWN = ("clip", "baseline", "linear_probe", "cmkd", "cmkd_target")
WITH_TEACHER = ("clip", "linear_probe", "cmkd", "cmkd_target")


@dataclass(frozen=True)
class Method:
    """A method's name, taken apart."""

    base: str
    rst: bool = False
    fixmatch: bool = False

    @property
    def trains(self) -> bool:
        """Whether there is anything to train; zero-shot CLIP is tested as it is."""
        return self.base != "clip"

    @property
    def trains_encoder(self) -> bool:
        """Whether the image encoder moves."""
        return self.base not in ("clip", "linear_probe")

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's view takes part."""
        return self.base in WITH_TEACHER


def parse_method(name: str) -> Method:
    """Take a name such as "cmkd+fixmatch+rst" apart. Raises `SettingsError` saying what is wrong with it."""
    base, *additions = name.split("+")
    if base not in OWN and base not in BASELINES:
        raise SettingsError(f"method must start with one of {', '.join([*OWN, *BASELINES])}, got {name!r}")
    if unknown := sorted(set(additions) - {"rst", "fixmatch"}):
        raise SettingsError(f'method {name!r}: after "+" comes rst or fixmatch, not {unknown[0]!r}')
    method = Method(base, rst="rst" in additions, fixmatch="fixmatch" in additions)
    if method.rst and not method.trains_encoder:
        raise SettingsError(f"method {name!r}: RST trains the encoder, and {base} does not")
    if method.fixmatch and base not in ("cmkd", "linear_probe"):
        raise SettingsError(f"method {name!r}: FixMatch is added to both of CMKD's views, and {base} has only one")
    return method


def build_objective(settings: Settings, teacher: nn.Module | None, *, feature_dim: int, classes: int) -> Objective:
    """Build a trained method's objective.

    Args:
        settings: the method's name and options.
        teacher: features (B, D) to logits (B, C), for CMKD.
        feature_dim: width of the encoder's features.
        classes: number of classes.

    Raises:
        SettingsError: if `options` has a key that the baseline lacks, or the method is not one to train.
    """
    method = parse_method(settings.method)
    if get_benchmark(settings.benchmark).source_free:
        _refuse_source(method.base, settings)
    if method.base in BASELINES:
        try:
            return BASELINES[method.base](feature_dim=feature_dim, classes=classes, **settings.options)
        except TypeError as error:
            raise SettingsError(f"options of {method.base}: {error}") from error
    if settings.options:
        raise SettingsError(f"options are for baselines, {method.base} has none; got {dict(settings.options)}")
    if method.base == "baseline":
        return SourceOnly(weight=PartialSet(classes).classification_weight if settings.partial_set else 1.0)
    if teacher is None:
        raise SettingsError(f"method {settings.method!r} on {settings.backbone} needs a teacher, and there is none")
    preset = settings.resolved_preset()
    loss = CMKDLoss(
        preset,
        max_iterations=settings.ramp_iterations,
        lambda1=settings.lambda1,
        lambda2=settings.lambda2,
        lambda3=settings.lambda3,
        terms=settings.terms,
    )
    if method.base == "cmkd_target":
        return SourceFreeCMKD(teacher, loss)
    return CMKD(
        teacher,
        loss,
        fixmatch=FixMatch(settings.fixmatch_weight, settings.fixmatch_threshold) if method.fixmatch else None,
        partial_set=PartialSet(classes, refresh_every=preset.partial_refresh_every) if settings.partial_set else None,
    )


def _refuse_source(base: str, settings: Settings) -> None:
    """Refuse a method that would train on source images that a source-free benchmark does not have."""
    if base != "cmkd_target" and not (base == "shot" and settings.options.get("source_fraction") == 0):
        raise SettingsError(
            f"{settings.benchmark} has no source images: method must be cmkd_target, or shot with options "
            f"{{source_fraction: 0}}, got {settings.method!r} with {dict(settings.options)}"
        )
