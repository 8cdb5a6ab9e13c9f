"""The keys of a configuration: dataclasses with types and checks, and no values.

Contract: every value has one home, `configs/`; every check is made once, when the dataclass is made, and ends in a
`UserError` that names key, value and remedy. `config.py` reads the files. What was added after runs and exports had
been written has a value that leaves it off, so that they can still be read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pairvpr_dist.errors import UserError

INDEXES = ("flat", "ivf", "hnsw")
CHECKPOINTING = ("none", "selective", "full")
COMPILE = ("auto", "none", "blocks", "graphs")
MINING = ("adaptive", "random")
PATCH = 14  # pixels, the side of a DINOv2 patch


def _require(condition: bool, key: str, value: object, remedy: str) -> None:
    if not condition:
        raise UserError(f"{key}={value}: {remedy}")


def check_image_size(key: str, size: int) -> None:
    """An image side in pixels must be a positive multiple of the patch side, 14."""
    near = max(PATCH, round(size / PATCH) * PATCH)
    _require(size > 0 and size % PATCH == 0, key, size, f"must be a multiple of {PATCH}; the nearest is {near}")


@dataclass
class ModelConfig:
    """Shape of `PairVPR`. It travels with every checkpoint and export."""

    encoder: str  # a preset of models/encoder.py: tiny, dinov2_vits14_reg, dinov2_vitb14_reg, ...
    image_size: int  # pixels, square; a multiple of 14
    frozen_blocks: int  # this many first encoder blocks, and all below them, are not trained
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    descriptor_dim: int
    pair_hidden_dim: int
    fused_depths: int = 0  # SUP-VPR: depths of the encoder, evenly spaced, that make the descriptor; 0: Pair-VPR
    city_blocks: int = 0  # SUP-VPR: cross-attention blocks between cities, in place of Pair-VPR's decoder and heads

    def __post_init__(self) -> None:
        _require(self.fused_depths >= 0, "model.fused_depths", self.fused_depths, "must be 0 or more")
        _require((self.city_blocks > 0) == (self.fused_depths > 0) and self.city_blocks >= 0, "model.city_blocks",
                 self.city_blocks, "is above 0 where model.fused_depths is: both are SUP-VPR's")  # fmt: skip
        _require(self.city_blocks == 0 or self.descriptor_dim % 16 == 0, "model.descriptor_dim", self.descriptor_dim,
                 "SUP-VPR's has a part for each of 16 cells of an image; it must be a multiple of 16")  # fmt: skip
        for key in ("decoder_dim", "decoder_depth", "decoder_heads", "descriptor_dim", "pair_hidden_dim"):
            _require(getattr(self, key) > 0, f"model.{key}", getattr(self, key), "must be positive")
        check_image_size("model.image_size", self.image_size)
        _require(
            self.decoder_dim % self.decoder_heads == 0,
            "model.decoder_heads",
            self.decoder_heads,
            f"must divide model.decoder_dim={self.decoder_dim}",
        )
        _require(self.decoder_dim % 4 == 0, "model.decoder_dim", self.decoder_dim, "must be a multiple of 4")


@dataclass
class InitConfig:
    """Where weights come from before the first step. Paths only; nothing is ever downloaded."""

    encoder: str | None  # DINOv2 weights of the encoder alone (released .pth or timm safetensors)
    model: str | None  # a whole model: an export folder or a released Pair-VPR .pth


@dataclass
class AugmentConfig:
    """Random views. All of it is keyed by (seed, epoch, place, view)."""

    crop_area: list[float]  # share of the image's area kept by the random resized crop; [1, 1] resizes the whole image
    crop_aspect: list[float]  # aspect ratio range of the crop
    colour_jitter: float  # brightness, contrast and saturation are each scaled by U(1 - c, 1 + c)
    rand_augment_ops: int  # operations of RandAugment per image; 0 is off
    copies: bool  # all views of a place are crops of one and the same image of it: training without places, to compare
    blur: float = 0.0  # pixels: half of the views are blurred by a Gaussian of deviation U(0, blur)

    def __post_init__(self) -> None:
        _require(
            len(self.crop_area) == 2 and 0 < self.crop_area[0] <= self.crop_area[1] <= 1,
            "data.augment.crop_area",
            self.crop_area,
            "must be two ascending shares in (0, 1]",
        )
        _require(len(self.crop_aspect) == 2 and 0 < self.crop_aspect[0] <= self.crop_aspect[1],
                 "data.augment.crop_aspect", self.crop_aspect, "must be two ascending positive ratios")  # fmt: skip
        _require(0 <= self.colour_jitter < 1, "data.augment.colour_jitter", self.colour_jitter, "must lie in [0, 1)")
        _require(0 <= self.blur < math.inf, "data.augment.blur", self.blur, "must be 0 or more")


@dataclass
class RemoteConfig:
    """How shard sets at a URL (http, https, s3, gs) are read."""

    read: str  # ranges: only the members that a view needs; shards: whole tars, through the cache
    cache: str | None  # folder on a disk of this machine, shared by its processes; none: pairvpr_dist in the user's
    cache_gib: float  # room for whole tars in the cache; the least recently used go first
    attempts: int  # for one request, with growing pauses between them, before the run ends
    timeout: float  # seconds that one request may take

    def __post_init__(self) -> None:
        _require(self.read in ("ranges", "shards"), "data.remote.read", self.read, "must be ranges or shards")
        for key in ("cache_gib", "attempts", "timeout"):
            _require(getattr(self, key) > 0, f"data.remote.{key}", getattr(self, key), "must be positive")


@dataclass
class DataConfig:
    """What is read and in which portions."""

    shards: list[str]  # folders or URLs of sets written by shards/build.py
    weights: list[float]  # times that a place of each of them comes per epoch; empty: once
    validation: list[str]  # shard folders of places that are never trained on; empty: no validation
    places_per_batch: int  # places per step over all ranks together
    images_per_place: int  # 2 is a pair (stage 1); stage 2 takes 4
    min_images_per_place: int  # places with fewer images are left out
    single_city: bool  # places of one batch come from one city
    workers: int  # loader processes per rank; 0 reads in the training process
    max_bad_places: int  # this many places that cannot be read never end a run, however small it is
    max_bad_share: float  # of all places; more than both ends the run
    remote: RemoteConfig
    augment: AugmentConfig
    synthetic: list[str] = field(default_factory=list)  # shards of places that are trained on beside the real ones
    synthetic_share: float = 0.25  # of the places of an epoch, those of data.synthetic where there are some

    def __post_init__(self) -> None:
        _require(0 < self.synthetic_share < 1, "data.synthetic_share", self.synthetic_share,
                 "must lie strictly between 0 and 1; to train without them leave data.synthetic empty")  # fmt: skip
        _require(self.places_per_batch > 0, "data.places_per_batch", self.places_per_batch, "must be positive")
        _require(self.images_per_place >= 2, "data.images_per_place", self.images_per_place, "must be at least 2")
        _require(
            self.min_images_per_place >= self.images_per_place,
            "data.min_images_per_place",
            self.min_images_per_place,
            f"must be at least data.images_per_place={self.images_per_place}",
        )
        _require(self.workers >= 0, "data.workers", self.workers, "must be 0 or more")
        _require(self.max_bad_places >= 0, "data.max_bad_places", self.max_bad_places, "must be 0 or more")
        _require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "must lie in [0, 1]")
        _require(
            not self.weights or (len(self.weights) == len(self.shards) and all(0 < w < math.inf for w in self.weights)),
            "data.weights",
            self.weights,
            f"must be one positive number for each of the {len(self.shards)} data.shards",
        )


@dataclass
class MaskedModellingConfig:
    """Stage 1: siamese masked image modelling."""

    mask_ratio: float  # exactly int(mask_ratio * patches) patches of the first view are hidden
    drop_hidden: bool  # the encoder does not see hidden patches at all, as in MAE; the paper puts mask tokens there

    def __post_init__(self) -> None:
        _require(0 < self.mask_ratio < 1, "objective.mask_ratio", self.mask_ratio, "must lie strictly between 0 and 1")


@dataclass
class PlaceRecognitionConfig:
    """Stage 2: Multi-Similarity loss of the descriptor plus cross-entropy of the pair score."""

    descriptor_loss: str  # a loss of pytorch-metric-learning with its arguments: Name(argument=number, ...)
    descriptor_miner: str | None  # likewise a miner; none: the loss sees all pairs
    pair_loss_weight: float
    pair_loss_warmup_steps: list[int]  # the weight rises linearly from 0 between these two steps; [0, 0] is at once
    chunks: int  # a rank's images and pairs pass in so many parts, of one of which activations are held at a time

    def __post_init__(self) -> None:
        _require(self.chunks > 0, "objective.chunks", self.chunks, "must be positive")
        ramp = self.pair_loss_warmup_steps
        _require(
            len(ramp) == 2 and 0 <= ramp[0] <= ramp[1],
            "objective.pair_loss_warmup_steps",
            ramp,
            "must be two ascending steps",
        )


@dataclass
class CityRecognitionConfig:
    """Stage 2 of SUP-VPR: places within a city by the descriptor, cities by attention between their embeddings."""

    descriptor_loss: str  # as PlaceRecognitionConfig has it; over real and synthetic places together
    descriptor_miner: str | None
    city_loss_weight: float  # lambda of SUP-VPR, eq. 4
    temperature: float  # of the similarities in the loss between cities, eq. 3
    negatives: int  # images of other cities that an image is told from
    mining: str  # adaptive: those as alike as images of its own city are on average; random: any, for comparison
    chunks: int  # a rank's images pass in so many parts, of one of which activations are held at a time

    def __post_init__(self) -> None:
        for key in ("temperature", "negatives", "chunks"):
            _require(getattr(self, key) > 0, f"objective.{key}", getattr(self, key), "must be positive")
        _require(0 <= self.city_loss_weight < math.inf, "objective.city_loss_weight", self.city_loss_weight,
                 "must be 0 or more")  # fmt: skip
        _require(self.mining in MINING, "objective.mining", self.mining, f"must be one of {', '.join(MINING)}")


@dataclass
class OptimConfig:
    """AdamW and its schedules."""

    lr: float  # peak learning rate, before the scaling by batch
    lr_reference_batch: int | None  # peak = lr * sqrt(places_per_batch / this); none: lr as it stands
    schedule: str  # cosine or linear decay after the warm-up
    final_lr: float  # learning rate at the end, a share of the peak where final_lr_is_share
    final_lr_is_share: bool
    decay_steps: int | None  # the decay ends at this step and stays; none: at the last step of the run
    warmup_epochs: float  # linear rise from 0; may be a fraction
    betas: list[float]
    weight_decay: float
    weight_decay_end: float  # cosine from weight_decay to this
    decay_all_parameters: bool  # also biases, norms and other 1-D tensors
    layer_decay: float  # learning rate factor per layer, from the heads down; 1 is off
    patch_embed_lr_scale: float
    clip_grad_norm: float  # 0 is off

    def __post_init__(self) -> None:
        _require(self.schedule in ("cosine", "linear"), "optim.schedule", self.schedule, "must be cosine or linear")
        for key in ("lr", "layer_decay", "patch_embed_lr_scale"):
            _require(getattr(self, key) > 0, f"optim.{key}", getattr(self, key), "must be positive")
        for key in ("final_lr", "warmup_epochs", "weight_decay", "weight_decay_end", "clip_grad_norm"):
            _require(getattr(self, key) >= 0, f"optim.{key}", getattr(self, key), "must be 0 or more")
        for key in ("lr_reference_batch", "decay_steps"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"optim.{key}", value, "must be positive, or null")
        _require(len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "optim.betas", self.betas,
                 "must be two numbers in [0, 1)")  # fmt: skip


@dataclass
class TrainConfig:
    """The run itself."""

    epochs: int
    max_steps: int | None  # end after this many steps, however many epochs that is; schedules follow
    zero_stage: int  # DeepSpeed ZeRO: 0, 1, 2 or 3
    precision: str  # auto (bf16 on GPU, fp32 on CPU), bf16 or fp32
    accumulate: int  # a rank's batch passes in so many parts before an update; stage 2 has objective.chunks for that
    checkpointing: str  # activations that the backward pass computes again: none, selective (all but products), full
    compile: str  # auto (blocks on a GPU below ZeRO-3, else none), none, blocks, or graphs (blocks in CUDA graphs)
    log_every: int  # steps between two lines of metrics.jsonl
    validate_every: int  # steps between two validations; 0: only at the end
    checkpoint_every: int  # steps between two checkpoints; one is always written at the end
    keep_checkpoints: int  # this many newest checkpoints stay
    keep_every: int  # checkpoints of the multiples of this step stay for ever; 0: none
    best_metric: str | None  # a metric of validation; its best checkpoint stays and is exported; none: the last one is
    best_is: str | None  # min or max; none: max of what is a recall, an accuracy or a gain, else min
    early_stop: int  # this many validations in a row without a new best end the run; 0: never
    self_check: bool  # before the first step: one step, save, load and compare
    max_skipped_steps: int  # this many non-finite steps in a row end the run, or rewind it
    max_rewinds: int  # times that a run returns to its last good checkpoint, past the bad data, before it ends
    hang_timeout: float  # seconds that any rank may take over one step before the watchdog ends the run; 0: never
    profile_steps: list[int]  # first and last step that torch's profiler records; empty: none
    wandb: str | None  # project of Weights & Biases to which TensorBoard's curves are copied; none: not

    def __post_init__(self) -> None:
        _require(self.zero_stage in (0, 1, 2, 3), "train.zero_stage", self.zero_stage, "must be 0, 1, 2 or 3")
        _require(
            self.precision in ("auto", "bf16", "fp32"), "train.precision", self.precision, "must be auto, bf16 or fp32"
        )
        _require(self.max_steps is None or self.max_steps > 0, "train.max_steps", self.max_steps, "must be positive")
        _require(self.checkpointing in CHECKPOINTING, "train.checkpointing", self.checkpointing,
                 f"must be one of {', '.join(CHECKPOINTING)}")  # fmt: skip
        _require(self.compile in COMPILE, "train.compile", self.compile, f"must be one of {', '.join(COMPILE)}")
        # DeepSpeed's products at ZeRO-3 add the bias in place, which selective checkpointing does not see: it would be
        # added again, and gradients would be others, in silence.
        _require(not (self.checkpointing == "selective" and self.zero_stage == 3), "train.checkpointing",
                 self.checkpointing, "keeps products that train.zero_stage=3 changes in place; take full")  # fmt: skip
        compiles = self.compile in ("blocks", "graphs")
        _require(not (compiles and self.zero_stage == 3), "train.compile", self.compile,
                 "the hooks of train.zero_stage=3 break compiled blocks into pieces; take none")  # fmt: skip
        _require(self.compile != "graphs" or self.accumulate == 1, "train.compile", self.compile,
                 "gradients of train.accumulate would be overwritten by the next graph; take blocks")  # fmt: skip
        for key in ("epochs", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints", "max_skipped_steps"):
            _require(getattr(self, key) > 0, f"train.{key}", getattr(self, key), "must be positive")
        for key in ("early_stop", "validate_every", "keep_every", "max_rewinds", "hang_timeout"):
            _require(getattr(self, key) >= 0, f"train.{key}", getattr(self, key), "must be 0 or more")
        _require(self.best_is in (None, "min", "max"), "train.best_is", self.best_is, "must be min or max")
        _require(not self.early_stop or self.best_metric is not None, "train.early_stop", self.early_stop,
                 "needs train.best_metric, of which no new best comes")  # fmt: skip
        steps = self.profile_steps
        _require(not steps or (len(steps) == 2 and 0 < steps[0] <= steps[1]), "train.profile_steps", steps,
                 "must be empty, or the first and the last step")  # fmt: skip


@dataclass
class RecallConfig:
    """Two-stage retrieval at each validation of stage 2."""

    data: str | None  # the data set as it lies on disk; none: recall is not measured
    protocol: str  # a name of retrieval/protocols
    positive_distance: float  # metres, for protocol folder
    top_k: int  # candidates per query that are re-ranked
    recall_at: list[int]
    feature_budget_gib: float  # features kept on disk; what is over is computed again when needed


@dataclass
class LaunchConfig:
    """Processes of a job."""

    processes: int  # over all machines
    threads: int | None  # CPU threads per process; none: the cores shared out
    max_restarts: int  # starts in a row that may fail without a new checkpoint, beside the first

    def __post_init__(self) -> None:
        _require(self.processes > 0, "launch.processes", self.processes, "must be positive")
        _require(self.max_restarts >= 0, "launch.max_restarts", self.max_restarts, "must be 0 or more")


@dataclass
class EvalConfig:
    """Two-stage retrieval and its measurement."""

    model: str  # an export folder or a released .pth
    data: str  # the data set as it lies on disk
    protocol: str  # a name of retrieval/protocols
    top_k: int  # candidates per query that are re-ranked
    image_size: int | None  # pixels; none: the model's own
    positive_distance: float  # metres, for protocols by UTM
    recall_at: list[int]
    patience: int | None  # a query ends after so many candidates in a row that are not its best so far; none: never
    index: str  # flat (exact), or for millions ivf or hnsw
    index_effort: int | None  # lists visited (ivf) or candidates followed (hnsw) for a query; none: by the size
    batch_size: int  # images per encoder call
    pair_batch_size: int | None  # pairs per decoder call; none: found by memory
    workers: int
    feature_budget_gib: float  # dense features kept on disk; what is over is computed again when needed
    precision: str  # auto, bf16 or fp32

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_image_size("eval.image_size", self.image_size)
        at = self.recall_at
        _require(bool(at) and at[0] > 0 and at == sorted(set(at)), "eval.recall_at", at, "must be ascending ranks")
        _require(
            self.top_k >= at[-1],
            "eval.top_k",
            self.top_k,
            f"must be at least the last of eval.recall_at={at}; lower that or raise this",
        )
        _require(self.positive_distance > 0, "eval.positive_distance", self.positive_distance, "must be positive")
        _require(self.index in INDEXES, "eval.index", self.index, f"must be one of {', '.join(INDEXES)}")
        for key in ("batch_size", "pair_batch_size", "patience", "index_effort"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"eval.{key}", value, "must be positive")
        for key in ("workers", "feature_budget_gib"):
            _require(getattr(self, key) >= 0, f"eval.{key}", getattr(self, key), "must be 0 or more")
        _require(
            self.precision in ("auto", "bf16", "fp32"), "eval.precision", self.precision, "must be auto, bf16 or fp32"
        )


@dataclass
class RunConfig:
    """What every stage has: its name, its size and the run folder that it writes below."""

    stage: str
    size: str
    run: str  # the run folder; a stage writes into <run>/<stage>
    seed: int
    launch: LaunchConfig


@dataclass
class Stage1Config(RunConfig):
    """Siamese masked image modelling on pairs of one place."""

    model: ModelConfig
    init: InitConfig
    data: DataConfig
    objective: MaskedModellingConfig
    optim: OptimConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        _require(self.data.images_per_place == 2, "data.images_per_place", self.data.images_per_place,
                 "stage 1 learns from pairs; it must be 2")  # fmt: skip
        _require(self.model.city_blocks == 0, "model.city_blocks", self.model.city_blocks,
                 "is of stage 2's objective=supvpr; name it as stage2.model.city_blocks")  # fmt: skip


@dataclass
class Stage2Config(RunConfig):
    """Descriptor and pair classifier together."""

    model: ModelConfig
    init: InitConfig
    data: DataConfig
    objective: PlaceRecognitionConfig
    optim: OptimConfig
    recall: RecallConfig
    train: TrainConfig
    recipe: str | None = None  # what `objective=NAME` named, a file of configs/stage2; none: Pair-VPR

    def __post_init__(self) -> None:
        supvpr = isinstance(self, SupVPRConfig)
        remedy = "objective=supvpr needs some" if supvpr else "is of objective=supvpr, and of nothing else"
        _require((self.model.city_blocks > 0) == supvpr, "model.city_blocks", self.model.city_blocks, remedy)
        _require(self.train.accumulate == 1, "train.accumulate", self.train.accumulate,
                 "stage 2 mines the whole batch at once; objective.chunks saves its memory")  # fmt: skip
        _require(self.objective.chunks == 1 or self.train.checkpointing == "none", "train.checkpointing",
                 self.train.checkpointing, "objective.chunks has activations computed again; take one")  # fmt: skip


@dataclass
class SupVPRConfig(Stage2Config):
    """SUP-VPR: another stage 2, for cities of which few places are known; see docs/supvpr.md."""

    objective: CityRecognitionConfig  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(not self.data.single_city, "data.single_city", self.data.single_city,
                 "SUP-VPR tells cities apart, and needs several in a batch; set it to false")  # fmt: skip
        augment = self.data.augment
        plain = augment.crop_area == [1.0, 1.0] and augment.rand_augment_ops == 0 and not augment.copies
        remedy = (
            "SUP-VPR's cities are learnt from images as they are: leave crop_area at [1, 1], rand_augment_ops at 0 and "
            "copies off; colour_jitter and blur are the descriptor's alone"
        )
        _require(plain, "data.augment", augment, remedy)


@dataclass
class EvalRunConfig(RunConfig):
    """Evaluation of one model on one protocol."""

    eval: EvalConfig


TrainingConfig = Stage1Config | Stage2Config
