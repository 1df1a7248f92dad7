"""Every setting of a pre-training run, once: documented, typed, checked, printable.

A run is one YAML file plus dotted overrides: `trelm pretrain --config run.yaml --trainer.max_steps 300`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import yaml

from trelm_ds.redact import shown


@dataclass
class ModelConfig:
    """The encoder: a folder to continue from, or the sizes of a fresh one."""

    init_from: str | None = None
    """Hugging Face folder to start from; its config.json then decides all sizes and dropouts below"""
    architecture: Literal["bert", "roberta"] = "bert"
    """family of a fresh encoder"""
    hidden_size: int = 768
    """width of the hidden states, D"""
    num_hidden_layers: int = 12
    """number of layers, L"""
    num_attention_heads: int = 12
    """number of attention heads; must divide hidden_size"""
    intermediate_size: int = 3072
    """F, the width of the feed-forward (key-value memory)"""
    max_position_embeddings: int = 512
    """longest sequence the model can read, in tokens"""
    hidden_dropout_prob: float = 0.1
    """dropout after embeddings, attention output and feed-forward"""
    attention_probs_dropout_prob: float = 0.0
    """dropout on attention probabilities"""
    tensor_parallel: int = 1
    """how many neighbouring ranks share a model, each with its heads, neurons and words; divides the processes of a
    node. For models that ZeRO alone does not fit into GPUs (docs/tensor_parallel.md)"""
    sequence_parallel: bool = False
    """with tensor_parallel: share the tokens between the layers out, too, for layer norms, dropout and residuals; less
    memory for activations. Needs GPUs"""
    activation_checkpointing: bool = False
    """recompute each layer in the backward pass: less memory, about a third more work"""


@dataclass
class MaskingConfig:
    """Masked language modelling: which tokens are predicted and what stands in their place."""

    probability: float | tuple[float, float] = 0.15
    """share of the tokens to predict; or a pair such as [0.3, 0.15]: of the first step and of the last, linear between
    them (Yang et al. 2023)"""
    mask_share: float = 0.8
    """share of those shown as the mask token"""
    random_share: float = 0.1
    """share of those shown as a random token; the rest stays as it is"""
    whole_word: bool = True
    """choose whole words instead of word pieces"""


Strategy = Literal["long_tail", "high_frequency", "all", "none"]


@dataclass
class SelectionConfig:
    """Which mentions get knowledge (paper 3.1); `trelm strategies` shows what each choice keeps."""

    strategy: Strategy = "long_tail"
    """entities by their frequency in the corpus (Figure 3); none turns injection, assessing and entity memory off"""
    entity_threshold: int | None = None
    """mentions in the corpus below which an entity is long-tail; default: the corpus mean"""
    importance: Literal["auto", "required", "none"] = "auto"
    """scores of `trelm importance` (Eq. 1): auto uses them where the dataset has them, none goes by frequency alone"""
    quantile: float = 0.5
    """share of the scored long-tail mentions that count as important"""
    max_per_sequence: int = 8
    """maximum number of mentions chosen in a sequence"""


@dataclass
class InjectionConfig:
    """Knowledge injection: what stands in the place of a chosen mention's word embeddings (Eq. 7)."""

    source: str = "encoder"
    """where the vectors of entities and relations come from: docs/knowledge.md describes each source; none leaves the
    mention's own word embeddings in h_e"""
    file: str | None = None
    """for a source that reads one: vectors that a KG-embedding library made (docs/knowledge.md)"""
    projection: Literal["fixed", "fitted", "trained"] = "fixed"
    """how vectors reach the width of word embeddings. fixed: as the source makes them; trained: through a linear map
    that is learned with the model (EasyNLP's know_linear); fitted: for a source that reads a file, through the map that
    brings its entities nearest to the mean word embeddings of their names, fitted anew at every refresh"""
    probability: float = 0.5
    """share of the passes in which a chosen mention or long-tail word follows Eq. 7; 1.0 is the paper's form"""
    weight: float = 1.0
    """weight of h_e where it stands; the rest is the mention's own word embeddings, which then go on learning. 1.0 is
    Eq. 7"""
    places: Literal["all", "text", "queries"] = "all"
    """where h_e stands: in the text and in the queries about it, or in one of the two only"""
    refresh_every: int = 10000
    """steps between recomputations of the vectors with the current model; 0: computed at the start only"""
    max_name_tokens: int = 32
    """maximum tokens of name and description that the encoder reads"""
    placement: Literal["device", "cpu"] = "device"
    """where the vectors live, spread over the ranks"""


