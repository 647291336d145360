"""Settings of post-training with rewards (Edit-R1): frozen dataclasses, one for each table of the TOML file.

A file is of this kind if it has a table `editr1`. A step of such a run is an epoch: rollouts, their rewards, one update.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.sampling.solvers import SOLVERS
from .settings import (
    DTYPES,
    AnyRunSettings,
    EMASettings,
    OptimizerSettings,
    at_least,
    between,
    check,
    one_of,
)

# Solvers of rollouts that draw each step; see `training.editr1.stochastic`.
STOCHASTIC = ("flow_sde", "dance_sde", "ddim_sde")
_MAX_ETA, _MAX_STEPS = 10.0, 1000
_MAX_PICTURES = 2**20  # of an epoch
FILTERS = ("published", "paper", "none")
SPREADS = ("global", "group")
MODES = ("all", "positive_only", "negative_only", "one_only", "binary")
DECAYS = ("on_policy", "slow", "late")
MEANS = ("epoch", "published")
POLICIES = ("lora", "full")
# The published targets: every attention projection of FLUX and Qwen-Image, by the end of its name.
TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)


@dataclass(frozen=True)
class BaseModelSettings:
    """The editor that training starts from.

    Attributes:
        checkpoint: a model folder of any family, or the name of a model that ships with the package.
        flux: a FLUX.1-dev folder, for families that use one; "" uses the shipped model's own.
        siglip: a SigLIP2 folder, for families that use one; "" uses the shipped model's own.
        dtype: dtype of the frozen weights, and compute dtype (autocast). "auto" is bfloat16, or float32 on a CPU without
            bfloat16 instructions. Trained parameters are kept in float32.
        use_siglip: give SigLIP features of the references to the model, for families that use them.
        t5_length: number of T5 tokens of the prompt; 0 encodes without T5.
    """

    checkpoint: str = ""
    flux: str = ""
    siglip: str = ""
    dtype: str = "auto"
    use_siglip: bool = True
    t5_length: int = 256

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, DTYPES)
        at_least("model.t5_length", self.t5_length, 0)


@dataclass(frozen=True)
class EditR1Settings:
    """An epoch: groups of rollouts, and how they are trained on.

    Attributes:
        groups: groups per epoch. A group is one prompt with its pictures.
        group_size: pictures painted per group.
        steps: sampling steps of a rollout.
        solver: solver of a rollout: a name in `SOLVERS`, or in `STOCHASTIC` for steps with noise.
        eta: amount of this noise (published `noise_level`).
        guidance: guidance of rollouts and of training.
        side: side of the painted pictures in pixels; references of published data are cropped to it.
        times: noise levels at which each picture is trained, of the rollout's own.
        shared: all pictures of a group are trained with the same noise and noise levels, so that the part of the gradient
            that is the same for all of them cancels.
        old: how the old policy, which paints the rollouts, follows the trained one; a name in `DECAYS`.
        mean: "epoch" weights every valid picture equally. "published" averages in each micro-batch first, so that a lone
            valid picture in its micro-batch weighs as much as all of another.
    """

    groups: int = 24
    group_size: int = 12
    steps: int = 6
    solver: str = "dpm2"
    eta: float = 0.7
    guidance: float = 3.5
    side: int = 512
    times: int = 5
    shared: bool = False
    old: str = "slow"
    mean: str = "epoch"

    def __post_init__(self) -> None:
        for name, least in (
            ("groups", 1),
            ("group_size", 2),
            ("guidance", 0),
            ("side", 16),
            ("times", 1),
        ):
            at_least(f"editr1.{name}", getattr(self, name), least)
        one_of("editr1.solver", self.solver, (*SOLVERS, *STOCHASTIC))
        # The variance of "ddim_sde" cannot exceed that of the noise level.
        between("editr1.eta", self.eta, 0, 1 if self.solver == "ddim_sde" else _MAX_ETA)
        between("editr1.steps", self.steps, 1, _MAX_STEPS)
        most = _MAX_PICTURES // self.group_size
        check("editr1.groups", self.groups, self.groups <= most, f"at most {_MAX_PICTURES} / editr1.group_size")
        one_of("editr1.old", self.old, DECAYS)
        one_of("editr1.mean", self.mean, MEANS)
        check("editr1.times", self.times, self.times <= self.steps, f"at most editr1.steps = {self.steps}")


@dataclass(frozen=True)
class PolicySettings:
    """What trains.

    Attributes:
        kind: "lora" trains adapters, and the reference policy is the model without them. "full" trains every parameter of
            the painter, and keeps a copy of the start as reference.
        rank, alpha: of the adapters, whose strength is alpha / rank.
        targets: ends of the names of the linear layers that get an adapter.
        checkpointing: gradient checkpointing, to save memory.
    """

    kind: str = "lora"
    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] = TARGETS
    checkpointing: bool = False

    def __post_init__(self) -> None:
        one_of("policy.kind", self.kind, POLICIES)
        at_least("policy.rank", self.rank, 1)
        check("policy.alpha", self.alpha, 0 < self.alpha < float("inf"), "a number above 0")
        check("policy.targets", list(self.targets), bool(self.targets), "at least one name")


@dataclass(frozen=True)
class AdvantageSettings:
    """How rewards become advantages.

    Attributes:
        spread: "global" divides by the standard deviation of all rewards, "group" by that of the picture's group.
        filter: a name in `FILTERS`. "published" trains on groups with std > `min_std` and mean < `max_mean`. "paper" drops
            only groups that are both flat and good: std < `min_std` and mean > `max_mean`.
        min_std, max_mean: the thresholds.
        retire: a sample whose group was flat and good is not drawn again (published `ban_prompt`), unless it is to be
            preserved. Endless data repeats no sample anyway.
    """

    spread: str = "global"
    filter: str = "published"
    min_std: float = 0.05
    max_mean: float = 0.9
    retire: bool = False

    def __post_init__(self) -> None:
        one_of("advantage.spread", self.spread, SPREADS)
        one_of("advantage.filter", self.filter, FILTERS)
        at_least("advantage.min_std", self.min_std, 0)
        at_least("advantage.max_mean", self.max_mean, 0)


@dataclass(frozen=True)
class LossSettings:
    """Settings of the loss.

    Attributes:
        beta: how far the implicit policies lie from the old one; at 1 the positive one is the trained policy itself.
        clip: advantages are clipped to plus and minus this number.
        mode: which advantages count, a name in `MODES`. "one_only" uses 1 for positive ones and 0 for others, "binary" their
            sign.
        kl: weight of the mean squared distance from the reference policy; 0 leaves it out.
    """

    beta: float = 1.0
    clip: float = 5.0
    mode: str = "all"
    kl: float = 1e-4

    def __post_init__(self) -> None:
        one_of("loss.mode", self.mode, MODES)
        for name in ("beta", "clip"):
            value = getattr(self, name)
            check(f"loss.{name}", value, 0 < value < float("inf"), "a number above 0")
        at_least("loss.kl", self.kl, 0)


@dataclass(frozen=True)
class PreserveSettings:
    """Prompts that must not change while others are trained: on their pictures, the policy is held at the reference.

    Rewards alone do not preserve them. A prompt that has become wrong is wrong in all pictures of its group, and such a group
    has nothing to learn from. Learning without forgetting: arXiv 1606.09282.

    Attributes:
        weight: weight of the mean squared distance of the velocity from the reference's, summed over all pictures of these
            prompts, whatever their rewards, and divided by the number of pictures that are trained on; 0 leaves it out.
        kinds: which kinds of `data.shapes` they are. In `data.metadata`, lines with `"preserve": true` mark them instead.
        start: first epoch with this term; the first of all is 0.
    """

    weight: float = 0.0
    kinds: tuple[str, ...] = ()
    start: int = 0

    def __post_init__(self) -> None:
        check("preserve.weight", self.weight, 0 <= self.weight < float("inf"), "a number of 0 or more")
        at_least("preserve.start", self.start, 0)

    def acts_in(self, epoch: int) -> bool:
        """Whether an epoch has this term."""
        return self.weight > 0 and epoch >= self.start


@dataclass(frozen=True)
class PromptDataSettings:
    """The prompts; exactly one source is set.

    Attributes:
        metadata: published data: a file of JSON lines with prompt, image and requirement. Pictures are relative to its
            folder.
        list: our annotations: a text file of `image_root,annotations.json,need_weight` lines. Targets are not used.
        shapes: kinds of tasks of the world of shapes; every epoch gets new ones.
        bad_limit: the run replaces up to this many bad samples by others and stops at the next.
    """

    metadata: str = ""
    list: str = ""
    shapes: tuple[str, ...] = ()
    bad_limit: int = 100

    def __post_init__(self) -> None:
        at_least("data.bad_limit", self.bad_limit, 0)
        if len(self.sources) > 1:
            raise UniWorldError(f"data.{' and data.'.join(self.sources)} are both set; set only one.")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that are set."""
        return tuple(name for name in ("metadata", "list", "shapes") if getattr(self, name))