@dataclass
class MemoryConfig:
    """The knowledge-augmented memory bank (paper 3.2), spread over the ranks."""

    enabled: bool = True
    """keep local and global memory of chosen entities and long-tail words and mix them into their embeddings"""
    window: int = 16
    """k of Eq. 4: tokens on either side of a mention whose states make its local memory"""
    gamma: float = 0.1
    """discount factor of Eq. 5"""
    global_update: Literal["mean", "ema"] = "mean"
    """Eq. 6 as the mean over all contexts, or a moving average with gamma"""
    initial_lambda: float = 0.5
    """lambda of Eq. 8 at the start: how much of an embedding is memory"""
    beta: float = 2.0
    """what a decay divides lambda by"""
    decay_share: int | None = 5
    """equal parts of the run, between which lambda decays; null: it decays with every epoch, the paper's form"""
    decay_every_steps: int | None = None
    """steps between decays, in place of decay_share"""
    release_fraction: float = 0.1
    """last share of the training with lambda 0, so that the model ends without the bank"""
    match_norm: bool = True
    """bring local and global memory to the mean norm of word embeddings before they are mixed in; false: the paper's
    letter, hidden states several times as long"""
    centre_global: bool = True
    """subtract the mean of all global memories before they are mixed in: [CLS] states are nearly one vector"""
    words: bool = True
    """keep memory of long-tail words too"""
    word_frequency: tuple[int, int] = (100, 500)
    """occurrences in the corpus, lowest and highest, of a long-tail word"""
    word_quantiles: tuple[float, float] | None = None
    """for a small corpus: the band as quantiles of the words' frequencies, in place of word_frequency"""
    placement: Literal["device", "cpu"] = "device"
    """where the bank lives"""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """number format of the bank: rows x hidden_size x 2 tables"""


@dataclass
class CkaConfig:
    """Contrastive knowledge assessing (Eq. 2-3): facts about chosen mentions that the model has to complete."""

    decoder: Literal["query", "product", "mention", "none"] = "query"
    """query: a short document with masks beside the sentence; product: DKPLM's decoder on the mention's states;
    mention: as EasyNLP has DKPLM, the injected mention's own tokens, from its states times the relation"""
    triple: Literal["other", "same"] = "other"
    """other never asks for what is injected; same is the paper's literal reading, where the input holds the answer"""
    mentions: Literal["chosen", "all"] = "chosen"
    """which mentions to ask about: those that selection chooses, or all that have a triple"""
    facts_per_mention: int = 1
    """maximum number of facts asked about a mention in one pass; 1 to 8"""
    negatives: int = 200
    """tokens drawn by frequency^0.75 for each step that compete with the true one; 0: the whole vocabulary"""
    log_q: bool = False
    """correct scores for how often a token is drawn"""
    max_answer_tokens: int = 8
    """facts whose answer has more tokens are not asked"""
    max_token_share: float = 0.08
    """tokens of the queries as a share of a sequence's tokens, on average; about what assessing costs in time"""
    mlm_weight: float = 0.5
    """theta of Eq. 3: weight of the MLM loss; the rest is the assessing loss's"""


@dataclass
class KeplerConfig:
    """KEPLER's objective (Wang et al. 2021): TransE on what the encoder makes of entities' descriptions."""

    weight: float = 0.0
    """weight of the knowledge-embedding loss beside 1 of masked language modelling; 0: off"""
    margin: float = 4.0
    """gamma: true triples are to be closer, corrupted ones farther"""
    norm: Literal[1, 2] = 1
    """p of the distance ||h + r - t||_p"""
    negatives: int = 1
    """corrupted heads, and as many corrupted tails, for each triple"""
    triples_per_sequence: float = 0.25
    """triples of the graph that are drawn for a sequence, on average; each takes 2 + 2 * negatives descriptions.
    Those of entities without a name are left out"""
    max_text_tokens: int = 32
    """tokens of name and description that the encoder reads"""


@dataclass
class RoutingConfig:
    """Dynamic knowledge routing (paper 3.3): only neurons that assessed facts come from are updated."""

    enabled: bool = True
    """find knowledge paths by attribution and restrict the feed-forward layers' updates to them"""
    density: float = 0.1
    """share of each layer's neurons on its path"""
    path: Literal["intermediate", "full"] = "intermediate"
    """intermediate: neurons only; full: their input and output coordinates too (i and k of Eq. 12)"""
    io_density: float = 0.5
    """path full: share of the input and of the output coordinates"""
    top_layers: int | None = None
    """upper layers that have a path; the feed-forward layers below are not updated at all; default: all have one"""
    trainable: Literal["all", "ffn_only"] = "all"
    """all: attention, norms and embeddings are updated as usual; ffn_only: nothing but the paths is,
    and what belongs to objectives alone"""
    quadrature: Literal["gauss3", "right20"] = "gauss3"
    """nodes of the integral: 3 of Gauss-Legendre, or Eq. 11 with m = 20"""
    refresh_every: int = 50
    """steps between updates of the paths; 1 is the paper's form"""
    sample_fraction: float = 0.125
    """share of the sequences whose facts are looked at in such a step; 1.0 is the paper's form"""
    score_ema: float = 0.0
    """weight of earlier scores in a moving average; 0: the newest alone decide"""
    start_step: int = 0
    """steps before the first choice, in which all neurons are updated"""
    compact: bool = False
    """make parameters of the path's neurons alone: gradients, their exchange and optimizer state shrink to its density.
    The others are frozen, with weights and moments in a table over the ranks; before the first choice a fixed set of
    neurons is updated"""
    placement: Literal["device", "cpu"] = "cpu"
    """compact: where that table lives"""


@dataclass
class LoaderConfig:
    """How the dataset is read and in which order."""

    seed: int = 0
    """seed of the order and of the masks; with the epoch it fixes both"""
    window_blocks: int = 16
    """blocks that are shuffled together: memory and mixing grow with it"""
    tail: Literal["wrap", "drop"] = "wrap"
    """end of an epoch: wrap lets a batch span two epochs, drop leaves out the samples after the last whole batch"""
    workers: int = 1
    """processes per rank that read ahead; 0 reads in the training process"""
    max_corrupted: float = 0.001
    """share of the samples that may lie in damaged blocks and be replaced by others; beyond it the run fails"""
    cache_dir: str = "~/.cache/trelm"
    """folder on this machine for datasets read from a URL"""
    cache_gb: float = 100.0
    """size of that cache; the shards least recently read are removed beyond it"""


@dataclass
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 1e-4
    """peak learning rate"""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates"""
    eps: float = 1e-6
    """AdamW's epsilon"""
    weight_decay: float = 0.01
    """decoupled weight decay; biases and LayerNorm are left out"""
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """shape of the decay to 0 after the warm-up. wsd (warm-up, stable, decay) stays at the peak until decay_steps
    before the end, so one stable phase can be continued into runs of several lengths (docs/checkpoints.md)"""
    warmup_steps: int = 1000
    """steps of linear warm-up"""
    decay_steps: int | None = None
    """schedule wsd: last steps of the run, over which the learning rate falls to 0 by 1 - sqrt (Hägele et al. 2024);
    0: none, the stable phase alone; default: the last 10%, or what the warm-up leaves"""
    max_grad_norm: float = 1.0
    """gradient clipping; 0 turns it off"""