@dataclass(frozen=True)
class RewardSettings:
    """The reward: one, or the weighted mean of several. Servers read their token from UNIWORLD_REWARD_TOKEN.

    Attributes:
        name: names of rewards: "logit", a judge in this process; "remote", a server of `uniworld reward serve`; "openai", a
            server with OpenAI's API. For the world of shapes also "oracle", and "questions", a judge in this process whose
            answers to questions about the picture are compared with the correct ones.
        weights: weight of each; empty for equal ones.
        watch: names of rewards that are computed and recorded, but not trained on.
        model: the judge's folder or the name of a shipped model for "logit" and "questions"; the model's name on the server
            for "openai".
        url: address of the server.
        template: text file with the question for "logit" and "openai"; "" for the package's own.
        answers: possible answers of the judge from the worst to the best, each a single token.
        pixels: pixels to which a Qwen2.5-VL judge resizes every picture; 0 for the range of its processor.
        batch: pictures that are judged at once.
        timeout: seconds for one request to a server.
        attempts: number of attempts of a request; a picture without a score after them is a failure.
        ray: address of a Ray cluster whose workers compute the reward, or "local" for workers on this machine; "" computes
            it in the training process.
        workers: number of these workers.
        max_failed: the run stops if more than this fraction of an epoch's pictures has no score.
    """

    name: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    watch: tuple[str, ...] = ()
    model: str = ""
    url: str = ""
    template: str = ""
    answers: tuple[str, ...] = ("0", "1", "2", "3", "4", "5")
    pixels: int = 0
    batch: int = 8
    timeout: float = 120.0
    attempts: int = 4
    ray: str = ""
    workers: int = 1
    max_failed: float = 0.25

    def __post_init__(self) -> None:
        between("reward.max_failed", self.max_failed, 0, 1)
        at_least("reward.pixels", self.pixels, 0)
        for name in ("batch", "attempts", "workers"):
            at_least(f"reward.{name}", getattr(self, name), 1)
        check("reward.timeout", self.timeout, 0 < self.timeout < float("inf"), "a number above 0")
        fits = len(self.weights) in (0, len(self.name)) and all(0 < one < float("inf") for one in self.weights)
        check(
            "reward.weights", list(self.weights), fits, f"one number above 0 for each of the {len(self.name)} rewards"
        )