@dataclass
class TrainerConfig:
    """Steps, batches, precision, checkpoints."""

    max_steps: int = 10000
    """optimizer steps in the whole run"""
    global_batch_size: int = 256
    """sequences per optimizer step over all ranks"""
    micro_batch_tokens: int = 16384
    """maximum tokens per forward pass and rank; at least the dataset's max_length; accumulation follows from it"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """number format of forward, backward and (DeepSpeed's default) gradient sums; the optimizer keeps fp32 weights;
    a GPU for bf16 has compute capability 8.0 or newer"""
    compile: bool = False
    """compile the encoder's layers (torch.compile, Inductor): the first passes take minutes; meant to make the others
    faster, not yet measured on a GPU (docs/speed.md)"""
    ds_config: str = "ds_configs/zero1.json"
    """DeepSpeed file; its "auto" values are filled from this configuration"""
    seed: int = 0
    """seed of the initial weights and of dropout"""
    log_every: int = 10
    """steps between log points (progress bar, MLflow)"""
    eval_every: int = 0
    """steps between evaluations on the text of `trelm prepare --held-out`, a multiple of log_every, and one at the end;
    0: never"""
    eval_sequences: int = 1024
    """sequences of that text, always the same ones; all where it has fewer"""
    profile_steps: str | None = None
    """steps to record with torch's profiler, in RUN/profile and MLflow: 10:13 records 10, 11 and 12, counted from 1; in
    a file put it in quotes (docs/speed.md)"""
    checkpoint_every: int = 1000
    """steps between checkpoints; one is always written at the end and when the run is stopped"""
    max_minutes: float | None = None
    """stop after this time, with a checkpoint and exit code 75; the same command continues"""
    async_checkpoints: bool = True
    """write checkpoints on a thread while the next step computes its gradients; false: training waits for the disk"""
    keep_checkpoints: int = 2
    """number of newest checkpoints to keep, at least 2"""
    keep_every: int | None = None
    """also keep the checkpoints at multiples of this step, for good"""
    resume: str = "auto"
    """auto: continue RUN's last checkpoint; never: refuse to start where one exists; else a checkpoint to start from"""


@dataclass
class GuardsConfig:
    """When to skip a step, and when to end the run."""

    spike_sigma: float = 0.0
    """skip a step whose loss is this many standard deviations above the mean of the last spike_window; 0: never"""
    spike_window: int = 100
    """steps taken that a loss is compared with"""
    max_skipped: int = 10
    """steps of the last 1,000 that may be skipped, for this or because loss or gradient is not finite"""
    hang_minutes: float = 20.0
    """end a run that has made no progress for this long, with the stacks of all ranks in RUN/stacks; 0: never"""


@dataclass
class TrackingConfig:
    """MLflow."""

    enabled: bool = True
    """log parameters, metrics and artifacts to MLflow (rank 0 only)"""
    uri: str | None = None
    """tracking store; default: MLFLOW_TRACKING_URI, else a sqlite file mlflow.db beside the run folder"""
    experiment: str = "trelm"
    """experiment in which a run begins; one that MLflow has stays where it is"""
    run_name: str | None = None
    """default: the run folder's name"""
    system_metrics_every_s: float = 10.0
    """seconds between samples of each node's CPU, memory, disk, network and GPUs; 0: none"""


@dataclass
class Config:
    """One pre-training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    cka: CkaConfig = field(default_factory=CkaConfig)
    kepler: KeplerConfig = field(default_factory=KeplerConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def has_knowledge(self) -> bool:
        """Whether the run has knowledge at all: chosen mentions, or a memory of words."""
        return self.selection.strategy != "none" or (self.memory.enabled and self.memory.words)

    @property
    def assesses(self) -> bool:
        """Whether facts about chosen mentions are assessed (Eq. 2)."""
        return self.selection.strategy != "none" and self.cka.decoder != "none"

    @property
    def routes(self) -> bool:
        """Whether knowledge paths restrict the updates (Eq. 12)."""
        return self.routing.enabled and self.assesses


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Collect the leaves of a dataclass tree by dotted name, in order of declaration."""
    leaves: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        leaves |= flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return leaves


def public(config: Config) -> Config:
    """Return the configuration without the password in the tracking address, fit to be written down."""
    uri = config.tracking.uri
    return replace(config, tracking=replace(config.tracking, uri=uri and shown(uri)))


def to_yaml(config: Config) -> str:
    """Serialize the resolved tree as YAML that `--config` reads back."""
    plain = dataclasses.asdict(config)
    for section in plain.values():
        section |= {name: list(value) for name, value in section.items() if isinstance(value, tuple)}
    return yaml.safe_dump(plain, sort_keys=False)