@dataclass(frozen=True)
class EditR1RunSettings(AnyRunSettings):
    """Settings of a run with rewards, besides those of `AnyRunSettings`; its steps are epochs, its samples pictures.

    "Loss" of `keep_best` is the negative mean reward.

    Attributes:
        sheet_every: epochs between contact sheets of groups with their rewards; 0 writes none.
        sheet_groups: groups on a sheet.
    """

    micro_batch_size: int = 3
    seed: int = 42
    save_every: int = 1
    sheet_every: int = 10
    sheet_groups: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("run.sheet_groups", self.sheet_groups, 1)
        at_least("run.sheet_every", self.sheet_every, 0)


@dataclass(frozen=True)
class EditR1Config:
    """The complete configuration of a run, one field per TOML table."""

    model: BaseModelSettings = field(default_factory=BaseModelSettings)
    editr1: EditR1Settings = field(default_factory=EditR1Settings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    advantage: AdvantageSettings = field(default_factory=AdvantageSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    preserve: PreserveSettings = field(default_factory=PreserveSettings)
    data: PromptDataSettings = field(default_factory=PromptDataSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    ema: EMASettings = field(default_factory=EMASettings)
    run: EditR1RunSettings = field(default_factory=EditR1RunSettings)

    def check_complete(self) -> None:
        """Check that model, data and reward, which have no default, are set. Raises UniWorldError otherwise."""
        if not self.model.checkpoint:
            raise UniWorldError(
                "model.checkpoint is not set: give the editor that training starts from (--set model.checkpoint=FOLDER)."
            )
        if not self.data.sources:
            raise UniWorldError(
                "None of data.metadata, data.list and data.shapes is set: give the prompts (--set data.metadata=FILE)."
            )
        unused = [kind for kind in self.preserve.kinds if kind not in self.data.shapes]
        if unused:
            raise UniWorldError(
                f"preserve.kinds has {', '.join(unused)}, but data.shapes has no such tasks: add them, so that they are painted."
            )
        if self.preserve.weight and self.editr1.mean == "published":
            raise UniWorldError(
                "preserve.weight cannot be combined with editr1.mean 'published', which averages in micro-batches: set "
                "editr1.mean to 'epoch'."
            )
        if not self.reward.name:
            raise UniWorldError("reward.name is not set: give the reward (--set reward.name=NAME).")
